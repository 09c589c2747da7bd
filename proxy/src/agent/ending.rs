//! How an agent ends: it drains, and may give its place to a next one before.

use std::sync::Arc;

use tokio::{net::UnixStream, time::Instant};

use super::{
    Input, Options,
    fleet::Fleet,
    handover::{self, HandoverError},
    shared::Shared,
    signals::Signals,
    state_dir::StateDir,
};
use crate::engine::Engine;

/// The parts that end.
pub struct Parts<'a> {
    pub options: &'a Options,
    pub engine: &'a Arc<Engine>,
    pub shared: &'a Shared,
    pub fleet: &'a mut Fleet,
    pub signals: &'a mut Signals,
}

impl Parts<'_> {
    /// No new connections; what is in flight ends by itself, or at the deadline, or at one more signal.
    ///
    /// Gateways listen until what pods have under way is done: a request on its first hop may still have to dial its second one.
    pub async fn drain(&mut self) {
        self.shared.set_draining();
        self.fleet.stop_inbound();
        self.fleet.stop_outbound();
        let one_more = self.signals.stops() + 1;
        self.finish(one_more).await;
    }

    /// Gives all listening sockets to the next agent, and finishes what is in flight. `lock`: of the state folder.
    ///
    /// A pod of a cluster that ended by itself would be started again: there it waits for SIGTERM.
    pub async fn hand_over(&mut self, next: UnixStream, lock: StateDir) -> Result<(), HandoverError> {
        self.shared.set_draining();
        let sockets = self.fleet.hand_over();
        let next = handover::give(next, &sockets, lock).await?;
        log::info!("handed {} listening sockets over to the next agent", sockets.len());
        drop(sockets);
        // To be told to stop is what comes now in a cluster, and no haste.
        self.finish(2).await;
        if matches!(self.options.input, Input::Kubernetes(_)) {
            self.signals.stopped(1).await;
        }
        drop(next);
        Ok(())
    }

    async fn finish(&mut self, cut_at: u32) {
        let time = self.options.drain_timeout;
        log::info!("draining {} connections, {} s at most", self.engine.in_flight(), time.as_secs());
        self.engine.drain();
        let deadline = Instant::now() + time;
        let done = async {
            let _ = tokio::time::timeout_at(deadline, self.engine.ending(false).cancelled()).await;
            self.fleet.stop_gateways();
            self.engine.idle(deadline).await
        };
        tokio::select! {
            left = done => match left {
                0 => log::info!("drained"),
                left => log::warn!("{left} connections were still open after {} s and are cut", time.as_secs()),
            },
            () = self.signals.stopped(cut_at) => {
                log::warn!("told to stop once more: cutting {} connections", self.engine.in_flight());
            }
        }
    }
}
