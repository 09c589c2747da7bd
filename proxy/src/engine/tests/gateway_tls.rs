//! A gateway's TLS servers against real clients: whose certificate they meet, what is asked of them, what passes on
//! untouched, and which requests belong on another connection.

use std::{
    net::SocketAddr,
    process::{Command, Output, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::spawn_blocking,
    time::timeout,
};

use super::{
    gateway::{ID, gateway, tunnel},
    lab::*,
};
use crate::{
    api::{ObjectId, gateway::ServerProtocol},
    engine::{Snapshot, accept::Role, client_hello::tests::OPENSSL},
    limits,
    mesh::{
        Behind, ClientCertificates, DownstreamTls, HostMap, Protocol, RouteTable, ServerTlsSettings, Servers,
        TlsServer, UpstreamTls, VirtualHost,
    },
    telemetry::record::Flag,
    tls::{
        Contexts, UpstreamName,
        tests::lab::{Lab as Certificates, Reader, build},
    },
};

/// A root, `a` and `b` for a host each, `client`; X.509 v1 as the documents make them, and `both` for two hosts.
fn certificates() -> Certificates {
    let lab = Certificates::new();
    lab.root("root", "/O=example Inc./CN=example.com");
    lab.leaf_v3("a", "root", "/CN=a.example", "subjectAltName=DNS:a.example");
    lab.leaf_v1("b", "root", "/CN=b.example/O=another");
    lab.leaf_v3("both", "root", "/CN=c.example", "subjectAltName=DNS:c.example,DNS:a.example,DNS:d.example");
    lab.leaf_v1("client", "root", "/CN=client.example");
    lab
}

/// What each server is called, and how it takes TLS off.
type Served = (&'static str, DownstreamTls);

fn ends(mut settings: ServerTlsSettings) -> DownstreamTls {
    settings.alpn = vec!["h2".into(), "http/1.1".into()];
    DownstreamTls::Terminate(Arc::new(settings))
}

/// A server for each host, whose requests for any host end at `upstream`; where it passes on, all its bytes do.
fn servers(upstream: SocketAddr, all: &[Served]) -> Servers {
    let mut servers = HostMap::default();
    for (host, tls) in all {
        let serves = match tls {
            DownstreamTls::Passthrough => Behind::Tunnel(Some(tunnel(upstream))),
            _ => Behind::Http(routes(host, upstream)),
        };
        let server = TlsServer {
            name: format!("https.443.{host}.gateway.default").into(),
            source: ObjectId::new("Gateway", "default", "gateway"),
            hosts: vec![(*host).to_owned()],
            protocol: ServerProtocol::Https,
            tls: tls.clone(),
            serves,
        };
        servers.insert(host, Arc::new(server));
    }
    Servers::Tls(servers.into())
}

fn routes(host: &str, upstream: SocketAddr) -> Arc<RouteTable> {
    let mut service = cluster("web.example", &[upstream], UpstreamTls::Plain);
    service.protocol = Protocol::Http;
    service.mesh_external = false;
    let mut hosts = HostMap::default();
    hosts.insert(host, Arc::new(VirtualHost::of_cluster(format!("{host}:443"), service.into())));
    Arc::new(RouteTable { name: "https.443".into(), hosts })
}

fn in_force(upstream: SocketAddr, all: &[Served], previous: &Contexts) -> Snapshot {
    let settings = all.iter().filter_map(|(_, tls)| tls.settings().cloned());
    let contexts = Contexts::build(previous, [], settings, &Reader::default());
    snapshot(mesh_of(gateway(servers(upstream, all))), contexts)
}

fn serving(upstream: SocketAddr, all: &[Served]) -> Lab {
    let lab = lab_at(Role::Gateway(ID), gateway(servers(upstream, all)), Contexts::default());
    lab.engine.install(in_force(upstream, all, &Contexts::default()));
    lab
}

/// An upstream that tells the scheme of which it has heard.
async fn scheme() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = hyper::service::service_fn(|request: hyper::Request<hyper::body::Incoming>| async move {
                let heard = request.headers().get("x-forwarded-proto").map(|value| value.as_bytes().to_vec());
                let body = http_body_util::Full::new(Bytes::from(heard.unwrap_or_default()));
                Ok::<_, std::convert::Infallible>(hyper::Response::new(body))
            });
            let serving = async move {
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
            };
            tokio::spawn(serving);
        }
    });
    address
}

