//! Answers that the proxy gives itself.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use super::{body::ResponseBody, log};
use crate::{
    engine::{authorize::DENIED, dial::DialError},
    mesh::paths::InvalidPath,
};

use super::log::RequestLog;

/// How Envoy begins the sentence about an upstream that gave no answer.
pub const NO_ANSWER: &str = "upstream connect error or disconnect/reset before headers. reset reason:";

/// `status` with a sentence.
pub fn reply(log: Box<RequestLog>, status: StatusCode, text: impl Into<String>) -> Response<ResponseBody> {
    let text = text.into();
    let mut headers = HeaderMap::new();
    if !text.is_empty() {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    answer(log, status, headers, Bytes::from(text))
}

/// gRPC status `code`; to a client that does not speak gRPC the HTTP status that means about the same.
pub fn grpc_or_http(log: Box<RequestLog>, code: u32, text: &str) -> Response<ResponseBody> {
    if log.is_grpc() {
        grpc(log, code, HeaderMap::new(), text.as_bytes())
    } else {
        reply(log, log::http_code(code), text)
    }
}

/// An answer with these headers. To a gRPC client it is a status of gRPC's own in a response without body, as its library
/// would not show the body otherwise.
pub fn answer(mut log: Box<RequestLog>, status: StatusCode, headers: HeaderMap, body: Bytes) -> Response<ResponseBody> {
    if log.is_grpc() {
        return grpc(log, log::grpc_code(status), headers, &body);
    }
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    // Where a response has no body by nature, hyper would drop it unread, which looks like a client that has left.
    let bodiless = status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
    if log.is_head() && !bodiless {
        response.headers_mut().insert(header::CONTENT_LENGTH, body.len().into());
    }
    let body = if log.is_head() || bodiless { Bytes::new() } else { body };
    log.response(&response);
    response.map(|()| ResponseBody::text(body, log))
}

fn grpc(mut log: Box<RequestLog>, code: u32, mut headers: HeaderMap, message: &[u8]) -> Response<ResponseBody> {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", code.into());
    if let Ok(message) = percent(message).parse() {
        headers.insert("grpc-message", message);
    }
    let mut response = Response::new(());
    *response.headers_mut() = headers;
    log.response(&response);
    response.map(|()| ResponseBody::text(Bytes::new(), log))
}

/// `grpc-message` is percent-encoded (the gRPC protocol over HTTP/2, "Status-Message").
fn percent(text: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.iter().copied() {
        match byte {
            b' '..=b'$' | b'&'..=b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// 403: a policy forbids it; `details` say which.
pub fn denied(mut log: Box<RequestLog>, details: String) -> Response<ResponseBody> {
    log.details(details);
    reply(log, StatusCode::FORBIDDEN, DENIED)
}

/// 400: the path has no normal form.
pub fn bad_path(mut log: Box<RequestLog>, error: InvalidPath) -> Response<ResponseBody> {
    log.details("path_normalization_failed");
    reply(log, StatusCode::BAD_REQUEST, error.to_string())
}

/// There is no upstream connection.
pub fn no_connection(mut log: Box<RequestLog>, error: &DialError) -> Response<ResponseBody> {
    log.flag(error.flag());
    log.details(error.details());
    log.with(|record| {
        record.upstream_transport_failure_reason = error.reason();
        if let Some(host) = error.upstream_host() {
            record.upstream_host = Some(host.into());
        }
    });
    reply(log, StatusCode::SERVICE_UNAVAILABLE, error.body())
}

/// A TLS rule names the destination and cannot be honoured; nothing was sent.
pub fn refused(log: Box<RequestLog>, reason: std::sync::Arc<str>) -> Response<ResponseBody> {
    no_connection(log, &DialError::Refused(reason))
}
