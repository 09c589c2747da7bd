//! Connections from outside to a pod's own ports: what they must be, what is inside, and on to the application.
//!
//! The port's mode decides about TLS first: mesh mTLS only (STRICT), mesh mTLS or anything else told apart by the first
//! bytes (PERMISSIVE), or the port's own (DISABLE, with the `tls` of a `Sidecar`'s ingress). Then what is inside: HTTP, or
//! bytes. The application is dialled last; where a client waits for it to speak first, while the client is silent.

use std::{net::SocketAddr, os::fd::AsFd, sync::Arc};

use bytes::Bytes;
use tokio::net::TcpStream;

use super::{
    Engine, Snapshot,
    accept::{self, Arrival, ConnectionInfo, Rest},
    authorize,
    client_hello::ClientHello,
    dial::{DialError, Target},
    http,
    pod::Pod,
    probes::{self, Probing},
    raw::{self, Connected, Raw},
    silent::{self, Hears as _, Spoke},
    sniff::{self, Expect, Kind},
    stream::{ClientIo, reset_on_close},
    terminate,
};
use crate::{
    limits,
    mesh::{ClientCertificates, Decision, InboundPort, InboundTable, Protocol, ServerTlsSettings, Takes, Verdict},
    telemetry::record::{Flag, Record},
    tls::ServerContext,
};

/// Finds out what the connection is; what follows is to be run. None: it has ended.
pub(super) async fn arrived(
    engine: Arc<Engine>,
    pod: Arc<Pod>,
    stream: TcpStream,
    peer: SocketAddr,
    own_port: u16,
) -> Option<Rest> {
    let to = match pod.capture.inbound_destination(stream.as_fd()) {
        Ok(to) => unmapped(to),
        Err(error) => {
            log::warn!("{}: where {peer} was going cannot be told: {error}; closed", pod.id);
            reset_on_close(&stream);
            return None;
        }
    };
    let snapshot = engine.snapshot();
    let workload = snapshot.mesh.workloads.get(&pod.id);
    let Some(table) = workload.and_then(|workload| workload.inbound.clone()) else {
        log::debug!("{}: its own ports are not in the table (any more); connection to {to} reset", pod.id);
        reset_on_close(&stream);
        return None;
    };
    // Dialling it would lead back here.
    if to.port() == own_port || pod.is_listener(to) {
        log::debug!("{}: {peer} dialled the proxy's own listener at {to}; reset", pod.id);
        reset_on_close(&stream);
        return None;
    }
    let mut info = ConnectionInfo::new(Arrival::Inbound, to, peer);
    // With the interface of a link-local address, as it is dialled again.
    info.original = to;
    info.probing = probes::expected(&snapshot, &pod, &table, &info, stream.as_fd());
    let port = table.port(to.port()).clone();
    let client = ClientIo::plain(Bytes::new(), stream);
    let coming = Coming { engine, snapshot, pod, port, info, client, connected: None };
    match table.takes(to.port()) {
        Takes::MeshMtls => coming.encrypted(Shown::Mesh).await,
        Takes::Tls(settings) => coming.encrypted(Shown::Own(settings)).await,
        Takes::Nothing(reason) => {
            coming.refuse(reason);
            None
        }
        Takes::Anything { mesh_mtls } => coming.open(mesh_mtls).await,
    }
}

/// Why no request goes on, on a connection that was let in under other rules: such as plain text from before STRICT.
pub(super) fn refusal(table: &InboundTable, info: &ConnectionInfo) -> Option<Arc<str>> {
    let number = info.original.port();
    let said = |what: &str| Some(Arc::from(format!("port {number} takes {what} only, by now")));
    match table.takes(number) {
        Takes::MeshMtls => info.identity.is_none().then(|| said("mesh mTLS")).flatten(),
        Takes::Tls(now) => match &info.ingress {
            None => said("TLS with a certificate of its own"),
            Some(then) if then.clients != now.clients && now.clients != ClientCertificates::None => {
                said("other client certificates")
            }
            Some(_) => None,
        },
        Takes::Nothing(reason) => Some(reason.clone()),
        Takes::Anything { .. } => None,
    }
}

/// Whose certificate is shown to those who come.
#[derive(Clone, Copy)]
enum Shown<'a> {
    /// The pod's own of the mesh; the client must show one of the mesh, too.
    Mesh,
    /// That of a Sidecar's ingress.
    Own(&'a Arc<ServerTlsSettings>),
}

/// A connection on its way to the application.
struct Coming {
    engine: Arc<Engine>,
    /// What decides about this connection; HTTP asks anew for each request.
    snapshot: Arc<Snapshot>,
    pod: Arc<Pod>,
    port: Arc<InboundPort>,
    info: ConnectionInfo,
    client: ClientIo,
    /// The application, where it was dialled already while the client was silent.
    connected: Option<Result<Connected, DialError>>,
}

