//! Runs the pure parts of a connection's and a request's way, one after the other, under `valgrind --tool=callgrind`.
//! `cargo xtask bench --instructions` starts it, and compares the counts with those that are kept.
//!
//! Each part's turns happen inside [`measured`], at whose end callgrind writes what it has counted; the parts' names
//! come on standard output in the same order. Wherever several requests could be asked for, they take turns, so that a
//! count is the mean over them.

use std::{hint::black_box, io::Write as _, path::Path, sync::Arc, time::Duration};

use egret::{
    api::{ObjectId, Objects},
    engine::{
        Sink, client_hello,
        http::parts::{self, Client, Upstream},
    },
    mesh::{
        self, Cluster, EndpointAddress, HeaderRules, HttpDecision, Mesh, Outbound, RequestHead, Settings, WorkloadId,
    },
    source::documents::parse_file,
    telemetry::{Telemetry, access_log::Format, record::Record},
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use parking_lot::Mutex;

/// One turn, which is told its number.
type Part = Box<dyn FnMut(usize)>;

const HOSTS: usize = 10_000;
/// Of the hosts, one in so many is a wildcard.
const WILDCARD_EVERY: usize = 100;

fn main() -> anyhow::Result<()> {
    let turns: usize = std::env::args().nth(1).map_or(Ok(100), |turns| turns.parse())?;
    let mesh = Arc::new(table()?);
    let workload = WorkloadId { namespace: "default".into(), name: "sleep".into() };
    let outbound = mesh.workloads[&workload].outbound.clone();
    let mut parts: Vec<(&str, Part)> = Vec::new();

    parts.push((
        "ClientHello",
        Box::new(|_| {
            assert!(matches!(client_hello::parse(black_box(HELLO)), client_hello::Parsed::Hello(_)));
        }),
    ));
    parts.push(("request head", Box::new(|_| assert!(parts::check_head(black_box(HEAD))))));
    parts.push(("route lookup, exact host", look_up(&outbound, 80, |at| format!("host-{at}.example.com"))));
    parts.push((
        "route lookup, wildcard host",
        look_up(&outbound, 80, |at| format!("api.zone-{}.example.org", at % 100)),
    ));
    parts.push(("route lookup, unknown host", look_up(&outbound, 80, |at| format!("host-{at}.example.net"))));
    parts.push(("SNI lookup, exact host", sni(&outbound, |at| format!("host-{at}.example.com"))));
    parts.push(("SNI lookup, wildcard host", sni(&outbound, |at| format!("api.zone-{}.example.org", at % 100))));
    parts.push(("route match, the 10th of 10", matching(&outbound)?));
    let received = request();
    parts.push((
        "headers of one hop",
        Box::new(move |_| {
            let mut headers = received.headers().clone();
            parts::strip(black_box(&mut headers));
        }),
    ));
    parts.push(("header rules", rules()));

    let authority = "host-77.example.com";
    let exchange = {
        let (request, response, cluster) = (request(), response(), cluster(&outbound, authority)?);
        let upstream = Upstream {
            route: "default".into(),
            address: EndpointAddress::Ip(([10, 0, 0, 9], 443).into()),
            local: ([10, 0, 0, 2], 40000).into(),
        };
        move |client: &Client| client.exchange(black_box(&request), &cluster, &upstream, &response)
    };
    let client = |sink| Client::new(mesh.clone(), workload.clone(), sink, ([10, 96, 0, 1], 80).into());
    let keeper = Arc::new(Keeper::default());
    exchange(&client(keeper.clone()));
    let record = keeper.0.lock().take().ok_or_else(|| anyhow::anyhow!("no record"))?;
    for (name, json) in [("access log, text", false), ("access log, JSON", true)] {
        let format = Format::compile(&Settings { access_log_json: json, ..Settings::default() })?;
        let (record, mut line) = (record.clone(), Vec::new());
        parts.push((
            name,
            Box::new(move |_| {
                line.clear();
                format.line(black_box(&record), &mut line);
            }),
        ));
    }
    let telemetry = Telemetry::new();
    telemetry.metrics.set_mesh(&mesh);
    let counting = telemetry.clone();
    parts.push(("metrics", Box::new(move |_| counting.metrics.record(black_box(&record)))));
    let looking = client(telemetry.clone());
    parts.push(("request, looked up", Box::new(move |_| assert!(looking.look_up(black_box(authority))))));
    let counting = client(telemetry);
    parts.push(("request, noted and counted", Box::new(move |_| exchange(&counting))));

    let mut out = std::io::stdout().lock();
    for (name, mut part) in parts {
        // What is made once, at first use, is no part's cost.
        (0..10).for_each(&mut part);
        measured(&mut part, turns);
        writeln!(out, "{name}")?;
    }
    Ok(())
}

#[inline(never)]
fn measured(part: &mut dyn FnMut(usize), turns: usize) {
    for turn in 0..turns {
        part(turn);
    }
}

/// A pod, [`HOSTS`] ServiceEntries with HTTP and TLS ports, and a VirtualService with ten routes.
fn table() -> anyhow::Result<Mesh> {
    let mut objects = Objects::default();
    let parse = |objects: &mut Objects, text: &str| {
        let parsed = parse_file(Arc::from(Path::new("instructions.yaml")), text);
        parsed.objects.into_iter().for_each(|object| objects.insert(object));
    };
    parse(&mut objects, OBJECTS);
    let template = objects.service_entries.values().next().ok_or_else(|| anyhow::anyhow!("no ServiceEntry"))?.clone();
    objects.service_entries = Default::default();
    for at in 0..HOSTS {
        let mut object = (*template).clone();
        object.meta.name = format!("e{at}").into();
        object.id = ObjectId::new(object.id.kind, object.id.namespace.as_str(), object.meta.name.as_str());
        object.spec.hosts = vec![match at % WILDCARD_EVERY {
            0 => format!("*.zone-{}.example.org", at / WILDCARD_EVERY).into(),
            _ => format!("host-{at}.example.com").into(),
        }];
        objects.service_entries.insert(Arc::new(object));
    }
    Ok(mesh::compile(&objects, &mesh::PodAddresses::new()))
}

const OBJECTS: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: sleep, namespace: default, annotations: {egret.dev/netns: sleep}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: e, namespace: default}
spec:
  hosts: [e.example.com]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{number: 80, name: http, protocol: HTTP}, {number: 443, name: tls, protocol: TLS}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: v, namespace: default}
