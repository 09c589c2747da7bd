//! Istio's redirect rules in the pod's namespace, as istio-iptables writes them for what leaves a pod.

use std::process::Command;

use anyhow::{Result, ensure};

use super::stage::{PROXY_USER, Stage};
use crate::process::run_in;

/// Where Istio's proxies take what leaves the pod.
pub const OUTBOUND: u16 = 15_001;
/// Where peers that cannot tell TLS from HTTP on one port take port 443.
pub const PASSTHROUGH: u16 = 15_443;

/// The rules while this lives.
pub struct Redirect<'a> {
    stage: &'a Stage,
}

impl<'a> Redirect<'a> {
    /// Redirects every outbound connection to [`OUTBOUND`]; with `apart`, those to port 443 to [`PASSTHROUGH`].
    pub fn new(stage: &'a Stage, apart: bool) -> Result<Self> {
        restore(stage, &rules(apart))?;
        Ok(Self { stage })
    }

    /// Redirects every outbound connection to [`OUTBOUND`] by one rule, after so many others that do not fit, as a node with
    /// many Services has them.
    pub fn among(stage: &'a Stage, others: u32) -> Result<Self> {
        let rule = |to: &str| format!("-A OUTPUT -p tcp {to}--dport 80 -j REDIRECT --to-ports {OUTBOUND}\n");
        // 198.18.0.0/15 is for benchmarks, and nobody's.
        let others: String = (0..others)
            .map(|number| rule(&format!("-d {}/32 ", std::net::Ipv4Addr::from(0xc612_0000 + number))))
            .collect();
        restore(stage, &format!("*nat\n{others}{}COMMIT\n", rule("")))?;
        Ok(Self { stage })
    }
}

impl Drop for Redirect<'_> {
    fn drop(&mut self) {
        // An empty table has no chain in the kernel (iptables-nft), so that connection tracking, which costs each packet,
        // ends with the rules, too.
        let empty = "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n";
        if let Err(error) = restore(self.stage, empty) {
            eprintln!("{error:#}");
        }
    }
}

fn rules(apart: bool) -> String {
    let special = if apart {
        format!("-A ISTIO_REDIRECT -p tcp --dport 443 -j REDIRECT --to-ports {PASSTHROUGH}\n")
    } else {
        String::new()
    };
    // ISTIO_IN_REDIRECT is for connections of the proxy to its own pod, which no workload makes.
    format!(
        "*nat\n:ISTIO_REDIRECT - [0:0]\n:ISTIO_IN_REDIRECT - [0:0]\n:ISTIO_OUTPUT - [0:0]\n\
         {special}-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports {OUTBOUND}\n\
         -A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006\n\
         -A OUTPUT -j ISTIO_OUTPUT\n\
         -A ISTIO_OUTPUT -s 127.0.0.6/32 -o lo -j RETURN\n\
         -A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -p tcp ! --dport 15008 -m owner --uid-owner {PROXY_USER} -j ISTIO_IN_REDIRECT\n\
         -A ISTIO_OUTPUT -o lo -m owner ! --uid-owner {PROXY_USER} -j RETURN\n\
         -A ISTIO_OUTPUT -m owner --uid-owner {PROXY_USER} -j RETURN\n\
         -A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -p tcp ! --dport 15008 -m owner --gid-owner {PROXY_USER} -j ISTIO_IN_REDIRECT\n\
         -A ISTIO_OUTPUT -o lo -m owner ! --gid-owner {PROXY_USER} -j RETURN\n\
         -A ISTIO_OUTPUT -m owner --gid-owner {PROXY_USER} -j RETURN\n\
         -A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN\n\
         -A ISTIO_OUTPUT -j ISTIO_REDIRECT\nCOMMIT\n"
    )
}

fn restore(stage: &Stage, rules: &str) -> Result<()> {
    let command: Command = stage.pod.command("iptables-restore");
    let output = run_in(command, rules.as_bytes())?;
    ensure!(output.status.success(), "iptables-restore: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
