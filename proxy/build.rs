//! Builds the kernel half for its own target and leaves the object in `OUT_DIR`, where `capture` includes it from.
//!
//! The target needs a toolchain that can build `core`: a nightly with `rust-src`, or Debian's own Rust linked into rustup
//! as `debian`. Which of them is here is found by looking, and where neither is, one sentence says what to run.

use std::{
    env,
    ffi::{OsStr, OsString},
    path::Path,
    process::{Command, ExitCode},
};

/// Set for the second run of this script, which has the environment that the kernel half is built in: its value is the
/// rustup toolchain. (`aya-build` reads the environment, and to change one's own is unsafe.)
const TOOLCHAIN: &str = "EGRET_EBPF_TOOLCHAIN";

/// What the outer build set for its own target and must not reach the inner one.
const STRIP: [&str; 9] = [
    "RUSTFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "RUSTC",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTDOC",
    "CLIPPY_ARGS",
    "CARGO_BUILD_TARGET",
    "CARGO_TARGET_DIR",
];

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    let result = match env::var(TOOLCHAIN) {
        Ok(toolchain) => build(&toolchain),
        Err(_) => choose().and_then(|toolchain| again_with(&toolchain)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // cargo::error shows the sentence alone, without the script's whole output around it.
            println!("cargo::error={error}");
            ExitCode::FAILURE
        }
    }
}

/// The rustup toolchain that can build for the kernel.
fn choose() -> Result<String, String> {
    if !runs("bpf-linker") {
        return Err(
            "the eBPF programs cannot be linked, as bpf-linker is not installed: run `cargo xtask setup`".into()
        );
    }
    ["nightly", "debian"].into_iter().find(|toolchain| has_source(toolchain)).map(str::to_owned).ok_or_else(|| {
        "the eBPF programs cannot be built, as there is neither a nightly toolchain with rust-src nor a rustup toolchain \
         named `debian`: run `cargo xtask setup`"
            .into()
    })
}

fn runs(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

fn has_source(toolchain: &str) -> bool {
    // An absent toolchain must not be fetched by asking for it.
    let output = Command::new("rustup")
        .args(["run", toolchain, "rustc", "--print", "sysroot"])
        .env("RUSTUP_AUTO_INSTALL", "0")
        .env_remove("RUSTC")
        .output();
    let Ok(output) = output else { return false };
    let Ok(sysroot) = String::from_utf8(output.stdout) else { return false };
    output.status.success() && Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml").exists()
}

/// Runs this script again in the environment of the inner build.
fn again_with(toolchain: &str) -> Result<(), String> {
    let myself = env::current_exe().map_err(|error| format!("the build script cannot find itself: {error}"))?;
    let mut command = Command::new(myself);
    command.env(TOOLCHAIN, toolchain);
    for (name, _) in env::vars_os() {
        if STRIP.iter().any(|strip| OsStr::new(strip) == name) || is_profile(&name) {
            command.env_remove(name);
        }
    }
    // Stable compilers build `core` only when told that this is a bootstrap.
    if toolchain != "nightly" {
        command.env("RUSTC_BOOTSTRAP", "1");
    }
    // Cargo's progress would come out as warnings of the agent's build.
    command.env("CARGO_TERM_QUIET", "true");
    // The kernel wants one optimised unit, whatever the agent's release profile says.
    command.env("CARGO_PROFILE_RELEASE_LTO", "off").env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1");
    let status = command.status().map_err(|error| format!("the build script cannot run itself again: {error}"))?;
    status
        .success()
        .then_some(())
        .ok_or_else(|| format!("building the eBPF programs with toolchain `{toolchain}` failed"))
}

fn is_profile(name: &OsString) -> bool {
    name.to_str().is_some_and(|name| name.starts_with("CARGO_PROFILE_"))
}

fn build(toolchain: &str) -> Result<(), String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ebpf");
    let folder = folder.to_str().ok_or("the path of the source tree is not valid UTF-8")?;
    let package = aya_build::Package { name: "egret-ebpf", root_dir: folder, ..Default::default() };
    aya_build::build_ebpf([package], aya_build::Toolchain::Custom(toolchain)).map_err(|error| format!("{error:#}"))
}
