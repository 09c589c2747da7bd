//! Upstream HTTP connections of one pod, kept for the next request.
//!
//! A connection is shared only between requests of the same pod to the same cluster, address, TLS context (rule and
//! certificates) and verified name: no request ever travels under another's identity. A reload or rotation changes the
//! context's id, so an old connection is not found any more from that moment on, and swept soon after.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hyper::client::conn::{http1, http2};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::body::RequestBody;
use crate::{
    engine::dial::TlsKey,
    limits,
    mesh::{EndpointAddress, Pool},
};

/// What two requests must have in common to share a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Cluster name.
    pub cluster: String,
    pub address: EndpointAddress,
    pub tls: TlsKey,
    /// The client that the application sees at the other end; None: our own address.
    pub client: Option<IpAddr>,
}

/// The upstream connections of one pod.
#[derive(Default)]
pub struct Pools {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    entries: Mutex<Entries>,
    /// Told whenever a connection became free or ended.
    freed: Notify,
}

#[derive(Default)]
struct Entries {
    by_key: HashMap<Key, Entry>,
    /// The snapshot that the entries were last swept for.
    generation: u64,
}

#[derive(Default)]
struct Entry {
    /// The last one put back is the first one taken, so that the rest can grow old and be closed.
    idle: Vec<(http1::SendRequest<RequestBody>, Arc<Meta>)>,
    /// One, where `maxConcurrentStreams` does not ask for more.
    h2: Vec<(http2::SendRequest<RequestBody>, Arc<Meta>)>,
}

/// One upstream connection.
#[derive(Debug)]
pub struct Meta {
    pub key: Key,
    pub local: Option<std::net::SocketAddr>,
    pub tls: bool,
    /// Bytes that came from the upstream.
    pub read: Arc<AtomicU64>,
    /// The last snapshot under which it was found to be in order.
    generation: AtomicU64,
    max_requests: Option<u32>,
    max_streams: Option<u32>,
    /// `maxConnectionDuration`: no request begins when it is this old.
    oldest: Option<Duration>,
    requests: AtomicU32,
    active: AtomicU32,
    /// The engine drains: no further request begins.
    retired: AtomicBool,
    /// Milliseconds after `born` when it was last used.
    used: AtomicU64,
    born: Instant,
}

impl Meta {
    pub fn new(
        key: Key,
        local: Option<std::net::SocketAddr>,
        tls: bool,
        read: Arc<AtomicU64>,
        generation: u64,
        pool: &Pool,
    ) -> Arc<Self> {
        Arc::new(Self {
            key,
            local,
            tls,
            read,
            generation: generation.into(),
            max_requests: pool.max_requests_per_connection.filter(|max| *max > 0),
            max_streams: pool.max_concurrent_streams.filter(|max| *max > 0),
            oldest: pool.max_connection_duration,
            requests: AtomicU32::new(0),
            active: AtomicU32::new(0),
            retired: AtomicBool::new(false),
            used: AtomicU64::new(0),
            born: Instant::now(),
        })
    }

    fn begin(&self) {
        self.active.fetch_add(1, Ordering::AcqRel);
        self.requests.fetch_add(1, Ordering::AcqRel);
    }

    fn end(&self) {
        self.used.store(self.born.elapsed().as_millis() as u64, Ordering::Release);
        self.active.fetch_sub(1, Ordering::AcqRel);
    }

    /// `maxRequestsPerConnection` or `maxConnectionDuration` is reached, or the engine drains.
    fn spent(&self) -> bool {
        self.retired.load(Ordering::Acquire)
            || self.max_requests.is_some_and(|max| self.requests.load(Ordering::Acquire) >= max)
            || self.oldest.is_some_and(|oldest| self.born.elapsed() >= oldest)
    }

    /// `maxConcurrentStreams` is reached.
    fn full(&self) -> bool {
        self.max_streams.is_some_and(|max| self.active.load(Ordering::Acquire) >= max)
    }

    /// How long it has been idle; None while in use.
    fn idle(&self) -> Option<Duration> {
        if self.active.load(Ordering::Acquire) > 0 {
            return None;
        }
        Some(self.born.elapsed().saturating_sub(Duration::from_millis(self.used.load(Ordering::Acquire))))
    }
}

/// How requests are sent on a connection.
pub enum Sender {
    H1(http1::SendRequest<RequestBody>),
    H2(http2::SendRequest<RequestBody>),
}

