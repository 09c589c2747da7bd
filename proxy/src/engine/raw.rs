//! Connections that are not HTTP: TLS passed through by its server name, TCP, and TLS originated for raw bytes.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use bytes::Bytes;
use rand::RngExt as _;

use super::{
    Engine, Snapshot,
    accept::{Arrival, ConnectionInfo},
    authorize,
    balance::Observed,
    copy::{self, Carried, End, Limits},
    dial::{self, BLACK_HOLE, DialError, PASSTHROUGH, Target, Upstream},
    pod::Pod,
    sniff::Prefixed,
    stream::{ClientIo, UpstreamIo},
};
use crate::{
    limits,
    mesh::{ClusterRef, Decision, TunnelRoute, UpstreamTls, Verdict},
    telemetry::record::{Flag, Kept, Record, Reporter},
    tls::TlsError,
};

/// Nothing proves that what a TLS server sent before was all of it.
const CUT_OFF: &str =
    "TLS_error: the server ended the connection without close_notify, so its data may have been cut off";

/// A raw connection that was decided.
pub struct Raw {
    /// With what sniffing read before it.
    pub client: ClientIo,
    pub info: ConnectionInfo,
    /// The bytes are the client's own TLS, which is passed on.
    pub tls: bool,
    /// The upstream, where it was dialled already while the client was silent.
    pub connected: Option<Result<Connected, DialError>>,
}

/// An upstream connection and what it has said already.
pub struct Connected {
    pub upstream: Upstream,
    pub picked: dial::Picked,
    pub first: Bytes,
}

/// Carries the connection to where the decision says, or resets it; one record either way.
pub async fn serve(engine: &Engine, snapshot: &Snapshot, pod: &Pod, raw: Raw, decision: Decision) {
    // Boxed: else the task of a connection that turns out to be HTTP had room for this, too, as long as it lasts.
    Box::pin(settled(engine, snapshot, pod, raw, decision)).await;
}

async fn settled(engine: &Engine, snapshot: &Snapshot, pod: &Pod, mut raw: Raw, decision: Decision) {
    let mut record = record(pod, &raw.info);
    let decision = settle(decision);
    if let Verdict::Denied(details) = authorize::entering(snapshot, &pod.id, &raw.info, None) {
        if let Decision::Cluster(cluster) = decision {
            record.cluster = Some(cluster);
        }
        return deny(engine, raw, record, details);
    }
    let cluster = match decision {
        Decision::Route(route) => {
            let (name, why) = match route.destinations.first() {
                Some((ClusterRef::Unknown { name, why }, _)) => (&**name, &**why),
                _ => ("", "no destination of the route has a weight"),
            };
            log::warn!("{}: connection to {} reset: {why}", pod.id, raw.info.original);
            record.cluster_name = Some(name.to_owned().into());
            record.flags.push(Flag::NC);
            return reset(engine, raw, record);
        }
        Decision::Cluster(cluster) => {
            record.cluster = Some(cluster.clone());
            cluster
        }
        Decision::Passthrough => {
            record.cluster_name = Some(PASSTHROUGH.into());
            dial::passthrough().clone()
        }
        Decision::Block => {
            record.cluster_name = Some(BLACK_HOLE.into());
            record.flags.push(Flag::UH);
            return reset(engine, raw, record);
        }
        Decision::Refuse(reason) => {
            log::warn!("{}: connection to {} refused: {reason}", pod.id, raw.info.original);
            record.flags.push(Flag::UF);
            record.upstream_transport_failure_reason = Some(format!("TLS_error: {reason}"));
            return reset(engine, raw, record);
        }
    };
    if let Verdict::Denied(details) = authorize::leaving(snapshot, &pod.id, &raw.info, &cluster, None) {
        return deny(engine, raw, record, details);
    }
    if raw.tls && matches!(cluster.tls, UpstreamTls::Originate(_)) {
        log::debug!("{}: TLS inside TLS to {}: the client speaks TLS and a rule originates it", pod.id, cluster.name);
    }
    let _closed = Opened::new(engine, &record);
    let connected = match raw.connected.take() {
        Some(connected) => connected,
        None => {
            // What the client calls the service inside TLS that was taken off is between it and us.
            let host = if raw.tls { raw.info.sni.as_deref() } else { None };
            let hash = dial::source_hash(&cluster, raw.info.peer);
            let client = pod.shown_client(&raw.info);
            let target = Target { cluster: &cluster, original: raw.info.original, host, hash, client };
            dial_any(engine, snapshot, pod, &target).await
        }
    };
    match connected {
        Ok(Connected { upstream, picked: _picked, first }) => {
            record.upstream_host = Some((&upstream.address).into());
            record.upstream_local_address = upstream.local;
            record.upstream_tls = upstream.tls;
            let limits = Limits {
                idle: cluster.pool.tcp_idle_timeout,
                until: cluster.pool.max_connection_duration.map(|longest| tokio::time::Instant::now() + longest),
            };
            carry(engine, raw, Prefixed::new(first, upstream.io), limits, record).await;
        }
        Err(error) => {
            log::debug!("{}: {}: {error}", pod.id, cluster.name);
            record.flags.push(error.flag());
            record.upstream_host = error.upstream_host().map(Into::into);
            record.upstream_transport_failure_reason = error.reason();
            reset(engine, raw, record);
        }
    }
}

