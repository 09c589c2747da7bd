mod gateways;
mod inbound;
mod ports;
mod secrets;

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use parking_lot::Mutex;

use super::*;
use crate::{
    api::{ObjectId, Severity},
    mesh::{
        Action, Cluster, DirectResponse, Discovery, DnsTarget, Endpoint, EndpointAddress, LoadBalancer, Mesh, Outbound,
        OutboundPolicy, PathChange, Pool, PortTable, Protocol, Redirect, RequestMatch, Route, TextMatch, UpstreamTls,
        VirtualHost, Workload,
    },
    telemetry::Telemetry,
    tls,
};

/// An agent with two pods: `default/sleep` sees two services, `shop/cart` none (REGISTRY_ONLY).
pub(crate) struct Fake {
    snapshot: Arc<Snapshot>,
    telemetry: Arc<Telemetry>,
    awaited: Mutex<Vec<String>>,
    drained: AtomicBool,
}

fn cluster(host: &str, port: u16, protocol: Protocol, discovery: Discovery, tls: UpstreamTls) -> Arc<Cluster> {
    let id = |kind, name: &str| ObjectId::new(kind, "default", name);
    Arc::new(Cluster {
        name: format!("outbound|{port}||{host}"),
        host: host.into(),
        port,
        subset: String::new(),
        protocol,
        discovery,
        load_balancer: LoadBalancer::LeastRequest,
        hash: None,
        locality: None,
        warmup: None,
        outlier: None,
        pool: Arc::new(Pool {
            connect_timeout: Duration::from_secs(10),
            max_connections: None,
            max_pending_requests: None,
            max_requests: None,
            max_requests_per_connection: None,
            max_retries: None,
            max_connection_duration: None,
            http_idle_timeout: Duration::from_secs(3600),
            tcp_idle_timeout: Duration::from_secs(3600),
            h2_upgrade: false,
            use_client_protocol: false,
            max_concurrent_streams: None,
            tcp_keepalive: None,
        }),
        destination_rule: matches!(tls, UpstreamTls::Originate(_)).then(|| id("DestinationRule", "originate")),
        policies: None,
        tls,
        mesh_external: true,
        service: id("ServiceEntry", "cnn"),
    })
}

fn outbound() -> Outbound {
    let settings = tls::tests::settings_with(tls::tests::settings(), |context| context.alpn = vec!["http/1.1".into()]);
    let dns = Discovery::Dns {
        targets: vec![DnsTarget { name: "edition.cnn.com".into(), port: 443, weight: 1 }],
        one_at_a_time: false,
    };
    let http = cluster("edition.cnn.com", 80, Protocol::Http, dns.clone(), UpstreamTls::Originate(Arc::new(settings)));
    let tls = cluster("edition.cnn.com", 443, Protocol::Https, dns, UpstreamTls::Plain);
    let static_ = Discovery::Static(vec![Endpoint::new(EndpointAddress::Ip("10.9.9.9:3306".parse().unwrap()), 1)]);
    let tcp = cluster("db.example", 3306, Protocol::Tcp, static_, UpstreamTls::Plain);
    let (mut eighty, mut https, mut mysql) = (PortTable::default(), PortTable::default(), PortTable::default());
    let mut host = VirtualHost::of_cluster("edition.cnn.com:80".into(), http.clone());
    // A POST of /post/… is answered here; a GET of it goes on.
    let posted = Route {
        name: "posted".into(),
        matches: RequestMatch {
            path: Some(TextMatch::PathPrefix("/post".into())),
            method: Some(TextMatch::Exact("POST".into())),
            ..RequestMatch::default()
        },
        action: Action::Direct(DirectResponse { status: 418, body: bytes::Bytes::new() }),
        ..Route::to_cluster("".into(), http.clone())
    };
    host.routes.insert(0, Arc::new(posted));
    let moved = Route {
        name: "moved".into(),
        matches: RequestMatch { path: Some(TextMatch::Exact("/old".into())), ..RequestMatch::default() },
        action: Action::Redirect(Redirect {
            path: PathChange::Full("/new".into()),
            authority: None,
            port: None,
            scheme: Some("https".into()),
            code: 308,
        }),
        ..Route::to_cluster("".into(), http.clone())
    };
    host.routes.insert(1, Arc::new(moved));
    eighty.http.insert("edition.cnn.com", Arc::new(host));
    https.tls.insert("edition.cnn.com", tls.clone());
    mysql.tcp.insert_new("10.9.9.9/32".parse().unwrap(), tcp.clone());
    Outbound {
        ports: BTreeMap::from([(80, eighty), (443, https), (3306, mysql)]),
        clusters: [http, tls, tcp].into_iter().map(|cluster| (cluster.name.clone(), cluster)).collect(),
        ..Outbound::default()
    }
}

