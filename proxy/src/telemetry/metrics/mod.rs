//! Metrics in the OpenMetrics text format: Istio's names for traffic, `egret_*` for the agent itself.

mod histogram;
mod istio;
mod labels;
mod process;
mod recent;

#[cfg(test)]
mod tests;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use parking_lot::RwLock;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{
        MetricType,
        counter::ConstCounter,
        gauge::ConstGauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use self::labels::{Caller, Destination, Flags, Labels, RequestProtocol, Source, Sources};
use super::record::{Record, Reporter};
use crate::mesh::Mesh;

/// The media type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is asked of the other parts when metrics are fetched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scraped {
    pub capture: CaptureCounters,
    /// Certificates in use.
    pub certificates: Vec<CertificateExpiry>,
}

/// The kernel half's counters since it was attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CaptureCounters {
    pub redirected: u64,
    pub denied: u64,
    pub exempt: u64,
    /// Pods enrolled now.
    pub enrolled: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateExpiry {
    /// As `proxy-config secret` shows it: `kubernetes://client-credential`.
    pub name: String,
    pub namespace: String,
    /// `notAfter`, seconds since 1970.
    pub not_after: i64,
}

type Scrape = Box<dyn Fn() -> Scraped + Send + Sync>;

/// All metrics of one agent.
pub struct Metrics {
    registry: Registry,
    istio: Arc<istio::Istio>,
    agent: Arc<Agent>,
    sources: ArcSwap<Sources>,
    /// How often `sources` was replaced.
    changes: AtomicU64,
    /// Tells the metrics of one process apart: tests make several.
    number: u64,
}

/// The agent's own.
struct Agent {
    handshakes_ok: AtomicU64,
    handshakes_failed: AtomicU64,
    handshake_time: Histogram,
    accepted_ok: AtomicU64,
    accepted_failed: AtomicU64,
    reloads_accepted: AtomicU64,
    reloads_rejected: AtomicU64,
    objects_rejected: AtomicU64,
    log_dropped: Arc<AtomicU64>,
    scrape: RwLock<Option<Scrape>>,
}

impl Metrics {
    /// `log_dropped` counts the access-log lines that were not written.
    pub fn new(log_dropped: Arc<AtomicU64>) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let istio = Arc::new(istio::Istio::default());
        let agent = Arc::new(Agent {
            handshakes_ok: AtomicU64::new(0),
            handshakes_failed: AtomicU64::new(0),
            // 0.5 ms to 16 s.
            handshake_time: Histogram::new(exponential_buckets(0.5, 2.0, 16)),
            accepted_ok: AtomicU64::new(0),
            accepted_failed: AtomicU64::new(0),
            reloads_accepted: AtomicU64::new(0),
            reloads_rejected: AtomicU64::new(0),
            objects_rejected: AtomicU64::new(0),
            log_dropped,
            scrape: RwLock::new(None),
        });
        let mut registry = Registry::default();
        registry.register_collector(Box::new(istio.clone()));
        registry.register_collector(Box::new(agent.clone()));
        registry.register_collector(Box::new(Running::default()));
        let (changes, number) = (AtomicU64::new(0), NUMBER.fetch_add(1, Ordering::Relaxed));
        Self { registry, istio, agent, sources: ArcSwap::default(), changes, number }
    }

    /// Sets where the counters of the other parts come from.
    pub fn on_scrape(&self, scrape: impl Fn() -> Scraped + Send + Sync + 'static) {
        *self.agent.scrape.write() = Some(Box::new(scrape));
    }

    /// Takes over who the pods are.
    pub fn set_mesh(&self, mesh: &Mesh) {
        self.sources.store(Arc::new(Source::table(mesh)));
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// A batch of changes was taken (`rejected` objects of all are refused now), or refused in part or whole.
    pub fn reload(&self, accepted: bool, rejected: usize) {
        let count = if accepted { &self.agent.reloads_accepted } else { &self.agent.reloads_rejected };
        count.fetch_add(1, Ordering::Relaxed);
        self.agent.objects_rejected.store(rejected as u64, Ordering::Relaxed);
    }

    /// An upstream TLS handshake ended.
    pub fn handshake(&self, succeeded: bool, time: Duration) {
        let count = if succeeded { &self.agent.handshakes_ok } else { &self.agent.handshakes_failed };
        count.fetch_add(1, Ordering::Relaxed);
        self.agent.handshake_time.observe(time.as_secs_f64() * 1000.0);
    }

    /// A client's TLS handshake ended.
    pub fn handshake_accepted(&self, succeeded: bool) {
        let count = if succeeded { &self.agent.accepted_ok } else { &self.agent.accepted_failed };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// A request, or a connection that was not HTTP, ended.
    pub fn record(&self, record: &Record) {
        let stamp = self.stamp();
        let count = |http: &istio::Http| http.observe(record.duration, record.bytes_received, record.bytes_sent);
        if record.protocol.is_some() && recent::with(record, stamp, count) {
            return;
        }
        let mut labels = self.labels(record);
        labels.flags = Flags::new(&record.flags);
        if record.protocol.is_none() {
            let tcp = self.istio.tcp.get(labels, |source| self.lives(source));
            tcp.received.fetch_add(record.bytes_received, Ordering::Relaxed);
            tcp.sent.fetch_add(record.bytes_sent, Ordering::Relaxed);
            return;
        }
        labels.protocol = if record.grpc { RequestProtocol::Grpc } else { RequestProtocol::Http };
        labels.response_code = Some(record.response_code);
        labels.grpc_status = record.grpc_status;
        match self.istio.http.find(labels.normal(), |source| self.lives(source)) {
            istio::Found::Own(http) => {
                count(&http);
                recent::put(record, stamp, &http);
            }
            // Asked for again each time: there may be room by then.
            istio::Found::Overflow(http) => count(&http),
        }
    }

    fn stamp(&self) -> recent::Stamp {
        recent::Stamp {
            owner: self.number,
            generation: self.changes.load(Ordering::Acquire) + self.istio.http.changes(),
        }
    }

    /// A connection that is not HTTP was opened; the record is at its beginning.
    pub fn opened(&self, record: &Record) {
        let labels = self.labels(record);
        self.istio.tcp.get(labels, |source| self.lives(source)).opened.fetch_add(1, Ordering::Relaxed);
    }

    /// The counterpart of [`Self::opened`].
    pub fn closed(&self, record: &Record) {
        let labels = self.labels(record);
        self.istio.tcp.get(labels, |source| self.lives(source)).closed.fetch_add(1, Ordering::Relaxed);
    }

    fn lives(&self, source: &Source) -> bool {
        self.sources.load().contains_key(&source.id())
    }

    /// Labels of a TCP connection without flags.
    fn labels(&self, record: &Record) -> Labels {
        let source = match self.sources.load().get(&*record.workload) {
            Some(source) => source.clone(),
            None => Arc::new(Source::named(&record.workload)),
        };
        let caller = match record.reporter {
            Reporter::Source => None,
            Reporter::Destination => Some(Caller { principal: record.source_identity.clone() }),
        };
        Labels {
            source,
            caller,
            destination: Destination::new(record.cluster.as_deref(), record.cluster_name().unwrap_or_default()),
            protocol: RequestProtocol::Tcp,
            response_code: None,
            grpc_status: None,
            flags: Flags::new(&[]),
        }
    }

    /// All metrics as text, see [`CONTENT_TYPE`].
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agent").finish_non_exhaustive()
    }
}

