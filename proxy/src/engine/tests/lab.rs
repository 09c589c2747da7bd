//! One engine with one pod, and what a test asks of them.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
};

use crate::{
    api::ObjectId,
    engine::{
        Engine, Sink, Snapshot,
        accept::Role,
        host_sockets::{Destinations, HostSockets},
        pod::Pod,
        ports::Sockets,
        resolve::{Resolver, ResolverFiles},
    },
    mesh::{
        Cluster, Discovery, Endpoint, EndpointAddress, LoadBalancer, Mesh, Outbound, PortTable, Protocol, UpstreamTls,
        Workload, WorkloadId,
    },
    telemetry::record::Record,
    tls::Contexts,
};

/// Keeps what it is told.
#[derive(Default)]
pub struct Recorder {
    pub records: Mutex<Vec<Record>>,
    pub open: Mutex<Vec<String>>,
    pub handshakes: Mutex<Vec<Result<(), String>>>,
    /// Those of clients.
    pub accepted: Mutex<Vec<Result<(), String>>>,
}

impl Sink for Recorder {
    fn record(&self, record: Record) {
        self.records.lock().push(record);
    }

    fn connection_opened(&self, record: &Record) {
        self.open.lock().push(record.cluster_name().unwrap().to_owned());
    }

    fn connection_closed(&self, record: &Record) {
        let mut open = self.open.lock();
        let at = open
            .iter()
            .position(|name| Some(name.as_str()) == record.cluster_name())
            .expect("closed, but never opened");
        open.remove(at);
    }

    fn handshake_accepted(&self, _: &Arc<WorkloadId>, result: Result<(), &str>, _: Duration) {
        self.accepted.lock().push(result.map_err(str::to_owned));
    }

    fn handshake(&self, _: &Arc<WorkloadId>, _: &Arc<Cluster>, result: Result<(), &str>, _: Duration) {
        self.handshakes.lock().push(result.map_err(str::to_owned));
    }
}

pub struct Lab {
    pub engine: Arc<Engine>,
    pub pod: Arc<Pod>,
    pub recorder: Arc<Recorder>,
    pub listener: SocketAddr,
    destinations: Arc<Destinations>,
}

pub fn workload(outbound: Outbound) -> Workload {
    Workload {
        id: WorkloadId { namespace: "default".into(), name: "sleep".into() },
        service_account: "default".into(),
        labels: Default::default(),
        netns: String::new(),
        outbound: Arc::new(outbound),
        identity: "spiffe://cluster.local/ns/default/sa/default".into(),
        locality: "".into(),
        gateway: None,
        inbound: Default::default(),
    }
}

pub fn mesh(outbound: Outbound) -> Mesh {
    mesh_of(workload(outbound))
}

pub fn mesh_of(workload: Workload) -> Mesh {
    Mesh { workloads: [(workload.id.clone(), Arc::new(workload))].into(), ..Mesh::default() }
}

pub fn lab(outbound: Outbound) -> Lab {
    lab_with(outbound, Contexts::default(), Arc::new(HostSockets))
}

/// Everything passes through to one destination, whoever connects.
pub fn lab_all(destination: SocketAddr) -> Lab {
    let snapshot = snapshot(mesh(Outbound::default()), Contexts::default());
    serve(snapshot, Arc::new(HostSockets), Destinations::all(destination), Role::Outbound)
}

pub fn lab_with(outbound: Outbound, tls: Contexts, sockets: Arc<dyn Sockets>) -> Lab {
    serve(snapshot(mesh(outbound), tls), sockets, Destinations::default(), Role::Outbound)
}

/// One pod with a listener of its gateway, or for its own ports.
pub fn lab_at(role: Role, workload: Workload, tls: Contexts) -> Lab {
    serve(snapshot(mesh_of(workload), tls), Arc::new(HostSockets), Destinations::default(), role)
}

