//! A pod whose namespace is the test's own, an engine, and hand-written clients and upstreams.

use std::{
    collections::BTreeMap,
    future::Future,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use crate::{
    engine::{
        Engine, Sink, Snapshot,
        accept::Role,
        host_sockets::{Destinations, HostSockets},
        pod::Pod,
        resolve::{Resolver, ResolverFiles},
    },
    mesh::*,
    telemetry::record::Record,
    tls,
};

/// Everything here ends within this time, or the test fails.
pub const PATIENCE: Duration = Duration::from_secs(8);

#[derive(Default)]
pub struct Records(Mutex<Vec<Record>>);

impl Sink for Records {
    fn record(&self, record: Record) {
        self.0.lock().push(record);
    }
    fn connection_opened(&self, _: &Record) {}
    fn connection_closed(&self, _: &Record) {}
    fn handshake_accepted(&self, _: &Arc<WorkloadId>, _: Result<(), &str>, _: Duration) {}
    fn handshake(&self, _: &Arc<WorkloadId>, _: &Arc<Cluster>, _: Result<(), &str>, _: Duration) {}
}

pub struct Lab {
    pub engine: Arc<Engine>,
    pub pod: Arc<Pod>,
    pub address: SocketAddr,
    records: Arc<Records>,
    task: JoinHandle<()>,
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.pod.closed.cancel();
        self.task.abort();
    }
}

/// A cluster of these addresses, plain.
pub fn cluster(name: &str, protocol: Protocol, addresses: &[SocketAddr]) -> Cluster {
    let endpoint = |address: &SocketAddr| Endpoint::new(EndpointAddress::Ip(*address), 1);
    Cluster {
        name: format!("outbound|80||{name}"),
        host: name.into(),
        port: 80,
        subset: String::new(),
        protocol,
        discovery: Discovery::Static(addresses.iter().map(endpoint).collect()),
        load_balancer: LoadBalancer::RoundRobin,
        hash: None,
        locality: None,
        warmup: None,
        outlier: None,
        pool: Arc::default(),
        tls: UpstreamTls::Plain,
        mesh_external: true,
        service: crate::api::ObjectId::new("ServiceEntry", "default", name),
        destination_rule: None,
        policies: None,
    }
}

/// A snapshot in which the pod sees these clusters, each under its host, on port 80.
pub fn snapshot(policy: OutboundPolicy, clusters: Vec<Cluster>, generation: u64) -> Snapshot {
    let hosts = clusters.into_iter().map(|cluster| {
        let name = cluster.host.clone();
        let host = VirtualHost::of_cluster(format!("{name}:80"), Arc::new(cluster));
        (name, host)
    });
    let mut outbound = Outbound { policy, ..Outbound::default() };
    for (name, host) in hosts {
        outbound.clusters.extend(host.clusters().map(|cluster| (cluster.name.clone(), cluster.clone())));
        outbound.ports.entry(80).or_default().http.insert(&name, Arc::new(host));
    }
    of_workload(outbound, None, generation)
}

/// A snapshot in which these routes serve host `a` on port 80.
pub fn routed(routes: Vec<Route>) -> Snapshot {
    let host = virtual_host(routes);
    let mut outbound = Outbound { policy: OutboundPolicy::RegistryOnly, ..Outbound::default() };
    outbound.clusters.extend(host.clusters().map(|cluster| (cluster.name.clone(), cluster.clone())));
    outbound.ports.entry(80).or_default().http.insert("a", Arc::new(host));
    of_workload(outbound, None, 1)
}

pub fn virtual_host(routes: Vec<Route>) -> VirtualHost {
    VirtualHost {
        name: "a:80".into(),
        routes: routes.into_iter().map(Arc::new).collect::<Vec<_>>().into(),
        require_tls: false,
    }
}

/// A snapshot of the one pod with these tables.
pub fn of_workload(outbound: Outbound, gateway: Option<GatewayTable>, generation: u64) -> Snapshot {
    let id = WorkloadId { namespace: "default".into(), name: "client".into() };
    let workload = Workload {
        id: id.clone(),
        service_account: "default".into(),
        labels: BTreeMap::new(),
        netns: "x".into(),
        outbound: Arc::new(outbound),
        identity: "spiffe://cluster.local/ns/default/sa/default".into(),
        locality: "".into(),
        gateway: gateway.map(Arc::new),
        inbound: Default::default(),
    };
    let mesh = Mesh { workloads: [(id, Arc::new(workload))].into(), ..Mesh::default() };
    Snapshot { mesh: Arc::new(mesh), tls: Arc::new(tls::Contexts::default()), generation }
}

impl Lab {
    /// Whoever connects was on the way to `original`.
    pub async fn new(snapshot: Snapshot, original: SocketAddr) -> Self {
        Self::at(snapshot, original, Role::Outbound).await
    }

    /// Routes for host `a`.
    pub async fn routes(routes: Vec<Route>) -> Self {
        Self::new(routed(routes), "192.0.2.1:80".parse().unwrap()).await
    }

    pub async fn at(snapshot: Snapshot, original: SocketAddr, role: Role) -> Self {
        Self::on(snapshot, original, role, super::HYPER_ONLY).await
    }

