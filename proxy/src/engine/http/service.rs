//! One request: what was refused, what it names, and what the table says to do with it.

use std::{borrow::Cow, sync::Arc};

use super::{
    Connection,
    body::ResponseBody,
    forward::{self, Errand},
    head_guard,
    head_rules::{Violation, check_authority},
    log::RequestLog,
    payload::Payload,
    reply, routes,
};
use crate::{
    engine::{
        accept::Arrival,
        authorize, dial,
        probes::{self, Probing},
        raw,
    },
    limits,
    mesh::{Decision, HttpDecision, RequestHead, Verdict},
    telemetry::record::{Flag, Kept},
};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, Version,
    header::{CONNECTION, HOST},
};

/// Answers one request.
pub async fn answer(connection: Arc<Connection>, mut request: Request<Payload>) -> Response<ResponseBody> {
    let mut log = RequestLog::new(&connection, &request);
    if let Some(verdict) = connection.guard.as_ref().and_then(|guard| guard.refusal(request.method())) {
        return refuse_head(log, verdict);
    }
    let authority = match authority(&request) {
        Ok(authority) => authority,
        Err(violation) => return violated(log, violation),
    };
    log.with(|record| record.authority = Some((&authority).into()));
    if request.method() == http::Method::CONNECT {
        log.details("connect_not_supported");
        let text = "CONNECT is not supported: connect to the destination itself, egret carries it transparently";
        return reply::reply(log, StatusCode::METHOD_NOT_ALLOWED, text);
    }
    let snapshot = connection.engine.snapshot();
    if snapshot.misdirected(&connection.pod.id, &connection.info, &authority) {
        return misdirected(log, connection.info.h2);
    }
    let probe = probes::asked(&snapshot, &connection.pod, &connection.info, &request);
    if probe.is_none() && connection.info.probing == Probing::Only {
        return reply::denied(log, probes::NO_PROBE.to_owned());
    }
    // Before anything of the routes can be told.
    if probe.is_none()
        && let Some(policies) = snapshot.policies(&connection.pod.id, &connection.info.arrival)
    {
        if policies.deals_with_paths()
            && let Err(error) = routes::path::normalise(request.uri_mut())
        {
            return reply::bad_path(log, error);
        }
        let head = head(&request, &authority, connection.info.tls);
        if let Verdict::Denied(details) =
            authorize::entering(&snapshot, &connection.pod.id, &connection.info, Some(&head))
        {
            let would = snapshot.http(&connection.pod.id, &connection.info, &authority);
            if let (Arrival::Inbound, Some(HttpDecision::Host(host))) = (&connection.info.arrival, would)
                && let Some(cluster) = host.default_cluster()
            {
                log.route("default", Some(cluster), &cluster.name);
            }
            return reply::denied(log, details);
        }
    }
    let decision = probe.map(HttpDecision::Host);
    let decision = decision.or_else(|| snapshot.http(&connection.pod.id, &connection.info, &authority));
    let Some(decision) = decision else {
        let text = format!("{} is not enrolled any more", connection.pod.id);
        return reply::refused(log, text.into());
    };
    let decision = match decision {
        HttpDecision::Host(host) => return routes::follow(connection, snapshot, host, authority, request, log).await,
        HttpDecision::NotFound => return routes::not_found(log),
        HttpDecision::Unmatched(decision) => raw::settle(decision),
    };
    let cluster = match decision {
        Decision::Cluster(cluster) => cluster,
        Decision::Passthrough => {
            log.route("allow_any", None, dial::PASSTHROUGH);
            let errand = Errand::new(connection, snapshot, dial::passthrough().clone(), authority);
            return forward::exchange(errand, request, log).await;
        }
        Decision::Block => {
            log.route("block_all", None, dial::BLACK_HOLE);
            log.details("direct_response");
            return reply::reply(log, StatusCode::BAD_GATEWAY, "");
        }
        Decision::Refuse(reason) => {
            let inbound = connection.info.arrival == Arrival::Inbound;
            let mut response = reply::refused(log, reason);
            if inbound && request.version() != Version::HTTP_2 {
                // It was let in under rules that are no more: what is to come is refused, too.
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            return response;
        }
        Decision::Route(_) => return routes::no_cluster(log, "", "", "the route leads to no cluster"),
    };
    log.route("", Some(&cluster), &cluster.name);
    forward::exchange(Errand::new(connection, snapshot, cluster, authority), request, log).await
}

/// Says that the request belongs on another connection, which on this one would be for another server, or for a client
/// that has not proved what the server asks for by now (RFC 9110 section 15.5.20).
fn misdirected(mut log: Box<RequestLog>, h2: bool) -> Response<ResponseBody> {
    log.details("misdirected_request");
    let mut headers = HeaderMap::new();
    if !h2 {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    reply::answer(log, StatusCode::MISDIRECTED_REQUEST, headers, Bytes::new())
}

fn head<'a>(request: &'a Request<Payload>, authority: &'a str, tls: bool) -> RequestHead<'a> {
    RequestHead {
        method: request.method().as_str(),
        scheme: if tls { "https" } else { "http" },
        authority,
        path: request.uri().path(),
        query: request.uri().query(),
        headers: request.headers(),
    }
}

fn refuse_head(mut log: Box<RequestLog>, verdict: head_guard::Verdict) -> Response<ResponseBody> {
    log.with(|record| {
        record.method = verdict.method.map(Into::into);
        record.path = verdict.target.map(Into::into);
        (record.grpc, record.request_headers) = (false, Kept::default());
    });
    violated(log, verdict.violation)
}

/// The answer to a request that breaks the protocol.
pub fn violated(mut log: Box<RequestLog>, violation: Violation) -> Response<ResponseBody> {
    log.flag(Flag::DPE);
    log.details(violation.details());
    reply::reply(log, violation.status(), violation.to_string())
}

/// What the request names: the authority of an absolute-form target (or `:authority`), before Host (RFC 9112 section
/// 3.2.2). Empty for HTTP/1.0 without Host. On h2, where no guard has looked, it is judged here.
fn authority(request: &Request<Payload>) -> Result<Arc<str>, Violation> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let host = hosts.next();
    let named = request.uri().authority();
    if request.version() == Version::HTTP_2 {
        if hosts.next().is_some() || request.headers().len() > limits::HEAD_FIELDS {
            return Err(if request.headers().len() > limits::HEAD_FIELDS {
                Violation::TooLarge
            } else {
                Violation::Host
            });
        }
        for value in named.map(|named| named.as_str().as_bytes()).into_iter().chain(host.map(|host| host.as_bytes())) {
            check_authority(value)?;
        }
        match (named, host) {
            (None, None) => return Err(Violation::Host),
            // Two names for one request: whoever looks at the other one is deceived.
            (Some(named), Some(host)) if !host.as_bytes().eq_ignore_ascii_case(named.as_str().as_bytes()) => {
                return Err(Violation::Host);
            }
            _ => {}
        }
    }
    if let Some(named) = named {
        return Ok(named.as_str().into());
    }
    let host = host.map(|host| host.to_str().map_err(|_| Violation::Authority)).transpose()?;
    Ok(host.unwrap_or_default().into())
}

/// The target in origin-form as text.
pub fn origin_text(uri: &Uri) -> Cow<'_, str> {
    match uri.path_and_query().map(|target| target.as_str()) {
        None => "/".into(),
        Some(target) if target.starts_with('?') => format!("/{target}").into(),
        Some(target) => target.into(),
    }
}

/// The target in origin-form (`*` stays).
pub fn origin_form(uri: &Uri) -> Uri {
    let mut parts = http::uri::Parts::default();
    parts.path_and_query = uri.path_and_query().cloned();
    // `http://host?query` has no path: the target then is `/?query` (RFC 9112 section 3.2.1).
    if let Some(path) = &parts.path_and_query
        && path.as_str().starts_with('?')
        && let Ok(rooted) = format!("/{path}").parse()
    {
        parts.path_and_query = Some(rooted);
    }
    Uri::from_parts(parts).unwrap_or_default()
}
