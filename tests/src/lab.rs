//! The lab itself: one outside, its pods, and the configuration folder of the agent.

use std::{
    ffi::OsStr,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::{
        Mutex, Once,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::{
    netns::{self, Netns},
    outside::{self, Hit, Outside, names},
    pki::Pki,
    pod::Pod,
    process::{Daemon, run, until},
    wire::Wire,
};

/// Namespaces and folders of labs are `<PREFIX>-<pid>-<number>…`.
const PREFIX: &str = "egt";

static COUNTER: AtomicU32 = AtomicU32::new(0);
static SWEPT: Once = Once::new();

/// See the crate's documentation. Drop the agents and pods of a lab before the lab.
pub struct Lab {
    // In the order in which they must go.
    outside_servers: Mutex<Outside>,
    outside: Netns,
    pub pki: Pki,
    id: String,
    pods: AtomicU32,
    /// Those that are free of the numbers that pods of nodes have: their addresses are used again at once.
    #[cfg(feature = "kube")]
    pub(crate) numbers: Mutex<Vec<u32>>,
    dir: tempfile::TempDir,
}

/// The numbers of pods that nodes give to theirs.
#[cfg(feature = "kube")]
const NODE_NUMBERS: std::ops::Range<u32> = 100..240;

impl Lab {
    /// An outside with its servers running, and no pod yet.
    pub fn new() -> Result<Self> {
        let id = fresh_id();
        let dir = tempfile::Builder::new().prefix(&format!("{id}-")).tempdir()?;
        let outside = Netns::new(&format!("{id}-out"))?;
        Outside::lay(&outside)?;
        let pki = Pki::new(&dir.path().join("pki"))?;
        let outside_servers = Mutex::new(Outside::start(&outside, &pki, dir.path())?);
        std::fs::create_dir(dir.path().join("config"))?;
        Ok(Self {
            outside_servers,
            outside,
            pki,
            id,
            pods: AtomicU32::new(0),
            #[cfg(feature = "kube")]
            numbers: Mutex::new(NODE_NUMBERS.rev().collect()),
            dir,
        })
    }

    /// Everything of the lab that is a file.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The folder that an agent of this lab is started on.
    #[must_use]
    pub fn config_dir(&self) -> PathBuf {
        self.dir.path().join("config")
    }

    /// Puts a file of the configuration in place as editors do: whole, by a rename.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let next = self.dir.path().join(format!("{name}.next"));
        std::fs::write(&next, text)?;
        Ok(std::fs::rename(next, self.config_dir().join(name))?)
    }

    /// Puts files of `config/examples` into the agent's folder, each pod's namespace being the lab's of the same name. An
    /// example is quiet under `egret check`, together with what is in the folder already.
    pub fn ship(&self, files: &[&str], pods: &[&Pod]) -> Result<()> {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/examples");
        for file in files {
            let mut text = std::fs::read_to_string(examples.join(file))?;
            for pod in pods {
                let to = format!("egret.dev/netns: {}\n", pod.netns.name());
                text = text.replace(&format!("egret.dev/netns: {}\n", pod.name), &to);
            }
            self.write(&file.replace('/', "-"), &text)?;
        }
        let (code, said, found) = crate::egret(&["check", &self.config_dir().to_string_lossy()])?;
        ensure!(code == 0 && said.is_empty(), "an example is quiet: {said}{found}");
        Ok(())
    }

    /// Takes a file of the configuration away.
    pub fn remove(&self, name: &str) -> Result<()> {
        Ok(std::fs::remove_file(self.config_dir().join(name))?)
    }

    /// A new pod, wired to the outside, with addresses of both families. Once dropped, it can be made again.
    pub fn pod(&self, name: &str) -> Result<Pod> {
        let number = self.pods.fetch_add(1, Ordering::Relaxed) + 1;
        self.pod_in(name, &format!("{}-{name}", self.id), number)
    }

    /// The same with the number that decides its addresses and its wire, which nobody else may have at this time.
    #[cfg(feature = "kube")]
    pub(crate) fn pod_numbered(&self, name: &str, number: u32) -> Result<Pod> {
        self.pod_in(name, &format!("{}-{name}", self.id), number)
    }

    /// Takes the wire of a pod away, so that its number is free at once.
    #[cfg(feature = "kube")]
    pub(crate) fn unwire(&self, number: u32) -> Result<()> {
        self.outside.batch(&format!("link del veth{number}\n"))
    }

    /// A pod whose namespace bears exactly this name, as an example's Pod document has it.
    pub fn pod_named(&self, name: &str) -> Result<Pod> {
        ensure!(
            !Path::new("/run/netns").join(name).exists(),
            "there is a network namespace {name} already; `ip netns del {name}` removes it"
        );
        // Its name does not tell whose it is: a later sweep learns it here.
        std::fs::write(self.dir.path().join(format!("{name}.netns")), "")?;
        let number = self.pods.fetch_add(1, Ordering::Relaxed) + 1;
        self.pod_in(name, name, number)
    }

    fn pod_in(&self, name: &str, netns_name: &str, number: u32) -> Result<Pod> {
        let etc = Path::new("/etc/netns").join(netns_name);
        std::fs::create_dir_all(&etc)?;
        std::fs::write(etc.join("resolv.conf"), format!("nameserver {}\noptions timeout:1\n", names::ROUTER))?;
        let netns = Netns::new(netns_name)?;
        let (v4, v6) =
            (Ipv4Addr::from(0x0a60_0009 + number), Ipv6Addr::from((0xfd00_0096_u128 << 96) + u128::from(number + 9)));
        self.outside.batch(&format!(
            "link add veth{number} type veth peer name eth0 netns {netns_name}\n\
             link set veth{number} master {} up\n",
            outside::BRIDGE
        ))?;
        netns.batch(&format!(
            "link set eth0 up\naddress add {v4}/24 dev eth0\naddress add {v6}/64 dev eth0 nodad\n\
             route add default via {}\nroute add default via {} dev eth0\n",
            names::ROUTER,
            names::ROUTER6
        ))?;
        Ok(Pod { name: name.to_owned(), netns, v4, v6 })
    }

    /// The outside's namespace.
    #[must_use]
    pub fn outside(&self) -> &Netns {
        &self.outside
    }

    /// Starts to record the wire.
    pub fn tap(&self) -> Result<Wire> {
        Wire::tap(&self.outside, self.dir.path(), outside::BRIDGE)
    }

    /// All that nginx has logged.
    #[must_use]
    pub fn hits(&self) -> Vec<Hit> {
        outside::hits(self.dir.path())
    }

    /// The first request in nginx's log whose request line holds `text`; nginx logs a moment after it answered.
    pub fn hit(&self, text: &str) -> Result<Hit> {
        until(&format!("a request with {text:?} in nginx's log"), Duration::from_secs(3), || {
            self.hits().into_iter().find(|hit| hit.request.contains(text))
        })
    }

    /// Ends the web server, as an upstream that goes down.
    pub fn stop_nginx(&self) {
        if let Ok(mut servers) = self.outside_servers.lock() {
            servers.stop_nginx();
        }
    }

    /// Starts it again.
    pub fn start_nginx(&self) -> Result<()> {
        match self.outside_servers.lock() {
            Ok(mut servers) => servers.start_nginx(&self.outside, self.dir.path()),
            Err(_) => bail!("another thread of this test has failed"),
        }
    }

    /// Instances of one service in the outside, `(name, address:port)` each, on an address of [`crate::names`]; what they
    /// do on which path is said in `backends.py`.
    pub fn backends(&self, instances: &[(&str, &str)]) -> Result<Backends> {
        self.backends_in(&self.outside, instances)
    }

    /// The same inside a pod.
    pub fn backends_in(&self, netns: &Netns, instances: &[(&str, &str)]) -> Result<Backends> {
        let script = self.dir.path().join("backends.py");
        std::fs::write(&script, include_str!("backends.py"))?;
        let log = self.dir.path().join(format!("backends-{}.log", self.pods.fetch_add(1, Ordering::Relaxed)));
        let mut args = vec![script.to_string_lossy().into_owned(), log.to_string_lossy().into_owned()];
        args.extend(instances.iter().map(|(name, address)| format!("{name}={address}")));
        let mut command = netns.command("/usr/bin/python3");
        command.args(args);
        let name = log.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let mut daemon = Daemon::start(&name, command, self.dir.path())?;
        daemon.wait_for("ready", Duration::from_secs(10))?;
        Ok(Backends { _daemon: daemon, log })
    }

    /// Another server in the outside, for a single test; it ends when dropped.
    pub fn serve(&self, name: &str, program: &str, args: &[&str]) -> Result<Daemon> {
        self.serve_in(&self.outside, name, program, args)
    }

    /// A server in any namespace of the lab, a pod's application for one.
    pub fn serve_in(&self, netns: &Netns, name: &str, program: &str, args: &[&str]) -> Result<Daemon> {
        let mut command = netns.command(program);
        command.args(args);
        Daemon::start(name, command, self.dir.path())
    }

    /// httpbin, the web service of Istio's own tasks, at an address of a namespace.
    pub fn httpbin_in(&self, netns: &Netns, address: std::net::SocketAddr) -> Result<Daemon> {
        let (python, host, port) = (crate::python()?, address.ip().to_string(), address.port().to_string());
        let name = format!("httpbin-{}", self.pods.fetch_add(1, Ordering::Relaxed));
        let args = ["-m", "httpbin.core", "--host", &host, "--port", &port];
        let mut httpbin = self.serve_in(netns, &name, &python.to_string_lossy(), &args)?;
        httpbin.wait_for("Running on", Duration::from_secs(20))?;
        Ok(httpbin)
    }

    /// A web server in a pod, on port 443 with a certificate of its own; it tells what TLS it was called with.
    pub fn nginx_in(&self, pod: &Pod, leaf: &str) -> Result<Daemon> {
        let name = format!("nginx-{}", pod.name);
        let dir = self.dir.path().join(&name);
        std::fs::create_dir_all(&dir)?;
        let (path, errors) = (dir.join("nginx.conf"), dir.join("error.log"));
        std::fs::write(&path, outside::nginx_pod_config(&dir, pod.v4, &self.pki.crt(leaf), &self.pki.key(leaf)))?;
        let (prefix, path, errors) = (dir.to_string_lossy(), path.to_string_lossy(), errors.to_string_lossy());
        let daemon = self.serve_in(&pod.netns, &name, "nginx", &["-p", &prefix, "-c", &path, "-e", &errors])?;
        let at = (pod.v4, 443).into();
        until("nginx to listen", Duration::from_secs(5), || pod.netns.connect(at).ok())?;
        Ok(daemon)
    }

    /// A web server on port 9443 of [`names::MTLS`] with the certificate `leaf`, for one client: others than the one with the
    /// certificate `client` of the authority `example.com` get 403. It logs to `external.log`, a line a request: client's
    /// address, subject of its certificate, request, status.
    pub fn choosy_nginx(&self, leaf: &str, client: &str) -> Result<Daemon> {
        let crt = self.pki.crt(client);
        let printed = run("openssl", &["x509", "-in", &crt.to_string_lossy(), "-noout", "-fingerprint", "-sha1"])?;
        let fingerprint = printed.trim().rsplit('=').next().unwrap_or_default().replace(':', "").to_lowercase();
        let (dir, path) = (self.dir.path(), self.dir.path().join("external.conf"));
        std::fs::write(&path, outside::nginx_choosy_config(dir, &self.pki, leaf, &fingerprint))?;
        let errors = dir.join("external-error.log");
        let args = [dir.to_string_lossy(), path.to_string_lossy(), errors.to_string_lossy()];
        let daemon = self.serve("external-nginx", "nginx", &["-p", &args[0], "-c", &args[1], "-e", &args[2]])?;
        let at = format!("{}:9443", names::MTLS).parse()?;
        until("the external nginx to listen", Duration::from_secs(5), || self.outside.connect(at).ok())?;
        Ok(daemon)
    }

    /// Istio's sample "helloworld" in a pod, on port 5000 of its IPv4 address: one page, and 404 for all else.
    pub fn helloworld_in(&self, pod: &Pod) -> Result<Daemon> {
        let root = self.dir.path().join("helloworld");
        std::fs::create_dir_all(&root)?;
        std::fs::write(root.join("hello"), "Hello version: v1\n")?;
        let (bind, root) = (pod.v4.to_string(), root.to_string_lossy().into_owned());
        let args = ["-m", "http.server", "5000", "--bind", &bind, "--directory", &root];
        let served = self.serve_in(&pod.netns, "helloworld", "/usr/bin/python3", &args)?;
        let at = (pod.v4, 5000).into();
        until("helloworld to listen", Duration::from_secs(10), || pod.netns.connect(at).ok())?;
        Ok(served)
    }

    /// The servers of `odd.py` in a pod, on its IPv4 address.
    pub fn odd_in(&self, pod: &Pod) -> Result<Daemon> {
        let path = |path: PathBuf| path.to_string_lossy().into_owned();
        let args =
            [path(self.dir().join("odd.py")), pod.v4.to_string(), path(self.pki.crt("web")), path(self.pki.key("web"))];
        let name = format!("odd-{}", pod.name);
        let mut odd = self.serve_in(&pod.netns, &name, "/usr/bin/python3", &args.each_ref().map(String::as_str))?;
        odd.wait_for("ready", Duration::from_secs(10))?;
        Ok(odd)
    }
}

/// Running instances of a service, see [`Lab::backends`].
pub struct Backends {
    _daemon: Daemon,
    log: PathBuf,
}

impl Backends {
    /// Every request that came, oldest first, as the JSON that `backends.py` writes.
    #[must_use]
    pub fn seen(&self) -> Vec<serde_json::Value> {
        let text = crate::process::read_lossy(&self.log);
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The requests whose path holds `text`.
    #[must_use]
    pub fn with_path(&self, text: &str) -> Vec<serde_json::Value> {
        self.seen().into_iter().filter(|seen| seen["path"].as_str().is_some_and(|path| path.contains(text))).collect()
    }

    /// How many of those each of these instances got.
    #[must_use]
    pub fn shares(&self, path: &str, instances: &[&str]) -> Vec<usize> {
        let seen = self.with_path(path);
        instances.iter().map(|name| seen.iter().filter(|one| one["instance"] == *name).count()).collect()
    }
}

/// The name that all of a new lab begins with, by which a sweep knows whose it is.
pub(crate) fn fresh_id() -> String {
    SWEPT.call_once(sweep);
    format!("{PREFIX}-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// Removes what test processes left that were killed: their agents, their namespaces, their folders.
pub fn sweep() {
    let dead = |name: &str| {
        let mut parts = name.strip_prefix(PREFIX)?.strip_prefix('-')?.split('-');
        let pid = Pid::from_raw(parts.next()?.parse().ok()?)?;
        test_kill_process(pid).is_err().then_some(())
    };
    let entries = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten();
    for entry in entries(&std::env::temp_dir()) {
        let name = entry.file_name();
        if dead(&name.to_string_lossy()).is_none() {
            continue;
        }
        for file in entries(&entry.path()).map(|file| file.path()) {
            match (file.extension().and_then(OsStr::to_str), file.file_stem().and_then(OsStr::to_str)) {
                (Some("pid"), _) => kill_if_ours(&file, &entry.path()),
                (Some("netns"), Some(name)) => netns::remove(name),
                _ => {}
            }
        }
        for state in entries(&entry.path()).filter(|state| state.file_name().to_string_lossy().starts_with("state")) {
            crate::agent::uninstall(&state.path());
        }
        let _ = std::fs::remove_dir_all(entry.path());
    }
    for entry in entries(Path::new("/run/netns")) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if dead(&name).is_some() {
            netns::remove(&name);
        }
    }
    #[cfg(feature = "kube")]
    crate::kube::cgroups::sweep(|name| dead(name).is_some());
}

/// Kills the process of a pid file, where its command line still names the lab's folder.
fn kill_if_ours(pid_file: &Path, lab: &Path) {
    let Some(pid) = std::fs::read_to_string(pid_file).ok().and_then(|text| text.trim().parse().ok()) else { return };
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    if String::from_utf8_lossy(&line).contains(&*lab.to_string_lossy())
        && let Some(pid) = Pid::from_raw(pid)
    {
        let _ = kill_process(pid, Signal::KILL);
    }
}
