//! Which headers end at this hop (RFC 9110 section 7.6.1) and which go on, untouched.
//!
//! `Proxy-Authorization` and `Proxy-Authenticate` go on: egret asks for neither, so they are between the client and a
//! proxy behind us (RFC 9110 section 11.7).

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{CONNECTION, CONTENT_LENGTH, TE, TRANSFER_ENCODING, UPGRADE},
};

/// What tells of one connection or frames one message: never a rule's to change.
pub fn of_the_connection(name: &HeaderName) -> bool {
    [CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, TE, TRANSFER_ENCODING, UPGRADE, HTTP2_SETTINGS, CONTENT_LENGTH]
        .contains(name)
}

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Removes what was meant for us alone. `TE: trailers` is said again to the next hop.
pub fn strip(headers: &mut HeaderMap) {
    let ours = [CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, TE, TRANSFER_ENCODING, UPGRADE];
    // Most messages have one of these or none, and looking is cheaper than removing.
    let mut there = [false; 6];
    for name in headers.keys() {
        if let Some(at) = ours.iter().position(|ours| ours == name) {
            there[at] = true;
        }
    }
    if there == [false; 6] {
        return;
    }
    let named = words(headers, &CONNECTION).filter(|word| !word.eq_ignore_ascii_case("keep-alive"));
    let named: Vec<HeaderName> = named.filter_map(|word| word.parse().ok()).collect();
    let trailers = there[3] && words(headers, &TE).any(|word| word.eq_ignore_ascii_case("trailers"));
    let those = ours.iter().zip(there).filter_map(|(name, there)| there.then_some(name));
    for name in named.iter().chain(those) {
        headers.remove(name);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// The protocol that a request or a 101 wants to change to, where it really asks (`Connection: upgrade` too). `h2c` is
/// between the client and us, and we do not do it (RFC 9113 section 3.1 has taken it back).
pub fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let wanted = headers.get(UPGRADE)?;
    let asked = words(headers, &CONNECTION).any(|word| word.eq_ignore_ascii_case("upgrade"));
    let h2c = words(headers, &UPGRADE).any(|word| word.eq_ignore_ascii_case("h2c"));
    (asked && !h2c).then(|| wanted.clone())
}

/// Says on the next hop that the connection is to change to `protocol`.
pub fn set_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
}

/// The settings that go with `Upgrade: h2c` are of no use without it.
pub fn strip_h2c(headers: &mut HeaderMap) {
    headers.remove(HTTP2_SETTINGS);
}

/// The comma-separated words of all lines of a header.
pub fn words<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> + use<'h> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|word| !word.is_empty())
}

/// True for a gRPC call, whose client wants errors as gRPC statuses.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(http::header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("application/grpc"))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['+', ';']))
}

/// `grpc-status` of a head or of trailers.
pub fn grpc_status(headers: &HeaderMap) -> Option<u32> {
    headers.get(GRPC_STATUS)?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn what_the_connection_names_ends_here() {
        let mut of = headers(&[
            ("connection", "close, X-Private"),
            ("connection", "keep-alive"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("te", "gzip, trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "foo"),
            ("trailer", "x-sum"),
            ("proxy-authorization", "Basic eA=="),
            ("x-request-id", "the app's own"),
            ("accept", "*/*"),
        ]);
        strip(&mut of);
        let expected = headers(&[
            ("te", "trailers"),
            ("trailer", "x-sum"),
            ("proxy-authorization", "Basic eA=="),
            ("x-request-id", "the app's own"),
            ("accept", "*/*"),
        ]);
        assert_eq!(of, expected);
    }

    #[test]
    fn an_upgrade_counts_only_where_the_connection_says_so() {
        assert!(upgrade(&headers(&[("upgrade", "websocket")])).is_none());
        assert!(upgrade(&headers(&[("upgrade", "websocket"), ("connection", "keep-alive, Upgrade")])).is_some());
        assert!(upgrade(&headers(&[("upgrade", "h2c"), ("connection", "Upgrade, HTTP2-Settings")])).is_none());
    }

    #[test]
    fn grpc_is_told_by_its_content_type() {
        assert!(is_grpc(&headers(&[("content-type", "application/grpc+proto")])));
        assert!(!is_grpc(&headers(&[("content-type", "application/grpc-web")])));
    }
}
