//! What `consistentHash` makes of a request: one number that stays the same for the same client, header or cookie.
//!
//! xxHash64 with Envoy's way of feeding it: its result is fixed by a specification, so that restarts, other nodes and other
//! builds agree, which the standard library's hasher does not promise.

use std::{net::SocketAddr, time::Duration};

use http::{HeaderMap, HeaderValue, header::COOKIE};
use twox_hash::XxHash64;

use crate::mesh::{HashKey, RequestHead};

/// The hash, and the Set-Cookie that lets the client come back with it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Hashed {
    /// None: the request has not got what is hashed, any endpoint will do.
    pub hash: Option<u64>,
    pub cookie: Option<HeaderValue>,
}

/// `peer` is the client, `local` what it dialled.
pub fn key(key: &HashKey, head: &RequestHead<'_>, peer: SocketAddr, local: SocketAddr) -> Hashed {
    let hash = match key {
        HashKey::Header(name) => lines(head.headers, name),
        HashKey::SourceIp => Some(hash(peer.ip().to_canonical().to_string().as_bytes())),
        HashKey::Query(name) => head.parameter(name).map(|value| hash(value.as_bytes())),
        HashKey::Cookie { name, path, ttl } => match (cookie(head.headers, name), ttl) {
            (Some(value), _) => Some(hash(value)),
            (None, None) => None,
            (None, Some(ttl)) => {
                let value = format!("{:016x}", hash(format!("{peer}{local}").as_bytes()));
                let cookie = set_cookie(name, &value, path.as_deref(), *ttl);
                return Hashed { hash: Some(hash(value.as_bytes())), cookie: HeaderValue::from_str(&cookie).ok() };
            }
        },
    };
    Hashed { hash, cookie: None }
}

fn hash(bytes: &[u8]) -> u64 {
    XxHash64::oneshot(0, bytes)
}

/// All lines of a header, in whatever order they come.
fn lines(headers: &HeaderMap, name: &str) -> Option<u64> {
    let mut lines: Vec<&[u8]> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
    lines.sort_unstable();
    (!lines.is_empty()).then(|| lines.iter().fold(0, |seed, line| XxHash64::oneshot(seed, line)))
}

/// The value of a cookie (RFC 6265 section 4.2), without its quotes; an empty one counts as none.
fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h [u8]> {
    let pairs = headers.get_all(COOKIE).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
    let found = pairs.map(<[u8]>::trim_ascii).find_map(|pair| {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        (&pair[..at] == name.as_bytes()).then(|| &pair[at + 1..])
    })?;
    let bare = found.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(found);
    (!bare.is_empty()).then_some(bare)
}

/// Zero seconds: until the browser closes.
fn set_cookie(name: &str, value: &str, path: Option<&str>, ttl: Duration) -> String {
    let mut cookie = format!("{name}=\"{value}\"");
    if !ttl.is_zero() {
        cookie.push_str(&format!("; Max-Age={}", ttl.as_secs()));
    }
    if let Some(path) = path.filter(|path| !path.is_empty()) {
        cookie.push_str(&format!("; Path={path}"));
    }
    cookie + "; HttpOnly"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(wanted: &HashKey, query: Option<&str>, lines: &[(&'static str, &'static str)], peer: &str) -> Hashed {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        let head = RequestHead { method: "GET", scheme: "http", authority: "a", path: "/", query, headers: &headers };
        key(wanted, &head, peer.parse().unwrap(), "9.9.9.9:80".parse().unwrap())
    }

    /// Values from the xxHash specification's own test vectors: another algorithm would send everybody elsewhere.
    #[test]
    fn the_algorithm_is_xxhash64() {
        assert_eq!((hash(b""), hash(b"a")), (0xef46_db37_51d8_e999, 0xd24e_c4f1_a98c_6e5b));
    }

    #[test]
    fn headers_in_any_order() {
        let header = HashKey::Header("x-user".into());
        let one = of(&header, None, &[("x-user", "1"), ("x-user", "2")], "10.0.0.1:1");
        assert_eq!(one, of(&header, None, &[("x-user", "2"), ("x-user", "1")], "10.0.0.2:2"));
        assert_ne!(one, of(&header, None, &[("x-user", "1")], "10.0.0.1:1"));
        assert_eq!(of(&header, None, &[], "10.0.0.1:1"), Hashed::default());
    }

    #[test]
    fn addresses_without_their_port() {
        let source = HashKey::SourceIp;
        assert_eq!(of(&source, None, &[], "10.0.0.1:1"), of(&source, None, &[], "10.0.0.1:2"));
        assert_eq!(of(&source, None, &[], "10.0.0.1:1"), of(&source, None, &[], "[::ffff:10.0.0.1]:1"));
        assert_ne!(of(&source, None, &[], "10.0.0.1:1"), of(&source, None, &[], "10.0.0.2:1"));
    }

    #[test]
    fn query_parameters() {
        let query = HashKey::Query("u".into());
        assert_eq!(of(&query, Some("a=1&u=7"), &[], "10.0.0.1:1").hash, Some(hash(b"7")));
        assert_eq!(of(&query, Some("a=1"), &[], "10.0.0.1:1").hash, None);
    }

    /// A client that sends back what it was given gets the endpoint it had.
    #[test]
    fn a_cookie_is_made_and_comes_back() {
        let wanted = |ttl| HashKey::Cookie { name: "s".into(), path: Some("/p".into()), ttl };
        let first = of(&wanted(Some(Duration::from_secs(60))), None, &[("cookie", "t=1")], "10.0.0.1:1");
        let cookie = first.cookie.as_ref().unwrap().to_str().unwrap().to_owned();
        let (pair, attributes) = cookie.split_once(';').unwrap();
        assert_eq!(attributes, " Max-Age=60; Path=/p; HttpOnly");
        let pair: &'static str = format!("t=1; {pair}").leak();
        let again = of(&wanted(None), None, &[("cookie", pair)], "10.0.0.9:9");
        assert_eq!(again, Hashed { hash: first.hash, cookie: None });
        let session = of(&wanted(Some(Duration::ZERO)), None, &[("cookie", "s=")], "10.0.0.1:1").cookie.unwrap();
        assert!(!session.to_str().unwrap().contains("Max-Age"), "{session:?}");
        assert_eq!(of(&wanted(None), None, &[("cookie", "ss=1; xs=2")], "10.0.0.1:1"), Hashed::default());
    }
}
