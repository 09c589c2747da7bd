//! AuthorizationPolicy as it is enforced: on connections and requests that come to a pod, pass a gateway, or leave for a
//! service that a policy is about.

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use super::matching::RequestHead;

/// The policies in force at one place. Empty: everything is allowed.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Policies {}

/// What is known of a connection, and of a request on it.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    /// SPIFFE identity of the source (`spiffe://…`), where mesh mTLS has proved it or, on the outbound path, egret knows the
    /// pod itself.
    pub principal: Option<&'a str>,
    /// `source.ip`: the other end of the connection.
    pub source: IpAddr,
    /// `remote.ip`: the same, unless trusted proxies in front say otherwise.
    pub remote: IpAddr,
    pub destination: SocketAddr,
    /// `connection.sni`
    pub sni: Option<&'a str>,
    /// None: a connection that is not HTTP.
    pub request: Option<&'a RequestHead<'a>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Allowed,
    /// With what the access log says as details: `rbac_access_denied_matched_policy[ns[foo]-policy[bar]-rule[0]]`, or
    /// `…[none]` where no ALLOW policy matched.
    Denied(String),
}

impl Policies {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        true
    }

    /// DENY first, then ALLOW: where there is any ALLOW policy, one of them must match.
    #[must_use]
    pub fn check(&self, _of: &Attributes<'_>) -> Verdict {
        Verdict::Allowed
    }
}
