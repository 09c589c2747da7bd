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
    metrics::{MetricType, counter::ConstCounter, histogram::Histogram},
};

use super::labels::{Labels, Source};
use crate::limits::METRIC_SERIES;

/// Envoy's default bounds: milliseconds, and bytes alike.
const BOUNDS: [f64; 19] =
    [0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1e3, 2.5e3, 5e3, 1e4, 3e4, 6e4, 3e5, 6e5, 1.8e6, 3.6e6];

/// What is counted of HTTP requests with one label set.
#[derive(Debug)]
pub struct Http {
    requests: AtomicU64,
    duration: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
}

impl Default for Http {
    fn default() -> Self {
        let histogram = || Histogram::new(BOUNDS);
        Self {
            requests: AtomicU64::new(0),
            duration: histogram(),
            request_bytes: histogram(),
            response_bytes: histogram(),
        }
    }
}

impl Http {
    pub fn observe(&self, duration: Duration, received: u64, sent: u64) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.duration.observe(duration.as_secs_f64() * 1000.0);
        #[expect(clippy::cast_precision_loss, reason = "a body beyond 2^53 bytes may be off by some")]
        {
            self.request_bytes.observe(received as f64);
            self.response_bytes.observe(sent as f64);
        }
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
    limit: usize,
}

impl<T: Default> Default for Series<T> {
    fn default() -> Self {
        Self::with_limit(METRIC_SERIES)
    }
}

impl<T: Default> Series<T> {
    pub fn with_limit(limit: usize) -> Self {
        Self { table: RwLock::default(), pruned: Mutex::default(), limit }
    }

    /// The series of `labels`. `lives` says which pods exist: where there are too many series, those of the others go.
    pub fn get(&self, labels: Labels, lives: impl Fn(&Source) -> bool) -> Arc<T> {
        if let Some(found) = self.table.read().get(&labels) {
            return found.clone();
        }
        if self.table.read().len() >= self.limit {
            self.prune(lives);
        }
        let mut table = self.table.write();
        if table.len() < self.limit {
            return table.entry(labels).or_default().clone();
        }
        let overflow = Labels { source: Arc::new(Source::overflow()), ..labels };
        if let Some(found) = table.get(&overflow) {
            return found.clone();
        }
        if table.len() >= self.limit * 2 {
            // Even the overflow has too many kinds: not counted at all.
            return Arc::default();
        }
        table.entry(overflow).or_default().clone()
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
    }
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
            counter(&http.requests, out)
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
