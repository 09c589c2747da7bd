//! What is answered here: redirects, direct responses, faults.

use http::{
    HeaderMap, HeaderValue, Response, StatusCode,
    header::{CONTENT_TYPE, LOCATION},
};
use rand::RngExt as _;

use super::{super::body::ResponseBody, headers};
use crate::{
    api::virtual_service::Abort,
    engine::http::{log::RequestLog, reply},
    mesh::{DirectResponse, Fault, Route},
    telemetry::record::Flag,
};

/// `%RESPONSE_CODE_DETAILS%` of redirects and direct responses alike (Envoy).
const DIRECT: &str = "direct_response";

/// A redirect to `location`; the route's response headers count for it, too.
pub fn redirect(mut log: Box<RequestLog>, route: Option<&Route>, code: u16, location: &str) -> Response<ResponseBody> {
    let Ok(location) = HeaderValue::from_bytes(location.as_bytes()) else {
        log.details(DIRECT);
        return reply::reply(log, StatusCode::INTERNAL_SERVER_ERROR, "the redirect's Location is not valid");
    };
    let mut fields = HeaderMap::new();
    fields.insert(LOCATION, location);
    if let Some(route) = route {
        headers::apply(&route.response_headers, &mut fields);
    }
    log.details(DIRECT);
    let status = StatusCode::from_u16(code).unwrap_or(StatusCode::MOVED_PERMANENTLY);
    reply::answer(log, status, fields, bytes::Bytes::new())
}

pub fn direct(mut log: Box<RequestLog>, route: &Route, response: &DirectResponse) -> Response<ResponseBody> {
    let mut fields = HeaderMap::new();
    if !response.body.is_empty() {
        fields.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    headers::apply(&route.response_headers, &mut fields);
    log.details(DIRECT);
    // An informational status would leave the client waiting.
    let status = StatusCode::from_u16(response.status).ok().filter(|status| !status.is_informational());
    reply::answer(log, status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), fields, response.body.clone())
}

/// Holds the request back and refuses it, each for its share of requests and independently (Envoy's fault filter).
pub async fn inject(fault: &Fault, mut log: Box<RequestLog>) -> Result<Box<RequestLog>, Response<ResponseBody>> {
    if let Some((delay, share)) = fault.delay
        && !delay.is_zero()
        && drawn(share)
    {
        log.flag(Flag::DI);
        tokio::time::sleep(delay).await;
    }
    match fault.abort {
        Some((abort, share)) if drawn(share) => {
            log.flag(Flag::FI);
            log.details("fault_filter_abort");
            Err(aborted(log, abort))
        }
        _ => Ok(log),
    }
}

fn aborted(log: Box<RequestLog>, abort: Abort) -> Response<ResponseBody> {
    const TEXT: &str = "fault filter abort";
    match abort {
        Abort::Http(code) => {
            let status = StatusCode::from_u16(code).ok().filter(|status| !status.is_informational());
            reply::reply(log, status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), TEXT)
        }
        Abort::Grpc(code) => reply::grpc_or_http(log, code, TEXT),
    }
}

/// True for `share` of a million calls.
pub fn drawn(share: u32) -> bool {
    share >= 1_000_000 || rand::rng().random_range(0..1_000_000) < share
}

#[cfg(test)]
mod tests {
    use super::drawn;

    #[test]
    fn shares_are_of_a_million() {
        let of = |share| (0..20_000).filter(|_| drawn(share)).count();
        assert_eq!((of(0), of(1_000_000)), (0, 20_000));
        let quarter = of(250_000);
        assert!((4_500..5_500).contains(&quarter), "{quarter}");
    }
}
