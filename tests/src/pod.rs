//! A pod: a namespace with one wire to the outside, and the clients that run in it.

use std::{net::SocketAddr, process::Output};

use anyhow::{Context, Result};

use crate::{netns::Netns, outside};

/// A client's namespace. Its removal is the lab's business.
pub struct Pod {
    pub name: String,
    pub netns: Netns,
    pub v4: std::net::Ipv4Addr,
    pub v6: std::net::Ipv6Addr,
}

/// What curl said.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Status of the last response, 0 where there was none.
    pub status: u16,
    /// curl's `%{http_version}`: `1.1`, `2`.
    pub version: String,
    pub redirects: u32,
    /// Standard output: the body, and the heads too with `-i`.
    pub body: String,
    pub stderr: String,
    /// curl's exit code: 7 refused, 28 timeout, 35 TLS, 52 empty, 56 reset.
    pub exit: i32,
}

impl Reply {
    /// The arguments with which curl tells what [`Reply::of`] reads.
    pub(crate) const ASKED: [&str; 5] =
        ["-sS", "--max-time", "10", "-w", "\n@@curl@@ %{http_code} %{http_version} %{num_redirects}\n"];

    pub(crate) fn of(output: &Output) -> Result<Self> {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, told) = text.rsplit_once(TRAILER).with_context(|| format!("curl was cut short: {output:?}"))?;
        let mut told = told.split_whitespace();
        Ok(Self {
            status: told.next().unwrap_or_default().parse().unwrap_or(0),
            version: told.next().unwrap_or_default().to_owned(),
            redirects: told.next().unwrap_or_default().parse().unwrap_or(0),
            body: body.to_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            exit: output.status.code().unwrap_or(-1),
        })
    }

    /// The value of a header of the answer to `curl -i`; None where it is absent.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.body.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }
}

const TRAILER: &str = "\n@@curl@@ ";

impl Pod {
    /// `curl -sS --max-time 10 ARGS` inside the pod.
    pub fn curl(&self, args: &[&str]) -> Result<Reply> {
        Reply::of(&self.run("curl", &[&Reply::ASKED[..], args].concat(), b"")?)
    }

    /// A request to `url` on a connection that the pod opens to `address` (with a port, or on that of the URL), whatever the
    /// name in the URL stands for: a name of the mesh needs no DNS record for it.
    pub fn call(&self, address: &str, url: &str, more: &[&str]) -> Result<Reply> {
        let to = if address.parse::<SocketAddr>().is_ok() { format!("::{address}") } else { format!("::{address}:") };
        self.curl(&[&["--connect-to", &to], more, &[url]].concat())
    }

    /// Any program inside the pod.
    pub fn run(&self, program: &str, args: &[&str], input: &[u8]) -> Result<Output> {
        outside::ask(&self.netns, program, args, input)
    }

    /// Sends bytes on a connection of the pod, and reads until the peer ends it or is silent for 3 s. A reset ends the
    /// answer where it came.
    pub fn exchange(&self, to: &str, bytes: &[u8]) -> Result<Vec<u8>> {
        use std::io::Write;
        let mut stream = self.connect(to)?;
        stream.set_read_timeout(Some(std::time::Duration::from_secs(3)))?;
        // A peer that refuses what it reads may close before it has read all.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let mut chunk = [0; 4096];
        while let Ok(count @ 1..) = crate::process::read(&mut stream, &mut chunk) {
            answer.extend_from_slice(&chunk[..count]);
        }
        Ok(answer)
    }

    /// A TCP connection from inside the pod.
    pub fn connect(&self, to: &str) -> Result<std::net::TcpStream> {
        let to: SocketAddr = to.parse().with_context(|| format!("{to} is no address with a port"))?;
        self.netns.connect(to).with_context(|| format!("cannot connect to {to} from pod {}", self.name))
    }

    /// The Pod document that enrols this pod.
    #[must_use]
    pub fn document(&self, labels: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  labels: {{{labels}}}\n  annotations:\n    \
             egret.dev/netns: {netns}\nspec: {{serviceAccountName: {name}}}\n",
            name = self.name,
            netns = self.netns.name()
        )
    }
}
