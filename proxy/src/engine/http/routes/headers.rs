//! What a route does to headers: its rules, and what one proxy of the mesh tells the next.
//!
//! To what is outside (MESH_EXTERNAL, and whatever no service claims) nothing is added, and what an enrolled pod's proxy
//! has added on the way to a gateway is taken off again.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{HOST, SET_COOKIE},
};
use uuid::Uuid;

use super::super::{client_cert, forward::Errand, headers};
use crate::{
    engine::accept::{Arrival, ConnectionInfo},
    mesh::{Action, Cluster, HeaderRules, Route},
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const ATTEMPTS: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
pub(in crate::engine::http) const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
const SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");

/// What was decided about the headers of one exchange.
#[derive(Debug, Default)]
pub struct Changes {
    /// Which of the route's destinations was drawn.
    pub destination: usize,
    /// The target before it was rewritten.
    pub original_path: Option<HeaderValue>,
    /// `consistentHash` by a cookie that the client does not have yet.
    pub cookie: Option<HeaderValue>,
    /// Who gets a copy of the request.
    pub mirrors: Vec<Arc<Cluster>>,
}

/// Rules of a route and of its destination, in order of application.
struct Rules<'a> {
    first: &'a HeaderRules,
    second: &'a HeaderRules,
    /// Both are one list (a single destination, as Istio merges it): all removals come first.
    merged: bool,
}

impl Errand {
    /// Changes the headers of a request that has lost what was meant for us alone.
    pub fn change_request(&self, headers: &mut HeaderMap, request_id: Option<Uuid>) {
        let info = &self.connection.info;
        if self.cluster.mesh_external {
            if matches!(info.arrival, Arrival::Gateway { .. }) {
                // The mesh's word, or a forgery of it.
                headers.remove(client_cert::HEADER);
            }
            if self.client_in_mesh() {
                strip_internal(headers);
            }
        } else {
            // Only the mesh's own word for what was asked for counts.
            if info.identity.is_none() {
                headers.remove(ORIGINAL_PATH);
            }
            tell_next(headers, info, request_id);
            client_cert::forward(headers, info, self.connection.client_cert(&self.snapshot));
            if let Some(path) = &self.changes.original_path {
                headers.insert(ORIGINAL_PATH, path.clone());
            }
        }
        if let Some(rules) = self.rules(|route| &route.request_headers, |to| &to.request_headers) {
            rules.apply(headers);
        }
    }

    /// Changes the headers of the upstream's response, `time` after the request went out.
    pub fn change_response(&self, headers: &mut HeaderMap, time: Option<Duration>) {
        if !self.cluster.mesh_external
            && (!matches!(self.connection.info.arrival, Arrival::Gateway { .. }) || self.client_in_mesh())
            && let Some(time) = time
        {
            headers.insert(SERVICE_TIME, u64::try_from(time.as_millis()).unwrap_or(u64::MAX).into());
        }
        if let Some(cookie) = &self.changes.cookie {
            headers.append(SET_COOKIE, cookie.clone());
        }
        if let Some(rules) = self.rules(|route| &route.response_headers, |to| &to.response_headers) {
            rules.apply(headers);
        }
    }

    /// At a gateway: the client is an enrolled pod, whose own proxy has told us what only the mesh is to know.
    fn client_in_mesh(&self) -> bool {
        let info = &self.connection.info;
        let pod = || self.snapshot.mesh.peers.contains_key(&info.peer.ip().to_canonical());
        matches!(info.arrival, Arrival::Gateway { .. }) && (info.identity.is_some() || pod())
    }

    fn rules(
        &self,
        of_route: fn(&Route) -> &HeaderRules,
        of_destination: fn(&crate::mesh::WeightedDestination) -> &HeaderRules,
    ) -> Option<Rules<'_>> {
        let route = self.route.as_ref()?;
        let Action::Forward(forward) = &route.action else { return None };
        let destination = of_destination(forward.destinations.get(self.changes.destination)?);
        Some(match forward.destinations.len() {
            1 => Rules { first: of_route(route), second: destination, merged: true },
            _ => Rules { first: destination, second: of_route(route), merged: false },
        })
    }
}

/// Says to the next proxy of the mesh which attempt this is, counted from 1.
pub fn count_attempt(headers: &mut HeaderMap, attempt: u32) {
    headers.insert(ATTEMPTS, attempt.into());
}

impl Rules<'_> {
    /// Istio's own order: a single destination's rules follow the route's; Envoy applies those of a weighted cluster before
    /// the route's, so that the route has the last word.
    fn apply(&self, headers: &mut HeaderMap) {
        if self.merged {
            remove(self.first, headers);
            remove(self.second, headers);
            put(self.first, headers);
            put(self.second, headers);
        } else {
            apply(self.first, headers);
            apply(self.second, headers);
        }
    }
}

/// Removes, sets, adds. What belongs to one connection, and Host, no rule reaches here.
pub fn apply(rules: &HeaderRules, headers: &mut HeaderMap) {
    remove(rules, headers);
    put(rules, headers);
}

fn remove(rules: &HeaderRules, headers: &mut HeaderMap) {
    for name in rules.remove.iter().filter(|name| settable(name)) {
        headers.remove(name);
    }
}

fn put(rules: &HeaderRules, headers: &mut HeaderMap) {
    for (name, value) in rules.set.iter().filter(|(name, _)| settable(name)) {
        headers.insert(name, value.clone());
    }
    for (name, value) in rules.add.iter().filter(|(name, _)| settable(name)) {
        headers.append(name, value.clone());
    }
}

