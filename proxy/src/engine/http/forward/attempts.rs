//! Attempts until one is answered, or no other is allowed.

use std::{pin::pin, sync::Arc, time::Duration};

use http::Response;

use super::{
    Errand, Outgoing,
    retry::{Next, Retries, Trouble},
    send::{Failure, send},
};
use crate::{
    engine::{
        balance::{ClusterState, Observed},
        dial::{self, DialError, Target},
        http::{
            answer::{Answer, AnswerError},
            body::Upload,
            connect::{self, Wants},
            headers,
            log::{self, RequestLog},
            pool::Lease,
        },
    },
    mesh::RetryPolicy,
};

/// How all attempts together ended.
pub enum Outcome {
    Answered {
        response: Response<Answer>,
        lease: Lease,
    },
    NoConnection(DialError),
    /// The connection ended before the request went out.
    Unsent,
    /// The request went out, and no response came.
    Lost(AnswerError),
    /// Details as Envoy has them.
    TimedOut(&'static str),
}

/// What an attempt came to. None: the pooled connection was dead, and another one is taken, which counts for nothing.
type Ended = Option<(Outcome, Next)>;

/// Tries by the route's policy. What the log tells of the upstream is about the last attempt.
pub async fn attempts(
    errand: &Errand,
    outgoing: &Outgoing,
    upload: &Upload,
    wants: Wants,
    state: &Arc<ClusterState>,
    log: &mut RequestLog,
) -> Outcome {
    let target = Target {
        cluster: &errand.cluster,
        original: errand.connection.info.original,
        host: Some(&*errand.authority).filter(|host| !host.is_empty()),
        hash: errand.hash,
        client: errand.connection.pod.shown_client(&errand.connection.info),
    };
    errand.sweep();
    let policy = errand.retries();
    let mut retries = Retries::new(policy, &errand.cluster.pool, state);
    let mut tried = Vec::new();
    loop {
        let picked = match dial::pick_by(state, &errand.snapshot, &errand.connection.pod, &target, &tried).await {
            Ok(picked) => picked,
            Err(error) => return Outcome::NoConnection(error),
        };
        let address = picked.endpoint.address.clone();
        log.with(|record| record.upstream_host = Some((&address).into()));
        let found = connect::connection(&errand.connection, &errand.snapshot, &target, &picked, wants).await;
        let ended = match found {
            Ok(lease) => {
                log.held_endpoint(picked);
                exchanged(errand, outgoing, upload, lease, &mut retries, log).await
            }
            Err(error) if error.retryable() => {
                let next = retries.after_trouble(Trouble::Unsent, upload.is_whole());
                Some((Outcome::NoConnection(error), next))
            }
            Err(error) => return Outcome::NoConnection(error),
        };
        match ended {
            None => log.release_endpoint(),
            Some((outcome, Next::Again)) => {
                log.release_endpoint();
                // The response that is not good enough goes, and its connection with it.
                drop(outcome);
                tried.push(address);
                Box::pin(retries.pause()).await;
            }
            Some((outcome, next)) => {
                next.tell(log);
                return outcome;
            }
        }
    }
}

/// One attempt on a connection.
async fn exchanged(
    errand: &Errand,
    outgoing: &Outgoing,
    upload: &Upload,
    mut lease: Lease,
    retries: &mut Retries<'_>,
    log: &mut RequestLog,
) -> Ended {
    log.with(|record| {
        record.upstream_host = Some((&lease.meta.key.address).into());
        record.upstream_local_address = lease.meta.local;
        record.upstream_tls = lease.meta.tls;
    });
    let policy = errand.retries();
    if policy.needs_body(lease.is_h2(), log.is_grpc()) {
        upload.keep();
    }
    log.sending();
    let result = {
        let mut sending = pin!(send(errand, outgoing, upload, &mut lease, retries.attempt()));
        match policy.per_try_timeout.filter(|_| policy.attempts > 0) {
            None => sending.await,
            Some(timeout) => {
                let late = Box::pin(outgoing.answer_within(timeout));
                tokio::select! {
                    biased;
                    result = &mut sending => result,
                    () = late => Err(Failure::TimedOut),
                }
            }
        }
    };
    let failure = match result {
        Ok(response) => {
            log.observe(Observed::Status(status_of(&response, log)));
            let next = match response.status() {
                http::StatusCode::SWITCHING_PROTOCOLS => Next::Stop,
                _ => retries.after_answer(&response, upload.is_whole()),
            };
            if next != Next::Again {
                upload.settle();
            }
            return Some((Outcome::Answered { response, lease }, next));
        }
        Err(failure) => failure,
    };
    let reused = lease.reused;
    drop(lease);
    let whole = upload.is_whole();
    match failure {
        Failure::Unsent if reused && whole => None,
        Failure::Idle if may_repeat(policy) => None,
        Failure::Unsent => {
            log.observe(Observed::Failed);
            Some((Outcome::Unsent, retries.after_trouble(Trouble::Unsent, whole)))
        }
        Failure::Refused(error) => {
            log.observe(Observed::Failed);
            Some((Outcome::Lost(error), retries.after_trouble(Trouble::Refused, whole)))
        }
        Failure::Idle => Some((Outcome::Unsent, retries.after_trouble(Trouble::Unanswered, whole))),
        Failure::Lost(error) => {
            let by_client = outgoing.client_failed();
            if !by_client {
                log.observe(Observed::Failed);
            }
            Some((Outcome::Lost(error), retries.after_trouble(Trouble::Unanswered, whole && !by_client)))
        }
        Failure::TimedOut => {
            log.observe(Observed::TimedOut);
            let outcome = Outcome::TimedOut("upstream_per_try_timeout");
            Some((outcome, retries.after_trouble(Trouble::Unanswered, whole)))
        }
    }
}

/// `attempts: 0` is the word of somebody who wants no request twice.
fn may_repeat(policy: &RetryPolicy) -> bool {
    policy.attempts > 0
}

/// The status that counts for outlier detection: gRPC's own where there is one (Envoy).
fn status_of(response: &Response<Answer>, log: &RequestLog) -> u16 {
    match log.is_grpc().then(|| headers::grpc_status(response.headers())).flatten() {
        Some(code) => log::http_code(code).as_u16(),
        None => response.status().as_u16(),
    }
}

impl Outgoing {
    /// Ends `timeout` after the client has sent all of its request.
    pub async fn answer_within(&self, timeout: Duration) {
        self.progress.arrived().await;
        tokio::time::sleep(timeout).await;
    }
}
