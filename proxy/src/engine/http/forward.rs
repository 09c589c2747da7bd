//! One exchange with an upstream: attempts until one is answered, then the response.
//!
//! A request goes out a second time only where it provably was not processed (nothing connected, the connection handed
//! the message back, h2 said so), or where it is idempotent, bears no body, and a reused connection closed before a
//! single byte of an answer (RFC 9110 section 9.2.2, RFC 9112 section 9.3.1).

use std::{
    error::Error,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{EXPECT, HOST},
};
use hyper::{body::Incoming, client::conn::TrySendError, upgrade::OnUpgrade};
use rand::RngExt as _;

use super::{
    Connection,
    body::{Progress, RequestBody, ResponseBody},
    connect::{self, Wants},
    headers,
    log::RequestLog,
    pool::{Lease, Sender},
    reply::{self, NO_ANSWER, reply},
    routes::{Changes, mirror},
    service::{origin_form, violated},
    tunnel,
};
use crate::{
    engine::{
        Snapshot,
        dial::{self, Target},
        endpoints::endpoint_at,
    },
    limits,
    mesh::{Cluster, Route},
    telemetry::record::Flag,
};

/// What is to be done for a request.
pub struct Errand {
    pub connection: Arc<Connection>,
    pub snapshot: Arc<Snapshot>,
    pub cluster: Arc<Cluster>,
    /// What the request names; empty where it names nothing.
    pub authority: String,
    /// The route that led here: timeouts and retries. None: what no virtual host claims.
    pub route: Option<Arc<Route>>,
    /// What `consistentHash` makes of the request.
    pub hash: Option<u64>,
    /// Has the last word on the headers of each attempt (`x-envoy-attempt-count`).
    pub mark: Option<Mark>,
    /// What becomes of the headers.
    pub changes: Changes,
}

/// Changes the headers of an attempt; given the attempt's number, 1 for the first.
pub type Mark = fn(&mut HeaderMap, u32);

/// The request, ready for any upstream connection.
pub struct Outgoing {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub progress: Arc<Progress>,
    pub expects: bool,
}

/// How an attempt on a connection failed.
enum Failure {
    /// Nobody has processed it; the body is whole.
    Unprocessed(Option<RequestBody>),
    Lost(hyper::Error),
}

pub async fn exchange(
    errand: Errand,
    mut request: Request<Incoming>,
    mut log: Box<RequestLog>,
) -> Response<ResponseBody> {
    let of = errand.connection.clone();
    let empty = http_body::Body::is_end_stream(request.body());
    let http11 = request.version() == Version::HTTP_11;
    let upgrade = headers::upgrade(request.headers()).filter(|_| http11 && empty);
    let down = upgrade.as_ref().map(|_| hyper::upgrade::on(&mut request));
    let expects = !empty && http11 && expects_continue(request.headers());
    let progress = Progress::new(expects, empty);
    log.progress(&progress);

    let client_h2 = request.version() == Version::HTTP_2;
    let (parts, body) = request.into_parts();
    let mut headers = parts.headers;
    headers::strip(&mut headers);
    headers::strip_h2c(&mut headers);
    if let Some(protocol) = &upgrade {
        headers::set_upgrade(&mut headers, protocol.clone());
    }
    // HTTP/1: the authority of an absolute-form target replaces Host; else the two are the same text already.
    if let Some(host) = parts.uri.authority().and_then(|named| HeaderValue::from_str(named.as_str()).ok()) {
        headers.insert(HOST, host);
    }
    let mut body = RequestBody::new(body, progress.clone());
    let mut outgoing = Outgoing { method: parts.method, uri: parts.uri, headers, progress, expects };
    if upgrade.is_none() {
        mirror::begin(&errand, &outgoing, &mut body, &log);
    }
    errand.change_request(&mut outgoing.headers, log.request_id());

    let state = of.pod.cluster(&errand.cluster);
    let Some(counted) = state.request(&errand.cluster.pool) else {
        log.flag(Flag::UO);
        log.details("upstream_reset_before_response_started{overflow}");
        return reply(log, StatusCode::SERVICE_UNAVAILABLE, format!("{NO_ANSWER} overflow"));
    };
    log.held(counted);
    let wants = Wants { client_h2, upgrade: upgrade.is_some() };
    attempts(&errand, &outgoing, body, wants, down, log).await
}

