//! What the routes of a virtual host make of a request: matched, answered here, or sent on.

mod cors;
mod hash;
mod headers;
mod local;
pub mod mirror;
pub(super) mod path;
pub mod redirect;

use std::sync::Arc;

use http::{Request, Response, StatusCode, header::HOST};

pub(super) use self::headers::ORIGINAL_PATH;
pub use self::headers::{Changes, apply};
use super::{
    Connection,
    body::ResponseBody,
    forward::{self, Errand},
    log::RequestLog,
    payload::Payload,
    reply,
};
use crate::{
    engine::{Snapshot, accept::Arrival, raw},
    mesh::{Action, ClusterRef, Forward, RequestHead, Route, VirtualHost},
    telemetry::record::{Flag, Text},
};

/// Where a request is on its way, while routes decide about it.
struct Traveller {
    connection: Arc<Connection>,
    snapshot: Arc<Snapshot>,
    /// As sent; empty where it names nothing.
    authority: Arc<str>,
    /// `http` or `https`: as an absolute-form target or `:scheme` has it, else as the connection came.
    scheme: &'static str,
    request: Request<Payload>,
}

impl Traveller {
    fn head(&self) -> RequestHead<'_> {
        RequestHead {
            method: self.request.method().as_str(),
            scheme: self.scheme,
            authority: &self.authority,
            path: self.request.uri().path(),
            query: self.request.uri().query(),
            headers: self.request.headers(),
        }
    }

    /// What a redirect starts from.
    fn origin(&self) -> redirect::From<'_> {
        redirect::From { scheme: self.scheme, authority: &self.authority, uri: self.request.uri() }
    }
}

/// Does what the first route that matches says.
pub async fn follow(
    connection: Arc<Connection>,
    snapshot: Arc<Snapshot>,
    host: Arc<VirtualHost>,
    authority: Arc<str>,
    mut request: Request<Payload>,
    mut log: Box<RequestLog>,
) -> Response<ResponseBody> {
    let tls = connection.info.tls;
    if host.deals_with_paths()
        && let Err(error) = path::normalise(request.uri_mut())
    {
        return reply::bad_path(log, error);
    }
    let scheme = match request.uri().scheme_str() {
        Some("https") => "https",
        Some("http") => "http",
        _ if tls => "https",
        _ => "http",
    };
    let traveller = Traveller { connection, snapshot, authority, scheme, request };
    if host.require_tls && !tls {
        return local::redirect(log, None, 301, &redirect::to_https(traveller.origin()));
    }
    let Some(route) = host.route(&traveller.head()).cloned() else { return not_found(log) };
    log.route(&route.name, None, "");
    if let Some(fault) = &route.fault {
        log = match Box::pin(local::inject(fault, log)).await {
            Ok(log) => log,
            Err(response) => return response,
        };
    }
    match &route.action {
        Action::Forward(action) => forward(traveller, &route, action, log).await,
        Action::Redirect(to) => {
            let location = redirect::location(to, &route.matches, traveller.origin());
            local::redirect(log, Some(&route), to.code, &location)
        }
        Action::Direct(response) => local::direct(log, &route, response),
        Action::Refuse(reason) => reply::refused(log, reason.clone()),
    }
}

async fn forward(
    mut traveller: Traveller,
    route: &Arc<Route>,
    action: &Forward,
    mut log: Box<RequestLog>,
) -> Response<ResponseBody> {
    let verdict = route
        .cors
        .as_deref()
        .map(|policy| cors::judge(policy, traveller.request.method(), traveller.request.headers()));
    let cross_origin = match verdict {
        Some(cors::Verdict::Preflight(fields)) => {
            log.details("cors_response");
            return reply::answer(log, StatusCode::OK, fields, bytes::Bytes::new());
        }
        Some(cors::Verdict::Allowed(fields)) => Some(fields),
        Some(cors::Verdict::Ignored) | None => None,
    };
    let mut response = match bound_for(&mut traveller, route, action, log) {
        Ok((errand, log)) => forward::exchange(errand, traveller.request, log).await,
        Err(response) => response,
    };
    if let Some(fields) = cross_origin {
        response.headers_mut().extend(fields);
    }
    response
}

