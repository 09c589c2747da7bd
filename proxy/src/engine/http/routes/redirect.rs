//! Where a redirect leads (Envoy's `RedirectAction`).

use http::Uri;

use super::path;
use crate::mesh::{Redirect, RedirectPort, RequestMatch};

/// What of a request a redirect starts from.
#[derive(Clone, Copy, Debug)]
pub struct From<'a> {
    pub scheme: &'a str,
    pub authority: &'a str,
    pub uri: &'a Uri,
}

/// The Location for a request that came in plain text and must not (`httpsRedirect`).
pub fn to_https(from: From<'_>) -> String {
    let whole = Redirect {
        path: crate::mesh::PathChange::Keep,
        authority: None,
        port: None,
        scheme: Some("https".to_owned()),
        code: 301,
    };
    location(&whole, &RequestMatch::default(), from)
}

/// The Location.
pub fn location(redirect: &Redirect, matches: &RequestMatch, from: From<'_>) -> String {
    let scheme = redirect.scheme.as_deref().unwrap_or(from.scheme);
    let (host, asked) = split_port(from.authority);
    let port = match redirect.port {
        Some(RedirectPort::Number(port)) => Some(port),
        Some(RedirectPort::ProtocolDefault) => None,
        Some(RedirectPort::Request) => asked.or_else(|| default_port(from.scheme)),
        // A new authority brings its own port. A port that was the default of the old scheme is not the new one's.
        None if redirect.authority.is_some() => None,
        None => asked.filter(|asked| scheme == from.scheme || default_port(from.scheme) != Some(*asked)),
    };
    let host = redirect.authority.as_deref().unwrap_or(host);
    let target = path::changed(&redirect.path, matches, from.uri);
    let target = target.as_deref().or_else(|| from.uri.path_and_query().map(|same| same.as_str())).unwrap_or("/");
    match port.filter(|port| default_port(scheme) != Some(*port)) {
        Some(port) => format!("{scheme}://{host}:{port}{target}"),
        None => format!("{scheme}://{host}{target}"),
    }
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

/// `a:80` → `a`, 80; an IPv6 address keeps its brackets.
fn split_port(authority: &str) -> (&str, Option<u16>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok()),
        _ => (authority, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::{PathChange, TextMatch};

    fn redirect() -> Redirect {
        Redirect { path: PathChange::Keep, authority: None, port: None, scheme: None, code: 301 }
    }

    fn to(redirect: &Redirect, scheme: &str, authority: &str, target: &str) -> String {
        let matches = RequestMatch { path: Some(TextMatch::Prefix("/a".into())), ..RequestMatch::default() };
        location(redirect, &matches, From { scheme, authority, uri: &target.parse().unwrap() })
    }

    #[test]
    fn schemes_hosts_and_ports() {
        let https = Redirect { scheme: Some("https".into()), ..redirect() };
        assert_eq!(to(&https, "http", "h", "/a?b"), "https://h/a?b");
        assert_eq!(to(&https, "http", "h:80", "/"), "https://h/");
        assert_eq!(to(&https, "http", "h:8080", "/"), "https://h:8080/");
        assert_eq!(to(&https, "http", "[::1]:80", "/"), "https://[::1]/");
        assert_eq!(to(&redirect(), "http", "[::1]", "/a"), "http://[::1]/a");
        let other = Redirect { authority: Some("other".into()), ..redirect() };
        assert_eq!(to(&other, "http", "h:8080", "/a"), "http://other/a");
        let port = |port| Redirect { port: Some(port), ..redirect() };
        assert_eq!(to(&port(RedirectPort::Number(81)), "http", "h:8080", "/a"), "http://h:81/a");
        assert_eq!(to(&port(RedirectPort::Number(80)), "http", "h:8080", "/a"), "http://h/a");
        assert_eq!(to(&port(RedirectPort::ProtocolDefault), "http", "h:8080", "/a"), "http://h/a");
        assert_eq!(to(&port(RedirectPort::Request), "http", "h:8080", "/a"), "http://h:8080/a");
        assert_eq!(to(&port(RedirectPort::Request), "http", "h", "/a"), "http://h/a");
        let kept = Redirect { authority: Some("other".into()), ..port(RedirectPort::Request) };
        assert_eq!(to(&kept, "http", "h:8080", "/a"), "http://other:8080/a");
        let mixed = Redirect { scheme: Some("https".into()), ..port(RedirectPort::Request) };
        assert_eq!(to(&mixed, "http", "h", "/a"), "https://h:80/a");
    }

    #[test]
    fn paths() {
        let path = |path| Redirect { path, ..redirect() };
        assert_eq!(to(&path(PathChange::Full("/x".into())), "http", "h", "/a/b?q"), "http://h/x?q");
        assert_eq!(to(&path(PathChange::Full("/x?y".into())), "http", "h", "/a/b?q"), "http://h/x?y");
        assert_eq!(to(&path(PathChange::Prefix("/x".into())), "http", "h", "/a/b?q"), "http://h/x/b?q");
    }

    #[test]
    fn plain_text_is_sent_to_https() {
        let uri: Uri = "/a?b".parse().unwrap();
        assert_eq!(to_https(From { scheme: "http", authority: "h:80", uri: &uri }), "https://h/a?b");
    }
}