impl Coming {
    /// TLS with our certificate, and nothing else but the kubelet's probes.
    async fn encrypted(mut self, shown: Shown<'_>) -> Option<Rest> {
        let expect = if self.info.probing == Probing::No { Expect::Tls } else { Expect::Anything };
        let (kind, first) = match sniff::sniff(&mut self.client, expect, limits::HANDSHAKE_TIME).await {
            Ok(sniffed) => sniffed,
            Err(error) => {
                self.left(&error);
                return None;
            }
        };
        let nothing = first.is_empty();
        self.client.put_back(first);
        match kind {
            Kind::Tls(hello) => {
                self.named(&hello);
                return Box::pin(self.take_off(shown)).await;
            }
            Kind::Http1 | Kind::Http2 if self.info.probing != Probing::No => {
                self.info.probing = Probing::Only;
                return Some(self.http(kind == Kind::Http2));
            }
            Kind::Stalled { .. } => self.end(Flag::DPE, "first_bytes_incomplete"),
            Kind::Other if nothing => {
                log::debug!("{}: {} came to {} and sent nothing", self.pod.id, self.info.peer, self.info.original);
            }
            Kind::Silent | Kind::Http1 | Kind::Http2 | Kind::Other => {
                let mut record = self.record();
                record.flags.push(Flag::NR);
                record.response_code_details = Some("filter_chain_not_found".into());
                self.reset(record);
            }
        }
        None
    }

    /// Whatever comes goes on; with `mesh`, mesh mTLS is taken off.
    async fn open(self, mesh: bool) -> Option<Rest> {
        if !mesh && self.port.is_raw() && self.info.probing != Probing::Only {
            return self.raw(false);
        }
        let (mut coming, kind) = self.first_bytes().await?;
        match kind {
            Kind::Tls(hello) => {
                coming.named(&hello);
                if mesh && is_mesh(&hello) {
                    return Box::pin(coming.take_off(Shown::Mesh)).await;
                }
                coming.raw(true)
            }
            kind => coming.inside(kind),
        }
    }

    /// Does the handshake; then what is inside decides.
    async fn take_off(mut self, shown: Shown<'_>) -> Option<Rest> {
        let context = match self.context(shown) {
            Ok(context) => context,
            Err(why) => {
                self.refuse(&why);
                return None;
            }
        };
        let record = self.record();
        let ClientIo::Plain(stream) = self.client else { return None };
        let stream = terminate::take_off(&self.engine, &context, stream, &mut self.info, record).await?;
        self.client = ClientIo::tls(Bytes::new(), stream);
        if let Shown::Own(settings) = shown {
            self.info.ingress = Some(settings.clone());
        }
        if self.port.is_raw() {
            return self.raw(false);
        }
        let (coming, kind) = self.first_bytes().await?;
        coming.inside(kind)
    }

    fn context(&self, shown: Shown<'_>) -> Result<Arc<ServerContext>, String> {
        match shown {
            Shown::Mesh => self.snapshot.mesh_server(&self.pod.id),
            Shown::Own(settings) => self.snapshot.server(settings),
        }
    }

    /// Waits for what the client says first, which is put back. Where it may be the application that speaks first, that is
    /// dialled once the client has been silent for a while. None: the connection has ended.
    async fn first_bytes(mut self) -> Option<(Self, Kind)> {
        let http = self.is_http();
        // A client may be as long idle before its first request as after it.
        let patience = if http { limits::IDLE_TIMEOUT } else { limits::SNIFF_SILENCE };
        let ending = self.engine.ending(false).clone();
        loop {
            let sniffed = tokio::select! {
                biased;
                sniffed = sniff::sniff(&mut self.client, Expect::Anything, patience) => sniffed,
                () = ending.cancelled(), if http => return None,
            };
            match sniffed {
                Ok((Kind::Silent, _)) if http => return None,
                Ok((Kind::Silent, _)) => match self.application_first().await {
                    Spoke::Client => {}
                    Spoke::Server(said) => {
                        if let Some(Ok(connected)) = &mut self.connected {
                            connected.first = said;
                        }
                        return Some((self, Kind::Silent));
                    }
                    Spoke::Nobody => {
                        self.end(Flag::SI, "idle_timeout");
                        return None;
                    }
                },
                Ok((kind, first)) => {
                    self.client.put_back(first);
                    return Some((self, kind));
                }
                Err(error) => {
                    self.left(&error);
                    return None;
                }
            }
        }
    }

    /// Dials the application for a client that is silent, and waits for the first word of either. An application that
    /// cannot be reached has spoken, too.
    async fn application_first(&mut self) -> Spoke {
        // What a policy forbids to raw bytes may still become a request.
        if authorize::entering(&self.snapshot, &self.pod.id, &self.info, None) != Verdict::Allowed {
            let heard = tokio::time::timeout(limits::HEAD_TIME, self.client.hears()).await;
            return heard.map_or(Spoke::Server(Bytes::new()), |()| Spoke::Client);
        }
        let dialled = tokio::select! {
            biased;
            () = self.client.hears() => return Spoke::Client,
            dialled = Self::dial(&self.engine, &self.snapshot, &self.pod, &self.port, &self.info) => dialled,
        };
        let idle = match self.port.cluster.pool.tcp_idle_timeout {
            idle if idle.is_zero() => limits::IDLE_TIMEOUT,
            idle => idle,
        };
        match self.connected.insert(dialled) {
            Ok(connected) => silent::first_of(&mut self.client, &mut connected.upstream.io, idle).await,
            Err(_) => Spoke::Server(Bytes::new()),
        }
    }

