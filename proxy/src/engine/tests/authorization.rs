//! What AuthorizationPolicies forbid, at each place: 403 for a request, the end for a connection, and nothing of either
//! gets further.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{
    gateway::{ID, REQUEST, gateway, hello, routes, server, tunnel},
    inbound::{declared, inbound, receiving},
    lab::*,
};
use crate::{
    api::Objects,
    engine::{accept::Role, client_hello::tests::OPENSSL},
    mesh::{
        Behind, Cluster, DownstreamTls, GatewayTable, InboundTable, MtlsMode, Outbound, Policies, Protocol, Servers,
        TlsServer, UpstreamTls, VirtualHost, Workload, compile,
    },
    source::documents::parse_file,
    telemetry::record::Record,
    tls::Contexts,
};

/// What a policy of this spec comes to.
pub fn policies(spec: &str) -> Arc<Policies> {
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: sleep, annotations: {{egret.dev/netns: x}}}}\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p}}\nspec: {spec}\n"
    );
    let parsed = parse_file(Arc::from(Path::new("test.yaml")), &text);
    assert!(parsed.refused.is_empty(), "{:?}", parsed.refused);
    let mut objects = Objects::default();
    parsed.objects.into_iter().for_each(|object| objects.insert(object));
    let mesh = compile(&objects, &Default::default());
    let workload = mesh.workloads.values().next().expect("the pod");
    workload.inbound.as_ref().expect("no gateway").policies.clone()
}

const RULE: &str = "rbac_access_denied_matched_policy[ns[default]-policy[p]-rule[0]]";
const NONE: &str = "rbac_access_denied_matched_policy[none]";
/// DENY what asks for this path, in whatever spelling.
const PRIVATE: &str = "{action: DENY, rules: [{to: [{operation: {paths: ['/private*'], ports: ['80', '8080']}}]}]}";
/// ALLOW those who bear the identity of the lab's own pod.
const OWN: &str = "{rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/default]}}]}]}";
const OTHER: &str = "{rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/other]}}]}]}";

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n").into_bytes()
}

async fn ask(lab: &Lab, at: SocketAddr, request: &[u8]) -> String {
    String::from_utf8(exchange(&mut lab.connect(at).await, request).await.unwrap()).unwrap()
}

fn denied(answer: &str) -> bool {
    answer.starts_with("HTTP/1.1 403 ")
        && answer.contains("content-type: text/plain\r\n")
        && answer.ends_with("\r\n\r\nRBAC: access denied")
}

async fn next_record(lab: &Lab) -> Record {
    let record = lab.record().await;
    lab.recorder.records.lock().clear();
    record
}

/// The end, or a reset; and nothing before it.
async fn closed(stream: &mut TcpStream) {
    let mut all = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut all)).await;
    let _ = ended.expect("closed at once");
    assert!(all.is_empty(), "{}", all.escape_ascii());
}

/// A listener that nobody may get to.
async fn untouched() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn nobody_came(listener: &TcpListener) -> bool {
    tokio::time::timeout(Duration::from_millis(100), listener.accept()).await.is_err()
}

fn http_to(cluster: Cluster) -> Outbound {
    let cluster = Arc::new(Cluster { protocol: Protocol::Http, ..cluster });
    let mut outbound = Outbound::default();
    let host = VirtualHost::of_cluster("a.example:80".into(), cluster);
    outbound.ports.entry(80).or_default().http.insert("a.example", Arc::new(host));
    outbound
}

fn about(upstream: SocketAddr, spec: &str) -> Cluster {
    Cluster { policies: Some(policies(spec)), ..cluster("a.example", &[upstream], UpstreamTls::Plain) }
}

#[tokio::test]
async fn a_request_for_a_service_by_the_pods_own_identity() {
    let original = dst("192.0.2.1:80");
    let lab = lab(http_to(about(hello().await, OWN)));
    let answer = ask(&lab, original, REQUEST).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(next_record(&lab).await.response_code, 200);
    let (listener, address) = untouched().await;
    let lab = self::lab(http_to(about(address, OTHER)));
    let answer = ask(&lab, original, REQUEST).await;
    assert!(denied(&answer), "{answer}");
    let record = lab.record().await;
    assert_eq!((record.response_code, record.response_code_details.as_deref()), (403, Some(NONE)));
    assert_eq!(record.cluster_name(), Some("outbound|80||a.example"));
    assert!(record.flags.is_empty() && nobody_came(&listener).await);
}