spec:
  hosts: [host-1.example.com]
  http:
  - {match: [{uri: {exact: /login}}], route: [{destination: {host: host-1.example.com}}]}
  - {match: [{uri: {prefix: /static/}}], route: [{destination: {host: host-1.example.com}}]}
  - {match: [{uri: {prefix: /images/}}], route: [{destination: {host: host-1.example.com}}]}
  - {match: [{uri: {prefix: /v1/}, method: {exact: POST}}], route: [{destination: {host: host-1.example.com}}]}
  - {match: [{uri: {prefix: /v2/}}], route: [{destination: {host: host-1.example.com}}]}
  - {match: [{headers: {x-canary: {exact: 'true'}}}], route: [{destination: {host: host-1.example.com}}]}
  - {match: [{headers: {user-agent: {prefix: Mozilla}}}], route: [{destination: {host: host-1.example.com}}]}
  - {match: [{queryParams: {debug: {exact: '1'}}}], route: [{destination: {host: host-1.example.com}}]}
  - {match: [{uri: {regex: '/v[3-9]/.*'}}], route: [{destination: {host: host-1.example.com}}]}
  - {name: last, route: [{destination: {host: host-1.example.com}}]}
";

/// `openssl s_client` 3.0.
const HELLO: &[u8] = include_bytes!("../src/engine/testdata/openssl_s_client.bin");

const HEAD: &[u8] = b"GET /politics?x=1 HTTP/1.1\r\nHost: host-77.example.com\r\nUser-Agent: curl/7.88.1\r\n\
Accept: */*\r\nAccept-Encoding: gzip\r\n\r\n";

