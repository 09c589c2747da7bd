//! A pod, an outside world, and an agent that captures the pod; all gone when dropped, also after a panic.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, UdpSocket},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc, Once,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use egret::netns::Namespace;

use crate::agent::ENVIRONMENT;

const PREFIX: &str = "egret-t";
/// Ports of the outside world's servers; none of them is the pod's.
const TCP_PORTS: [u16; 4] = [7, 80, 81, 443];
const UDP_PORT: u16 = 53;

pub struct Lab {
    pub instance: String,
    pub pod: String,
    pub outside: String,
    stop: Arc<AtomicBool>,
    servers: Vec<JoinHandle<()>>,
    pub agent: Option<Agent>,
}

impl Lab {
    /// Pod 10.77.0.2, 10.77.0.3, fd77::2; outside 10.77.0.1, fd77::1. The agent captures the pod.
    pub fn new() -> Self {
        let mut lab = Self::without_agent();
        lab.start_agent();
        lab
    }

    pub fn without_agent() -> Self {
        sweep();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!("{PREFIX}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let stop = Arc::new(AtomicBool::new(false));
        let (pod, outside) = (format!("{id}-pod"), format!("{id}-out"));
        let mut lab = Self { instance: id, pod, outside, stop, servers: Vec::new(), agent: None };
        ip(&format!("netns add {}", lab.outside));
        lab.make_pod();
        lab.serve(&lab.outside.clone(), &["10.77.0.1", "fd77::1"]);
        lab
    }

    /// Also after the pod was removed.
    pub fn make_pod(&mut self) {
        let (pod, outside) = (&self.pod, &self.outside);
        ip(&format!("netns add {pod}"));
        for name in [pod, outside] {
            ip(&format!("-n {name} link set lo up"));
        }
        ip(&format!("-n {pod} link add eth0 type veth peer name eth0 netns {outside}"));
        for (name, addresses) in [
            (pod, ["10.77.0.2/24", "10.77.0.3/24", "fd77::2/64"].as_slice()),
            (outside, &["10.77.0.1/24", "fd77::1/64"]),
        ] {
            for address in addresses {
                let nodad = if address.contains(':') { "nodad" } else { "" };
                ip(&format!("-n {name} addr add {address} dev eth0 {nodad}"));
            }
            ip(&format!("-n {name} link set eth0 up"));
            // Fast Open without cookies, for clients and listeners.
            exec(name, &["sysctl", "-qw", "net.ipv4.tcp_fastopen=1543"]);
        }
    }

    /// Its interface first: the agent's sockets keep the namespace alive, and with it whatever is left inside.
    pub fn remove_pod(&self) {
        ip(&format!("-n {} link del eth0", self.outside));
        ip(&format!("netns del {}", self.pod));
    }

    /// Servers that say `outside <client>`, and one that echoes datagrams.
    pub fn serve(&mut self, name: &str, addresses: &[&str]) {
        let namespace = Namespace::open(name).unwrap();
        for address in addresses {
            let at = |port| SocketAddr::new(address.parse().unwrap(), port);
            for port in TCP_PORTS {
                let listener = namespace.run(|| TcpListener::bind(at(port))).unwrap().unwrap();
                self.servers.push(serve_tcp(listener, self.stop.clone()));
            }
            let socket = namespace.run(|| UdpSocket::bind(at(UDP_PORT))).unwrap().unwrap();
            self.servers.push(serve_udp(socket, self.stop.clone()));
        }
    }

    /// All of them, the outside world's too.
    pub fn stop_servers(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for server in self.servers.drain(..) {
            let _ = server.join();
        }
        self.stop.store(false, Ordering::Relaxed);
    }

    pub fn start_agent(&mut self) -> String {
        let mut agent = Agent::start(&self.instance, &self.pod);
        let started = agent.line();
        assert!(started.starts_with("started"), "{started}");
        assert_eq!(agent.line(), "enrolled");
        self.agent = Some(agent);
        started
    }

    pub fn ask(&mut self, command: &str) -> String {
        self.agent.as_mut().unwrap().ask(command)
    }

    /// `kill -9`.
    pub fn kill_agent(&mut self) {
        self.agent.take();
    }

    pub fn exec_in_pod(&self, command: &[&str]) -> String {
        exec(&self.pod, command)
    }

    /// A Python client in the pod: what it prints.
    pub fn client(&self, code: &str) -> String {
        run_client(&self.pod, code)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.agent.take();
        self.stop_servers();
        for name in [&self.pod, &self.outside] {
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
        if let Err(error) = egret::capture::uninstall(&self.instance) {
            eprintln!("{}: {error}", self.instance);
        }
    }
}

/// Removes what a killed test run left, once for each process.
fn sweep() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let names = |folder: &str| -> Vec<String> {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
            names.filter(|name| is_left_over(name)).collect()
        };
        for name in names("/run/netns") {
            let _ = Command::new("ip").args(["netns", "del", &name]).output();
        }
        for instance in names("/sys/fs/bpf/egret") {
            let _ = egret::capture::uninstall(&instance);
        }
    });
}

