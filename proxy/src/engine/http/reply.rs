//! Answers that the proxy gives itself.

use http::{HeaderValue, Response, StatusCode, header};

use super::{body::ResponseBody, log};
use crate::{engine::dial::DialError, limits, telemetry::record::Flag};

use super::log::RequestLog;

/// How Envoy begins the sentence about an upstream that gave no answer.
pub const NO_ANSWER: &str = "upstream connect error or disconnect/reset before headers. reset reason:";

/// `status` with a sentence. To a gRPC client it is a status of gRPC's own in a response without body, as its library
/// would not show the sentence otherwise.
pub fn reply(mut log: Box<RequestLog>, status: StatusCode, text: impl Into<String>) -> Response<ResponseBody> {
    let text = text.into();
    let mut response = Response::new(());
    let headers = response.headers_mut();
    let grpc = log.is_grpc();
    if grpc {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", log::grpc_code(status).into());
        if let Ok(message) = percent(&text).parse() {
            headers.insert("grpc-message", message);
        }
    } else {
        if !text.is_empty() {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        }
        *response.status_mut() = status;
    }
    log.response(&response);
    let body = ResponseBody::text(if grpc { String::new() } else { text }, log);
    response.map(|()| body)
}

/// `grpc-message` is percent-encoded (the gRPC protocol over HTTP/2, "Status-Message").
fn percent(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'$' | b'&'..=b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// There is no upstream connection. `attempts` were made before this one.
pub fn no_connection(mut log: Box<RequestLog>, error: &DialError, attempts: u32) -> Response<ResponseBody> {
    log.flag(error.flag());
    if error.retryable() && attempts >= limits::RETRIES {
        log.flag(Flag::URX);
    }
    log.details(error.details());
    log.with(|record| {
        record.upstream_transport_failure_reason = error.reason();
        if let Some(host) = error.upstream_host() {
            record.upstream_host = Some(host.to_owned());
        }
    });
    reply(log, StatusCode::SERVICE_UNAVAILABLE, error.body())
}

/// A TLS rule names the destination and cannot be honoured; nothing was sent.
pub fn refused(log: Box<RequestLog>, reason: std::sync::Arc<str>) -> Response<ResponseBody> {
    no_connection(log, &DialError::Refused(reason), 0)
}
