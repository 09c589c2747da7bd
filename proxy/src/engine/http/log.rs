//! One request's [`Record`] while it grows; written exactly once, when the exchange ends or is dropped.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderMap, Request, Response, StatusCode, Version, header::CONTENT_TYPE};
use uuid::Uuid;

use super::{Connection, body::Progress, headers, routes::ORIGINAL_PATH};
use crate::{
    engine::{
        balance::{Counted, Observed},
        dial::Picked,
        raw,
    },
    mesh::Cluster,
    telemetry::record::{Flag, Kept, Record, Text},
};

/// Dropping it without [`RequestLog::finish`] means that the client left before there was an answer.
pub struct RequestLog {
    connection: Arc<Connection>,
    record: Option<Record>,
    started: Instant,
    sent_upstream: Option<Instant>,
    service_time: Option<Duration>,
    progress: Option<Arc<Progress>>,
    version: Version,
    grpc: bool,
    /// The response has no body (RFC 9110 section 9.3.2).
    head: bool,
    /// Counted as in flight until the record is written.
    held: Option<Counted>,
    endpoint: Option<Picked>,
}

impl RequestLog {
    pub fn new<B>(connection: &Arc<Connection>, request: &Request<B>) -> Box<Self> {
        connection.begin();
        let headers = request.headers();
        let mut request_headers = Kept::default();
        connection.engine.sink().keep_request(headers, &mut request_headers);
        // The log shows it in the place of the path: only a proxy of the mesh may say so.
        if connection.info.identity.is_none() {
            request_headers.remove(&ORIGINAL_PATH);
        }
        let kind = headers.get(CONTENT_TYPE);
        let grpc = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        let record = Record {
            start: SystemTime::now(),
            protocol: Some(match request.version() {
                Version::HTTP_10 => "HTTP/1.0",
                Version::HTTP_2 => "HTTP/2",
                _ => "HTTP/1.1",
            }),
            method: Some(Text::method(request.method())),
            path: request.uri().path_and_query().map(Into::into),
            request_id: Some(new_id()),
            grpc,
            request_headers,
            ..raw::record(&connection.pod, &connection.info)
        };
        Box::new(Self {
            connection: connection.clone(),
            record: Some(record),
            started: Instant::now(),
            sent_upstream: None,
            service_time: None,
            progress: None,
            version: request.version(),
            grpc: grpc && headers::is_grpc(headers),
            head: request.method() == http::Method::HEAD,
            held: None,
            endpoint: None,
        })
    }

    pub fn is_grpc(&self) -> bool {
        self.grpc
    }

    pub fn is_head(&self) -> bool {
        self.head
    }

    /// For a request whose client has given it none.
    pub fn request_id(&self) -> Option<Uuid> {
        self.record.as_ref()?.request_id
    }

    /// From when the request went out until this is first asked for.
    pub fn service_time(&mut self) -> Option<Duration> {
        if let Some(sent) = self.sent_upstream.take() {
            self.service_time = Some(sent.elapsed());
        }
        self.service_time
    }

    /// Changes the record; it is there until [`RequestLog::finish`].
    pub fn with(&mut self, change: impl FnOnce(&mut Record)) {
        if let Some(record) = &mut self.record {
            change(record);
        }
    }

    pub fn flag(&mut self, flag: Flag) {
        self.with(|record| {
            if !record.flags.contains(&flag) {
                record.flags.push(flag);
                // Envoy writes what went wrong before it writes that it went wrong once too often.
                record.flags.sort_by_key(|flag| *flag == Flag::URX);
            }
        });
    }

    pub fn details(&mut self, details: impl Into<Text>) {
        self.with(|record| record.response_code_details = Some(details.into()));
    }

    /// `cluster_name` counts only where there is no cluster of that name.
    pub fn route(&mut self, route: impl Into<Text>, cluster: Option<&Arc<Cluster>>, cluster_name: &str) {
        let route = route.into();
        self.with(|record| {
            record.route_name = (!route.is_empty()).then_some(route);
            record.cluster = cluster.cloned();
            let named = cluster.is_none() && !cluster_name.is_empty();
            record.cluster_name = named.then(|| cluster_name.to_owned().into());
        });
    }

