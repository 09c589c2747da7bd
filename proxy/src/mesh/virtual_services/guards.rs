//! Routes that write a Host of their own.

use std::sync::Arc;

use http::header::HOST;

use super::{
    super::{
        host::authority_host,
        routing::{Action, Route},
    },
    Destinations,
};

/// A Host that the route itself writes may be one that a rule guards, and a service of another name would take it in the
/// clear: then the route refuses. True where the guards were asked.
pub fn guard(route: &mut Arc<Route>, destinations: &dyn Destinations) -> bool {
    let Some(made) = Arc::get_mut(route) else { return false };
    let Action::Forward(forward) = &made.action else { return false };
    let whole = forward.rewrite_authority.as_deref();
    let written = forward.destinations.iter().filter_map(|to| {
        let own = to.request_headers.set.iter().find(|(name, _)| name == HOST);
        whole.or_else(|| own.and_then(|(_, value)| value.to_str().ok()))
    });
    // A mirror gets the Host of whichever destination was drawn.
    let open: Vec<u16> = made.clusters().filter(|cluster| cluster.is_open()).map(|cluster| cluster.port).collect();
    let mut asked = written.flat_map(|host| open.iter().map(move |port| (authority_host(host), *port))).peekable();
    let any = asked.peek().is_some();
    let reason =
        asked.find_map(|(host, port)| destinations.guard_host(host, port)).map(|guard| guard.reason.to_string().into());
    if let Some(reason) = reason {
        made.action = Action::Refuse(reason);
    }
    any
}
