//! The outside: a real DNS server and real web servers, on addresses that exist in their namespace only.

use std::{net::IpAddr, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result};

use crate::{
    netns::Netns,
    pki::Pki,
    process::{Daemon, read_lossy, run_in, until},
};

/// Addresses of the outside, and the names that its DNS server has for them.
pub mod names {
    /// `edition.cnn.com`, `www.lab.test`, `web.lab.test` (IPv6 too): http → 301, https with h2 and HTTP/1.1, h2c on 8081, plain on 8080.
    pub const WEB: &str = "198.51.100.10";
    pub const WEB6: &str = "2001:db8::10";
    /// `my-nginx.mesh-external.svc.cluster.local`: demands a client certificate of the private authority.
    pub const MTLS: &str = "198.51.100.20";
    /// `wrong.lab.test`: a good certificate, for another name.
    pub const WRONG: &str = "198.51.100.30";
    /// `expired.lab.test`
    pub const EXPIRED: &str = "198.51.100.31";
    /// `untrusted.lab.test`: a certificate of the private authority.
    pub const UNTRUSTED: &str = "198.51.100.32";
    /// `tls12.lab.test`: TLS 1.2 only.
    pub const TLS12: &str = "198.51.100.33";
    /// `odd.lab.test`: the servers of `odd.py`.
    pub const ODD: &str = "198.51.100.40";
    /// Nobody answers here, not even with a reset.
    pub const SILENT: &str = "198.51.100.99";
    /// The router, as the pods see it.
    pub const ROUTER: &str = "10.96.0.1";
    pub const ROUTER6: &str = "fd00:96::1";

    pub(super) const RECORDS: &[(&str, &str)] = &[
        ("edition.cnn.com", WEB),
        ("www.lab.test", WEB),
        ("web.lab.test", "198.51.100.10,2001:db8::10"),
        ("six.lab.test", "2001:db8::10"),
        ("my-nginx.mesh-external.svc.cluster.local", MTLS),
        ("wrong.lab.test", WRONG),
        ("expired.lab.test", EXPIRED),
        ("untrusted.lab.test", UNTRUSTED),
        ("tls12.lab.test", TLS12),
        ("odd.lab.test", ODD),
        ("silent.lab.test", SILENT),
    ];
    pub(super) const ADDRESSES: &[&str] = &[WEB, MTLS, WRONG, EXPIRED, UNTRUSTED, TLS12, ODD];
}

/// The bridge that every pod's wire ends at.
pub(crate) const BRIDGE: &str = "br0";

/// One request as nginx saw it.
#[derive(Clone, Debug)]
pub struct Hit {
    /// Address and port of the server.
    pub server: String,
    /// `TLSv1.3`; empty for plain text.
    pub tls: String,
    pub sni: String,
    /// Subject of the client certificate, empty for none.
    pub client_dn: String,
    /// Address of the client.
    pub from: String,
    pub request: String,
    pub host: String,
    pub status: String,
    /// nginx's serial number of the connection.
    pub connection: String,
}

/// The servers, which end when this is dropped.
pub(crate) struct Outside {
    servers: Vec<Daemon>,
}

impl Outside {
    /// Lays the network of `namespace`, whose bridge must exist before pods are wired to it.
    pub fn lay(namespace: &Netns) -> Result<()> {
        // A bridge without an address of its own takes that of a port, and changes it as pods come and go.
        let mut lines = format!(
            "link add {BRIDGE} address 02:00:00:00:00:01 type bridge forward_delay 0\nlink set {BRIDGE} up\n\
             address add {}/24 dev {BRIDGE}\naddress add {}/64 dev {BRIDGE} nodad\n\
             address add {}/128 dev lo nodad\nroute add blackhole {}\n",
            names::ROUTER,
            names::ROUTER6,
            names::WEB6,
            names::SILENT
        );
        for address in names::ADDRESSES {
            lines.push_str(&format!("address add {address}/32 dev lo\n"));
        }
        namespace.batch(&lines)
    }

