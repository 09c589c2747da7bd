//! The values that policies compare with.

use http::HeaderName;
use ipnet::IpNet;
use serde::{Serialize, Serializer};

use crate::api::path_template::PathTemplate;

/// Text with `*` at one end, or alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Text {
    /// `*`: anything but nothing.
    Present,
    Exact(String),
    Prefix(String),
    Suffix(String),
}

impl Text {
    pub fn new(pattern: &str) -> Self {
        match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
            (Some(""), _) => Self::Present,
            (Some(suffix), _) => Self::Suffix(suffix.to_owned()),
            (None, Some(prefix)) => Self::Prefix(prefix.to_owned()),
            (None, None) => Self::Exact(pattern.to_owned()),
        }
    }

    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Present => !text.is_empty(),
            Self::Exact(exact) => text == exact,
            Self::Prefix(prefix) => text.starts_with(prefix.as_str()),
            Self::Suffix(suffix) => text.ends_with(suffix.as_str()),
        }
    }

    pub fn matches_any_case(&self, text: &str) -> bool {
        let (text, same) = (text.as_bytes(), <[u8]>::eq_ignore_ascii_case);
        match self {
            Self::Present => !text.is_empty(),
            Self::Exact(exact) => same(text, exact.as_bytes()),
            Self::Prefix(prefix) => text.get(..prefix.len()).is_some_and(|start| same(start, prefix.as_bytes())),
            Self::Suffix(suffix) => {
                let start = text.len().checked_sub(suffix.len());
                start.and_then(|start| text.get(start..)).is_some_and(|end| same(end, suffix.as_bytes()))
            }
        }
    }
}

/// Text in which each `*` stands for any text, wherever it is (`namespaces`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Wildcards(String);

impl Wildcards {
    pub fn new(pattern: &str) -> Self {
        Self(pattern.to_owned())
    }

    pub fn matches(&self, text: &str) -> bool {
        let mut parts = self.0.split('*');
        let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
        let mut parts = parts.peekable();
        if parts.peek().is_none() {
            return rest.is_empty();
        }
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                return rest.ends_with(part);
            }
            match rest.split_once(part) {
                Some((_, after)) => rest = after,
                None => return false,
            }
        }
        true
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum PathPattern {
    Text(Text),
    Template(PathTemplate),
}

impl PathPattern {
    /// None: no path can be compared with it, which its reader has refused.
    pub fn new(pattern: &str) -> Option<Self> {
        match PathTemplate::parse(pattern) {
            None => Some(Self::Text(Text::new(pattern))),
            Some(template) => template.ok().map(Self::Template),
        }
    }

    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Text(text) => text.matches(path),
            Self::Template(template) => template.matches(path),
        }
    }
}

/// `namespace/name`, split.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceAccount {
    pub namespace: String,
    pub name: String,
}

/// One attribute, and the values one of which it must have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Matcher {
    /// Compared without `spiffe://`.
    Principal(Vec<Text>),
    Namespace(Vec<Wildcards>),
    ServiceAccount(Vec<ServiceAccount>),
    SourceIp(Vec<IpNet>),
    RemoteIp(Vec<IpNet>),
    DestinationIp(Vec<IpNet>),
    Port(Vec<u16>),
    Sni(Vec<Text>),
    Host(Vec<Text>),
    Method(Vec<Text>),
    Path(Vec<PathPattern>),
    Header(#[serde(serialize_with = "as_text")] HeaderName, Vec<Text>),
    /// Who a token says the request is from: no token is looked at, so nobody.
    RequestIdentity,
    /// What cannot be found out here. An ALLOW rule that asks for it never matches, a DENY rule does without.
    Unknown,
}

fn as_text<S: Serializer>(name: &HeaderName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(name.as_str())
}

impl Matcher {
    /// What only a request has.
    pub fn of_requests(&self) -> bool {
        match self {
            Self::Host(_) | Self::Method(_) | Self::Path(_) | Self::Header(..) | Self::RequestIdentity => true,
            Self::Principal(_)
            | Self::Namespace(_)
            | Self::ServiceAccount(_)
            | Self::SourceIp(_)
            | Self::RemoteIp(_)
            | Self::DestinationIp(_)
            | Self::Port(_)
            | Self::Sni(_)
            | Self::Unknown => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_a_wildcard_at_one_end() {
        for (pattern, text, matches) in [
            ("a", "a", true),
            ("a", "A", false),
            ("a", "ab", false),
            ("a*", "ab", true),
            ("a*", "a", true),
            ("a*", "ba", false),
            ("*a", "ba", true),
            ("*a", "ab", false),
            ("*", "x", true),
            ("*", "", false),
            ("*a*", "a*", true),
            ("*a*", "bab", false),
        ] {
            assert_eq!(Text::new(pattern).matches(text), matches, "{pattern} {text}");
        }
        for (pattern, text, matches) in
            [("A.com", "a.COM", true), ("*.Com", "x.cOM", true), ("A.*", "a.b", true), ("*.com", "com", false)]
        {
            assert_eq!(Text::new(pattern).matches_any_case(text), matches, "{pattern} {text}");
        }
    }

    #[test]
    fn namespaces_have_wildcards_anywhere() {
        for (pattern, text, matches) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("*", "a", true),
            ("prod-*", "prod-1", true),
            ("*-prod", "a-prod", true),
            ("a*b", "ab", true),
            ("a*b", "axb", true),
            ("a*b", "a", false),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "acb", false),
            ("ab*b", "ab", false),
            ("a*aa", "aa", false),
        ] {
            assert_eq!(Wildcards::new(pattern).matches(text), matches, "{pattern} {text}");
        }
    }
}