impl Fake {
    pub fn new() -> Arc<Self> {
        let mut mesh = Mesh::default();
        let blocked = Outbound { policy: OutboundPolicy::RegistryOnly, ..Outbound::default() };
        for (namespace, name, outbound) in [("default", "sleep", outbound()), ("shop", "cart", blocked)] {
            let id = WorkloadId { namespace: namespace.into(), name: name.into() };
            let workload = Workload {
                id: id.clone(),
                service_account: "default".into(),
                labels: BTreeMap::new(),
                netns: name.into(),
                outbound: Arc::new(outbound),
                identity: "spiffe://cluster.local/ns/default/sa/default".into(),
                locality: "".into(),
                gateway: None,
                inbound: Default::default(),
            };
            mesh.workloads.insert(id, Arc::new(workload));
        }
        Self::of(mesh)
    }

    /// An agent with the pods of this table.
    fn of(mesh: Mesh) -> Arc<Self> {
        let settings = mesh.tls_settings().iter().cloned();
        struct Nothing;
        impl tls::MaterialReader for Nothing {
            fn secret(&self, _: &str, _: &str) -> Option<Arc<crate::api::core::Secret>> {
                None
            }
            fn config_map(&self, _: &str, _: &str) -> Option<Arc<crate::api::core::ConfigMap>> {
                None
            }
            fn file(&self, path: &std::path::Path) -> std::io::Result<Vec<u8>> {
                std::fs::read(path)
            }
        }
        let tls = tls::Contexts::build(&tls::Contexts::default(), settings, [], &Nothing);
        Arc::new(Self {
            snapshot: Arc::new(Snapshot { mesh: Arc::new(mesh), tls: Arc::new(tls), generation: 3 }),
            telemetry: Telemetry::new(),
            awaited: Mutex::default(),
            drained: AtomicBool::new(false),
        })
    }
}

impl AdminState for Fake {
    fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.clone()
    }

    fn readiness(&self) -> Vec<String> {
        self.awaited.lock().clone()
    }

    fn status(&self) -> rows::Status {
        let pod = rows::PodStatus {
            pod: "default/sleep".into(),
            netns: "sleep".into(),
            addresses: vec!["10.0.0.2".into()],
            inbound: "captured".into(),
            state: "enrolled".into(),
        };
        rows::Status { version: "0".into(), state: "ready".into(), pods: vec![pod], ..rows::Status::default() }
    }

    fn is_ejected(&self, _: &WorkloadId, cluster: &str, address: &EndpointAddress) -> bool {
        cluster == "outbound|3306||db.example" && *address == EndpointAddress::Ip("10.9.9.9:3306".parse().unwrap())
    }

    fn diagnostics(&self) -> Vec<Diagnostic> {
        vec![Diagnostic {
            severity: Severity::Error,
            object: None,
            file: std::path::Path::new("a.yaml").into(),
            line: 3,
            column: 1,
            field: String::new(),
            message: "no YAML".into(),
        }]
    }

    fn resolve<'a>(&'a self, _: &'a WorkloadId, name: &'a str) -> Later<'a, Result<Vec<IpAddr>, String>> {
        Box::pin(async move {
            match name {
                "edition.cnn.com" => Ok(vec!["151.101.3.5".parse().unwrap(), "2a04:4e42::773".parse().unwrap()]),
                _ => Err(format!("{name}: no such name")),
            }
        })
    }

    fn metrics(&self) -> Result<String, fmt::Error> {
        self.telemetry.metrics.encode()
    }

    fn drain(&self) {
        self.drained.store(true, Ordering::Relaxed);
    }
}

pub(crate) fn serve(state: Arc<Fake>) -> Admin {
    start(listen("127.0.0.1:0".parse().unwrap()).unwrap(), Access::Full, state).unwrap()
}