    async fn dial(
        engine: &Engine,
        snapshot: &Snapshot,
        pod: &Pod,
        port: &InboundPort,
        info: &ConnectionInfo,
    ) -> Result<Connected, DialError> {
        let client = pod.shown_client(info);
        let target = Target { cluster: &port.cluster, original: info.original, host: None, hash: None, client };
        raw::dial_any(engine, snapshot, pod, &target).await
    }

    /// What was said in plain text, or inside TLS that was taken off.
    fn inside(self, kind: Kind) -> Option<Rest> {
        let h2 = match (self.port.protocol, kind) {
            (_, kind @ (Kind::Http1 | Kind::Http2)) if self.info.probing == Probing::Only => kind == Kind::Http2,
            (Protocol::Tcp | Protocol::Https | Protocol::Tls, _) => return self.raw(false),
            (_, Kind::Tls(_) | Kind::Stalled { tls: true }) => return self.raw(true),
            (_, Kind::Http1) => false,
            (_, Kind::Http2) => true,
            (Protocol::Auto, _) => return self.raw(false),
            // No HTTP, though the port is declared to speak it: HTTP answers that.
            (Protocol::Http | Protocol::Http2 | Protocol::Grpc, _) => false,
        };
        Some(self.http(h2))
    }

    fn http(self, h2: bool) -> Rest {
        let Self { engine, pod, info, client, .. } = self;
        http::serve(engine, pod, client, ConnectionInfo { h2, ..info })
    }

    /// Bytes as they are, to the application. `tls`: they are TLS that is none of ours.
    fn raw(mut self, tls: bool) -> Option<Rest> {
        // A silent client may have come long ago, under other rules.
        self.snapshot = self.engine.snapshot();
        let workload = self.snapshot.mesh.workloads.get(&self.pod.id);
        let refused = match workload.and_then(|workload| workload.inbound.as_deref()) {
            Some(table) => {
                // Where the application was not dialled yet, it is where it is by now.
                if self.connected.is_none() {
                    self.port = table.port(self.info.original.port()).clone();
                }
                refusal(table, &self.info)
            }
            None => Some(Arc::from("the pod's own ports are not in the table any more")),
        };
        if let Some(why) = refused {
            log::debug!("{}: {} at {}: {why}; reset", self.pod.id, self.info.peer, self.info.original);
            let mut record = self.record();
            record.flags.push(Flag::NR);
            record.response_code_details = Some("filter_chain_not_found".into());
            self.reset(record);
            return None;
        }
        let Self { engine, snapshot, pod, port, info, client, connected } = self;
        let raw = Raw { client, info, tls, connected };
        Some(accept::raw(engine, snapshot, pod, raw, Decision::Cluster(port.cluster.clone())))
    }

    fn is_http(&self) -> bool {
        matches!(self.port.protocol, Protocol::Http | Protocol::Http2 | Protocol::Grpc)
    }

    fn named(&mut self, hello: &ClientHello) {
        self.info.sni = hello.sni.as_deref().map(Arc::from);
    }

    fn record(&self) -> Record {
        let mut record = raw::record(&self.pod, &self.info);
        record.cluster = Some(self.port.cluster.clone());
        record
    }

    /// There is nothing to take TLS off with.
    fn refuse(self, why: &str) {
        let record = self.record();
        terminate::refuse(&self.engine, self.client, self.info, record, why);
    }

    fn end(self, flag: Flag, details: &str) {
        let mut record = self.record();
        record.flags.push(flag);
        record.connection_termination_details = Some(details.to_owned());
        self.reset(record);
    }

    fn reset(self, record: Record) {
        let raw = Raw { client: self.client, info: self.info, tls: false, connected: None };
        raw::reset(&self.engine, raw, record);
    }

    /// The client broke off before it had said what it wants.
    fn left(self, error: &std::io::Error) {
        log::debug!("{}: {} before its first bytes: {error}", self.pod.id, self.info.peer);
        let mut record = self.record();
        record.flags.push(Flag::DC);
        self.reset(record);
    }
}

/// Mesh mTLS offers protocols that nothing else does: `istio`, `istio-peer-exchange`, `istio-http/1.1`, `istio-h2` …
fn is_mesh(hello: &ClientHello) -> bool {
    hello.alpn.iter().any(|protocol| protocol.starts_with("istio"))
}

/// A v4-mapped address as IPv4; a link-local one keeps its interface.
fn unmapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) => v6.ip().to_ipv4_mapped().map_or(address, |v4| (v4, v6.port()).into()),
        v4 => v4,
    }
}