    /// Starts the servers, and waits until they answer.
    pub fn start(namespace: &Netns, pki: &Pki, dir: &Path) -> Result<Self> {
        let www = dir.join("www");
        std::fs::create_dir_all(&www)?;
        std::fs::write(www.join("index.html"), "<h1>Welcome to nginx!</h1>\n")?;
        std::fs::write(www.join("politics"), "politics page\n")?;
        std::fs::write(www.join("big"), vec![b'x'; 4 << 20])?;
        std::fs::write(dir.join("nginx.conf"), nginx_config(pki, dir))?;
        std::fs::write(dir.join("odd.py"), include_str!("odd.py"))?;

        let mut dns = namespace.command("dnsmasq");
        dns.args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-hosts", "--no-resolv", "--user=root"]);
        dns.args(["--pid-file=", "--bind-interfaces", "--log-facility=-", "--local-ttl=1"]);
        dns.args(["--local=/test/", "--local=/com/", "--local=/local/", "--local=/invalid/"]);
        for address in [names::ROUTER, names::ROUTER6] {
            dns.arg(format!("--listen-address={address}"));
        }
        for (name, addresses) in names::RECORDS {
            dns.arg(format!("--host-record={name},{addresses}"));
        }
        let mut odd = namespace.command("/usr/bin/python3");
        odd.arg(dir.join("odd.py")).args([names::ODD]).arg(pki.crt("web")).arg(pki.key("web"));

        let mut servers =
            vec![Daemon::start("dnsmasq", dns, dir)?, launch_nginx(namespace, dir)?, Daemon::start("odd", odd, dir)?];
        servers[0].wait_for("started, version", Duration::from_secs(5))?;
        servers[2].wait_for("ready", Duration::from_secs(10))?;
        await_nginx(namespace, dir)?;
        Ok(Self { servers })
    }

    pub fn stop_nginx(&mut self) {
        self.servers[1].stop();
    }

    pub fn start_nginx(&mut self, namespace: &Netns, dir: &Path) -> Result<()> {
        self.servers[1] = launch_nginx(namespace, dir)?;
        await_nginx(namespace, dir)
    }
}

fn launch_nginx(namespace: &Netns, dir: &Path) -> Result<Daemon> {
    let mut nginx = namespace.command("nginx");
    nginx.arg("-p").arg(dir).arg("-c").arg(dir.join("nginx.conf")).arg("-e").arg(dir.join("nginx-error.log"));
    Daemon::start("nginx", nginx, dir)
}

fn await_nginx(namespace: &Netns, dir: &Path) -> Result<()> {
    let web = (names::MTLS.parse::<IpAddr>()?, 443).into();
    until("nginx to listen", Duration::from_secs(5), || namespace.connect(web).ok())
        .map(drop)
        .with_context(|| read_lossy(&dir.join("nginx-error.log")))
}

/// The lines of nginx's log, oldest first.
pub(crate) fn hits(dir: &Path) -> Vec<Hit> {
    let log = read_lossy(&dir.join("hits.log"));
    log.lines().filter_map(|line| hit(&mut line.split('\t').map(unset))).collect()
}

/// nginx writes a dash for a variable without a value.
fn unset(field: &str) -> String {
    if field == "-" { String::new() } else { field.to_owned() }
}

fn hit(fields: &mut dyn Iterator<Item = String>) -> Option<Hit> {
    Some(Hit {
        server: fields.next()?,
        tls: fields.next()?,
        sni: fields.next()?,
        client_dn: fields.next()?,
        from: fields.next()?,
        request: fields.next()?,
        host: fields.next()?,
        status: fields.next()?,
        connection: fields.next()?,
    })
}

