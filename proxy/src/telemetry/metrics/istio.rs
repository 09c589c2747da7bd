//! The `istio_*` metrics: one table of series, each with all that is counted of it.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::{Mutex, RwLock};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _, MetricEncoder},
    metrics::{MetricType, counter::ConstCounter},
};

use super::{
    histogram::Histogram,
    labels::{Labels, Source},
};
use crate::limits::METRIC_SERIES;

/// What is counted of HTTP requests with one label set.
#[derive(Debug, Default)]
pub struct Http {
    /// Of nanoseconds, in milliseconds.
    duration: Histogram<1_000_000>,
    request_bytes: Histogram<1>,
    response_bytes: Histogram<1>,
}

impl Http {
    pub fn observe(&self, duration: Duration, received: u64, sent: u64) {
        self.duration.observe(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
        self.request_bytes.observe(received);
        self.response_bytes.observe(sent);
    }
}

/// What is counted of TCP connections with one label set.
#[derive(Debug, Default)]
pub struct Tcp {
    pub opened: AtomicU64,
    pub closed: AtomicU64,
    pub sent: AtomicU64,
    pub received: AtomicU64,
}

/// Series by their labels, bounded in number.
#[derive(Debug)]
pub struct Series<T> {
    table: RwLock<HashMap<Labels, Arc<T>>>,
    pruned: Mutex<Option<Instant>>,
    /// How often series were taken away.
    changes: AtomicU64,
    limit: usize,
}

impl<T: Default> Default for Series<T> {
    fn default() -> Self {
        Self::with_limit(METRIC_SERIES)
    }
}

impl<T: Default> Series<T> {
    pub fn with_limit(limit: usize) -> Self {
        Self { table: RwLock::default(), pruned: Mutex::default(), changes: AtomicU64::new(0), limit }
    }

    /// Grows whenever series were taken away.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// The series of `labels`. `lives` says which pods exist: where there are too many series, those of the others go.
    pub fn get(&self, labels: Labels, lives: impl Fn(&Source) -> bool) -> Arc<T> {
        match self.find(labels, lives) {
            Found::Own(series) | Found::Overflow(series) => series,
        }
    }

    /// As [`Self::get`], and says whether it is the labels' own.
    pub fn find(&self, labels: Labels, lives: impl Fn(&Source) -> bool) -> Found<T> {
        if let Some(found) = self.table.read().get(&labels) {
            return Found::Own(found.clone());
        }
        if self.table.read().len() >= self.limit {
            self.prune(lives);
        }
        let mut table = self.table.write();
        if table.len() < self.limit {
            return Found::Own(table.entry(labels).or_default().clone());
        }
        let overflow = Labels { source: Arc::new(Source::overflow()), ..labels };
        if let Some(found) = table.get(&overflow) {
            return Found::Overflow(found.clone());
        }
        if table.len() >= self.limit * 2 {
            // Even the overflow has too many kinds: not counted at all.
            return Found::Overflow(Arc::default());
        }
        Found::Overflow(table.entry(overflow).or_default().clone())
    }

    fn prune(&self, lives: impl Fn(&Source) -> bool) {
        let mut pruned = self.pruned.lock();
        // The search is long and mostly in vain.
        if pruned.is_some_and(|last| last.elapsed() < Duration::from_secs(60)) {
            return;
        }
        *pruned = Some(Instant::now());
        let kept: HashSet<Labels> = self.table.read().keys().filter(|labels| lives(&labels.source)).cloned().collect();
        self.table.write().retain(|labels, _| kept.contains(labels));
        self.changes.fetch_add(1, Ordering::Release);
    }
}

/// A series, and whether it stands for one set of labels or for what had no room.
pub enum Found<T> {
    Own(Arc<T>),
    Overflow(Arc<T>),
}

#[derive(Debug, Default)]
pub struct Istio {
    pub http: Series<Http>,
    pub tcp: Series<Tcp>,
}

/// Writes one metric of every series.
fn each<T>(
    encoder: &mut DescriptorEncoder<'_>,
    table: &HashMap<Labels, Arc<T>>,
    (name, help, kind): (&str, &str, MetricType),
    write: impl Fn(&T, MetricEncoder<'_>) -> fmt::Result,
) -> fmt::Result {
    if table.is_empty() {
        return Ok(());
    }
    let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
    for (labels, series) in table {
        write(series, metric.encode_family(labels)?)?;
    }
    Ok(())
}

fn counter(value: &AtomicU64, encoder: MetricEncoder<'_>) -> fmt::Result {
    ConstCounter::new(value.load(Ordering::Relaxed)).encode(encoder)
}

impl Collector for Istio {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        use MetricType::{Counter, Histogram};
        let e = &mut encoder;
        let http = self.http.table.read();
        // The library appends `_total` to counters.
        each(e, &http, ("istio_requests", "Requests, by client, service and outcome.", Counter), |http, out| {
            ConstCounter::new(http.duration.count()).encode(out)
        })?;
        let help = "From the first byte of a request to the last byte of its response.";
        each(e, &http, ("istio_request_duration_milliseconds", help, Histogram), |http, out| {
            http.duration.encode(out)
        })?;
        each(e, &http, ("istio_request_bytes", "Bytes of request bodies.", Histogram), |http, out| {
            http.request_bytes.encode(out)
        })?;
        each(e, &http, ("istio_response_bytes", "Bytes of response bodies.", Histogram), |http, out| {
            http.response_bytes.encode(out)
        })?;
        drop(http);
        let tcp = self.tcp.table.read();
        each(
            e,
            &tcp,
            ("istio_tcp_connections_opened", "Connections opened that are not HTTP.", Counter),
            |tcp, out| counter(&tcp.opened, out),
        )?;
        each(
            e,
            &tcp,
            ("istio_tcp_connections_closed", "Connections closed that are not HTTP.", Counter),
            |tcp, out| counter(&tcp.closed, out),
        )?;
        each(e, &tcp, ("istio_tcp_sent_bytes", "Bytes sent to clients on such connections.", Counter), |tcp, out| {
            counter(&tcp.sent, out)
        })?;
        let help = "Bytes received from clients on such connections.";
        each(e, &tcp, ("istio_tcp_received_bytes", help, Counter), |tcp, out| counter(&tcp.received, out))
    }
}
