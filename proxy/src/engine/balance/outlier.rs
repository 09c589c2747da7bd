//! `outlierDetection`: an endpoint that fails again and again gets nothing for a while.
//!
//! As Envoy's detector: errors in a row are counted as they happen and eject at once; how long, grows with the number of
//! ejections, shrinks again with every interval that an endpoint stays in, and ends on a beat of the interval. Nothing
//! runs in between: whoever chooses an endpoint does what the time since has made due.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{
    limits,
    mesh::{Endpoint, EndpointAddress, OutlierDetection},
};

/// How an endpoint did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observed {
    /// It answered.
    Status(u16),
    /// No connection, or one that broke before the answer.
    Failed,
    /// No answer in time.
    TimedOut,
    /// A connection came about that is to carry requests: these will tell more.
    Connected,
    /// A connection came about that is all there is to see (TCP).
    Served,
}

/// The endpoints of one cluster that have failed lately.
#[derive(Debug, Default)]
pub struct Outliers {
    hosts: Mutex<HashMap<EndpointAddress, Host>>,
    /// How many `hosts` there are, to be looked at without the lock: mostly none.
    count: AtomicUsize,
    /// How many endpoints the cluster had when last looked at.
    total: AtomicUsize,
    /// When the first beat was.
    begun: OnceLock<Instant>,
    /// The last beat that was looked after, in milliseconds after `begun`.
    swept: AtomicU64,
}

#[derive(Debug, Default)]
struct Host {
    five_xx: u32,
    gateway: u32,
    local_origin: u32,
    /// Ejections that count for the length of the next one.
    times: u32,
    until: Option<Instant>,
}