    /// On one of the two ways through HTTP/1.1.
    pub async fn on(snapshot: Snapshot, original: SocketAddr, role: Role, hyper_only: bool) -> Self {
        let records = Arc::new(Records::default());
        let engine = Arc::new(Engine::new(snapshot, records.clone()).with_hyper_only(hyper_only));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let id = WorkloadId { namespace: "default".into(), name: "client".into() };
        let sockets = Arc::new(HostSockets);
        let pod = Arc::new(Pod::new(
            Arc::new(id),
            sockets.clone(),
            Arc::new(Destinations::all(original)),
            Resolver::new(sockets, ResolverFiles::default()),
            Vec::new(),
            address.port(),
        ));
        let task = engine.serve(listener, pod.clone(), role);
        Self { engine, pod, address, records, task }
    }

    /// One plain service `a` at `upstream`.
    pub async fn to(upstream: SocketAddr) -> Self {
        Self::with(cluster("a", Protocol::Http, &[upstream])).await
    }

    pub async fn with(cluster: Cluster) -> Self {
        Self::new(snapshot(OutboundPolicy::RegistryOnly, vec![cluster], 1), "192.0.2.1:80".parse().unwrap()).await
    }

    pub async fn client(&self) -> Raw {
        Raw::new(TcpStream::connect(self.address).await.unwrap())
    }

    /// One request on a connection of its own; `head` is the request line's and the fields' text, without Host.
    pub async fn ask(&self, request_line: &str, fields: &str) -> (String, String) {
        let mut client = self.client().await;
        client.send(format!("{request_line} HTTP/1.1\r\nHost: a\r\n{fields}\r\n")).await;
        client.response().await
    }

    /// The records once there are `count`.
    pub async fn records(&self, count: usize) -> Vec<Record> {
        let start = Instant::now();
        loop {
            let records = self.records.0.lock().clone();
            if records.len() >= count {
                assert_eq!(records.len(), count, "more records than requests: {records:#?}");
                return records;
            }
            assert!(start.elapsed() < PATIENCE, "{count} records awaited: {records:#?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn record(&self) -> Record {
        self.records(1).await.pop().unwrap()
    }
}

/// A connection spoken by hand.
pub struct Raw {
    pub stream: TcpStream,
    pub buffer: Vec<u8>,
}

impl Raw {
    pub fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self { stream, buffer: Vec::new() }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Reads more; false at the end.
    pub async fn fill(&mut self) -> bool {
        let mut chunk = [0; 4096];
        let read = tokio::time::timeout(PATIENCE, self.stream.read(&mut chunk)).await;
        let read = read.unwrap_or_else(|_| panic!("nothing came; so far {:?}", self.text())).unwrap_or(0);
        self.buffer.extend_from_slice(&chunk[..read]);
        read > 0
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.buffer).into_owned()
    }

    /// Everything up to and with `end`, taken from the buffer.
    pub async fn until(&mut self, end: &str) -> String {
        loop {
            if let Some(at) = self.text().find(end) {
                return String::from_utf8_lossy(&self.buffer.drain(..at + end.len()).collect::<Vec<_>>()).into_owned();
            }
            assert!(self.fill().await, "ended before {end:?}: {:?}", self.text());
        }
    }

    pub async fn head(&mut self) -> String {
        self.until("\r\n\r\n").await
    }

    pub async fn exactly(&mut self, count: usize) -> Vec<u8> {
        while self.buffer.len() < count {
            assert!(self.fill().await, "ended early: {:?}", self.text());
        }
        self.buffer.drain(..count).collect()
    }

    /// A response head and its Content-Length body.
    pub async fn response(&mut self) -> (String, String) {
        let head = self.head().await;
        let length = field(&head, "content-length").map_or(0, |length| length.parse().unwrap());
        (head, String::from_utf8(self.exactly(length).await).unwrap())
    }

    /// Whatever comes until the other side ends.
    pub async fn rest(&mut self) -> String {
        while self.fill().await {}
        self.text()
    }

    /// True where nothing comes for a while and the connection stays open.
    pub async fn silent(&mut self, time: Duration) -> bool {
        let mut chunk = [0; 64];
        self.buffer.is_empty() && tokio::time::timeout(time, self.stream.read(&mut chunk)).await.is_err()
    }
}

/// The value of a header in a head.
pub fn field<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines().skip(1).find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}

/// An upstream: each connection is given to `serve` with its number.
pub async fn upstream<F, S>(serve: F) -> SocketAddr
where
    F: Fn(Raw, usize) -> S + Send + 'static,
    S: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for number in 0.. {
            let Ok((stream, _)) = listener.accept().await else { return };
            tokio::spawn(serve(Raw::new(stream), number));
        }
    });
    address
}

/// An upstream that answers every request with its own head, as it came, for as long as it is asked.
pub async fn mirror() -> SocketAddr {
    upstream(|mut raw, _| async move {
        loop {
            while !raw.text().contains("\r\n\r\n") {
                if !raw.fill().await {
                    return;
                }
            }
            let head = raw.head().await;
            let length = field(&head, "content-length").map_or(0, |length| length.parse().unwrap());
            raw.exactly(length).await;
            raw.send(format!("HTTP/1.1 200 OK\r\nServer: mirror\r\nContent-Length: {}\r\n\r\n{head}", head.len()))
                .await;
        }
    })
    .await
}

/// An address where nobody listens.
pub fn nowhere() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}