/// Draws the destination and prepares the request for it.
#[expect(clippy::result_large_err, reason = "the error is the response, which is what the caller returns either way")]
fn bound_for(
    traveller: &mut Traveller,
    route: &Arc<Route>,
    action: &Forward,
    mut log: Box<RequestLog>,
) -> Result<(Errand, Box<RequestLog>), Response<ResponseBody>> {
    let weights: &[_] = &action.destinations;
    let Some(chosen) = raw::weighted(weights, |to| to.weight) else {
        return Err(no_cluster(log, &route.name, "", "no destination of the route has a weight"));
    };
    let destination = weights.iter().position(|to| std::ptr::eq(to, chosen)).unwrap_or_default();
    let cluster = match &chosen.cluster {
        ClusterRef::Known(cluster) => cluster.clone(),
        ClusterRef::Unknown { name, why } => return Err(no_cluster(log, &route.name, name, why)),
        ClusterRef::Invalid { why } => {
            log.details("cluster_not_found");
            log.flag(Flag::NC);
            return Err(reply::reply(log, StatusCode::INTERNAL_SERVER_ERROR, &**why));
        }
    };
    log.route(&route.name, Some(&cluster), &cluster.name);
    let info = &traveller.connection.info;
    let hashed = match &cluster.hash {
        Some(policy) => hash::key(&policy.key, &traveller.head(), info.peer, info.original),
        None => hash::Hashed::default(),
    };
    let mirrors = mirror::drawn(action);
    let mut changes = Changes { destination, original_path: None, cookie: hashed.cookie, mirrors };
    if let Some(target) = path::rewritten(action, &route.matches, traveller.request.uri()) {
        if path::climbs(&action.rewrite_path, &target) {
            log.details("path_normalization_failed");
            let text = format!("the rewritten path {target:?} leads out of where the route leads");
            return Err(reply::reply(log, StatusCode::BAD_REQUEST, text));
        }
        let original = traveller.request.uri().path_and_query().map(|path| path.as_str().as_bytes());
        changes.original_path = original.and_then(|path| http::HeaderValue::from_bytes(path).ok());
        match path::replaced(traveller.request.uri(), &target) {
            Ok(uri) => *traveller.request.uri_mut() = uri,
            Err(error) => return Err(reply::reply(log, StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
        }
    }
    let authority = match headers::authority(route, destination) {
        Some(authority) => rename(&mut traveller.request, authority),
        None => traveller.authority.clone(),
    };
    // What comes to the pod itself was counted by the client's own proxy.
    let counted = !cluster.mesh_external && traveller.connection.info.arrival != Arrival::Inbound;
    let errand = Errand {
        route: Some(route.clone()),
        hash: hashed.hash,
        mark: counted.then_some(headers::count_attempt as forward::Mark),
        changes,
        ..Errand::new(traveller.connection.clone(), traveller.snapshot.clone(), cluster, authority)
    };
    Ok((errand, log))
}

/// Gives the request another Host or `:authority`.
fn rename(request: &mut Request<Payload>, authority: &str) -> Arc<str> {
    if let Ok(host) = http::HeaderValue::from_str(authority) {
        request.headers_mut().insert(HOST, host);
    }
    *request.uri_mut() = super::service::origin_form(request.uri());
    authority.into()
}

/// 404 with an empty body: no route matches.
pub fn not_found(mut log: Box<RequestLog>) -> Response<ResponseBody> {
    log.flag(Flag::NR);
    log.details("route_not_found");
    reply::reply(log, StatusCode::NOT_FOUND, "")
}

/// 503: the route leads to a cluster that is not there.
pub fn no_cluster(mut log: Box<RequestLog>, route: impl Into<Text>, name: &str, why: &str) -> Response<ResponseBody> {
    log.route(route, None, name);
    log.flag(Flag::NC);
    log.details("cluster_not_found");
    reply::reply(log, StatusCode::SERVICE_UNAVAILABLE, why)
}