fn expects_continue(headers: &HeaderMap) -> bool {
    headers.get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

async fn attempts(
    errand: &Errand,
    outgoing: &Outgoing,
    body: RequestBody,
    wants: Wants,
    down: Option<OnUpgrade>,
    mut log: Box<RequestLog>,
) -> Response<ResponseBody> {
    let target = Target {
        cluster: &errand.cluster,
        original: errand.connection.info.original,
        host: Some(errand.authority.as_str()).filter(|host| !host.is_empty()),
        hash: errand.hash,
    };
    errand.sweep();
    let mut tried = Vec::new();
    let mut body = Some(body);
    let mut retries = 0;
    loop {
        let picked = match dial::pick(&errand.snapshot, &errand.connection.pod, &target, &tried).await {
            Ok(picked) => picked,
            Err(error) => return reply::no_connection(log, &error, retries),
        };
        log.with(|record| record.upstream_host = Some(dial::address_text(&picked.endpoint.address)));
        let found = connect::connection(&errand.connection, &errand.snapshot, &target, &picked, wants).await;
        let mut lease = match found {
            Ok(lease) => lease,
            Err(error) if error.retryable() && retries < limits::RETRIES => {
                tried.push(picked.endpoint.address.clone());
                pause(retries).await;
                retries += 1;
                continue;
            }
            Err(error) => return reply::no_connection(log, &error, retries),
        };
        log.held_endpoint(picked);
        log.with(|record| {
            record.upstream_host = Some(dial::address_text(&lease.meta.key.address));
            record.upstream_local_address = lease.meta.local;
            record.upstream_tls = lease.meta.tls;
        });
        log.sending();
        let this_body = body.take().unwrap_or_else(|| RequestBody::empty(outgoing.progress.clone()));
        match send(errand, outgoing, this_body, &mut lease, retries + 1).await {
            Ok(response) => return answered(errand, outgoing, response, lease, down, log),
            Err(Failure::Unprocessed(back)) if lease.reused || retries < limits::RETRIES => {
                // A pooled connection that turns out dead costs nothing; a fresh one that does counts.
                if !lease.reused {
                    pause(retries).await;
                    retries += 1;
                }
                body = back;
            }
            Err(Failure::Unprocessed(_)) => {
                log.flag(Flag::UC);
                log.flag(Flag::URX);
                log.details("upstream_reset_before_response_started{connection_termination}");
                return reply(log, StatusCode::SERVICE_UNAVAILABLE, format!("{NO_ANSWER} connection termination"));
            }
            Err(Failure::Lost(error)) => return lost(errand, outgoing, &error, log),
        }
    }
}

/// Full jitter over a pause that doubles (Envoy's retry back-off).
async fn pause(retries: u32) {
    let longest = limits::RETRY_PAUSE * 2_u32.saturating_pow(retries);
    let pause = Duration::from_nanos(rand::rng().random_range(0..=longest.as_nanos() as u64));
    tokio::time::sleep(pause).await;
}

/// Sends the request on the connection and waits for the response's head.
async fn send(
    errand: &Errand,
    outgoing: &Outgoing,
    body: RequestBody,
    lease: &mut Lease,
    attempt: u32,
) -> Result<Response<Incoming>, Failure> {
    let bodiless = http_body::Body::is_end_stream(&body);
    let before = lease.meta.read.load(Ordering::Relaxed);
    let (reused, read, tls) = (lease.reused, lease.meta.read.clone(), lease.meta.tls);
    let Some(sender) = lease.sender() else { return Err(Failure::Unprocessed(Some(body))) };
    let h2 = matches!(sender, Sender::H2(_));
    let mut request = outgoing.request(body, h2, tls, &errand.authority);
    if let Some(mark) = errand.mark {
        mark(request.headers_mut(), attempt);
    }
    if outgoing.expects {
        let progress = outgoing.progress.clone();
        hyper::ext::on_informational(&mut request, move |response| {
            if response.status() == StatusCode::CONTINUE {
                progress.open();
            }
        });
    }
    let result = match sender {
        Sender::H1(sender) => wait(errand, outgoing, sender.try_send_request(request)).await,
        Sender::H2(sender) => {
            // h2 reports no informational responses here: do not let the two ends wait for each other.
            outgoing.progress.open();
            wait(errand, outgoing, sender.try_send_request(request)).await
        }
    };
    result.map_err(|mut error| {
        if let Some(back) = error.take_message() {
            return Failure::Unprocessed(Some(back.into_body()));
        }
        let error = error.into_error();
        let silent = read.load(Ordering::Relaxed) == before;
        let again = if h2 {
            unprocessed(&error)
        } else {
            reused && silent && outgoing.method.is_idempotent() && closed(&error)
        };
        if bodiless && again { Failure::Unprocessed(None) } else { Failure::Lost(error) }
    })
}

/// Waits for the response's head; meanwhile a client that was told to wait for a 100 may begin by itself (RFC 9110
/// section 10.1.1), and its body is then wanted upstream.
async fn wait<F>(errand: &Errand, outgoing: &Outgoing, sending: F) -> F::Output
where
    F: Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>>,
{
    let mut sending = std::pin::pin!(sending);
    if let Some(guard) = &errand.connection.guard
        && !outgoing.progress.is_open()
    {
        tokio::select! {
            biased;
            result = &mut sending => return result,
            // True: it has begun. False: it has gone; reading on is how hyper finds out.
            _ = guard.body_begun() => outgoing.progress.open(),
        }
    }
    sending.await
}

/// The connection ended under the request.
fn closed(error: &hyper::Error) -> bool {
    let io = error.source().is_some_and(<dyn Error + 'static>::is::<std::io::Error>);
    error.is_incomplete_message() || error.is_canceled() || error.is_closed() || io
}

/// h2 says that the stream was not processed: REFUSED_STREAM (RFC 9113 section 8.7), or a GOAWAY that left it out.
fn unprocessed(error: &hyper::Error) -> bool {
    let Some(error) = error.source().and_then(|source| source.downcast_ref::<h2::Error>()) else { return false };
    error.is_remote()
        && (error.reason() == Some(h2::Reason::REFUSED_STREAM)
            || (error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR)))
}

impl Outgoing {
    pub fn request(&self, body: RequestBody, h2: bool, tls: bool, authority: &str) -> Request<RequestBody> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.headers_mut() = self.headers.clone();
        let origin = origin_form(&self.uri);
        if h2 {
            request.headers_mut().remove(HOST);
            let scheme = if tls { "https" } else { "http" };
            let path = origin.path_and_query().map_or("/", |path| path.as_str());
            let uri = Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build();
            *request.uri_mut() = uri.unwrap_or(origin);
            *request.version_mut() = Version::HTTP_2;
        } else {
            *request.uri_mut() = origin;
            if !self.headers.contains_key(HOST) {
                if authority.is_empty() {
                    // HTTP/1.0 without Host, as the client sent it: an HTTP/1.1 request would need one.
                    *request.version_mut() = Version::HTTP_10;
                } else if let Ok(host) = HeaderValue::from_str(authority) {
                    request.headers_mut().insert(HOST, host);
                }
            }
        }
        request
    }
}