fn is_left_over(name: &str) -> bool {
    let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
    process.is_some_and(|process| !std::path::Path::new("/proc").join(process).exists())
}

pub struct Agent {
    child: Child,
    commands: ChildStdin,
    lines: BufReader<ChildStdout>,
}

impl Agent {
    pub fn start(instance: &str, pod: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "agent::agent_process", "--ignored", "--nocapture"])
            .env(ENVIRONMENT, format!("{instance} {pod}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let commands = child.stdin.take().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, commands, lines }
    }

    pub fn line(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(self.lines.read_line(&mut line).unwrap(), 0, "the agent ended");
            // The harness writes "test agent::agent_process ... " without a line's end before the first.
            if let Some((_, text)) = line.split_once('@') {
                return text.trim_end().to_owned();
            }
        }
    }

    fn ask(&mut self, command: &str) -> String {
        writeln!(self.commands, "{command}").unwrap();
        self.line()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve_tcp(listener: TcpListener, stop: Arc<AtomicBool>) -> JoinHandle<()> {
    listener.set_nonblocking(true).unwrap();
    thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((mut stream, peer)) => {
                    let _ = stream.write_all(format!("outside {peer}").as_bytes());
                    let _ = stream.shutdown(std::net::Shutdown::Write);
                    let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
                    let _ = stream.read(&mut [0; 64]);
                }
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        }
    })
}

fn serve_udp(socket: UdpSocket, stop: Arc<AtomicBool>) -> JoinHandle<()> {
    socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while !stop.load(Ordering::Relaxed) {
            if let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&buffer[..length], peer);
            }
        }
    })
}

const PRELUDE: &str = r#"
import socket, sys, errno, select, time, ctypes, struct, threading
V4, V6 = "10.77.0.1", "fd77::1"
def everything(s):
    s.settimeout(5)
    data = b""
    while True:
        piece = s.recv(4096)
        if not piece: return data.decode()
        data += piece
def dial(address, port=80, family=socket.AF_INET):
    s = socket.socket(family, socket.SOCK_STREAM)
    s.settimeout(5)
    s.connect((address, port))
    return s
"#;

/// A Python client in a namespace: what it prints, or `errno NAME` where a system call failed.
pub fn run_client(namespace: &str, code: &str) -> String {
    let body: String = code.trim().lines().map(|line| format!("    {}\n", line)).collect();
    let program =
        format!("{PRELUDE}\ntry:\n{body}except OSError as e:\n    print('errno', errno.errorcode.get(e.errno, e))\n");
    exec(namespace, &["timeout", "20", "python3", "-c", &program])
}

fn exec(namespace: &str, command: &[&str]) -> String {
    let output = Command::new("ip").args(["netns", "exec", namespace]).args(command).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} in {namespace}: {error}");
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}