/// A connection in use by one request.
pub struct Lease {
    /// None once given back.
    sender: Option<Sender>,
    pub meta: Arc<Meta>,
    /// It has served requests before: the upstream may have closed it in the meantime.
    pub reused: bool,
    reusable: bool,
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

    /// The exchange has ended well: the connection may serve the next one.
    pub fn give_back(&mut self) {
        let Some(Sender::H1(sender)) = self.sender.take_if(|_| self.reusable) else { return };
        let Some(pools) = self.pools.upgrade() else { return };
        let mut entries = pools.entries.lock();
        if sender.is_closed() || self.meta.spent() {
            return;
        }
        // Made under an older snapshot: nobody may ask for it any more.
        if self.meta.generation.load(Ordering::Acquire) == entries.generation {
            entries.by_key.entry(self.meta.key.clone()).or_default().idle.push((sender, self.meta.clone()));
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.meta.end();
        // An h1 connection that was not given back is closed by this.
        self.sender = None;
        if let Some(pools) = self.pools.upgrade() {
            pools.freed.notify_waiters();
        }
    }
}

impl Pools {
    /// A connection for `key` that is alive, if there is one.
    pub async fn checkout(&self, key: &Key, h2: bool) -> Option<Lease> {
        loop {
            let (sender, meta) = self.take(key, h2)?;
            if let Sender::H1(mut sender) = sender {
                // It was put back when its response ended; the connection's own task may need a moment to notice.
                let ready = tokio::time::timeout(limits::REUSE_WAIT, sender.ready()).await;
                if matches!(ready, Ok(Ok(()))) {
                    meta.begin();
                    return Some(self.lease(Sender::H1(sender), meta, true));
                }
            } else {
                return Some(self.lease(sender, meta, true));
            }
        }
    }

    fn take(&self, key: &Key, h2: bool) -> Option<(Sender, Arc<Meta>)> {
        let mut entries = self.inner.entries.lock();
        let entry = entries.by_key.get_mut(key)?;
        let found = if h2 {
            entry.h2.retain(|(sender, meta)| !sender.is_closed() && !meta.spent());
            let free = entry.h2.iter().find(|(_, meta)| !meta.full());
            free.map(|(sender, meta)| {
                // Under the lock, so that nobody else takes the last stream.
                meta.begin();
                (Sender::H2(sender.clone()), meta.clone())
            })
        } else {
            std::iter::from_fn(|| entry.idle.pop())
                .find(|(sender, meta)| !sender.is_closed() && !meta.spent())
                .map(|(sender, meta)| (Sender::H1(sender), meta))
        };
        if entry.idle.is_empty() && entry.h2.is_empty() {
            entries.by_key.remove(key);
        }
        found
    }

    /// The use of the connection has begun already.
    fn lease(&self, sender: Sender, meta: Arc<Meta>, reused: bool) -> Lease {
        Lease { sender: Some(sender), meta, reused, reusable: true, pools: Arc::downgrade(&self.inner) }
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
        self.inner.freed.notify_waiters();
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
        entries.by_key.retain(|key, entry| {
            let kept = keep(key);
            let metas = entry.idle.iter().map(|(_, meta)| meta).chain(entry.h2.iter().map(|(_, meta)| meta));
            metas.filter(|_| kept).for_each(|meta| meta.generation.store(generation, Ordering::Release));
            kept
        });
        drop(entries);
        self.inner.freed.notify_waiters();
    }

    /// Closes one idle connection of the cluster, to make room under `maxConnections` for another name or address.
    pub fn evict(&self, cluster: &str) {
        let mut entries = self.inner.entries.lock();
        let oldest = entries
            .by_key
            .iter_mut()
            .filter(|(key, entry)| key.cluster == cluster && !entry.idle.is_empty())
            .map(|(_, entry)| entry)
            .next();
        if let Some(entry) = oldest {
            entry.idle.remove(0);
        }
    }

    /// Waits until a connection becomes free or ends. Make it before looking, then await.
    pub fn freed(&self) -> tokio::sync::futures::Notified<'_> {
        self.inner.freed.notified()
    }

    /// Idle h1 and open h2 connections, for tests and status.
    pub fn count(&self) -> usize {
        let entries = self.inner.entries.lock();
        entries.by_key.values().map(|entry| entry.idle.len() + entry.h2.len()).sum()
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
            if entry.idle.is_empty() && entry.h2.is_empty() {
                entries.by_key.remove(&meta.key);
            }
        }
        drop(entries);
        pools.freed.notify_waiters();
    }
}