fn dst(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[tokio::test]
async fn a_path_is_checked_as_the_service_gets_it() {
    let lab = lab(http_to(about(hello().await, PRIVATE)));
    for (path, want) in [("/x/../private", 403), ("/%70rivate/a", 403), ("/private%00", 400), ("/public", 200)] {
        let answer = ask(&lab, dst("192.0.2.1:80"), &get(path)).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {want} ")), "{path}: {answer}");
        let details = next_record(&lab).await.response_code_details;
        assert_eq!(details.as_deref() == Some(RULE), want == 403, "{path}: {details:?}");
    }
}

#[tokio::test]
async fn a_reload_counts_for_the_next_request_on_the_same_connection() {
    let upstream = hello().await;
    let lab = lab(http_to(about(upstream, OWN)));
    let mut client = lab.connect(dst("192.0.2.1:80")).await;
    let request = b"GET /x HTTP/1.1\r\nHost: a.example\r\n\r\n";
    let mut first = [0; 16];
    client.write_all(request).await.unwrap();
    client.read_exact(&mut first).await.unwrap();
    assert!(first.starts_with(b"HTTP/1.1 200 "));
    lab.engine.install(snapshot(mesh(http_to(about(upstream, OTHER))), Contexts::default()));
    client.write_all(request).await.unwrap();
    let mut all = Vec::new();
    while !all.ends_with(b"RBAC: access denied") {
        assert_ne!(client.read_buf(&mut all).await.unwrap(), 0, "{}", all.escape_ascii());
    }
}

#[tokio::test]
async fn raw_bytes_for_a_service() {
    let lab = lab(tcp_service(9000, about(echo().await, OWN)));
    let mut client = lab.connect(dst("192.0.2.1:9000")).await;
    assert_eq!(exchange(&mut client, b"x").await.unwrap(), b"got: x");
    let (listener, address) = untouched().await;
    let lab = self::lab(tcp_service(9000, about(address, OTHER)));
    closed(&mut lab.connect(dst("192.0.2.1:9000")).await).await;
    let record = lab.record().await;
    assert_eq!(record.connection_termination_details.as_deref(), Some(NONE));
    assert_eq!(record.cluster_name(), Some("outbound|80||a.example"));
    assert!(nobody_came(&listener).await);
}

/// The upstream is dialled for a client that is silent: not where that is forbidden.
#[tokio::test]
async fn a_silent_client_of_a_forbidden_service_dials_nothing() {
    let (listener, address) = untouched().await;
    let open = Cluster { protocol: Protocol::Auto, ..about(address, OTHER) };
    let mut outbound = http_to(cluster("b.example", &[address], UpstreamTls::Plain));
    let table = outbound.ports.entry(80).or_default();
    assert!(table.tcp.insert_new("192.0.2.1/32".parse().unwrap(), Arc::new(open)));
    let lab = lab(outbound);
    let mut client = lab.connect(dst("192.0.2.1:80")).await;
    let arrived = tokio::time::timeout(Duration::from_millis(900), listener.accept()).await;
    assert!(arrived.is_err(), "dialled");
    client.write_all(b"\x01 no request").await.unwrap();
    closed(&mut client).await;
    assert_eq!(lab.record().await.connection_termination_details.as_deref(), Some(NONE));
}

fn with(spec: &str, table: InboundTable) -> InboundTable {
    InboundTable { policies: policies(spec), ..table }
}

#[tokio::test]
async fn a_request_to_a_pods_own_port() {
    let app = hello().await;
    let private = format!(
        "{{action: DENY, rules: [{{to: [{{operation: {{paths: ['/private*'], ports: [{}]}}}}]}}]}}",
        app.port()
    );
    let lab = inbound(with(&private, declared(MtlsMode::Permissive, app.port(), Protocol::Http)), Contexts::default());
    let answer = ask(&lab, app, REQUEST).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    next_record(&lab).await;
    for path in ["/private", "/a/../private/x"] {
        let answer = ask(&lab, app, &get(path)).await;
        assert!(denied(&answer), "{answer}");
        let record = next_record(&lab).await;
        assert_eq!(record.response_code_details.as_deref(), Some(RULE));
        assert_eq!(record.cluster_name(), Some(format!("inbound|{}||", app.port()).as_str()));
    }
}

/// Plain text bears no identity, whoever it is from.
#[tokio::test]
async fn bytes_to_a_pods_own_port() {
    let (listener, app) = untouched().await;
    for protocol in [Protocol::Tcp, Protocol::Auto] {
        let lab = inbound(with(OWN, declared(MtlsMode::Permissive, app.port(), protocol)), Contexts::default());
        let mut client = lab.connect(app).await;
        client.write_all(b"\x01 bytes").await.unwrap();
        closed(&mut client).await;
        let record = lab.record().await;
        assert_eq!(record.connection_termination_details.as_deref(), Some(NONE));
        assert_eq!(record.cluster_name(), Some(format!("inbound|{}||", app.port()).as_str()));
        // One that waits for the application to speak first is not heard by it either.
        let mut silent = lab.connect(app).await;
        assert!(nobody_came(&listener).await);
        silent.shutdown().await.unwrap();
        closed(&mut silent).await;
    }
    assert!(nobody_came(&listener).await);
    let app = echo().await;
    let blocks = "{rules: [{from: [{source: {ipBlocks: [127.0.0.0/8]}}]}]}";
    let lab = inbound(with(blocks, declared(MtlsMode::Permissive, app.port(), Protocol::Tcp)), Contexts::default());
    assert_eq!(exchange(&mut lab.connect(app).await, b"x").await.unwrap(), b"got: x");
}

fn guarded(spec: &str, serves: Servers) -> Workload {
    let workload = gateway(serves);
    let table = workload.gateway.as_ref().expect("a gateway");
    let table = GatewayTable { listeners: table.listeners.clone(), policies: policies(spec) };
    Workload { gateway: Some(Arc::new(table)), ..workload }
}

#[tokio::test]
async fn what_passes_a_gateway() {
    let nothing = "{}";
    let at_gateway = |spec, serves| lab_at(Role::Gateway(ID), guarded(spec, serves), Contexts::default());
    let lab = at_gateway(nothing, Servers::Http(routes(hello().await)));
    for request in [REQUEST, b"GET / HTTP/1.1\r\nHost: unknown\r\nConnection: close\r\n\r\n".as_slice()] {
        let mut client = TcpStream::connect(lab.listener).await.unwrap();
        let answer = String::from_utf8(exchange(&mut client, request).await.unwrap()).unwrap();
        assert!(denied(&answer), "before 404: {answer}");
        assert_eq!(next_record(&lab).await.response_code_details.as_deref(), Some(NONE));
    }
    let lab = at_gateway("{rules: [{to: [{operation: {methods: [GET]}}]}]}", Servers::Http(routes(hello().await)));
    let mut client = TcpStream::connect(lab.listener).await.unwrap();
    assert!(exchange(&mut client, REQUEST).await.unwrap().starts_with(b"HTTP/1.1 200 "));
    let lab = at_gateway(nothing, Servers::Tcp(Some(tunnel(echo().await))));
    closed(&mut TcpStream::connect(lab.listener).await.unwrap()).await;
    assert_eq!(lab.record().await.connection_termination_details.as_deref(), Some(NONE));
}

/// By the name in the client's hello, of which nothing is taken off.
#[tokio::test]
async fn tls_that_passes_a_gateway() {
    for (name, passes) in [("*.cnn.com", true), ("*.example", false)] {
        let Servers::Tls(servers) = server("edition.cnn.com", Behind::Tunnel(Some(tunnel(echo().await)))) else {
            panic!("TLS")
        };
        let made = servers.get("edition.cnn.com").expect("the server");
        let through = TlsServer {
            name: made.name.clone(),
            source: made.source.clone(),
            hosts: made.hosts.clone(),
            protocol: made.protocol,
            tls: DownstreamTls::Passthrough,
            serves: Behind::Tunnel(Some(tunnel(echo().await))),
        };
        let mut servers = crate::mesh::HostMap::default();
        servers.insert("edition.cnn.com", Arc::new(through));
        let spec = format!("{{rules: [{{when: [{{key: connection.sni, values: ['{name}']}}]}}]}}");
        let lab = lab_at(Role::Gateway(ID), guarded(&spec, Servers::Tls(servers.into())), Contexts::default());
        let mut client = TcpStream::connect(lab.listener).await.unwrap();
        if passes {
            assert_eq!(exchange(&mut client, OPENSSL).await.unwrap(), [b"got: ".as_slice(), OPENSSL].concat());
        } else {
            client.write_all(OPENSSL).await.unwrap();
            closed(&mut client).await;
            assert_eq!(lab.record().await.connection_termination_details.as_deref(), Some(NONE));
        }
    }
}

/// A gateway speaks for its client to a service outside: one that has proved nothing is nobody.
#[tokio::test]
async fn a_service_beyond_a_gateway() {
    let (listener, address) = untouched().await;
    let service = Arc::new(Cluster { protocol: Protocol::Http, ..about(address, OWN) });
    let mut hosts = crate::mesh::HostMap::default();
    hosts.insert("a.example", Arc::new(VirtualHost::of_cluster("a.example:80".into(), service)));
    let table = Arc::new(crate::mesh::RouteTable { name: "http.8080".into(), hosts });
    let lab = lab_at(Role::Gateway(ID), gateway(Servers::Http(table)), Contexts::default());
    let mut client = TcpStream::connect(lab.listener).await.unwrap();
    let answer = String::from_utf8(exchange(&mut client, REQUEST).await.unwrap()).unwrap();
    assert!(denied(&answer) && nobody_came(&listener).await, "{answer}");
}

/// A pod that the table knows no more gets nothing from anybody.
#[test]
fn who_is_gone_is_refused() {
    use crate::{
        engine::{
            accept::{Arrival, ConnectionInfo},
            authorize,
        },
        mesh::{Verdict, WorkloadId},
    };
    let snapshot = snapshot(mesh_of(receiving(InboundTable::default())), Contexts::default());
    let info = ConnectionInfo::new(Arrival::Inbound, dst("10.0.0.1:80"), dst("10.0.0.2:1"));
    let id = |name: &str| WorkloadId { namespace: "default".into(), name: name.into() };
    assert_eq!(authorize::entering(&snapshot, &id("sleep"), &info, None), Verdict::Allowed);
    assert_eq!(authorize::entering(&snapshot, &id("gone"), &info, None), Verdict::Denied(NONE.into()));
}
