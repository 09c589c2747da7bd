//! What a request asks for: verb, resource, object, options.

use std::collections::HashMap;

use bytes::Bytes;
use http::{HeaderMap, Method, Uri};

use super::users::User;

/// A request, understood.
pub struct Asked {
    pub user: User,
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub query: HashMap<String, String>,
    /// As RBAC and the request log have it.
    pub verb: &'static str,
    /// None for paths outside the resources, such as `/version`.
    pub target: Option<Target>,
}

/// The resource part of a path.
#[derive(Clone, Debug, Default)]
pub struct Target {
    pub group: String,
    pub version: String,
    pub plural: String,
    pub namespace: Option<String>,
    pub name: Option<String>,
    pub subresource: Option<String>,
    /// What follows a `proxy` subresource.
    pub rest: String,
}

impl Asked {
    pub fn new(user: User, parts: http::request::Parts, body: Bytes) -> Self {
        let query = pairs(parts.uri.query().unwrap_or_default());
        let target = Target::parse(parts.uri.path());
        let verb = verb(&parts.method, target.as_ref(), &query);
        Self { user, method: parts.method, uri: parts.uri, headers: parts.headers, body, query, verb, target }
    }

    pub fn option(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }

    pub fn flag(&self, name: &str) -> bool {
        matches!(self.option(name), "true" | "1")
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    pub fn content_type(&self) -> &str {
        self.header("content-type").split(';').next().unwrap_or_default()
    }

    /// Server-side apply.
    pub fn is_apply(&self) -> bool {
        matches!(self.content_type(), "application/apply-patch+yaml" | "application/apply-patch+cbor")
    }

    /// The first kind of answer that the client would take and that there is.
    pub fn metadata_only(&self) -> bool {
        let wanted =
            self.header("accept").split(',').find(|one| !one.contains("as=Table") && !one.contains("protobuf"));
        wanted.is_some_and(|one| one.contains("as=PartialObjectMetadata"))
    }

    /// Who writes, for the field managers: the option, else the first word of the user agent.
    pub fn manager(&self) -> String {
        match self.option("fieldManager") {
            "" => self
                .header("user-agent")
                .split('/')
                .next()
                .filter(|name| !name.is_empty())
                .unwrap_or("unknown")
                .to_owned(),
            named => named.to_owned(),
        }
    }
}

impl Target {
    fn parse(path: &str) -> Option<Self> {
        let mut parts = path.split('/').filter(|part| !part.is_empty()).map(decode);
        let mut target = match parts.next()?.as_str() {
            "api" => Self { version: parts.next()?, ..Self::default() },
            "apis" => Self { group: parts.next()?, version: parts.next()?, ..Self::default() },
            _ => return None,
        };
        let mut parts: Vec<String> = parts.collect();
        if parts.first().is_some_and(|part| part == "namespaces") && parts.len() >= 3 {
            // `namespaces/NS/status` is a part of the namespace itself.
            if !matches!(parts[2].as_str(), "status" | "finalize") {
                target.namespace = Some(parts[1].clone());
                parts.drain(..2);
            }
        }
        let mut parts = parts.into_iter();
        target.plural = parts.next()?;
        target.name = parts.next();
        target.subresource = parts.next();
        target.rest = parts.collect::<Vec<_>>().join("/");
        if target.namespace.is_none() && target.plural == "namespaces" && target.group.is_empty() {
            target.namespace.clone_from(&target.name);
        }
        Some(target)
    }
}

fn verb(method: &Method, target: Option<&Target>, query: &HashMap<String, String>) -> &'static str {
    let named = target.is_some_and(|target| target.name.is_some());
    let watch = query.get("watch").is_some_and(|value| value == "true" || value == "1");
    match method.as_str() {
        "GET" | "HEAD" if target.is_some() && !named => {
            if watch {
                "watch"
            } else {
                "list"
            }
        }
        "GET" | "HEAD" => "get",
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" if named => "delete",
        "DELETE" => "deletecollection",
        _ => "unknown",
    }
}

fn pairs(query: &str) -> HashMap<String, String> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(&value.replace('+', " ")))
        })
        .collect()
}

/// Percent-decoding.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = (bytes[at] == b'%')
            .then(|| text.get(at + 1..at + 3).and_then(|digits| u8::from_str_radix(digits, 16).ok()))
            .flatten();
        plain.push(code.unwrap_or(bytes[at]));
        at += if code.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&plain).into_owned()
}