/// Runs a client to its end, in the folder of the certificates.
async fn run(of: &Certificates, program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(of.dir.path()).stdin(Stdio::null());
    spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

/// curl's body, status and HTTP version for `https://<host>/x`, or how it ended.
async fn curl(of: &Certificates, to: SocketAddr, host: &str, more: &[&str]) -> Result<String, i32> {
    let (resolved, url) = (format!("{host}:{}:127.0.0.1", to.port()), format!("https://{host}:{}/x", to.port()));
    let mut arguments =
        vec!["-sS", "--max-time", "20", "--noproxy", "*", "--cacert", "root.crt", "--resolve", &resolved];
    arguments.extend(["-w", " %{http_code} %{http_version}"]);
    arguments.extend(more);
    arguments.push(&url);
    let output = run(of, "curl", &arguments).await;
    match output.status.code() {
        Some(0) => Ok(String::from_utf8(output.stdout).unwrap()),
        code => Err(code.unwrap()),
    }
}

/// What `openssl s_client` shows of the handshake, whose input ends at once.
async fn s_client(of: &Certificates, to: SocketAddr, more: &[&str]) -> String {
    let to = to.to_string();
    let output = run(of, "openssl", &[&["s_client", "-connect", &to, "-CAfile", "root.crt"], more].concat()).await;
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[tokio::test]
async fn each_host_has_a_certificate_of_its_own() {
    let of = certificates();
    let lab =
        serving(scheme().await, &[("a.example", ends(of.simple(&["a"]))), ("*.wide.example", ends(of.simple(&["b"])))]);
    assert_eq!(curl(&of, lab.listener, "a.example", &[]).await.unwrap(), "https 200 2");
    let record = lab.record().await;
    assert_eq!((record.requested_server_name.as_deref(), record.downstream_tls), (Some("a.example"), true));
    assert_eq!((record.protocol, record.source_identity), (Some("HTTP/2"), None));
    assert_eq!(curl(&of, lab.listener, "a.example", &["--http1.1"]).await.unwrap(), "https 200 1.1");
    for (name, subject) in
        [("a.example", "CN = a.example"), ("A.Example.", "CN = a.example"), ("x.wide.example", "CN = b.example")]
    {
        let seen = s_client(&of, lab.listener, &["-servername", name]).await;
        assert!(seen.replace("CN=", "CN = ").contains(&format!("subject={subject}")), "{name}: {seen}");
    }
    assert_eq!(curl(&of, lab.listener, "x.wide.example", &["-k"]).await.unwrap(), "https 200 2");
    // A name that no server has gets no handshake.
    lab.recorder.records.lock().clear();
    assert_eq!(curl(&of, lab.listener, "else.example", &[]).await, Err(35));
    assert_eq!(lab.record().await.response_code_details.as_deref(), Some("filter_chain_not_found"));
    assert!(s_client(&of, lab.listener, &["-noservername"]).await.contains("no peer certificate available"));
}

#[tokio::test]
async fn mutual_servers_want_a_certificate_of_their_ca() {
    let of = certificates();
    of.root("strangers", "/CN=strangers");
    of.leaf_v1("stranger", "strangers", "/CN=client.example");
    let mutual = of.mutual("a", "root");
    let ClientCertificates::Required(trust) = mutual.clients.clone() else { panic!() };
    let optional = ServerTlsSettings { clients: ClientCertificates::Optional(trust), ..of.simple(&["both"]) };
    let lab = serving(scheme().await, &[("a.example", ends(mutual)), ("c.example", ends(optional))]);
    for (host, certificate, let_in) in [
        ("a.example", Some("client"), true),
        ("a.example", None, false),
        ("a.example", Some("stranger"), false),
        ("c.example", Some("client"), true),
        ("c.example", None, true),
        ("c.example", Some("stranger"), false),
    ] {
        let arguments: Vec<String> = match certificate {
            Some(name) => {
                ["--cert", &format!("{name}.crt"), "--key", &format!("{name}.key")].map(str::to_owned).to_vec()
            }
            None => Vec::new(),
        };
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        lab.recorder.records.lock().clear();
        let answer = curl(&of, lab.listener, host, &arguments).await;
        if let_in {
            assert_eq!(answer.as_deref(), Ok("https 200 2"), "{host} {certificate:?}");
            // Who shows a certificate of this CA is no workload of the mesh.
            assert_eq!(lab.record().await.source_identity, None);
        } else {
            assert!(matches!(answer, Err(35 | 55 | 56)), "{host} {certificate:?}: {answer:?}");
            assert_eq!(lab.record().await.flags, [Flag::DPE]);
        }
    }
}

#[tokio::test]
async fn what_is_passed_through_meets_the_upstream_itself() {
    let of = certificates();
    let nginx = of.serve("b", &[]);
    let lab =
        serving(nginx.address, &[("b.example", DownstreamTls::Passthrough), ("a.example", ends(of.simple(&["a"])))]);
    let seen = s_client(&of, lab.listener, &["-servername", "b.example"]).await;
    assert!(seen.contains("b.example") && seen.contains("Verify return code: 0"), "{seen}");
    let record = lab.record().await;
    assert_eq!(record.cluster_name(), Some("outbound|80||db.example"));
    assert_eq!((record.requested_server_name.as_deref(), record.downstream_tls), (Some("b.example"), false));
    assert_eq!(record.upstream_host.as_ref().map(ToString::to_string), Some(nginx.address.to_string()));
    assert!(record.bytes_received > 0 && record.bytes_sent > 0);
    lab.recorder.records.lock().clear();
    let mut client = TcpStream::connect(lab.listener).await.unwrap();
    client.write_all(OPENSSL).await.unwrap();
    assert!(is_reset(&mut client).await);
    assert_eq!(lab.record().await.flags, [Flag::NR]);
}

#[tokio::test]
async fn requests_for_another_server_are_misdirected() {
    let of = certificates();
    let all = [
        ("a.example", ends(of.simple(&["a"]))),
        ("b.example", DownstreamTls::Passthrough),
        ("c.example", ends(of.simple(&["both"]))),
    ];
    let lab = serving(scheme().await, &all);
    for (sni, host, version, status) in [
        // Its own name in other words.
        ("a.example", "A.Example.:8443", "--http1.1", "200"),
        // Another server's, be it in the certificate or not.
        ("a.example", "c.example", "--http2", "421"),
        ("c.example", "a.example", "--http2", "421"),
        ("c.example", "a.example", "--http1.1", "421"),
        ("a.example", "b.example", "--http1.1", "421"),
        // Nobody's: in the certificate of this one, and not.
        ("c.example", "d.example", "--http2", "404"),
        ("a.example", "d.example", "--http2", "421"),
        ("a.example", "10.0.0.1", "--http1.1", "421"),
    ] {
        lab.recorder.records.lock().clear();
        let answer = curl(&of, lab.listener, sni, &[version, "-H", &format!("Host: {host}")]).await.unwrap();
        assert!(answer.contains(&format!(" {status} ")), "{sni} {host}: {answer}");
        let details = lab.record().await.response_code_details;
        assert_eq!(details.as_deref() == Some("misdirected_request"), status == "421", "{sni} {host}: {details:?}");
    }
}

/// A hello without a name leads to the server of every name, whose routes may know hosts of which others are the servers.
#[tokio::test]
async fn who_names_nobody_in_the_hello_gets_past_no_other_server() {
    let of = certificates();
    let simple = ends(of.simple(&["both"]));
    let all = [
        ("*", simple.clone()),
        ("a.example", ends(of.mutual("a", "root"))),
        ("b.example", DownstreamTls::Passthrough),
        ("c.example", simple),
    ];
    let lab = serving(scheme().await, &all);
    let mut client = super::mesh_mtls::mesh_client(None, &[]);
    client.enable_sni = false;
    let client = tokio_rustls::TlsConnector::from(Arc::new(client));
    for (host, status) in [
        ("a.example", "421"),
        ("A.example.:443", "421"),
        ("b.example", "421"),
        ("c.example", "200"),
        ("else.example", "200"),
        ("10.0.0.1", "200"),
    ] {
        let tcp = TcpStream::connect(lab.listener).await.unwrap();
        let mut stream = client.connect("c.example".try_into().unwrap(), tcp).await.unwrap();
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{host}: {answer}");
    }
}

/// A connection that was let in without a certificate does not go on where one is asked for by now.
#[tokio::test]
async fn a_server_that_asks_for_more_answers_nobody_that_was_let_in_with_less() {
    let of = certificates();
    let upstream = scheme().await;
    let simple = ends(of.simple(&["a"]));
    let lab = serving(upstream, &[("a.example", simple.clone())]);
    let client = build(&of.trusting("root")).unwrap();
    let tcp = TcpStream::connect(lab.listener).await.unwrap();
    let mut stream = client.connect(UpstreamName { host: Some("a.example") }, tcp).await.unwrap();
    let mut ask = async || {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        // The body of what is served, or the end.
        while !answer.ends_with(b"https") && stream.read_buf(&mut answer).await.unwrap() > 0 {}
        String::from_utf8_lossy(&answer).into_owned()
    };
    assert!(ask().await.starts_with("HTTP/1.1 200 "));
    // Another certificate, and a new host beside it, ask no more of the client.
    let previous = lab.engine.snapshot();
    let renewed = [("a.example", ends(of.simple(&["both"]))), ("c.example", simple)];
    lab.engine.install(in_force(upstream, &renewed, &previous.tls));
    assert!(ask().await.starts_with("HTTP/1.1 200 "));
    lab.engine.install(in_force(upstream, &[("a.example", ends(of.mutual("a", "root")))], &previous.tls));
    let answer = ask().await;
    assert!(answer.starts_with("HTTP/1.1 421 ") && answer.to_lowercase().contains("connection: close"), "{answer}");
    // A new one meets the new demand.
    let refused = curl(&of, lab.listener, "a.example", &[]).await;
    assert!(matches!(refused, Err(35 | 55 | 56)), "{refused:?}");
}

#[tokio::test]
async fn a_server_whose_certificate_is_missing_says_so() {
    let of = certificates();
    let lab = serving(scheme().await, &[("a.example", ends(of.simple(&["none"])))]);
    assert_eq!(curl(&of, lab.listener, "a.example", &[]).await, Err(35));
    let record = lab.record().await;
    assert_eq!(record.flags, [Flag::NR]);
    assert!(record.downstream_transport_failure_reason.unwrap().contains("none.crt"));
}

/// The hello and what follows have one time together.
#[tokio::test]
async fn a_client_that_stalls_is_let_go() {
    let of = certificates();
    let lab = serving(scheme().await, &[("*", ends(of.simple(&["a"])))]);
    let mut client = TcpStream::connect(lab.listener).await.unwrap();
    let begun = Instant::now();
    tokio::time::sleep(Duration::from_secs(3)).await;
    client.write_all(OPENSSL).await.unwrap();
    // What the server says of itself, then the end.
    let end = timeout(2 * limits::HANDSHAKE_TIME, client.read_to_end(&mut Vec::new())).await.unwrap();
    let time = begun.elapsed();
    assert!(time + Duration::from_secs(1) > limits::HANDSHAKE_TIME, "{end:?} after {time:?}");
    assert!(time < limits::HANDSHAKE_TIME + Duration::from_secs(2), "{end:?} after {time:?}");
    let why = lab.record().await.downstream_transport_failure_reason.unwrap();
    assert!(why.contains("in time"), "{why}");
}