/// Draws one of a route's clusters by weight. Settle a decision once: whoever looks twice must see the same cluster. What
/// is still a route leads to an unknown cluster.
pub(super) fn settle(decision: Decision) -> Decision {
    let Decision::Route(route) = &decision else { return decision };
    let chosen = weighted(&route.destinations, |(_, weight)| *weight);
    match chosen {
        Some((ClusterRef::Known(cluster), _)) => Decision::Cluster(cluster.clone()),
        Some((unknown, weight)) => {
            let route = TunnelRoute { source: route.source.clone(), destinations: vec![(unknown.clone(), *weight)] };
            Decision::Route(Arc::new(route))
        }
        None => Decision::Route(Arc::new(TunnelRoute { source: route.source.clone(), destinations: Vec::new() })),
    }
}

/// Draws one by weight; a single one is taken whatever its weight, as Istio has it.
pub(super) fn weighted<T>(of: &[T], weight: impl Fn(&T) -> u32) -> Option<&T> {
    if let [one] = of {
        return Some(one);
    }
    let total: u64 = of.iter().map(|one| u64::from(weight(one))).sum();
    let mut point = if total == 0 { return None } else { rand::rng().random_range(0..total) };
    of.iter().find(|one| {
        let share = u64::from(weight(one));
        let here = point < share;
        point = point.saturating_sub(share);
        here
    })
}

/// Ends a connection that cannot be decided.
pub fn refuse(engine: &Engine, pod: &Pod, raw: Raw, flag: Flag, details: &'static str) {
    let mut record = record(pod, &raw.info);
    record.flags.push(flag);
    record.connection_termination_details = Some(details.to_owned());
    reset(engine, raw, record);
}

/// Ends a connection that a policy forbids.
pub(super) fn deny(engine: &Engine, raw: Raw, mut record: Record, details: String) {
    log::debug!("{}: {} to {}: {details}", record.workload, raw.info.peer, raw.info.original);
    record.connection_termination_details = Some(details);
    drop(raw.client);
    finish(engine, record, raw.info.started, Carried::default());
}

/// An open connection as the sink knows it, which hears that it is gone however this ends.
pub(super) struct Opened<'a> {
    engine: &'a Engine,
    record: Record,
}

impl<'a> Opened<'a> {
    /// `record` knows the cluster by now.
    pub fn new(engine: &'a Engine, record: &Record) -> Self {
        engine.sink().connection_opened(record);
        Self { engine, record: record.clone() }
    }
}

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        self.engine.sink().connection_closed(&self.record);
    }
}

/// Tries other endpoints where one cannot be reached: nothing was sent yet, so no byte is sent twice.
pub(super) async fn dial_any(
    engine: &Engine,
    snapshot: &Snapshot,
    pod: &Pod,
    target: &Target<'_>,
) -> Result<Connected, DialError> {
    // Boxed: nobody keeps room for it once it is done.
    Box::pin(dial_each(engine, snapshot, pod, target)).await
}

