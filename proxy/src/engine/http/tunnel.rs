//! What follows a `101 Switching Protocols` (WebSocket and the like): bytes, both ways, until both sides have ended.

use std::sync::{Arc, atomic::Ordering};

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;

use super::{Connection, log::RequestLog, pool::Lease};
use crate::{
    engine::{
        copy::{self, End},
        splice::Spliceable,
    },
    limits,
    telemetry::record::Flag,
};

/// What is below is hyper's.
impl Spliceable for TokioIo<Upgraded> {}

/// Copies until both ends are through; then the record is written and the upstream connection let go.
pub fn open(of: Arc<Connection>, down: OnUpgrade, up: OnUpgrade, mut log: Box<RequestLog>, lease: Lease) {
    let in_flight = of.engine.enter();
    tokio::spawn(async move {
        let mut sent = 0;
        let run = async {
            let (mut down, mut up) = match tokio::try_join!(down, up) {
                Ok((down, up)) => (TokioIo::new(down), TokioIo::new(up)),
                Err(error) => return log.broken(Flag::UC, &error),
            };
            let limits = copy::Limits { idle: limits::IDLE_TIMEOUT, until: None };
            let (end, carried) = copy::both_ways(&mut down, &mut up, limits).await;
            sent = carried.sent;
            log.with(|record| record.bytes_received = carried.received);
            match end {
                End::Done => {}
                End::Downstream(error) => log.broken(Flag::DC, &error),
                End::Upstream(error) => {
                    // The client must not take what it got for the whole.
                    of.reset.store(true, Ordering::Release);
                    log.broken(Flag::UC, &error);
                }
                End::Idle => log.flag(Flag::SI),
                End::Duration => log.flag(Flag::DT),
            }
        };
        tokio::select! {
            () = run => {}
            // The pod is gone, and its sockets with it.
            () = of.pod.closed.cancelled() => {}
        }
        log.finish(sent);
        drop((lease, in_flight));
    });
}