/// There is a response: it goes to the client, or opens a tunnel.
fn answered(
    errand: &Errand,
    outgoing: &Outgoing,
    mut response: Response<Incoming>,
    mut lease: Lease,
    down: Option<OnUpgrade>,
    mut log: Box<RequestLog>,
) -> Response<ResponseBody> {
    log.details("via_upstream");
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let protocol = headers::upgrade(response.headers());
        let (Some(down), Some(protocol), Some(guard)) = (down, protocol, &errand.connection.guard) else {
            drop(lease);
            return garbage(log);
        };
        let up = hyper::upgrade::on(&mut response);
        guard.tunnel();
        let mut head = response.map(|_| ());
        headers::strip(head.headers_mut());
        errand.change_response(head.headers_mut(), log.service_time());
        headers::set_upgrade(head.headers_mut(), protocol);
        *head.version_mut() = Version::HTTP_11;
        log.response(&head);
        tunnel::open(errand.connection.clone(), down, up, log, lease);
        return head.map(|()| ResponseBody::none());
    }
    headers::strip(response.headers_mut());
    errand.change_response(response.headers_mut(), log.service_time());
    *response.version_mut() = Version::HTTP_11;
    *response.extensions_mut() = http::Extensions::new();
    log.response(&response);
    let (parts, body) = response.into_parts();
    if outgoing.expects && !outgoing.progress.is_open() {
        // Answered without the body: it will not be sent, and this connection still waits for it.
        lease.discard();
    }
    Response::from_parts(parts, ResponseBody::upstream(body, log, lease, outgoing.progress.clone()))
}