fn nginx_config(pki: &Pki, dir: &Path) -> String {
    let tls = |address: &str, cert: &str, more: &str| {
        format!(
            "  server {{\n    listen {address}:443 ssl http2;\n    ssl_certificate {};\n    ssl_certificate_key {};\n{more}  }}\n",
            pki.crt(cert).display(),
            pki.key(cert).display()
        )
    };
    let (web, web6) = (names::WEB, names::WEB6);
    let demand = format!(
        "    ssl_verify_client on;\n    ssl_client_certificate {};\n    client_max_body_size 0;\n",
        pki.crt("example.com").display()
    );
    let mut text = format!(
        r#"daemon off;
user root;
worker_processes 1;
pid {dir}/nginx-own.pid;
events {{ worker_connections 1024; }}
http {{
  log_format hit "$server_addr:$server_port\t$ssl_protocol\t$ssl_server_name\t$ssl_client_s_dn\t$remote_addr\t$request\t$http_host\t$status\t$connection";
  access_log {dir}/hits.log hit;
  client_body_temp_path {dir}/tmp-body;
  proxy_temp_path {dir}/tmp-proxy;
  fastcgi_temp_path {dir}/tmp-fastcgi;
  uwsgi_temp_path {dir}/tmp-uwsgi;
  scgi_temp_path {dir}/tmp-scgi;
  root {dir}/www;
  default_type text/plain;
  client_max_body_size 0;
  ssl_protocols TLSv1.2 TLSv1.3;
  server {{
    listen 80 default_server;
    listen [::]:80 default_server;
    return 301 https://$host$request_uri;
  }}
  server {{
    listen {web}:8080;
    location / {{ return 200 "plain $host$request_uri\n"; }}
  }}
  server {{
    listen {web}:8081 http2;
    location / {{ return 200 "h2c $host$request_uri\n"; }}
  }}
"#,
        dir = dir.display()
    );
    let web_more = format!(
        "    listen [{web6}]:443 ssl http2;\n    location = /hello {{ return 200 \"hello from $host over $ssl_protocol $server_protocol\\n\"; }}\n    \
         location /trailers {{ add_trailer grpc-status 0; add_trailer x-end yes; try_files /politics =404; }}\n"
    );
    text.push_str(&tls(web, "web", &web_more));
    text.push_str(&tls(names::MTLS, "my-nginx", &demand));
    text.push_str(&tls(names::WRONG, "other-name", ""));
    text.push_str(&tls(names::EXPIRED, "expired", ""));
    text.push_str(&tls(names::UNTRUSTED, "my-nginx", ""));
    text.push_str(&tls(names::TLS12, "web", "    ssl_protocols TLSv1.2;\n"));
    text.push_str("}\n");
    text
}

/// nginx with one certificate, see [`crate::Lab::nginx_in`].
pub(crate) fn nginx_pod_config(dir: &Path, at: std::net::Ipv4Addr, crt: &Path, key: &Path) -> String {
    let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("  {kind}_temp_path {}/{kind};\n", dir.display()))
        .concat();
    format!(
        "daemon off;\nuser root;\nworker_processes 1;\npid {dir}/nginx.pid;\nevents {{}}\nhttp {{\n  access_log off;\n{temp}  \
         server {{\n    listen {at}:443 ssl;\n    ssl_certificate {crt};\n    ssl_certificate_key {key};\n    \
         location / {{ return 200 \"Welcome to nginx!\\n\"; }}\n    \
         location /told {{ return 200 \"$ssl_protocol $ssl_server_name $host $uri\\n\"; }}\n  }}\n}}\n",
        dir = dir.display(),
        crt = crt.display(),
        key = key.display()
    )
}

/// nginx for clients with one certificate, by its SHA-1 fingerprint; see [`crate::Lab::choosy_nginx`].
pub(crate) fn nginx_choosy_config(dir: &Path, pki: &Pki, leaf: &str, fingerprint: &str) -> String {
    let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("  {kind}_temp_path {}/tmp-external-{kind};\n", dir.display()))
        .concat();
    format!(
        "daemon off;\nuser root;\nworker_processes 1;\npid {dir}/external.pid;\nevents {{}}\nhttp {{\n  \
         log_format seen \"$remote_addr $ssl_client_s_dn $request $status\";\n  access_log {dir}/external.log seen;\n{temp}  \
         server {{\n    listen {at}:9443 ssl;\n    ssl_certificate {crt};\n    ssl_certificate_key {key};\n    \
         ssl_verify_client on;\n    ssl_client_certificate {ca};\n    \
         location / {{\n      if ($ssl_client_fingerprint != {fingerprint}) {{ return 403; }}\n      \
         return 200 \"the page of v1\\n\";\n    }}\n  }}\n}}\n",
        dir = dir.display(),
        at = names::MTLS,
        crt = pki.crt(leaf).display(),
        key = pki.key(leaf).display(),
        ca = pki.crt("example.com").display()
    )
}

/// `openssl s_client` and friends ask through here; bounded like every command.
pub(crate) fn ask(namespace: &Netns, program: &str, args: &[&str], input: &[u8]) -> Result<std::process::Output> {
    let mut command: Command = namespace.command(program);
    command.args(args);
    run_in(command, input)
}