fn map(lines: &[(&'static str, &'static str)]) -> HeaderMap {
    let line =
        |(name, value): &(&'static str, &'static str)| (HeaderName::from_static(name), HeaderValue::from_static(value));
    lines.iter().map(line).collect()
}

fn request() -> Request<()> {
    let mut request = Request::new(());
    *request.uri_mut() = http::Uri::from_static("/politics?x=1");
    *request.headers_mut() = map(&[
        ("host", "host-77.example.com"),
        ("user-agent", "curl/7.88.1"),
        ("accept", "*/*"),
        ("accept-encoding", "gzip"),
        ("connection", "keep-alive"),
    ]);
    request
}

fn response() -> Response<()> {
    let mut response = Response::new(());
    *response.headers_mut() = map(&[
        ("server", "nginx/1.22.1"),
        ("date", "Sat, 21 Nov 2026 06:43:01 GMT"),
        ("content-type", "application/octet-stream"),
        ("content-length", "1024"),
        ("last-modified", "Sat, 21 Nov 2026 06:43:01 GMT"),
        ("etag", "\"65a1b2c3-400\""),
        ("accept-ranges", "bytes"),
    ]);
    response
}

fn cluster(outbound: &Outbound, host: &str) -> anyhow::Result<Arc<Cluster>> {
    let cluster = outbound.cluster(&format!("outbound|80||{host}")).cloned();
    cluster.ok_or_else(|| anyhow::anyhow!("no cluster for {host}"))
}

fn look_up(outbound: &Arc<Outbound>, port: u16, name: fn(usize) -> String) -> Part {
    let (outbound, names): (_, Vec<_>) = (outbound.clone(), (0..100).map(|at| name(at * 97 + 1)).collect());
    Box::new(move |turn| {
        black_box(outbound.http(([10, 96, 0, 1], port).into(), black_box(&names[turn % names.len()])));
    })
}

fn sni(outbound: &Arc<Outbound>, name: fn(usize) -> String) -> Part {
    let (outbound, names): (_, Vec<_>) = (outbound.clone(), (0..100).map(|at| name(at * 97 + 1)).collect());
    Box::new(move |turn| {
        black_box(outbound.tls(([10, 96, 0, 1], 443).into(), Some(black_box(&names[turn % names.len()]))));
    })
}

fn matching(outbound: &Outbound) -> anyhow::Result<Part> {
    let HttpDecision::Host(host) = outbound.http(([10, 96, 0, 1], 80).into(), "host-1.example.com") else {
        anyhow::bail!("the VirtualService is not in force");
    };
    let request = request();
    Ok(Box::new(move |_| {
        let head = RequestHead {
            method: "GET",
            scheme: "http",
            authority: "host-1.example.com",
            path: request.uri().path(),
            query: request.uri().query(),
            headers: request.headers(),
        };
        assert_eq!(host.route(black_box(&head)).map(|route| &*route.name), Some("last"));
    }))
}

fn rules() -> Part {
    let lines = |list: &HeaderMap| list.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    let rules = HeaderRules {
        set: lines(&map(&[("x-tenant", "a"), ("user-agent", "egret")])),
        add: lines(&map(&[("x-via", "b")])),
        remove: vec![HeaderName::from_static("accept-encoding")],
    };
    let received = request();
    Box::new(move |_| {
        let mut headers = received.headers().clone();
        parts::apply(&rules, black_box(&mut headers));
    })
}

/// Keeps the last record.
#[derive(Default)]
struct Keeper(Mutex<Option<Record>>);

impl Sink for Keeper {
    fn record(&self, record: Record) {
        *self.0.lock() = Some(record);
    }
    fn connection_opened(&self, _: &Record) {}
    fn connection_closed(&self, _: &Record) {}
    fn handshake_accepted(&self, _: &Arc<WorkloadId>, _: Result<(), &str>, _: Duration) {}
    fn handshake(&self, _: &Arc<WorkloadId>, _: &Arc<Cluster>, _: Result<(), &str>, _: Duration) {}
}
