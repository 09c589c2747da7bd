//! What the client gets: the upstream's response, a tunnel, or why there is neither.

use http::{Response, StatusCode, Version};
use hyper::upgrade::OnUpgrade;

use super::{Errand, Outgoing, attempts::Outcome};
use crate::{
    engine::http::{
        answer::{Answer, AnswerError},
        body::{Deadline, ResponseBody, Upload},
        headers,
        log::RequestLog,
        pool::Lease,
        reply::{self, NO_ANSWER, reply},
        service::violated,
        tunnel,
    },
    telemetry::record::Flag,
};

/// Answers the client. `deadline` is what is left of the route's timeout.
pub fn conclude(
    errand: &Errand,
    outgoing: &Outgoing,
    upload: &Upload,
    outcome: Outcome,
    down: Option<OnUpgrade>,
    deadline: Option<Deadline>,
    mut log: Box<RequestLog>,
) -> Response<ResponseBody> {
    match outcome {
        Outcome::Answered { response, lease } => answered(errand, outgoing, response, lease, down, deadline, log),
        Outcome::NoConnection(error) => reply::no_connection(log, &error),
        Outcome::Unsent => {
            log.flag(Flag::UC);
            log.details("upstream_reset_before_response_started{connection_termination}");
            reply(log, StatusCode::SERVICE_UNAVAILABLE, format!("{NO_ANSWER} connection termination"))
        }
        Outcome::Lost(error) => lost(errand, outgoing, &error, log),
        Outcome::TimedOut(details) => {
            upload.abandon();
            log.flag(Flag::UT);
            log.details(details);
            reply(log, StatusCode::GATEWAY_TIMEOUT, "upstream request timeout")
        }
    }
}

/// There is a response: it goes to the client, or opens a tunnel.
fn answered(
    errand: &Errand,
    outgoing: &Outgoing,
    mut response: Response<Answer>,
    mut lease: Lease,
    down: Option<OnUpgrade>,
    deadline: Option<Deadline>,
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
    Response::from_parts(parts, ResponseBody::upstream(body, log, lease, outgoing.progress.clone(), deadline))
}

/// The upstream's answer is not HTTP, or answers what was not asked.
fn garbage(mut log: Box<RequestLog>) -> Response<ResponseBody> {
    log.flag(Flag::UPE);
    log.details("upstream_reset_before_response_started{protocol_error}");
    reply(log, StatusCode::BAD_GATEWAY, format!("{NO_ANSWER} protocol error"))
}

/// The request was sent, and no response came.
fn lost(errand: &Errand, outgoing: &Outgoing, error: &AnswerError, mut log: Box<RequestLog>) -> Response<ResponseBody> {
    ::log::debug!("upstream {}: {error}", errand.cluster.name);
    if outgoing.client_failed() {
        if let Some(violation) = errand.connection.body_violation() {
            return violated(log, violation);
        }
        log.client_gone();
        return reply(log, StatusCode::BAD_REQUEST, "the request body broke off");
    }
    if error.misread() {
        return garbage(log);
    }
    log.flag(Flag::UC);
    let reason = if error.reset() { "remote reset" } else { "connection termination" };
    log.details(format!("upstream_reset_before_response_started{{{}}}", reason.replace(' ', "_")));
    reply(log, StatusCode::SERVICE_UNAVAILABLE, format!("{NO_ANSWER} {reason}"))
}