    /// Where received bytes are counted.
    pub fn progress(&mut self, progress: &Arc<Progress>) {
        self.progress = Some(progress.clone());
    }

    /// The request counts against its cluster's limit until its end.
    pub fn held(&mut self, counted: Counted) {
        self.held = Some(counted);
    }

    /// The endpoint is in use until the end.
    pub fn held_endpoint(&mut self, picked: Picked) {
        self.endpoint = Some(picked);
    }

    /// Takes note of how the endpoint did.
    pub fn observe(&self, observed: Observed) {
        if let Some(picked) = &self.endpoint {
            picked.observe(observed);
        }
    }

    /// The endpoint is not in use any more: another attempt follows.
    pub fn release_endpoint(&mut self) {
        self.endpoint = None;
    }

    /// The request goes out now.
    pub fn sending(&mut self) {
        (self.sent_upstream, self.service_time) = (Some(Instant::now()), None);
    }

    /// The head that the client gets.
    pub fn response<B>(&mut self, response: &Response<B>) {
        let time = self.service_time();
        if let Some(record) = &mut self.record {
            record.response_code = response.status().as_u16();
            record.upstream_service_time = time;
            record.response_headers = Kept::default();
            self.connection.engine.sink().keep_response(response.headers(), &mut record.response_headers);
            record.grpc_status = headers::grpc_status(response.headers());
        }
    }

    pub fn trailers(&mut self, trailers: &HeaderMap) {
        if let Some(status) = headers::grpc_status(trailers) {
            self.with(|record| record.grpc_status = Some(status));
        }
    }

    /// The response ends in the middle. A body that ends with the connection (HTTP/1.0) would look whole: reset it.
    pub fn cut(&mut self) {
        if self.version == Version::HTTP_10 {
            self.connection.reset.store(true, Ordering::Release);
        }
    }

    /// A tunnel ended in the middle.
    pub fn broken(&mut self, flag: Flag, error: &dyn std::error::Error) {
        self.flag(flag);
        self.with(|record| record.connection_termination_details = Some(error.to_string()));
    }

    pub fn client_gone(&mut self) {
        self.flag(Flag::DC);
        self.details("downstream_remote_disconnect");
    }

    /// Writes the record. `sent` are the body bytes of the response.
    pub fn finish(mut self: Box<Self>, sent: u64) {
        self.write(sent);
    }

    fn write(&mut self, sent: u64) {
        let Some(mut record) = self.record.take() else { return };
        record.duration = self.started.elapsed();
        record.bytes_sent = sent;
        // A tunnel's bytes are in the record already; its request had no body.
        record.bytes_received += self.progress.as_ref().map_or(0, |progress| progress.received.load(Ordering::Relaxed));
        self.connection.end();
        (self.held, self.endpoint) = (None, None);
        self.connection.engine.sink().record(record);
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        if self.record.is_some() {
            self.client_gone();
            self.write(0);
        }
    }
}

/// A random UUID (RFC 9562 section 5.4). From the thread's own generator: the system's costs a call for each request.
fn new_id() -> Uuid {
    uuid::Builder::from_random_bytes(rand::random()).into_uuid()
}

/// gRPC's own word for an HTTP status that a proxy answers with (the gRPC protocol's "HTTP to gRPC status mapping").
pub fn grpc_code(status: StatusCode) -> u32 {
    match status.as_u16() {
        400 | 431 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

/// The way back, for a client that does not speak gRPC (Envoy's `grpcToHttpStatus`).
pub fn http_code(grpc: u32) -> StatusCode {
    match grpc {
        0 => StatusCode::OK,
        1 => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
        3 | 9 | 11 => StatusCode::BAD_REQUEST,
        4 => StatusCode::GATEWAY_TIMEOUT,
        5 => StatusCode::NOT_FOUND,
        6 | 10 => StatusCode::CONFLICT,
        7 => StatusCode::FORBIDDEN,
        8 => StatusCode::TOO_MANY_REQUESTS,
        12 => StatusCode::NOT_IMPLEMENTED,
        14 => StatusCode::SERVICE_UNAVAILABLE,
        16 => StatusCode::UNAUTHORIZED,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