impl Collector for Agent {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let scraped = self.scrape.read().as_ref().map(|scrape| scrape()).unwrap_or_default();
        let e = &mut encoder;
        results(
            e,
            "egret_tls_handshakes",
            "Upstream TLS handshakes.",
            [("success", &self.handshakes_ok), ("failure", &self.handshakes_failed)],
        )?;
        let help = "Time of an upstream TLS handshake.";
        let out =
            e.encode_descriptor("egret_tls_handshake_duration_milliseconds", help, None, MetricType::Histogram)?;
        self.handshake_time.encode(out)?;
        results(
            e,
            "egret_tls_accepted_handshakes",
            "TLS handshakes of clients, at gateways and at pods' own ports.",
            [("success", &self.accepted_ok), ("failure", &self.accepted_failed)],
        )?;
        certificates(e, &scraped.certificates)?;
        let capture = scraped.capture;
        counter(e, "egret_capture_redirected", "Connections redirected to the agent.", capture.redirected)?;
        counter(e, "egret_capture_denied", "Connections denied in the kernel.", capture.denied)?;
        counter(e, "egret_capture_exempt", "Connections of enrolled pods let through as they were.", capture.exempt)?;
        gauge(e, "egret_capture_enrolled_pods", "Pods enrolled now.", capture.enrolled)?;
        results(
            e,
            "egret_config_reloads",
            "Batches of configuration changes.",
            [("accepted", &self.reloads_accepted), ("rejected", &self.reloads_rejected)],
        )?;
        let rejected = self.objects_rejected.load(Ordering::Relaxed);
        gauge(e, "egret_config_objects_rejected", "Objects and files refused now.", rejected)?;
        let dropped = self.log_dropped.load(Ordering::Relaxed);
        counter(e, "egret_access_log_dropped", "Access-log lines that were not written.", dropped)
    }
}

/// What runs since this was made, and what it takes of the machine.
#[derive(Debug)]
pub struct Running(SystemTime);

impl Default for Running {
    fn default() -> Self {
        Self(SystemTime::now())
    }
}

impl Collector for Running {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        info(&mut encoder)?;
        process::encode(&mut encoder, self.0)
    }
}

fn info(encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let out = encoder.encode_descriptor("egret_build", "What is running.", None, MetricType::Info)?;
    prometheus_client::metrics::info::Info::new([("version", env!("CARGO_PKG_VERSION"))]).encode(out)
}

fn results(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: [(&str, &AtomicU64); 2],
) -> fmt::Result {
    let mut out = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (result, value) in values {
        let labels = [("result", result)];
        ConstCounter::new(value.load(Ordering::Relaxed)).encode(out.encode_family(&labels)?)?;
    }
    Ok(())
}

fn certificates(encoder: &mut DescriptorEncoder<'_>, certificates: &[CertificateExpiry]) -> fmt::Result {
    if certificates.is_empty() {
        return Ok(());
    }
    let help = "When a certificate in use expires.";
    let name = "egret_certificate_expiry_timestamp_seconds";
    let mut out = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    let mut seen = std::collections::HashMap::new();
    for certificate in certificates {
        // Several pods may use one: of the same name the earliest counts, and each label set is written once.
        let key = [("name", certificate.name.as_str()), ("namespace", certificate.namespace.as_str())];
        let earliest = seen.entry(key).or_insert(certificate.not_after);
        *earliest = (*earliest).min(certificate.not_after);
    }
    let mut rows: Vec<_> = seen.into_iter().collect();
    rows.sort_unstable();
    for (labels, not_after) in rows {
        ConstGauge::new(not_after).encode(out.encode_family(&labels)?)?;
    }
    Ok(())
}

fn counter(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    ConstCounter::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}