pub fn snapshot(mesh: Mesh, tls: Contexts) -> Snapshot {
    Snapshot { mesh: Arc::new(mesh), tls: Arc::new(tls), generation: 1 }
}

fn serve(snapshot: Snapshot, sockets: Arc<dyn Sockets>, destinations: Destinations, role: Role) -> Lab {
    let recorder = Arc::new(Recorder::default());
    let engine = Arc::new(Engine::new(snapshot, recorder.clone()).with_hyper_only(super::HYPER_ONLY));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let destinations = Arc::new(destinations);
    let resolver = Resolver::new(sockets.clone(), ResolverFiles::default());
    let id = Arc::new(WorkloadId { namespace: "default".into(), name: "sleep".into() });
    let own = vec![[127, 0, 0, 1].into()];
    let pod = Arc::new(Pod::new(id, sockets, destinations.clone(), resolver, own, address.port()));
    drop(engine.serve(listener, pod.clone(), role));
    Lab { engine, pod, recorder, listener: address, destinations }
}

impl Lab {
    /// A connection of the pod to `destination`, captured.
    pub async fn connect(&self, destination: SocketAddr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        self.destinations.insert(socket.local_addr().unwrap(), destination);
        socket.connect(self.listener).await.unwrap()
    }

    /// The only record, once it is there and everything that was opened is closed.
    pub async fn record(&self) -> Record {
        for _ in 0..500 {
            if let [record] = self.recorder.records.lock().as_slice()
                && self.recorder.open.lock().is_empty()
            {
                return record.clone();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{:?}, open: {:?}", self.recorder.records.lock(), self.recorder.open.lock());
    }
}

/// An address of loopback that nobody listens on.
pub async fn closed_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

pub fn cluster(host: &str, endpoints: &[SocketAddr], tls: UpstreamTls) -> Cluster {
    let endpoint = |address: &SocketAddr| Endpoint::new(EndpointAddress::Ip(*address), 1);
    Cluster {
        name: format!("outbound|80||{host}"),
        host: host.into(),
        port: 80,
        subset: String::new(),
        protocol: Protocol::Tcp,
        discovery: Discovery::Static(endpoints.iter().map(endpoint).collect()),
        load_balancer: LoadBalancer::RoundRobin,
        hash: None,
        locality: None,
        warmup: None,
        outlier: None,
        pool: Arc::default(),
        tls,
        mesh_external: true,
        service: ObjectId::new("ServiceEntry", "default", "test"),
        destination_rule: None,
        policies: None,
    }
}

/// Everything on the port goes to this TCP service.
pub fn tcp_service(port: u16, cluster: Cluster) -> Outbound {
    let table = PortTable { tcp_any: Some(Arc::new(cluster)), ..PortTable::default() };
    Outbound { ports: [(port, table)].into(), ..Outbound::default() }
}

/// An upstream that reads to the end and then answers `got: ` and what it read.
pub async fn echo() -> SocketAddr {
    echo_at("127.0.0.1").await
}

pub async fn echo_at(ip: &str) -> SocketAddr {
    let listener = TcpListener::bind((ip, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut all = Vec::new();
                let _ = stream.read_to_end(&mut all).await;
                let _ = stream.write_all(&[b"got: ".as_slice(), &all].concat()).await;
            });
        }
    });
    address
}

/// An upstream that speaks first.
pub async fn greeter() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.write_all(b"220 hello\r\n").await;
                let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            });
        }
    });
    address
}

/// Sends, ends its side, and reads to the end.
pub async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, question: &[u8]) -> std::io::Result<Vec<u8>> {
    stream.write_all(question).await?;
    stream.shutdown().await?;
    let mut answer = Vec::new();
    tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await??;
    Ok(answer)
}

/// True where reading fails with ECONNRESET (and not with an orderly end).
pub async fn is_reset(stream: &mut TcpStream) -> bool {
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read(&mut [0; 64])).await.unwrap();
    matches!(read, Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset)
}