/// The upstream's answer is not HTTP, or answers what was not asked.
fn garbage(mut log: Box<RequestLog>) -> Response<ResponseBody> {
    log.flag(Flag::UPE);
    log.details("upstream_reset_before_response_started{protocol_error}");
    reply(log, StatusCode::BAD_GATEWAY, format!("{NO_ANSWER} protocol error"))
}

/// The request was sent, and no response came.
fn lost(
    errand: &Errand,
    outgoing: &Outgoing,
    error: &hyper::Error,
    mut log: Box<RequestLog>,
) -> Response<ResponseBody> {
    ::log::debug!("upstream {}: {error}", errand.cluster.name);
    if outgoing.progress.client_failed.load(Ordering::Acquire) {
        if let Some(violation) = errand.connection.guard.as_ref().and_then(|guard| guard.body_violation()) {
            return violated(log, violation);
        }
        log.client_gone();
        return reply(log, StatusCode::BAD_REQUEST, "the request body broke off");
    }
    let h2 = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
    let misread = h2.is_some_and(|h2| h2.is_library() || h2.reason() == Some(h2::Reason::PROTOCOL_ERROR));
    if error.is_parse() || misread {
        return garbage(log);
    }
    log.flag(Flag::UC);
    let reason = if h2.is_some_and(h2::Error::is_reset) { "remote reset" } else { "connection termination" };
    log.details(format!("upstream_reset_before_response_started{{{}}}", reason.replace(' ', "_")));
    reply(log, StatusCode::SERVICE_UNAVAILABLE, format!("{NO_ANSWER} {reason}"))
}

impl Errand {
    /// With nothing that a route could say.
    pub fn new(connection: Arc<Connection>, snapshot: Arc<Snapshot>, cluster: Arc<Cluster>, authority: String) -> Self {
        Self {
            connection,
            snapshot,
            cluster,
            authority,
            route: None,
            hash: None,
            mark: None,
            changes: Changes::default(),
        }
    }

    /// Under a new snapshot, closes the pooled connections whose cluster or TLS context is not what it was.
    fn sweep(&self) {
        let pod = &self.connection.pod;
        pod.http.sweep(self.snapshot.generation, |key| {
            if key.cluster == dial::PASSTHROUGH {
                return true;
            }
            let outbound = self.snapshot.outbound(&pod.id);
            let Some(cluster) = outbound.as_ref().and_then(|outbound| outbound.cluster(&key.cluster)) else {
                return false;
            };
            let name = key.tls.name.as_ref().map(|name| name.to_str());
            let target = Target { cluster, original: self.connection.info.original, host: name.as_deref(), hash: None };
            let endpoint = endpoint_at(&self.snapshot, cluster, key.address.clone());
            dial::tls_key(&self.snapshot, pod, &target, &endpoint).is_ok_and(|tls| tls.context_id == key.tls.context_id)
        });
    }
}
