//! Idle connections of our own have no task that would see their end: one for all of a pod looks at them now and then.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::{Entries, Inner, Meta, Pools};
use crate::limits;

/// What ends every connection of the pod.
pub(super) struct Ends {
    /// The pod is gone.
    closed: CancellationToken,
    /// The engine drains.
    draining: CancellationToken,
}

/// A connection that ends sooner than the keeper meant to look wakes it no more often than this.
const LEAST: Duration = Duration::from_millis(10);

impl Pools {
    /// Connections of our own are kept until one of these is cancelled.
    pub fn ended_by(&self, closed: &CancellationToken, draining: &CancellationToken) {
        self.inner.ends.get_or_init(|| Ends { closed: closed.clone(), draining: draining.clone() });
    }
}

impl Inner {
    /// Sees to it that the keeper looks at a connection in time that begins to idle `now`. False: nobody would.
    pub(super) fn kept(self: &Arc<Self>, entries: &mut Entries, meta: &Meta, now: Instant) -> bool {
        let end = meta.deadline(now).min(now + limits::IDLE_CHECK);
        match entries.look {
            Some(look) if look <= end => true,
            Some(_) => {
                entries.look = Some(end);
                self.sooner.notify_one();
                true
            }
            None => {
                let (Some(ends), Ok(runtime)) = (self.ends.get(), tokio::runtime::Handle::try_current()) else {
                    return false;
                };
                entries.look = Some(end);
                runtime.spawn(keep(Arc::downgrade(self), ends.closed.clone(), ends.draining.clone()));
                true
            }
        }
    }

    /// Closes what is too old, or was closed by the upstream. None: nothing idles any more, and the keeper may go.
    fn look(&self) -> Option<Instant> {
        let mut entries = self.entries.lock();
        let now = Instant::now();
        let mut next = now + limits::IDLE_CHECK;
        let mut over = Vec::new();
        entries.by_key.retain(|_, entry| {
            over.extend(entry.own.extract_if(.., |(conn, meta, since)| {
                let end = meta.deadline(*since);
                next = next.min(end);
                end <= now || !conn.is_quiet()
            }));
            !entry.is_empty()
        });
        let idle = entries.by_key.values().any(|entry| !entry.own.is_empty());
        entries.look = idle.then(|| next.max(now + LEAST));
        let look = entries.look;
        drop(entries);
        // Closing costs system calls.
        if !over.is_empty() {
            drop(over);
            self.tell();
        }
        look
    }

    /// Closes what idles, and whatever will.
    fn end(&self) {
        let mut entries = self.entries.lock();
        (entries.over, entries.look) = (true, None);
        let idle: Vec<_> = entries.by_key.values_mut().flat_map(|entry| std::mem::take(&mut entry.own)).collect();
        entries.by_key.retain(|_, entry| !entry.is_empty());
        drop(entries);
        drop(idle);
        self.tell();
    }
}

async fn keep(pools: Weak<Inner>, closed: CancellationToken, draining: CancellationToken) {
    let Some(sooner) = pools.upgrade().map(|pools| pools.sooner.clone()) else { return };
    let ended = async {
        tokio::select! {
            () = closed.cancelled() => {}
            () = draining.cancelled() => {}
        }
    };
    let looking = async {
        while let Some(look) = pools.upgrade().and_then(|pools| pools.entries.lock().look) {
            tokio::select! {
                () = tokio::time::sleep_until(look.into()) => {
                    let Some(pools) = pools.upgrade() else { return };
                    pools.look();
                }
                () = sooner.notified() => {}
            }
        }
    };
    tokio::select! {
        biased;
        () = ended => if let Some(pools) = pools.upgrade() { pools.end() },
        () = looking => {}
    }
}
