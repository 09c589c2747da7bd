//! Upstream HTTP connections of one pod, kept for the next request.
//!
//! A connection is shared only between requests of the same pod to the same cluster, address, TLS context (rule and
//! certificates) and verified name: no request ever travels under another's identity. A reload or rotation changes the
//! context's id, so an old connection is not found any more from that moment on, and swept soon after.

mod keeper;
mod meta;

use std::{
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use hashbrown::HashMap;
use hyper::client::conn::{http1, http2};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::keeper::Ends;
pub use self::meta::{Key, Meta, Wanted};
use super::{body::RequestBody, h1::client::Conn};
use crate::limits;

/// The upstream connections of one pod.
#[derive(Default)]
pub struct Pools {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    entries: Mutex<Entries>,
    /// Told whenever a connection became free or ended, where somebody waits for that.
    freed: Notify,
    waiting: AtomicUsize,
    /// As in `entries`.
    generation: AtomicU64,
    /// What ends all connections; set before the first one of our own.
    ends: OnceLock<Ends>,
    /// Told where an idle connection ends before the keeper looks again.
    sooner: Arc<Notify>,
}

#[derive(Default)]
struct Entries {
    by_key: HashMap<Arc<Key>, Entry>,
    /// The snapshot that the entries were last swept for.
    generation: u64,
    /// When the keeper looks at the idle connections of our own again; None: it does not run.
    look: Option<Instant>,
    /// The engine drains, or the pod is gone: nothing is kept any more.
    over: bool,
}

#[derive(Default)]
struct Entry {
    /// Of our own, and since when they are idle. The last one put back is the first one taken, so that the rest can grow
    /// old and be closed.
    own: Vec<(Box<Conn>, Arc<Meta>, Instant)>,
    /// hyper's, in the same order.
    idle: Vec<(http1::SendRequest<RequestBody>, Arc<Meta>)>,
    /// One, where `maxConcurrentStreams` does not ask for more.
    h2: Vec<(http2::SendRequest<RequestBody>, Arc<Meta>)>,
}

/// How requests are sent on a connection.
pub enum Sender {
    H1(http1::SendRequest<RequestBody>),
    H2(http2::SendRequest<RequestBody>),
    Own(Box<Conn>),
}

/// A connection in use by one request.
pub struct Lease {
    /// None once given back.
    sender: Option<Sender>,
    pub meta: Arc<Meta>,
    /// It has served requests before: the upstream may have closed it in the meantime.
    pub reused: bool,
    reusable: bool,
    /// Nobody asks how long it has been idle: it lies in the pool with its time.
    own: bool,
    pools: Weak<Inner>,
}

impl Lease {
    pub fn sender(&mut self) -> Option<&mut Sender> {
        self.sender.as_mut()
    }

    pub fn is_h2(&self) -> bool {
        matches!(self.sender, Some(Sender::H2(_)))
    }

    /// The connection is not fit for another request, whatever comes.
    pub fn discard(&mut self) {
        self.reusable = false;
    }

    /// Takes out the connection of our own, for one exchange.
    pub fn take_own(&mut self) -> Option<Box<Conn>> {
        match self.sender.take()? {
            Sender::Own(conn) => Some(conn),
            other => {
                self.sender = Some(other);
                None
            }
        }
    }

    /// Has the connection that was taken out, or what became of it, again.
    pub fn put(&mut self, sender: Sender) {
        self.own = matches!(sender, Sender::Own(_));
        self.sender = Some(sender);
    }

    /// The exchange has ended well: the connection may serve the next one.
    pub fn give_back(&mut self) {
        let Some(sender) = self.sender.take_if(|_| self.reusable) else { return };
        let Some(pools) = self.pools.upgrade() else { return };
        if self.meta.spent() {
            return;
        }
        let meta = &self.meta;
        let mut entries = pools.entries.lock();
        // Made under an older snapshot: nobody may ask for it any more.
        if meta.generation.load(Ordering::Acquire) != entries.generation {
            return;
        }
        match sender {
            Sender::H1(sender) if !sender.is_closed() => {
                entries.by_key.entry(meta.key.clone()).or_default().idle.push((sender, meta.clone()));
            }
            Sender::Own(conn) if conn.is_reusable() && !entries.over => {
                let now = Instant::now();
                if pools.kept(&mut entries, meta, now) {
                    let entry = entries.by_key.entry(meta.key.clone()).or_default();
                    entry.own.push((conn, meta.clone(), now));
                }
            }
            Sender::H1(_) | Sender::H2(_) | Sender::Own(_) => {}
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.meta.end(!self.own);
        // An h1 connection that was not given back is closed by this.
        self.sender = None;
        if let Some(pools) = self.pools.upgrade() {
            pools.tell();
        }
    }
}

impl Pools {
    /// A connection for `key` that is alive, if there is one: of ours or of hyper's, rather the kind that is asked for.
    pub async fn checkout(&self, key: &Wanted<'_>, h2: bool, own: bool) -> Option<Lease> {
        loop {
            let (mut sender, meta) = self.take(key, h2, own)?;
            let alive = match &mut sender {
                // It was put back when its response ended; the connection's own task may need a moment to notice.
                Sender::H1(sender) => {
                    matches!(Box::pin(tokio::time::timeout(limits::REUSE_WAIT, sender.ready())).await, Ok(Ok(())))
                }
                Sender::Own(conn) => conn.is_ready(),
                // Begun under the lock.
                Sender::H2(_) => return Some(self.lease(sender, meta, true)),
            };
            if alive {
                meta.begin();
                return Some(self.lease(sender, meta, true));
            }
        }
    }

    fn take(&self, key: &Wanted<'_>, h2: bool, own: bool) -> Option<(Sender, Arc<Meta>)> {
        let mut entries = self.inner.entries.lock();
        let entry = entries.by_key.get_mut(key)?;
        if h2 {
            entry.h2.retain(|(sender, meta)| !sender.is_closed() && !meta.spent());
            let free = entry.h2.iter().find(|(_, meta)| !meta.full());
            free.map(|(sender, meta)| {
                // Under the lock, so that nobody else takes the last stream.
                meta.begin();
                (Sender::H2(sender.clone()), meta.clone())
            })
        } else if own {
            entry.take_own().or_else(|| entry.take_hyper())
        } else {
            entry.take_hyper().or_else(|| entry.take_own())
        }
    }

    /// The use of the connection has begun already.
    fn lease(&self, sender: Sender, meta: Arc<Meta>, reused: bool) -> Lease {
        let own = matches!(sender, Sender::Own(_));
        Lease { sender: Some(sender), meta, reused, reusable: true, own, pools: Arc::downgrade(&self.inner) }
    }

    /// Puts a new connection to its first use; one that speaks h2 is open to others at once.
    pub fn add(&self, sender: Sender, meta: Arc<Meta>) -> Lease {
        meta.begin();
        if let Sender::H2(sender) = &sender {
            let mut entries = self.inner.entries.lock();
            let retired = meta.retired.load(Ordering::Acquire);
            if !retired && meta.generation.load(Ordering::Acquire) == entries.generation {
                let entry = entries.by_key.entry(meta.key.clone()).or_default();
                if meta.max_streams.is_none() {
                    // The newest carries everything; those before it end with their requests.
                    entry.h2.clear();
                }
                entry.h2.push((sender.clone(), meta.clone()));
            }
        }
        self.inner.tell();
        self.lease(sender, meta, false)
    }

    /// Sees a connection through: polls it, and closes it when idle for `idle`, or with the pod. Once the engine drains
    /// (`draining`), it ends with the requests that it carries: whoever it leads to may be drained by this engine too, and
    /// would wait for it in vain.
    pub async fn drive<C: Future>(
        pools: WeakPools,
        meta: Arc<Meta>,
        connection: C,
        idle: Duration,
        closed: CancellationToken,
        draining: CancellationToken,
    ) {
        let mut connection = std::pin::pin!(connection);
        // An idle connection does not outlive `maxConnectionDuration`.
        let idle = meta.oldest.map_or(idle, |oldest| oldest.min(idle));
        let mut wait = idle;
        loop {
            tokio::select! {
                _ = &mut connection => break,
                () = closed.cancelled() => break,
                () = draining.cancelled(), if !meta.retired.load(Ordering::Acquire) => {
                    meta.retired.store(true, Ordering::Release);
                    pools.forget(&meta);
                }
                () = tokio::time::sleep(wait) => {
                    wait = match meta.idle() {
                        Some(spent) if spent >= idle => {
                            // Its sender goes, and with it the reason for the connection to go on.
                            pools.forget(&meta);
                            idle
                        }
                        Some(spent) => idle - spent,
                        None => idle,
                    };
                }
            }
        }
        pools.forget(&meta);
    }

    pub fn downgrade(&self) -> WeakPools {
        WeakPools(Arc::downgrade(&self.inner))
    }

    /// Closes what `keep` denies, once for each new snapshot. Connections in use end after their request.
    pub fn sweep(&self, generation: u64, keep: impl Fn(&Key) -> bool) {
        let mut entries = self.inner.entries.lock();
        if generation <= entries.generation {
            return;
        }
        entries.generation = generation;
        self.inner.generation.store(generation, Ordering::Release);
        entries.by_key.retain(|key, entry| {
            let kept = !entry.is_empty() && keep(key);
            let hyper = entry.idle.iter().map(|(_, meta)| meta).chain(entry.h2.iter().map(|(_, meta)| meta));
            let metas = entry.own.iter().map(|(_, meta, _)| meta).chain(hyper);
            metas.filter(|_| kept).for_each(|meta| meta.generation.store(generation, Ordering::Release));
            kept
        });
        drop(entries);
        self.inner.tell();
    }

    /// Closes one idle connection of the cluster, to make room under `maxConnections` for another name or address.
    pub fn evict(&self, cluster: &str) {
        let mut entries = self.inner.entries.lock();
        let mut of_cluster =
            entries.by_key.iter_mut().filter(|(key, _)| key.cluster == cluster).map(|(_, entry)| entry);
        if let Some(entry) = of_cluster.find(|entry| !entry.own.is_empty() || !entry.idle.is_empty()) {
            if entry.own.is_empty() {
                // Its task tells when it has ended.
                entry.idle.remove(0);
            } else {
                let conn = entry.own.remove(0);
                drop(entries);
                drop(conn);
                self.inner.tell();
            }
        }
    }

    /// The snapshot that was last swept for.
    pub fn generation(&self) -> u64 {
        self.inner.generation.load(Ordering::Acquire)
    }

    /// Waits until a connection becomes free or ends. Make it before looking, then await.
    pub fn freed(&self) -> Freed<'_> {
        self.inner.waiting.fetch_add(1, Ordering::SeqCst);
        Freed { notified: self.inner.freed.notified(), _waiting: Waiting(&self.inner.waiting) }
    }

    /// Idle h1 and open h2 connections, for tests and status.
    pub fn count(&self) -> usize {
        let entries = self.inner.entries.lock();
        entries.by_key.values().map(|entry| entry.own.len() + entry.idle.len() + entry.h2.len()).sum()
    }
}

impl Inner {
    /// A connection became free or ended.
    fn tell(&self) {
        // Whoever waits is counted before it looks, and whoever frees looks after it has freed.
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.freed.notify_waiters();
        }
    }
}

