//! What is known of one upstream connection.

use std::{
    hash::{Hash, Hasher},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hashbrown::Equivalent;

use crate::{
    engine::dial::TlsKey,
    mesh::{EndpointAddress, Pool},
};

/// What two requests must have in common to share a connection.
#[derive(Debug, PartialEq, Eq)]
pub struct Key {
    /// Cluster name.
    pub cluster: String,
    pub address: EndpointAddress,
    pub tls: TlsKey,
    /// The client that the application sees at the other end; None: our own address.
    pub client: Option<IpAddr>,
}

/// A [`Key`] that is looked for: nothing is copied for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Wanted<'a> {
    pub cluster: &'a str,
    pub address: &'a EndpointAddress,
    pub context_id: u64,
    pub name: Option<&'a str>,
    pub client: Option<IpAddr>,
}

impl Key {
    fn wanted(&self) -> Wanted<'_> {
        Wanted {
            cluster: &self.cluster,
            address: &self.address,
            context_id: self.tls.context_id,
            name: self.tls.name.as_deref(),
            client: self.client,
        }
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.wanted().hash(state);
    }
}

impl Equivalent<Arc<Key>> for Wanted<'_> {
    fn equivalent(&self, key: &Arc<Key>) -> bool {
        *self == key.wanted()
    }
}

/// One upstream connection.
#[derive(Debug)]
pub struct Meta {
    pub key: Arc<Key>,
    pub local: Option<SocketAddr>,
    pub tls: bool,
    /// Bytes that hyper got from the upstream.
    pub read: Arc<AtomicU64>,
    /// The last snapshot under which it was found to be in order.
    pub(super) generation: AtomicU64,
    max_requests: Option<u32>,
    pub(super) max_streams: Option<u32>,
    /// `maxConnectionDuration`: no request begins when it is this old.
    pub(super) oldest: Option<Duration>,
    idle_timeout: Duration,
    requests: AtomicU32,
    active: AtomicU32,
    /// The engine drains: no further request begins.
    pub(super) retired: AtomicBool,
    /// Milliseconds after `born` when it was last used.
    used: AtomicU64,
    born: Instant,
}

impl Meta {
    pub fn new(key: Key, local: Option<SocketAddr>, tls: bool, generation: u64, pool: &Pool) -> Arc<Self> {
        Arc::new(Self {
            key: Arc::new(key),
            local,
            tls,
            read: Arc::default(),
            generation: generation.into(),
            max_requests: pool.max_requests_per_connection.filter(|max| *max > 0),
            max_streams: pool.max_concurrent_streams.filter(|max| *max > 0),
            oldest: pool.max_connection_duration,
            idle_timeout: pool.http_idle_timeout,
            requests: AtomicU32::new(0),
            active: AtomicU32::new(0),
            retired: AtomicBool::new(false),
            used: AtomicU64::new(0),
            born: Instant::now(),
        })
    }

    pub(super) fn begin(&self) {
        self.active.fetch_add(1, Ordering::AcqRel);
        self.requests.fetch_add(1, Ordering::AcqRel);
    }

    /// `timed`: somebody will ask for [`Self::idle`].
    pub(super) fn end(&self, timed: bool) {
        if timed {
            self.used.store(self.born.elapsed().as_millis() as u64, Ordering::Release);
        }
        self.active.fetch_sub(1, Ordering::AcqRel);
    }

    /// `maxRequestsPerConnection` or `maxConnectionDuration` is reached, or the engine drains.
    pub(super) fn spent(&self) -> bool {
        self.retired.load(Ordering::Acquire)
            || self.max_requests.is_some_and(|max| self.requests.load(Ordering::Acquire) >= max)
            || self.oldest.is_some_and(|oldest| self.born.elapsed() >= oldest)
    }

    /// `maxConcurrentStreams` is reached.
    pub(super) fn full(&self) -> bool {
        self.max_streams.is_some_and(|max| self.active.load(Ordering::Acquire) >= max)
    }

    /// How long it has been idle; None while in use.
    pub(super) fn idle(&self) -> Option<Duration> {
        if self.active.load(Ordering::Acquire) > 0 {
            return None;
        }
        Some(self.born.elapsed().saturating_sub(Duration::from_millis(self.used.load(Ordering::Acquire))))
    }

    /// When the connection is to be closed that idles since `since`.
    pub(super) fn deadline(&self, since: Instant) -> Instant {
        let idle = since + self.idle_timeout;
        self.oldest.map_or(idle, |oldest| idle.min(self.born + oldest))
    }
}
