//! HAProxy: one thread, connections to servers shared by all clients.

use std::fs;

use anyhow::Result;

use super::{Log, Running, Setup, configured, redirected, shown};
use crate::bench::{
    hosts::{Host, TLS},
    iptables::{OUTBOUND, PASSTHROUGH},
    stage::{Cpus, Stage},
};

pub fn start<'a>(stage: &'a Stage, setup: &Setup, cpus: Cpus) -> Result<Running<'a>> {
    let room = stage.room("haproxy")?;
    let hosts = configured(setup);
    let map = |kind: &str| hosts.iter().map(|host| format!("{0} {kind}-{0}\n", host.name)).collect::<String>();
    let (http, tls, path) = (room.join("http.map"), room.join("tls.map"), room.join("haproxy.cfg"));
    fs::write(&http, map("http"))?;
    fs::write(&tls, map("tls"))?;
    // Ten thousand idle clients need no upstream: the machine may allow fewer descriptors than two for each.
    let mut text = format!(
        "global\n  nbthread 1\n  maxconn 12000\n  no strict-limits\n{buffers}{log}  ssl-default-server-options ssl-min-ver TLSv1.3\n\
         \x20 ca-base {pki}\n  crt-base {pki}\n\
         defaults\n  timeout connect 10s\n  timeout client 1h\n  timeout server 1h\n  timeout http-keep-alive 1h\n\
         frontend out\n  mode http\n{http_log}  bind :{OUTBOUND} backlog 4096\n  use_backend %[req.hdr(host),field(1,:),lower,map({http})]\n\
         frontend through\n  mode tcp\n{tcp_log}  bind :{PASSTHROUGH} backlog 4096\n  tcp-request inspect-delay 5s\n  \
         tcp-request content accept if {{ req.ssl_hello_type 1 }}\n  \
         use_backend %[req.ssl_sni,lower,map({tls})]\n",
        // Larger ones cost memory for each connection: only where they serve.
        buffers = if setup.bulk { "  tune.bufsize 65536\n" } else { "" },
        log = if setup.log == Log::Off { "" } else { "  log stdout format raw local0 info\n" },
        http_log = match setup.log {
            Log::Off => String::new(),
            Log::Text => "  log global\n  option httplog\n".to_owned(),
            Log::Json => format!("  log global\n  log-format {JSON}\n"),
        },
        tcp_log = if setup.log == Log::Off { "" } else { "  log global\n  option tcplog\n" },
        pki = shown(&stage.dir().join("pki")),
        http = shown(&http),
        tls = shown(&tls),
    );
    text.extend(hosts.iter().map(backends));
    fs::write(&path, text)?;
    let mut command = stage.peer_in_pod("haproxy", cpus.proxy);
    command.arg("-db").arg("-f").arg(&path);
    redirected(stage, "haproxy", &room, command, true)
}

fn backends(host: &Host) -> String {
    let Host { name, address, .. } = host;
    let certificate = if host.mutual { " crt client.pem" } else { "" };
    let alpn = if host.h2 { "h2" } else { "http/1.1" };
    format!(
        "backend http-{name}\n  mode http\n  http-reuse always\n  server one {address}:{TLS} ssl verify required ca-file ca.crt \
         sni str({name}) verifyhost {name} alpn {alpn}{certificate} pool-max-conn -1 pool-purge-delay 1h\n\
         backend tls-{name}\n  mode tcp\n  server one {address}:{TLS}\n"
    )
}

/// The fields of HAProxy's own text format that Istio's JSON has too.
const JSON: &str = r#""{\"start_time\":\"%t\",\"method\":\"%HM\",\"path\":\"%HP\",\"protocol\":\"%HV\",\"response_code\":%ST,\"bytes_sent\":%B,\"bytes_received\":%U,\"duration\":%Ta,\"upstream_cluster\":\"%b\",\"upstream_host\":\"%si:%sp\",\"downstream_remote_address\":\"%ci:%cp\",\"response_flags\":\"%tsc\"}""#;
