//! What went over the wire between the pods and the outside, to prove that something never did.

use std::{path::PathBuf, time::Duration};

use anyhow::Result;

use crate::{netns::Netns, process::Daemon, process::until};

/// A running `tcpdump` on the outside's side of the pods' wires.
pub struct Wire {
    daemon: Daemon,
    file: PathBuf,
    marks: u32,
}

impl Wire {
    pub(crate) fn tap(outside: &Netns, dir: &std::path::Path, bridge: &str) -> Result<Self> {
        let file = dir.join(format!("wire-{}.pcap", std::process::id()));
        let mut command = outside.command("tcpdump");
        command.args(["-i", bridge, "-s", "0", "-n", "-U", "--immediate-mode", "-B", "16384", "-Z", "root", "-w"]);
        command.arg(&file);
        let mut daemon = Daemon::start("tcpdump", command, dir)?;
        daemon.wait_for("listening on", Duration::from_secs(10))?;
        Ok(Self { daemon, file, marks: 0 })
    }

    /// True where `needle` stands in any packet so far. A datagram sent from `pod` to `outside` goes first, and is
    /// waited for: what was on the wire before it has then been seen too.
    pub fn saw(&mut self, pod: &Netns, outside: std::net::IpAddr, needle: &str) -> Result<bool> {
        self.marks += 1;
        let mark = format!("end-of-tape-{}", self.marks);
        let payload = mark.clone();
        pod.inside(move || {
            let socket = std::net::UdpSocket::bind(("0.0.0.0", 0))?;
            socket.send_to(payload.as_bytes(), (outside, 9))
        })?;
        let file = self.file.clone();
        let tape = until("the capture to come to its mark", Duration::from_secs(5), || {
            std::fs::read(&file).ok().filter(|tape| contains(tape, mark.as_bytes()))
        })?;
        Ok(contains(&tape, needle.as_bytes()))
    }

    pub fn stop(&mut self) {
        self.daemon.stop();
    }
}

fn contains(tape: &[u8], needle: &[u8]) -> bool {
    // memmem would do; a capture of a test is some kilobytes.
    tape.windows(needle.len()).any(|window| window == needle)
}
