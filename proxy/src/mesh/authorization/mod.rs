//! AuthorizationPolicy as it is enforced: on connections and requests that come to a pod, pass a gateway, or leave for a
//! service that a policy is about.
//!
//! Policies are compiled once for all who have them in common ([`rules`]); [`places`] finds out who that is.

mod evaluate;
mod findings;
mod matchers;
mod places;
mod rules;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use serde::Serialize;

pub use self::places::{Authorization, Shared};
use self::rules::Policy;
use super::matching::RequestHead;

/// The policies in force at one place. Empty: everything is allowed.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Policies {
    /// CUSTOM, whose authorizer is not asked, and DENY: what one of these matches is denied.
    deny: Vec<InForce>,
    /// Where there is any, one must match.
    allow: Vec<InForce>,
    /// `istio.io/dry-run`: only told of.
    dry_run: Vec<InForce>,
    /// Some of them asks for a path.
    asks_paths: bool,
}

/// A policy at one place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct InForce {
    policy: Arc<Policy>,
    /// Of a policy about a Service, at a pod of it: the Service's ports by the pod's own. Other ports of the pod are not of
    /// the Service, and there the policy does not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    service_ports: Option<Arc<BTreeMap<u16, Vec<u16>>>>,
}

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
    /// The address unspecified (`0.0.0.0`): not known.
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
    /// Nothing is forbidden.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.deny.is_empty() && self.allow.is_empty()
    }

    /// The path of a request is brought into normal form before it is checked, and goes on like that: see
    /// [`super::paths::normal`].
    #[must_use]
    pub fn deals_with_paths(&self) -> bool {
        self.asks_paths
    }
}