impl Host {
    fn is_ejected(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

impl Outliers {
    /// Nothing is remembered of any endpoint.
    pub fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// Marks those that are ejected; None where nobody is. `fixed`: `candidates` are all that there are.
    pub fn view(
        &self,
        settings: Option<&OutlierDetection>,
        candidates: &[Endpoint],
        fixed: bool,
        now: Instant,
    ) -> Option<Vec<bool>> {
        let Some(settings) = settings else {
            if self.count.load(Ordering::Acquire) > 0 {
                // The rule is gone, and what it led to.
                self.hosts.lock().clear();
                self.count.store(0, Ordering::Release);
            }
            return None;
        };
        self.begun.get_or_init(|| now);
        self.total.store(candidates.len(), Ordering::Relaxed);
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut hosts = self.hosts.lock();
        self.sweep(&mut hosts, settings, candidates, fixed, now);
        let ejected: Vec<bool> = candidates
            .iter()
            .map(|candidate| hosts.get(&candidate.address).is_some_and(|host| host.is_ejected(now)))
            .collect();
        ejected.contains(&true).then_some(ejected)
    }

    pub fn is_ejected(&self, address: &EndpointAddress, now: Instant) -> bool {
        self.count.load(Ordering::Acquire) > 0
            && self.hosts.lock().get(address).is_some_and(|host| host.is_ejected(now))
    }

    pub fn observe(&self, settings: &OutlierDetection, address: &EndpointAddress, observed: Observed, now: Instant) {
        let good = match observed {
            Observed::Status(status) => status < 500,
            Observed::Failed | Observed::TimedOut => false,
            Observed::Connected | Observed::Served => true,
        };
        if good && self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut hosts = self.hosts.lock();
        if !hosts.contains_key(address) {
            if good {
                return;
            }
            if hosts.len() >= limits::ENDPOINTS_REMEMBERED {
                hosts.retain(|_, host| host.is_ejected(now));
            }
            if hosts.len() >= limits::ENDPOINTS_REMEMBERED {
                return;
            }
        }
        let host = hosts.entry(address.clone()).or_default();
        let detected = host.count(settings, observed) && !host.is_ejected(now);
        if detected && self.may_eject(&hosts, settings, now) {
            let begun = *self.begun.get_or_init(|| now);
            if let Some(host) = hosts.get_mut(address) {
                host.times = host.times.saturating_add(1);
                let longest = limits::EJECTION_LONGEST.max(settings.base_ejection_time);
                let time = settings.base_ejection_time.saturating_mul(host.times).min(longest);
                host.until = Some(next_beat(begun, settings.interval, now + time));
                log::debug!("{}: ejected for {time:?}", crate::engine::dial::address_text(address));
            }
        }
        self.count.store(hosts.len(), Ordering::Release);
    }

    #[cfg(test)]
    pub fn remembered(&self) -> usize {
        self.hosts.lock().len()
    }

    /// One may always be ejected; more, as far as `maxEjectionPercent` goes.
    fn may_eject(&self, hosts: &HashMap<EndpointAddress, Host>, settings: &OutlierDetection, now: Instant) -> bool {
        let ejected = hosts.values().filter(|host| host.is_ejected(now)).count() as u64;
        let total = self.total.load(Ordering::Relaxed) as u64;
        ejected == 0 || (ejected + 1) * 100 <= u64::from(settings.max_ejection_percent) * total
    }

    /// What is due at each beat of the interval: those that come back begin at zero, and who stayed in is forgiven one
    /// ejection.
    fn sweep(
        &self,
        hosts: &mut HashMap<EndpointAddress, Host>,
        settings: &OutlierDetection,
        candidates: &[Endpoint],
        fixed: bool,
        now: Instant,
    ) {
        let Some(begun) = self.begun.get() else { return };
        let interval = millis(settings.interval).max(1);
        let elapsed = millis(now.saturating_duration_since(*begun));
        let before = self.swept.swap(elapsed, Ordering::AcqRel);
        let beats = u32::try_from((elapsed / interval).saturating_sub(before / interval)).unwrap_or(u32::MAX);
        if beats == 0 {
            return;
        }
        let here: Option<HashSet<_>> = fixed.then(|| candidates.iter().map(|candidate| &candidate.address).collect());
        hosts.retain(|address, host| {
            if host.until.is_some_and(|until| now >= until) {
                *host = Host { times: host.times, ..Host::default() };
            } else if host.until.is_none() {
                host.times = host.times.saturating_sub(beats);
            }
            let quiet = host.five_xx == 0 && host.gateway == 0 && host.local_origin == 0;
            let forgotten = host.until.is_none() && host.times == 0 && quiet;
            !forgotten && here.as_ref().is_none_or(|here| here.contains(address))
        });
        self.count.store(hosts.len(), Ordering::Release);
    }
}

impl Host {
    /// Counts; true where that was one too many.
    fn count(&mut self, settings: &OutlierDetection, observed: Observed) -> bool {
        let split = settings.consecutive_local_origin;
        let status = match (observed, split) {
            (Observed::Status(status), _) => {
                // Whoever answers is connected.
                self.local_origin = 0;
                status
            }
            (Observed::Connected, _) => {
                self.local_origin = 0;
                return false;
            }
            (Observed::Served, Some(_)) => {
                self.local_origin = 0;
                return false;
            }
            (Observed::Served, None) => 200,
            (Observed::Failed | Observed::TimedOut, Some(limit)) => {
                self.local_origin += 1;
                return reached(&mut self.local_origin, Some(limit));
            }
            (Observed::Failed, None) => 503,
            (Observed::TimedOut, None) => 504,
        };
        if status < 500 {
            (self.five_xx, self.gateway) = (0, 0);
            return false;
        }
        self.five_xx += 1;
        self.gateway = if (502..=504).contains(&status) { self.gateway + 1 } else { 0 };
        let gateway = reached(&mut self.gateway, settings.consecutive_gateway);
        reached(&mut self.five_xx, settings.consecutive_5xx) || gateway
    }
}

/// At the limit the count begins anew.
fn reached(count: &mut u32, limit: Option<u32>) -> bool {
    let reached = limit.is_some_and(|limit| *count >= limit);
    if reached {
        *count = 0;
    }
    reached
}

/// The first beat at or after `time`.
fn next_beat(begun: Instant, interval: Duration, time: Instant) -> Instant {
    let interval = millis(interval).max(1);
    let beats = millis(time.saturating_duration_since(begun)).div_ceil(interval);
    begun + Duration::from_millis(beats.saturating_mul(interval))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