fn settable(name: &HeaderName) -> bool {
    *name != HOST && !headers::of_the_connection(name)
}

/// The authority that rules put in the place of the client's: `rewrite.authority`, else Host in `set` (else in `add`) of
/// the route, else of the destination.
pub fn authority(route: &Route, destination: usize) -> Option<&str> {
    let Action::Forward(forward) = &route.action else { return None };
    forward
        .rewrite_authority
        .as_deref()
        .or_else(|| host_in(&route.request_headers))
        .or_else(|| host_in(&forward.destinations.get(destination)?.request_headers))
}

fn host_in(rules: &HeaderRules) -> Option<&str> {
    let mut lists = rules.set.iter().chain(&rules.add);
    lists.find(|(name, _)| name == HOST).and_then(|(_, value)| value.to_str().ok())
}

/// What one proxy of the mesh tells the next. A gateway does not believe a client of which it knows nothing.
fn tell_next(headers: &mut HeaderMap, info: &ConnectionInfo, request_id: Option<Uuid>) {
    if !headers.contains_key(REQUEST_ID)
        && let Some(id) = request_id.and_then(|id| HeaderValue::from_str(&id.to_string()).ok())
    {
        headers.insert(REQUEST_ID, id);
    }
    let edge = matches!(info.arrival, Arrival::Gateway { .. }) && info.identity.is_none();
    if edge || !headers.contains_key(FORWARDED_PROTO) {
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static(if info.tls { "https" } else { "http" }));
    }
    if matches!(info.arrival, Arrival::Gateway { .. }) {
        append_client(headers, info.peer);
    }
}

/// One line of `x-forwarded-for`, with the client's address at its end.
fn append_client(headers: &mut HeaderMap, client: SocketAddr) {
    let mut list = Vec::new();
    for line in headers.get_all(FORWARDED_FOR) {
        list.extend_from_slice(line.as_bytes());
        list.push(b',');
    }
    list.extend_from_slice(client.ip().to_canonical().to_string().as_bytes());
    if let Ok(list) = HeaderValue::from_bytes(&list) {
        headers.insert(FORWARDED_FOR, list);
    }
}

/// What only proxies of the mesh tell one another does not leave it.
fn strip_internal(headers: &mut HeaderMap) {
    let internal = |name: &&HeaderName| {
        [REQUEST_ID, FORWARDED_PROTO, FORWARDED_FOR].contains(name) || name.as_str().starts_with("x-envoy-")
    };
    let internal: Vec<HeaderName> = headers.keys().filter(internal).cloned().collect();
    for name in internal {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn rules(
        remove: &[&'static str],
        set: &[(&'static str, &'static str)],
        add: &[(&'static str, &'static str)],
    ) -> HeaderRules {
        let lines = |list: &[(&'static str, &'static str)]| {
            list.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
        };
        HeaderRules {
            set: lines(set),
            add: lines(add),
            remove: remove.iter().map(|name| HeaderName::from_static(name)).collect(),
        }
    }

    #[test]
    fn removed_then_set_then_added() {
        let mut headers = map(&[("a", "1"), ("b", "1"), ("c", "1")]);
        apply(&rules(&["a", "d"], &[("b", "2")], &[("a", "2"), ("b", "3"), ("c", "2")]), &mut headers);
        assert_eq!(headers, map(&[("a", "2"), ("b", "2"), ("b", "3"), ("c", "1"), ("c", "2")]));
    }

    #[test]
    fn the_last_word() {
        let (route, destination) =
            (rules(&[], &[("a", "route")], &[("b", "route")]), rules(&["b"], &[("a", "to")], &[]));
        // A single destination follows the route; its removal does not take what the route adds.
        let mut headers = map(&[("b", "client")]);
        Rules { first: &route, second: &destination, merged: true }.apply(&mut headers);
        assert_eq!(headers, map(&[("b", "route"), ("a", "to")]));
        // One of several comes before the route.
        let mut headers = map(&[("b", "client")]);
        Rules { first: &destination, second: &route, merged: false }.apply(&mut headers);
        assert_eq!(headers, map(&[("a", "route"), ("b", "route")]));
    }

    #[test]
    fn framing_and_host_are_out_of_reach() {
        let mut headers = map(&[("host", "a")]);
        let all =
            [("connection", "x"), ("transfer-encoding", "gzip"), ("content-length", "5"), ("host", "b"), ("te", "x")];
        apply(&rules(&["host"], &all, &all), &mut headers);
        assert_eq!(headers, map(&[("host", "a")]));
    }

    #[test]
    fn clients_are_listed_in_one_line() {
        let mut headers = map(&[("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "2.2.2.2, 3.3.3.3")]);
        append_client(&mut headers, "[::ffff:10.0.0.1]:5".parse().unwrap());
        assert_eq!(headers, map(&[("x-forwarded-for", "1.1.1.1,2.2.2.2, 3.3.3.3,10.0.0.1")]));
    }

    #[test]
    fn what_is_internal_ends_at_the_edge() {
        let mut headers = map(&[
            ("x-envoy-attempt-count", "1"),
            ("x-request-id", "1"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-for", "1.1.1.1"),
            ("x-mine", "1"),
        ]);
        strip_internal(&mut headers);
        assert_eq!(headers, map(&[("x-mine", "1")]));
    }
}