/// See [`Pools::freed`].
pub struct Freed<'a> {
    notified: tokio::sync::futures::Notified<'a>,
    _waiting: Waiting<'a>,
}

/// Counts as waiting until dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Freed<'_> {
    pub async fn wait(self) {
        self.notified.await;
    }
}

impl Entry {
    fn take_own(&mut self) -> Option<(Sender, Arc<Meta>)> {
        loop {
            let newest = self.own.len().checked_sub(1)?;
            let looked_at = newest.saturating_sub(limits::LOCAL_SEARCH)..=newest;
            let local = looked_at.rev().find(|index| self.own[*index].0.is_local());
            let (conn, meta, _) = self.own.remove(local.unwrap_or(newest));
            if !meta.spent() {
                return Some((Sender::Own(conn), meta));
            }
        }
    }

    fn take_hyper(&mut self) -> Option<(Sender, Arc<Meta>)> {
        let mut idle = std::iter::from_fn(|| self.idle.pop());
        idle.find(|(sender, meta)| !sender.is_closed() && !meta.spent())
            .map(|(sender, meta)| (Sender::H1(sender), meta))
    }

    fn is_empty(&self) -> bool {
        self.own.is_empty() && self.idle.is_empty() && self.h2.is_empty()
    }
}

/// A reference for a connection's task, which must not keep the pod's pools alive.
#[derive(Clone)]
pub struct WeakPools(Weak<Inner>);

impl WeakPools {
    fn forget(&self, meta: &Arc<Meta>) {
        let Some(pools) = self.0.upgrade() else { return };
        let mut entries = pools.entries.lock();
        if let Some(entry) = entries.by_key.get_mut(&meta.key) {
            entry.idle.retain(|(_, other)| !Arc::ptr_eq(other, meta));
            entry.h2.retain(|(_, other)| !Arc::ptr_eq(other, meta));
            if entry.is_empty() {
                entries.by_key.remove(&meta.key);
            }
        }
        drop(entries);
        pools.tell();
    }
}
