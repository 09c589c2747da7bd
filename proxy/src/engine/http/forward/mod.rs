//! One exchange with an upstream: attempts until one is answered, then the response.
//!
//! By default a request goes out a second time only where it provably was not processed (nothing connected, the connection
//! handed the message back, h2 said so), or where it is idempotent, bears no body, and a reused connection closed before a
//! single byte of an answer (RFC 9110 section 9.2.2, RFC 9112 section 9.3.1). A route's policy may ask for more.

mod attempts;
mod outcome;
mod retry;
mod send;

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{EXPECT, HOST},
};

use self::attempts::{Outcome, attempts};
use super::{
    Connection,
    body::{Deadline, Progress, ResponseBody, Upload},
    connect::Wants,
    headers,
    log::RequestLog,
    payload::Payload,
    reply::{NO_ANSWER, bad_path, denied, reply},
    routes::{Changes, mirror, path},
};
use crate::{
    engine::{
        Snapshot,
        accept::Arrival,
        authorize,
        balance::Observed,
        dial::{self, Target},
        endpoints::endpoint_at,
    },
    mesh::{Action, Cluster, Forward, RequestHead, RetryPolicy, Route, Verdict, paths::InvalidPath},
    telemetry::record::Flag,
};

/// What is to be done for a request.
pub struct Errand {
    pub connection: Arc<Connection>,
    pub snapshot: Arc<Snapshot>,
    pub cluster: Arc<Cluster>,
    /// What the request names; empty where it names nothing.
    pub authority: Arc<str>,
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

pub async fn exchange(
    errand: Errand,
    mut request: Request<Payload>,
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
    let upload = Upload::new(body, progress.clone());
    let mut outgoing = Outgoing { method: parts.method, uri: parts.uri, headers, progress, expects };
    if let Err(error) = errand.normalise(&mut outgoing) {
        return bad_path(log, error);
    }
    if let Verdict::Denied(details) = errand.verdict(&errand.cluster, &outgoing) {
        return denied(log, details);
    }
    if upgrade.is_none() {
        mirror::begin(&errand, &outgoing, &upload, &log);
    }
    errand.change_request(&mut outgoing.headers, log.request_id());

    let state = of.pod.cluster(&errand.cluster);
    let Some(counted) = state.request(&errand.cluster.pool) else {
        log.flag(Flag::UO);
        log.details("upstream_reset_before_response_started{overflow}");
        return reply(log, StatusCode::SERVICE_UNAVAILABLE, format!("{NO_ANSWER} overflow"));
    };
    log.held(counted);
    // An HTTP/1.0 request without Host stays one.
    let named = !errand.authority.is_empty() || outgoing.headers.contains_key(HOST);
    let plain = upload.is_empty() && upgrade.is_none() && named;
    let wants = Wants { client_h2, upgrade: upgrade.is_some(), plain };
    let mut deadline = errand.deadline(&outgoing.progress);
    let outcome = {
        let attempts = pin!(attempts(&errand, &outgoing, &upload, wants, &state, &mut log));
        match &mut deadline {
            None => attempts.await,
            Some(deadline) => tokio::select! {
                biased;
                outcome = attempts => outcome,
                () = deadline => Outcome::TimedOut(RESPONSE_TIMEOUT),
            },
        }
    };
    if let Outcome::TimedOut(RESPONSE_TIMEOUT) = outcome {
        log.observe(Observed::TimedOut);
    }
    outcome::conclude(&errand, &outgoing, &upload, outcome, down, deadline, log)
}

/// Envoy's word for the route's timeout.
const RESPONSE_TIMEOUT: &str = "response_timeout";

fn expects_continue(headers: &HeaderMap) -> bool {
    headers.get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

impl Errand {
    /// With nothing that a route could say.
    pub fn new(
        connection: Arc<Connection>,
        snapshot: Arc<Snapshot>,
        cluster: Arc<Cluster>,
        authority: Arc<str>,
    ) -> Self {
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

    /// Where a policy about the service asks for paths, it gets the path that was checked.
    fn normalise(&self, outgoing: &mut Outgoing) -> Result<(), InvalidPath> {
        let mut clusters = std::iter::once(&self.cluster).chain(&self.changes.mirrors);
        let asked = clusters.any(|to| to.policies.as_ref().is_some_and(|policies| policies.deals_with_paths()));
        if asked { path::normalise(&mut outgoing.uri) } else { Ok(()) }
    }

    /// What the policies about a service say of the request.
    pub fn verdict(&self, cluster: &Cluster, outgoing: &Outgoing) -> Verdict {
        let info = &self.connection.info;
        let head = RequestHead {
            method: outgoing.method.as_str(),
            scheme: if info.tls { "https" } else { "http" },
            authority: &self.authority,
            path: outgoing.uri.path(),
            query: outgoing.uri.query(),
            headers: &outgoing.headers,
        };
        authorize::leaving(&self.snapshot, &self.connection.pod.id, info, cluster, Some(&head))
    }

    fn forward(&self) -> Option<&Forward> {
        match &self.route.as_ref()?.action {
            Action::Forward(forward) => Some(forward),
            _ => None,
        }
    }

    fn retries(&self) -> &RetryPolicy {
        match self.forward() {
            _ if self.connection.info.arrival == Arrival::Inbound => retry::of_an_application(),
            Some(forward) => &forward.retries,
            None => retry::default_policy(),
        }
    }

    /// When the response must be complete: the route's timeout, from the end of the request.
    fn deadline(&self, progress: &Arc<Progress>) -> Option<Deadline> {
        let timeout: Duration = self.forward()?.timeout?;
        let progress = progress.clone();
        Some(Box::pin(async move {
            progress.arrived().await;
            tokio::time::sleep(timeout).await;
        }))
    }

    /// Under a new snapshot, closes the pooled connections whose cluster or TLS context is not what it was.
    fn sweep(&self) {
        let pod = &self.connection.pod;
        if pod.http.generation() >= self.snapshot.generation {
            return;
        }
        pod.http.sweep(self.snapshot.generation, |key| {
            if key.cluster == dial::PASSTHROUGH {
                return true;
            }
            let workload = self.snapshot.mesh.workloads.get(&pod.id);
            let Some(cluster) = workload.and_then(|workload| workload.cluster(&key.cluster)) else {
                return false;
            };
            let target = Target {
                cluster,
                original: self.connection.info.original,
                host: key.tls.name.as_deref(),
                hash: None,
                client: None,
            };
            let endpoint = endpoint_at(&self.snapshot, cluster, key.address.clone());
            dial::tls_key(&self.snapshot, pod, &target, &endpoint).is_ok_and(|tls| tls.context_id == key.tls.context_id)
        });
    }
}

impl Outgoing {
    /// What the client sends broke off, or broke its framing.
    fn client_failed(&self) -> bool {
        self.progress.client_failed.load(Ordering::Acquire)
    }
}