/// Sends bytes as they are; the whole answer.
fn raw(admin: &Admin, request: &str) -> String {
    let mut stream = TcpStream::connect(admin.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Status and body.
fn ask(admin: &Admin, method: &str, path: &str) -> (u16, String) {
    let answer = raw(admin, &format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n\r\n"));
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[test]
fn readiness_names_what_is_awaited() {
    let state = Fake::new();
    let admin = serve(state.clone());
    *state.awaited.lock() = vec!["pod default/sleep: listener not bound yet".to_owned()];
    assert_eq!(ask(&admin, "GET", "/healthz/ready"), (503, "pod default/sleep: listener not bound yet\n".into()));
    assert_eq!(ask(&admin, "GET", "/healthz/live").0, 200);
    state.awaited.lock().clear();
    assert_eq!(ask(&admin, "GET", "/healthz/ready"), (200, "READY\n".into()));
}

#[test]
fn metrics_are_openmetrics() {
    let admin = serve(Fake::new());
    for path in ["/metrics", "/stats/prometheus"] {
        let answer = raw(&admin, &format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n"));
        assert!(answer.contains("content-type: application/openmetrics-text; version=1.0.0"), "{answer}");
        assert!(
            answer.contains("\negret_config_reloads_total{result=\"accepted\"} 0\n") && answer.ends_with("# EOF\n")
        );
    }
}

#[test]
fn what_is_wrong_is_said() {
    let state = Fake::new();
    let admin = serve(state.clone());
    let (status, body) = ask(&admin, "GET", "/nope");
    assert_eq!(status, 404);
    assert!(body.contains("GET  /healthz/ready") && body.contains("POST /drain"), "{body}");
    assert_eq!(ask(&admin, "GET", "/").0, 200);
    assert_eq!(ask(&admin, "GET", "/drain"), (405, "/drain wants POST\n".into()));
    assert_eq!(ask(&admin, "DELETE", "/metrics").0, 405);
    assert_eq!(ask(&admin, "HEAD", "/healthz/live"), (200, String::new()));
    assert_eq!(ask(&admin, "POST", "/logging?level=loud").0, 400);
    let browser = raw(&admin, "POST /drain HTTP/1.1\r\nhost: x\r\norigin: http://evil\r\ncontent-length: 0\r\n\r\n");
    assert!(browser.starts_with("HTTP/1.1 403"), "{browser}");
    assert!(!state.drained.load(Ordering::Relaxed));
    assert_eq!(ask(&admin, "POST", "/drain"), (200, "draining\n".into()));
    assert!(state.drained.load(Ordering::Relaxed));
    let (status, body) = ask(&admin, "GET", "/proxy-config/cluster?pod=nobody");
    assert_eq!(status, 404);
    assert_eq!(body, "no enrolled pod is called default/nobody; this agent has default/sleep, shop/cart\n");
}

#[test]
fn who_may_only_look_changes_nothing() {
    let state = Fake::new();
    let admin = start(listen("127.0.0.1:0".parse().unwrap()).unwrap(), Access::Read, state.clone()).unwrap();
    assert_eq!(ask(&admin, "GET", "/healthz/live").0, 200);
    assert_eq!(ask(&admin, "GET", "/proxy-config/cluster?pod=sleep").0, 200);
    for path in ["/drain", "/logging?level=off"] {
        let (status, body) = ask(&admin, "POST", path);
        assert!(status == 403 && body.contains("own admin address only"), "{status} {body}");
    }
    assert!(!state.drained.load(Ordering::Relaxed));
}

#[test]
fn a_port_that_is_taken_is_one_sentence() {
    let admin = serve(Fake::new());
    let error = listen(admin.address).unwrap_err().to_string();
    assert!(error.contains(&format!("the admin address {} is taken", admin.address)), "{error}");
    let address = admin.address;
    drop(admin);
    // And free again once the endpoints end.
    start(listen(address).unwrap(), Access::Full, Fake::new()).unwrap();
}

#[test]
fn the_tables_hold_what_istioctl_shows() {
    let admin = serve(Fake::new());
    let rows = |what: &str| -> serde_json::Value {
        let (status, body) = ask(&admin, "GET", &format!("/proxy-config/{what}?pod=sleep"));
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    };
    let listener = |addresses: &str, port: u16, matches: &str, destination: &str| serde_json::json!({"addresses": addresses, "port": port, "match": matches, "destination": destination});
    assert_eq!(
        rows("listener"),
        serde_json::json!([
            listener("0.0.0.0", 80, "Trans: raw_buffer; App: http/1.1,h2c", "Route: 80"),
            listener("0.0.0.0", 80, "ALL", "PassthroughCluster"),
            listener("0.0.0.0", 443, "SNI: edition.cnn.com", "Cluster: outbound|443||edition.cnn.com"),
            listener("0.0.0.0", 443, "ALL", "PassthroughCluster"),
            listener("10.9.9.9", 3306, "ALL", "Cluster: outbound|3306||db.example"),
            listener("0.0.0.0", 3306, "ALL", "PassthroughCluster"),
            listener("0.0.0.0", 15001, "ALL", "PassthroughCluster"),
        ])
    );
    assert_eq!(
        rows("route"),
        serde_json::json!(["PathPrefix:/post", "/old", "/*"].map(|path| serde_json::json!({
            "name": "80", "virtualHost": "edition.cnn.com:80", "domains": "edition.cnn.com", "match": path,
            "virtualService": ""
        })))
    );
    let clusters = rows("cluster");
    let names: Vec<_> = clusters.as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "BlackHoleCluster",
            "PassthroughCluster",
            "outbound|3306||db.example",
            "outbound|80||edition.cnn.com",
            "outbound|443||edition.cnn.com"
        ]
    );
    assert_eq!(clusters[3]["destinationRule"], "originate.default");
    assert_eq!(clusters[3]["type"], "STRICT_DNS");
    assert_eq!(clusters[2]["type"], "EDS");
    let endpoints = rows("endpoint");
    let of = |cluster: &str| -> Vec<_> {
        let rows = endpoints.as_array().unwrap().iter().filter(|row| row["cluster"] == cluster);
        rows.map(|row| row["endpoint"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(of("outbound|443||edition.cnn.com"), ["151.101.3.5:443", "[2a04:4e42::773]:443"]);
    assert_eq!(of("outbound|3306||db.example"), ["10.9.9.9:3306"]);
}

#[test]
fn explain_follows_the_data_path() {
    let admin = serve(Fake::new());
    let explain = |pod: &str, url: &str| -> rows::Explanation {
        let (status, body) = ask(&admin, "GET", &format!("/explain?pod={pod}&url={}", encode(url)));
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    };
    let value = |explanation: &rows::Explanation, what: &str| {
        explanation.steps.iter().find(|step| step.what == what).map(|step| step.value.clone())
    };
    let http = explain("sleep", "http://edition.cnn.com/politics");
    assert_eq!(value(&http, "route").as_deref(), Some("default"));
    assert_eq!(value(&http, "cluster").as_deref(), Some("outbound|80||edition.cnn.com"));
    assert_eq!(value(&http, "sni").as_deref(), Some("edition.cnn.com"));
    assert_eq!(value(&http, "endpoints").as_deref(), Some("151.101.3.5:443, [2a04:4e42::773]:443"));
    assert!(http.verdict.contains("SIMPLE TLS") || http.verdict.starts_with("Refused"), "{}", http.verdict);
    assert_eq!(value(&http, "not"), None);
    let moved = explain("sleep", "http://edition.cnn.com/old");
    assert_eq!(moved.verdict, "Answered here: 308, Location: https://edition.cnn.com/new");
    let passed_over = explain("sleep", "http://edition.cnn.com/post/1");
    let step = passed_over.steps.iter().find(|step| step.what == "not").unwrap();
    assert_eq!(step.value, "posted");
    assert!(step.why.starts_with("match PathPrefix:/post wants another method"), "{}", step.why);
    assert_eq!(value(&passed_over, "route").as_deref(), Some("default"));
    let https = explain("sleep", "https://edition.cnn.com/");
    assert_eq!(https.verdict, "Passed through untouched to edition.cnn.com.");
    let other = explain("sleep", "http://other.example/");
    assert_eq!(value(&other, "cluster").as_deref(), Some("PassthroughCluster"));
    assert_eq!(explain("cart.shop", "http://other.example").verdict, "Blocked: 502 with an empty body.");
    assert!(explain("sleep", "http://127.0.0.1/").verdict.starts_with("Not captured"));
    assert_eq!(ask(&admin, "GET", "/explain?pod=sleep&url=ftp://x").0, 400);
    assert_eq!(ask(&admin, "GET", "/explain?url=http://x").0, 400);
}

#[test]
fn the_dump_is_whole_and_stable() {
    let admin = serve(Fake::new());
    let (status, body) = ask(&admin, "GET", "/config_dump");
    assert_eq!(status, 200);
    assert_eq!(ask(&admin, "GET", "/config_dump").1, body);
    let dump: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(dump["generation"], 3);
    assert_eq!(dump["diagnostics"][0], "a.yaml:3:1: error: no YAML");
    let table = dump["workloads"]["default/sleep"]["table"].as_u64().unwrap();
    let clusters = &dump["tables"][usize::try_from(table).unwrap()]["clusters"];
    assert!(clusters["outbound|80||edition.cnn.com"].is_object(), "{clusters}");
    assert_eq!(ask(&admin, "GET", "/certs").0, 200);
}

#[test]
fn a_client_that_says_nothing_holds_nobody_up() {
    let admin = serve(Fake::new());
    let silent: Vec<_> = (0..8).map(|_| TcpStream::connect(admin.address).unwrap()).collect();
    assert_eq!(ask(&admin, "GET", "/healthz/live").0, 200);
    drop(silent);
}
