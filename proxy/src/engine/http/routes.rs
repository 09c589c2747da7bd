//! What the routes of a virtual host make of a request: matched, answered here, or sent on.

use std::sync::Arc;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;

use super::{
    Connection,
    body::ResponseBody,
    forward::{self, Errand},
    log::RequestLog,
    reply,
};
use crate::{
    engine::{Snapshot, raw},
    mesh::{Action, ClusterRef, VirtualHost},
    telemetry::record::Flag,
};

/// Does what the first route that matches says.
pub async fn follow(
    connection: Arc<Connection>,
    snapshot: Arc<Snapshot>,
    host: Arc<VirtualHost>,
    authority: String,
    request: Request<Incoming>,
    mut log: Box<RequestLog>,
) -> Response<ResponseBody> {
    let Some(route) = host.routes.first() else { return not_found(log) };
    let Action::Forward(action) = &route.action else { return not_found(log) };
    let Some(chosen) = raw::weighted(&action.destinations, |to| to.weight) else {
        return no_cluster(log, "", "no destination of the route has a weight");
    };
    let cluster = match &chosen.cluster {
        ClusterRef::Known(cluster) => cluster.clone(),
        ClusterRef::Unknown { name, why } => return no_cluster(log, name, why),
        ClusterRef::Invalid { why } => return reply::reply(log, StatusCode::INTERNAL_SERVER_ERROR, &**why),
    };
    log.route(&route.name, Some(&cluster), &cluster.name);
    let errand = Errand { route: Some(route.clone()), ..Errand::new(connection, snapshot, cluster, authority) };
    forward::exchange(errand, request, log).await
}

/// 404 with an empty body: no route matches.
pub fn not_found(mut log: Box<RequestLog>) -> Response<ResponseBody> {
    log.flag(Flag::NR);
    log.details("route_not_found");
    reply::reply(log, StatusCode::NOT_FOUND, "")
}

/// 503: the route leads to a cluster that is not there.
pub fn no_cluster(mut log: Box<RequestLog>, name: &str, why: &str) -> Response<ResponseBody> {
    log.route("", None, name);
    log.flag(Flag::NC);
    log.details("cluster_not_found");
    reply::reply(log, StatusCode::SERVICE_UNAVAILABLE, why)
}
