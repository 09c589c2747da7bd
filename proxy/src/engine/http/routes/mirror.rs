//! Copies of requests for other clusters (`mirrors`): sent and forgotten. Whatever becomes of one, the request itself
//! never waits for it and never fails with it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::header;
use http_body_util::BodyExt as _;
use tokio::sync::Semaphore;

use super::{Changes, headers, local};
use crate::{
    engine::{
        dial::{self, DialError, Target},
        http::{
            body::{Progress, RequestBody, Upload},
            connect::{self, Wants},
            forward::{Errand, Outgoing},
            log::RequestLog,
            pool::{Lease, Sender},
        },
    },
    limits,
    mesh::{Action, Cluster, Forward, Verdict},
};

/// Requests being mirrored now, of all pods.
static MIRRORED: Semaphore = Semaphore::const_new(limits::MIRRORED_REQUESTS);

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    NoConnection(#[from] DialError),
    #[error("{0}")]
    Lost(#[from] hyper::Error),
    #[error("the connection has gone")]
    Gone,
}

/// One mirrored request, ready to go.
struct Shadow {
    errand: Errand,
    outgoing: Outgoing,
    wants: Wants,
}

/// The clusters that get a copy of this request, each with its share of requests.
pub fn drawn(action: &Forward) -> Vec<Arc<Cluster>> {
    let shares = action.mirrors.iter().filter(|mirror| local::drawn(mirror.share));
    shares.filter_map(|mirror| mirror.cluster.known().cloned()).collect()
}

/// Prepares the copies and sends them once the request's body has passed. `outgoing` is the request before headers are
/// changed for its own destination: what is told to one cluster is not for another.
pub fn begin(errand: &Errand, outgoing: &Outgoing, upload: &Upload, log: &RequestLog) {
    if errand.changes.mirrors.is_empty() {
        return;
    }
    let Ok(permit) = MIRRORED.try_acquire() else {
        return ::log::debug!("{}: not mirrored: too many are under way", errand.connection.pod.id);
    };
    let client_h2 = errand.connection.info.h2;
    let allowed = errand.changes.mirrors.iter().filter(|to| match errand.verdict(to, outgoing) {
        Verdict::Allowed => true,
        Verdict::Denied(details) => {
            ::log::debug!("{}: not mirrored to {}: {details}", errand.connection.pod.id, to.name);
            false
        }
    });
    let copies: Vec<Shadow> = allowed.map(|to| copy(errand, outgoing, to, client_h2, log)).collect();
    if copies.is_empty() {
        return;
    }
    let timeout = errand.route.as_ref().and_then(|route| match &route.action {
        Action::Forward(forward) => forward.timeout,
        _ => None,
    });
    let closed = errand.connection.pod.closed.clone();
    let body = upload.copied();
    tokio::spawn(async move {
        let _permit = permit;
        let sending = async {
            // An error: the body was too long, or the request ended before it.
            let Ok(body) = body.await else { return ::log::debug!("not mirrored: the body is not at hand") };
            let timeout = timeout.unwrap_or(limits::MIRROR_TIME);
            futures_util::future::join_all(copies.iter().map(|copy| copy.send(body.clone(), timeout))).await;
        };
        tokio::select! {
            () = closed.cancelled() => {}
            () = sending => {}
        }
    });
}

fn copy(errand: &Errand, outgoing: &Outgoing, to: &Arc<Cluster>, client_h2: bool, log: &RequestLog) -> Shadow {
    let changes = Changes {
        destination: errand.changes.destination,
        original_path: errand.changes.original_path.clone(),
        ..Changes::default()
    };
    let (connection, snapshot) = (errand.connection.clone(), errand.snapshot.clone());
    let errand = Errand {
        route: errand.route.clone(),
        hash: errand.hash,
        changes,
        ..Errand::new(connection, snapshot, to.clone(), errand.authority.clone())
    };
    let mut fields = outgoing.headers.clone();
    fields.remove(header::EXPECT);
    errand.change_request(&mut fields, log.request_id());
    if !to.mesh_external {
        headers::count_attempt(&mut fields, 1);
    }
    // Put in its place when the request is made.
    fields.remove(header::HOST);
    let progress = Progress::new(false, false);
    let (method, uri) = (outgoing.method.clone(), outgoing.uri.clone());
    let outgoing = Outgoing { method, uri, headers: fields, progress, expects: false };
    Shadow { errand, outgoing, wants: Wants { client_h2, upgrade: false, plain: false } }
}

/// What a mirror's log sees of the name that was asked for (Envoy): `a:80` → `a-shadow:80`.
fn shadow_name(authority: &str) -> String {
    match authority.rsplit_once(':') {
        _ if authority.is_empty() => String::new(),
        Some((host, port)) if !port.contains(']') => format!("{host}-shadow:{port}"),
        _ => format!("{authority}-shadow"),
    }
}

impl Shadow {
    async fn send(&self, body: Bytes, timeout: Duration) {
        let name = &self.errand.cluster.name;
        match tokio::time::timeout(timeout, self.exchange(body)).await {
            Ok(Ok(status)) => ::log::debug!("mirrored to {name}: {status}"),
            Ok(Err(error)) => ::log::debug!("not mirrored to {name}: {error}"),
            Err(_) => ::log::debug!("mirrored to {name}: no answer within {timeout:?}"),
        }
    }

    /// Sends the request and reads the response to its end, so that the connection can be used again.
    async fn exchange(&self, body: Bytes) -> Result<http::StatusCode, Failure> {
        let Errand { connection, snapshot, cluster, authority, hash, .. } = &self.errand;
        let state = connection.pod.cluster(cluster);
        let _counted = state.request(&cluster.pool).ok_or(DialError::Overflow("maxRequests"))?;
        let target = Target {
            cluster,
            original: connection.info.original,
            // Not the shadow's name: certificates are checked against the real one.
            host: Some(&**authority).filter(|host| !host.is_empty()),
            hash: *hash,
            client: None,
        };
        let picked = dial::pick(snapshot, &connection.pod, &target, &[]).await?;
        let mut lease = connect::connection(connection, snapshot, &target, &picked, self.wants).await?;
        let tls = lease.meta.tls;
        let sender = lease.sender().ok_or(Failure::Gone)?;
        let body = RequestBody::whole(body, self.outgoing.progress.clone());
        let h2 = matches!(sender, Sender::H2(_));
        let request = self.outgoing.request(body, h2, tls, &shadow_name(authority));
        let response = match sender {
            Sender::H1(sender) => sender.send_request(request).await?,
            Sender::H2(sender) => sender.send_request(request).await?,
            Sender::Own(_) => return Err(Failure::Gone),
        };
        let status = response.status();
        drain(response.into_body(), &mut lease).await?;
        Ok(status)
    }
}

async fn drain(mut body: hyper::body::Incoming, lease: &mut Lease) -> Result<(), hyper::Error> {
    while let Some(frame) = body.frame().await {
        frame?;
    }
    lease.give_back();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::shadow_name;

    #[test]
    fn shadows_keep_their_port() {
        assert_eq!(shadow_name(""), "");
        assert_eq!(shadow_name("a"), "a-shadow");
        assert_eq!(shadow_name("a:8080"), "a-shadow:8080");
        assert_eq!(shadow_name("[::1]:80"), "[::1]-shadow:80");
    }
}
