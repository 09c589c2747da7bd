//! The upstream: one nginx worker that answers with as little work as it can, so that it is not what is measured.

use std::{fs::File, path::Path, time::Duration};

use anyhow::Result;

use super::{
    hosts::{Host, PLAIN, TLS, hosts},
    stage,
};
use crate::{netns::Netns, pki::Pki, process::Daemon};

/// Path of the 1 KiB body.
pub const SMALL: &str = "/1k";
pub const SMALL_BYTES: usize = 1024;
/// Path whose body tells what the server was called with: TLS version, server name, the client certificate's subject.
pub const TOLD: &str = "/told";
/// Path of the 1 GiB body.
pub const BIG: &str = "/big";
/// Path of the 1 KiB body after which the server closes the connection.
pub const CLOSE: &str = "/close";
/// Method path that answers as a gRPC server does: a message, and the status in the trailers.
pub const CALL: &str = "/bench.Bench/Call";
pub const BIG_BYTES: u64 = 1 << 30;

/// For each request of [`CLOSE`] a line: `r` where its connection's TLS session was resumed, else `.`; some bytes late.
const RESUMED: &str = "resumed.log";
/// How late a line may come at most.
const LATE: Duration = Duration::from_millis(1100);

pub fn start(outside: &Netns, pki: &Pki, dir: &Path) -> Result<Daemon> {
    let www = dir.join("www");
    std::fs::create_dir_all(&www)?;
    // A hole: it takes no room on the disk, and is read as fast as the page cache gives it.
    File::create(www.join("big"))?.set_len(BIG_BYTES)?;
    let call = www.join(CALL.trim_start_matches('/'));
    std::fs::create_dir_all(call.parent().unwrap_or(&www))?;
    File::create(call)?;
    let path = dir.join("upstream.conf");
    std::fs::write(&path, config(pki, dir))?;
    let mut command = outside.command("prlimit");
    command.args([&stage::limit(), "nginx", "-p"]).arg(dir).arg("-c").arg(path);
    command.arg("-e").arg(dir.join("upstream-error.log"));
    Daemon::start("upstream", command, dir)
}

/// Runs something that asks for [`CLOSE`]: with what share of its connections the server resumed a TLS session, in percent.
pub fn resumed<T>(dir: &Path, run: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let path = dir.join(RESUMED);
    let before = path.metadata().map_or(0, |meta| meta.len());
    let done = run()?;
    std::thread::sleep(LATE);
    let log = std::fs::read(&path)?;
    let lines = log.get(usize::try_from(before)?..).unwrap_or_default();
    let count = |wanted: u8| lines.iter().filter(|byte| **byte == wanted).count() as f64;
    Ok((done, 100.0 * count(b'r') / (count(b'r') + count(b'.')).max(1.0)))
}

fn config(pki: &Pki, dir: &Path) -> String {
    let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("  {kind}_temp_path {}/up-{kind};\n", dir.display()))
        .concat();
    let servers: String = hosts().iter().map(|host| server(host, pki, dir)).collect();
    // keepalive_requests: nginx would close a connection after 1,000 requests.
    format!(
        "daemon off;\nuser root;\nworker_processes 1;\npid {dir}/upstream-nginx.pid;\n\
         events {{ worker_connections 15000; }}\n\
         http {{\n  access_log off;\n  log_format resumed $ssl_session_reused;\n{temp}  tcp_nodelay on;\n  open_file_cache max=16;\n\
         \x20 keepalive_requests 1000000000;\n  keepalive_timeout 1h;\n  http2_max_concurrent_streams 1024;\n\
         \x20 server_tokens off;\n  default_type text/plain;\n  ssl_protocols TLSv1.3;\n{servers}}}\n",
        dir = dir.display()
    )
}

/// `return` would answer a POST before its message has come, and tell the client so by a late RST_STREAM, which a gRPC server
/// does not do. `mirror` reads the message first; a file may not be POSTed to, and the error for that is the answer.
fn server(host: &Host, pki: &Pki, dir: &Path) -> String {
    let Host { name, address, .. } = host;
    let tickets = if host.resumes { "on" } else { "off" };
    let demand = if host.mutual {
        format!("    ssl_verify_client on;\n    ssl_client_certificate {};\n", pki.crt("ca").display())
    } else {
        String::new()
    };
    let h2 = if host.h2 { " http2" } else { "" };
    format!(
        "  server {{\n    listen {address}:{PLAIN}{h2} backlog=4096;\n    listen {address}:{TLS} ssl{h2} backlog=4096;\n\
         \x20   server_name {name};\n    ssl_certificate {crt};\n    ssl_certificate_key {key};\n\
         \x20   ssl_session_tickets {tickets};\n    ssl_session_cache off;\n{demand}    root {www};\n\
         \x20   location = {SMALL} {{ return 200 \"{body}\"; }}\n\
         \x20   location = {TOLD} {{ return 200 \"$ssl_protocol $ssl_server_name $ssl_client_s_dn;\"; }}\n\
         \x20   location = {CLOSE} {{ keepalive_timeout 0; return 200 \"{body}\";\n\
         \x20     access_log {resumed} resumed buffer=64k flush=1s; }}\n\
         \x20   location = {BIG} {{ }}\n\
         \x20   location = {CALL} {{ mirror /read; error_page 405 =200 @answer; }}\n\
         \x20   location = /read {{ internal; return 204; }}\n\
         \x20   location @answer {{ add_trailer grpc-status 0; default_type application/grpc; return 200 \"{message}\"; }}\n\
         \x20 }}\n",
        crt = pki.crt(host.certificate).display(),
        key = pki.key(host.certificate).display(),
        www = dir.join("www").display(),
        resumed = dir.join(RESUMED).display(),
        body = "x".repeat(SMALL_BYTES),
        // Not really a gRPC frame, whose first five bytes are no text: nobody between the ends looks inside.
        message = "y".repeat(128),
    )
}
