//! nginx: one worker, many kept upstream connections, and its stream module for what passes through.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::Result;

use super::{Log, Running, Setup, configured, redirected, shown};
use crate::bench::{
    hosts::{Host, TLS},
    iptables::{OUTBOUND, PASSTHROUGH},
    stage::{Cpus, Stage},
};

/// Where Debian has it.
const STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

pub fn start<'a>(stage: &'a Stage, setup: &Setup, cpus: Cpus) -> Result<Running<'a>> {
    let room = stage.room("nginx")?;
    let path = room.join("nginx.conf");
    fs::write(&path, config(stage, setup, &room))?;
    let mut command = stage.peer_in_pod("nginx", cpus.proxy);
    command.arg("-p").arg(&room).arg("-c").arg(&path).arg("-e").arg(room.join("error.log"));
    redirected(stage, "nginx", &room, command, true)
}

fn config(stage: &Stage, setup: &Setup, room: &Path) -> String {
    let hosts = configured(setup);
    let room = shown(room);
    let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("  {kind}_temp_path {room}/{kind};\n"))
        .concat();
    let log = match setup.log {
        Log::Off => "  access_log off;\n".to_owned(),
        Log::Text => format!("  access_log {room}/access.log combined buffer=64k flush=1s;\n"),
        Log::Json => format!("  {JSON}\n  access_log {room}/access.log json buffer=64k flush=1s;\n"),
    };
    // A name may be long; nginx wants its tables to be sized by hand.
    let tables = format!("hash_max_size {}; ", (hosts.len() * 4).max(2048));
    let mut text = format!(
        "daemon off;\nload_module {STREAM};\nworker_processes 1;\npid {room}/own.pid;\n\
         error_log {room}/error.log warn;\nevents {{ worker_connections 15000; }}\nhttp {{\n{log}{temp}\
         \x20 server_names_{tables}server_names_hash_bucket_size 128;\n  keepalive_requests 1000000000;\n  keepalive_timeout 1h;\n  \
         http2_max_concurrent_streams 1024;\n  \
         tcp_nodelay on;\n  proxy_http_version 1.1;\n  proxy_set_header Connection \"\";\n  proxy_set_header Host $host;\n  \
         proxy_buffer_size 16k;\n  proxy_buffers {buffers};\n  proxy_busy_buffers_size 64k;\n  proxy_max_temp_file_size 0;\n",
        buffers = if setup.bulk { "32 64k" } else { "16 16k" },
    );
    for kind in ["proxy", "grpc"] {
        let _ = write!(
            text,
            "  {kind}_ssl_server_name on;\n  {kind}_ssl_verify on;\n  {kind}_ssl_verify_depth 3;\n  \
             {kind}_ssl_trusted_certificate {ca};\n  {kind}_ssl_protocols TLSv1.3;\n  {kind}_ssl_session_reuse on;\n",
            ca = shown(&stage.pki.crt("ca"))
        );
    }
    for (number, host) in hosts.iter().enumerate() {
        text.push_str(&server(stage, host, number == 0, setup.h2));
    }
    let _ =
        write!(text, "}}\nstream {{\n  map_{tables}map_hash_bucket_size 128;\n  map $ssl_preread_server_name $to {{\n");
    for host in &hosts {
        let _ = writeln!(text, "    {} {}:{TLS};", host.name, host.address);
    }
    let _ = write!(
        text,
        "  }}\n  server {{\n    listen {PASSTHROUGH} backlog=4096;\n    ssl_preread on;\n    proxy_pass $to;\n    \
         proxy_buffer_size 64k;\n  }}\n}}\n"
    );
    text
}

fn server(stage: &Stage, host: &Host, first: bool, h2: bool) -> String {
    let Host { name, address, .. } = host;
    // What belongs to the port is said with its first server only.
    let listen = match (first, h2) {
        (true, true) => format!("{OUTBOUND} http2 backlog=4096"),
        (true, false) => format!("{OUTBOUND} backlog=4096"),
        (false, _) => OUTBOUND.to_string(),
    };
    let kind = if host.h2 && h2 { "grpc" } else { "proxy" };
    let scheme = if kind == "grpc" { "grpcs" } else { "https" };
    let certificate = if host.mutual {
        let (crt, key) = (shown(&stage.pki.crt("client")), shown(&stage.pki.key("client")));
        format!("      {kind}_ssl_certificate {crt};\n      {kind}_ssl_certificate_key {key};\n")
    } else {
        String::new()
    };
    format!(
        "  upstream {name} {{ server {address}:{TLS}; keepalive 256; keepalive_requests 1000000000; keepalive_timeout 1h; }}\n\
         \x20 server {{\n    listen {listen};\n    server_name {name};\n    location / {{\n      \
         {kind}_pass {scheme}://{name};\n      {kind}_ssl_name {name};\n{certificate}    }}\n  }}\n"
    )
}

/// The fields that Istio's JSON has, as far as nginx knows them.
const JSON: &str = r#"log_format json escape=json '{"start_time":"$time_iso8601","method":"$request_method","path":"$request_uri","protocol":"$server_protocol","response_code":$status,"bytes_sent":$body_bytes_sent,"bytes_received":$request_length,"duration":$request_time,"upstream_service_time":"$upstream_response_time","authority":"$http_host","user_agent":"$http_user_agent","request_id":"$request_id","upstream_host":"$upstream_addr","downstream_remote_address":"$remote_addr:$remote_port"}';"#;
