//! What a record is made of: noted without a copy wherever somebody has it already.

use std::{fmt, net::SocketAddr, ops::Deref, sync::Arc};

use http::{HeaderMap, HeaderName, HeaderValue, uri::PathAndQuery};

use crate::mesh::EndpointAddress;

/// Text that is fixed, or shared with whoever else has it.
#[derive(Clone)]
pub enum Text {
    Fixed(&'static str),
    Shared(Arc<str>),
    Target(PathAndQuery),
    Own(String),
}

impl Text {
    /// The usual methods are fixed texts.
    pub fn method(method: &http::Method) -> Self {
        use http::Method;
        Self::Fixed(match *method {
            Method::GET => "GET",
            Method::POST => "POST",
            Method::PUT => "PUT",
            Method::HEAD => "HEAD",
            Method::DELETE => "DELETE",
            Method::OPTIONS => "OPTIONS",
            Method::PATCH => "PATCH",
            _ => return Self::Own(method.as_str().to_owned()),
        })
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Fixed(text) => text,
            Self::Shared(text) => text,
            Self::Target(target) => target.as_str(),
            Self::Own(text) => text,
        }
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl From<&'static str> for Text {
    fn from(text: &'static str) -> Self {
        Self::Fixed(text)
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self::Own(text)
    }
}

impl From<&Arc<str>> for Text {
    fn from(text: &Arc<str>) -> Self {
        Self::Shared(text.clone())
    }
}

impl From<&PathAndQuery> for Text {
    fn from(target: &PathAndQuery) -> Self {
        Self::Target(target.clone())
    }
}

/// Where a request or connection went.
#[derive(Clone, Debug)]
pub enum UpstreamHost {
    Address(SocketAddr),
    Named(String),
}

impl From<&EndpointAddress> for UpstreamHost {
    fn from(address: &EndpointAddress) -> Self {
        match address {
            EndpointAddress::Ip(address) => Self::Address(*address),
            EndpointAddress::Unix(path) => Self::Named(path.display().to_string()),
        }
    }
}

impl From<&str> for UpstreamHost {
    fn from(name: &str) -> Self {
        Self::Named(name.to_owned())
    }
}

impl fmt::Display for UpstreamHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Named(name) => name.fmt(f),
        }
    }
}

/// Header fields that somebody asked for, in their order.
#[derive(Clone, Debug, Default)]
pub struct Kept(Vec<(HeaderName, HeaderValue)>);

impl Kept {
    /// Keeps the fields of these names.
    pub fn keep(&mut self, headers: &HeaderMap, names: &[HeaderName]) {
        // There are few of either: hashing each name would take longer.
        let wanted = headers.iter().filter(|(name, _)| names.contains(name));
        self.0.extend(wanted.map(|(name, value)| (name.clone(), value.clone())));
    }

    /// Keeps all fields.
    pub fn keep_all(&mut self, headers: &HeaderMap) {
        self.0.extend(headers.iter().map(|(name, value)| (name.clone(), value.clone())));
    }

    pub fn append(&mut self, name: HeaderName, value: HeaderValue) {
        self.0.push((name, value));
    }

    pub fn remove(&mut self, name: &HeaderName) {
        self.0.retain(|(kept, _)| kept != name);
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(kept, _)| kept == name)
    }

    pub fn get_all(&self, name: &HeaderName) -> impl Iterator<Item = &HeaderValue> {
        self.0.iter().filter(move |(kept, _)| kept == name).map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use http::header::{ACCEPT, HOST, USER_AGENT};

    use super::*;

    #[test]
    fn fields_are_kept_by_name_all_lines_of_them() {
        let mut headers = HeaderMap::new();
        for (name, value) in [(HOST, "a"), (ACCEPT, "1"), (USER_AGENT, "curl"), (ACCEPT, "2")] {
            headers.append(name, HeaderValue::from_static(value));
        }
        let mut kept = Kept::default();
        kept.keep(&headers, &[ACCEPT, HOST]);
        let of = |kept: &Kept, name| kept.get_all(&name).map(|value| value.to_str().unwrap().to_owned()).collect();
        assert_eq!(of(&kept, ACCEPT), vec!["1", "2"]);
        assert_eq!((of(&kept, HOST), of(&kept, USER_AGENT)), (vec!["a".to_owned()], Vec::new()));
        kept.remove(&ACCEPT);
        assert_eq!(of(&kept, ACCEPT), Vec::<String>::new());
    }

    #[test]
    fn a_method_is_logged_as_it_is() {
        for method in ["GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "PURGE", "get"] {
            assert_eq!(&*Text::method(&method.parse().unwrap()), method);
        }
    }
}