async fn dial_each(
    engine: &Engine,
    snapshot: &Snapshot,
    pod: &Pod,
    target: &Target<'_>,
) -> Result<Connected, DialError> {
    let mut tried = Vec::new();
    let mut failure = None;
    while tried.len() <= limits::RETRIES as usize {
        let picked = dial::pick(snapshot, pod, target, &tried).await?;
        if tried.contains(&picked.endpoint.address) {
            break;
        }
        match dial::dial(engine, snapshot, pod, target, &picked, true).await {
            Ok(upstream) => {
                picked.observe(Observed::Served);
                return Ok(Connected { upstream, picked, first: Bytes::new() });
            }
            Err(error) if error.retryable() => failure = Some(error),
            Err(error) => return Err(error),
        }
        tried.push(picked.endpoint.address.clone());
    }
    Err(failure.unwrap_or(DialError::NoEndpoints))
}

/// Copies until both sides have ended, or what stops it; then writes the record.
pub(super) async fn carry(
    engine: &Engine,
    raw: Raw,
    mut upstream: Prefixed<UpstreamIo>,
    limits: Limits,
    mut record: Record,
) {
    let Raw { mut client, info, .. } = raw;
    let (end, carried) = copy::both_ways(&mut client, &mut upstream, limits).await;
    match end {
        End::Done => {}
        End::Downstream(error) => {
            log::debug!("{}: downstream: {error}", record.workload);
            record.flags.push(Flag::DC);
            if info.tls && error.kind() == std::io::ErrorKind::UnexpectedEof {
                record.connection_termination_details = Some("downstream_tls_cut_off".to_owned());
            }
            upstream.get_ref().socket().reset_on_close();
        }
        End::Upstream(error) => {
            // A TLS stream cut off without close_notify counts as an error too: the client, who sees no TLS, could
            // not tell it from the end of the data.
            log::debug!("{}: upstream {}: {error}", record.workload, record.cluster_name().unwrap_or_default());
            record.flags.push(Flag::UC);
            if record.upstream_tls {
                record.upstream_transport_failure_reason = Some(match error.kind() {
                    std::io::ErrorKind::UnexpectedEof => CUT_OFF.to_owned(),
                    _ => format!("TLS_error: {}", TlsError::from_io(&error)),
                });
            }
            client.reset_on_close();
        }
        End::Idle => {
            record.flags.push(Flag::SI);
            record.connection_termination_details = Some("idle_timeout".to_owned());
        }
        End::Duration => {
            record.flags.push(Flag::DT);
            record.connection_termination_details = Some("max_connection_duration".to_owned());
        }
    }
    finish(engine, record, info.started, carried);
}

pub(super) fn reset(engine: &Engine, raw: Raw, record: Record) {
    raw.client.reset_on_close();
    drop(raw.client);
    finish(engine, record, raw.info.started, Carried::default());
}

pub(super) fn finish(engine: &Engine, mut record: Record, started: Instant, carried: Carried) {
    record.duration = started.elapsed();
    record.bytes_received = carried.received;
    record.bytes_sent = carried.sent;
    engine.sink().record(record);
}

/// A record that knows the connection and nothing else yet.
pub fn record(pod: &Pod, info: &ConnectionInfo) -> Record {
    let original: SocketAddr = info.original;
    Record {
        workload: pod.id.clone(),
        start: info.start,
        duration: std::time::Duration::ZERO,
        protocol: None,
        method: None,
        path: None,
        authority: None,
        response_code: 0,
        flags: Vec::new(),
        response_code_details: None,
        connection_termination_details: None,
        upstream_transport_failure_reason: None,
        downstream_transport_failure_reason: None,
        bytes_received: 0,
        bytes_sent: 0,
        upstream_service_time: None,
        request_id: None,
        upstream_host: None,
        upstream_local_address: None,
        downstream_local_address: Some(original),
        downstream_remote_address: Some(info.peer),
        requested_server_name: info.sni.clone(),
        reporter: match info.arrival {
            Arrival::Outbound | Arrival::Gateway { .. } => Reporter::Source,
            Arrival::Inbound => Reporter::Destination,
        },
        source_identity: info.identity.clone(),
        client_certificate: info.certificate.clone(),
        downstream_tls: info.tls,
        downstream_session: info.session,
        route_name: None,
        cluster: None,
        cluster_name: None,
        upstream_tls: false,
        grpc_status: None,
        grpc: false,
        request_headers: Kept::default(),
        response_headers: Kept::default(),
    }
}
