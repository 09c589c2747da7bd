//! Named network namespaces, as `ip netns` keeps them.

use std::{
    fs::File,
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    path::PathBuf,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::{run, run_in};

/// How long a connection attempt of a test may take.
const CONNECT_TIME: Duration = Duration::from_secs(5);

/// A namespace under /run/netns; removed, with /etc/netns/NAME, when dropped.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    pub fn new(name: &str) -> Result<Self> {
        run("ip", &["netns", "add", name]).context("cannot make a network namespace; are you root?")?;
        let made = Self { name: name.to_owned() };
        made.batch("link set lo up")?;
        Ok(made)
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that runs inside, with the namespace's own resolv.conf.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Runs lines of `ip -batch` inside, all with one process.
    pub fn batch(&self, lines: &str) -> Result<()> {
        let mut command = Command::new("ip");
        command.args(["-netns", &self.name, "-batch", "-"]);
        let output = run_in(command, lines.as_bytes())?;
        anyhow::ensure!(
            output.status.success(),
            "ip -batch in {}: {}\n{lines}",
            self.name,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// Runs `make` on a thread inside the namespace. A socket keeps the namespace it was born in, so what is handed
    /// back works from any thread.
    pub fn inside<T: Send + 'static>(&self, make: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
        let path = PathBuf::from("/run/netns").join(&self.name);
        let worker = std::thread::spawn(move || {
            let namespace = File::open(&path)?;
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            make()
        });
        worker.join().unwrap_or_else(|_| Err(io::Error::other("the thread inside the namespace panicked")))
    }

    /// Connects from inside, with read and write bounded to 10 s.
    pub fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let stream = self.inside(move || TcpStream::connect_timeout(&to, CONNECT_TIME))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.set_write_timeout(Some(Duration::from_secs(10)))?;
        Ok(stream)
    }

    /// Listens inside.
    pub fn listen(&self, on: SocketAddr) -> io::Result<TcpListener> {
        self.inside(move || TcpListener::bind(on))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Removes a namespace, the processes inside, and what /etc/netns holds for it.
pub(crate) fn remove(name: &str) {
    for pid in run("ip", &["netns", "pids", name]).unwrap_or_default().split_whitespace() {
        if let Some(pid) = pid.parse().ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    let _ = run("ip", &["netns", "del", name]);
    let _ = std::fs::remove_dir_all(PathBuf::from("/etc/netns").join(name));
}
