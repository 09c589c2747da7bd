//! Which route is followed, and which of its destinations.

use std::sync::Arc;

use http::HeaderMap;

use super::way::{NOT_FOUND, Turn, Way};
use crate::{
    admin::routes,
    engine::http::redirect,
    mesh::{Action, ClusterRef, RequestHead, Route, TunnelRoute, VirtualHost},
};

impl Way<'_> {
    /// The first route that holds for a plain GET.
    pub(super) fn host(&mut self, host: &VirtualHost) -> Turn {
        let target = self.target.clone();
        if host.require_tls && !self.taken_off {
            self.steps.add("route", "-", format!("virtual host {}: httpsRedirect", host.name));
            return Turn::End("Answered 301 to https.".to_owned());
        }
        let (authority, headers) = (target.authority(), HeaderMap::new());
        let scheme = if self.taken_off { "https" } else { "http" };
        let head = RequestHead {
            method: "GET",
            scheme,
            authority: &authority,
            path: &target.path,
            query: target.query.as_deref(),
            headers: &headers,
        };
        for (at, (route, asks)) in host.passed_over(&head).enumerate() {
            let source = route.source.as_ref().map_or_else(String::new, |id| format!(" of {id}{}", self.place(id)));
            let wants: Vec<_> = asks
                .into_iter()
                .map(|part| if part == "method" { "another method".to_owned() } else { format!("other {part}") })
                .collect();
            let why = format!("match {}{source} wants {}", routes::path(&route.matches), wants.join(" and "));
            let hint = if at == 0 { "; explained is a GET without headers of its own" } else { "" };
            self.steps.add("not", name(route), format!("{why}{hint}"));
        }
        let Some(route) = host.route(&head) else {
            self.steps.add("route", "-", format!("virtual host {}: none matches a GET of {}", host.name, target.path));
            return Turn::End(NOT_FOUND.to_owned());
        };
        let source = match &route.source {
            Some(source) => format!("{source}{}", self.place(source)),
            None => "no VirtualService or HTTPRoute speaks of it".to_owned(),
        };
        let why = format!("virtual host {}, match {}: {source}", host.name, routes::path(&route.matches));
        self.steps.add("route", name(route), why);
        match &route.action {
            Action::Redirect(to) => {
                let query = target.query.as_ref().map_or_else(String::new, |query| format!("?{query}"));
                let uri = format!("{}{query}", target.path).parse().unwrap_or_default();
                let from = redirect::From { scheme, authority: &authority, uri: &uri };
                let location = redirect::location(to, &route.matches, from);
                Turn::End(format!("Answered here: {}, Location: {location}", to.code))
            }
            Action::Direct(answer) => Turn::End(format!("Answered here: {}.", answer.status)),
            Action::Refuse(reason) => Turn::End(format!("Refused with 503: {}.", reason.trim_end_matches('.'))),
            Action::Forward(forward) => {
                let shares: Vec<_> = forward.destinations.iter().map(|to| (&to.cluster, to.weight)).collect();
                self.draw(&shares)
            }
        }
    }

    pub(super) fn tunnel(&mut self, route: Option<&Arc<TunnelRoute>>) -> Turn {
        let Some(route) = route else {
            self.steps.add("route", "-", "no tls or tcp route matches");
            return Turn::End("Reset (NR): no route.".to_owned());
        };
        if let Some(source) = &route.source {
            let place = self.place(source);
            self.steps.add("route", "-", format!("{source}{place}"));
        }
        let shares: Vec<_> = route.destinations.iter().map(|(to, weight)| (to, *weight)).collect();
        self.draw(&shares)
    }

    /// Of several destinations the heaviest is followed.
    fn draw(&mut self, shares: &[(&ClusterRef, u32)]) -> Turn {
        if shares.len() > 1 {
            let list: Vec<_> = shares.iter().map(|(to, weight)| format!("{} ({weight})", to.name())).collect();
            self.steps.add("split", list.join(", "), "by weight; the heaviest is followed here");
        }
        match shares.iter().max_by_key(|(_, weight)| *weight).map(|(to, _)| *to) {
            Some(ClusterRef::Known(cluster)) => Turn::To(cluster.clone()),
            Some(ClusterRef::Unknown { name, why }) => {
                self.steps.add("cluster", &**name, &**why);
                Turn::End(format!("Fails with 503 (NC): {}.", why.trim_end_matches('.')))
            }
            Some(ClusterRef::Invalid { why }) => Turn::End(format!("Fails with 500: {}.", why.trim_end_matches('.'))),
            None => Turn::End("Fails with 503 (NC): the route has no destination.".to_owned()),
        }
    }
}

fn name(route: &Route) -> &str {
    if route.name.is_empty() { "-" } else { &route.name }
}
