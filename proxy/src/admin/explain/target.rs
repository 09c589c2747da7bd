//! What a URL says of the request.

use http::Uri;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub kind: Kind,
    /// Without brackets.
    pub host: String,
    pub port: u16,
    /// Without query; `/` where none is given.
    pub path: String,
    pub query: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Http,
    Https,
    Tcp,
}

impl Target {
    /// Reads `http://host[:port]/path`, `https://…`, `tcp://host:port`; no scheme means http.
    pub fn parse(url: &str) -> Result<Self, String> {
        let whole = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let uri: Uri = whole.parse().map_err(|error| format!("`{url}` is no URL: {error}"))?;
        let (kind, default) = match uri.scheme_str() {
            Some("http" | "ws" | "grpc") => (Kind::Http, Some(80)),
            Some("https" | "wss" | "tls") => (Kind::Https, Some(443)),
            Some("tcp") => (Kind::Tcp, None),
            other => return Err(format!("scheme `{}` is none of http, https and tcp", other.unwrap_or_default())),
        };
        let host = uri.host().unwrap_or_default();
        let host = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host).to_owned();
        if host.is_empty() {
            return Err(format!("`{url}` names no host"));
        }
        let port = uri.port_u16().or(default).filter(|port| *port != 0);
        let path = if uri.path().is_empty() { "/" } else { uri.path() };
        Ok(Self {
            kind,
            host,
            port: port.ok_or_else(|| format!("`{url}` names no port"))?,
            path: path.to_owned(),
            query: uri.query().map(str::to_owned),
        })
    }

    /// As it is printed.
    pub fn url(&self) -> String {
        let scheme = match self.kind {
            Kind::Http => "http",
            Kind::Https => "https",
            Kind::Tcp => "tcp",
        };
        let path = if self.path == "/" { "" } else { self.path.as_str() };
        if self.host.contains(':') {
            format!("{scheme}://[{}]:{}{path}", self.host, self.port)
        } else {
            format!("{scheme}://{}:{}{path}", self.host, self.port)
        }
    }

    /// Host, with the port where it is not the scheme's own: what a client sends.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.kind == Kind::Http && self.port != 80 { format!("{host}:{}", self.port) } else { host }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_with_their_defaults() {
        let target = |kind, host: &str, port| (kind, host.to_owned(), port);
        let parse = |url| Target::parse(url).map(|target| (target.kind, target.host, target.port));
        assert_eq!(parse("http://a.com/x?y"), Ok(target(Kind::Http, "a.com", 80)));
        assert_eq!(parse("a.com:8080"), Ok(target(Kind::Http, "a.com", 8080)));
        assert_eq!(parse("https://[::1]/"), Ok(target(Kind::Https, "::1", 443)));
        assert_eq!(parse("tcp://10.0.0.1:3306"), Ok(target(Kind::Tcp, "10.0.0.1", 3306)));
        for bad in ["", "tcp://a.com", "ftp://a.com", "http://", "http://a b", "http://a:0"] {
            assert!(Target::parse(bad).is_err(), "{bad}");
        }
        let whole = Target::parse("http://a.com:81/x?y").unwrap();
        assert_eq!((whole.path.as_str(), whole.query.as_deref()), ("/x", Some("y")));
        assert_eq!((whole.url().as_str(), whole.authority().as_str()), ("http://a.com:81/x", "a.com:81"));
    }
}
