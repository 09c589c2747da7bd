//! Access log, metrics and the agent's own log. One [`Record`] feeds access log and metrics alike.

pub mod access_log;
pub mod logging;
pub mod metrics;
pub mod noted;
pub mod record;

use std::{
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use http::HeaderMap;
use parking_lot::Mutex;

use self::{
    access_log::{AccessLog, Format, FormatError},
    metrics::Metrics,
    record::{Kept, Record},
};
use crate::mesh::{Cluster, Mesh, Settings, WorkloadId};

/// Where results go. Lives as long as the agent; [`Telemetry::reconfigure`] follows each reload.
pub struct Telemetry {
    pub metrics: Metrics,
    access_log: ArcSwapOption<AccessLog>,
    /// The settings that `access_log` was made from.
    applied: Mutex<Option<LogSettings>>,
    dropped: Arc<AtomicU64>,
}

#[derive(Clone, PartialEq, Eq)]
struct LogSettings {
    file: Option<PathBuf>,
    format: Option<String>,
    json: bool,
}

/// Why the access log stays as it was.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `accessLogFormat` cannot be used.
    #[error("accessLogFormat: {0}")]
    Format(#[from] FormatError),
    /// The system gives no thread.
    #[error("cannot start the thread that writes the access log: {0}")]
    Thread(std::io::Error),
}

impl Telemetry {
    /// No access log until [`Self::reconfigure`].
    pub fn new() -> Arc<Self> {
        let dropped = Arc::new(AtomicU64::new(0));
        Arc::new(Self {
            metrics: Metrics::new(dropped.clone()),
            access_log: ArcSwapOption::empty(),
            applied: Mutex::new(None),
            dropped,
        })
    }

    /// Takes over a new table: the pods' labels and the access-log settings. On an error the former access log stays in
    /// force, or the default format where there was none.
    pub fn reconfigure(&self, mesh: &Mesh) -> Result<(), TelemetryError> {
        self.metrics.set_mesh(mesh);
        self.configure_log(&mesh.settings)
    }

    fn configure_log(&self, settings: &Settings) -> Result<(), TelemetryError> {
        let wanted = LogSettings {
            file: settings.access_log_file.clone(),
            format: settings.access_log_format.clone(),
            json: settings.access_log_json,
        };
        let mut applied = self.applied.lock();
        if applied.as_ref() == Some(&wanted) {
            return Ok(());
        }
        let Some(file) = &settings.access_log_file else {
            self.access_log.store(None);
            *applied = Some(wanted);
            return Ok(());
        };
        let current = self.access_log.load_full();
        let (format, error) = match Format::compile(settings) {
            Ok(format) => (format, None),
            Err(error) => match &current {
                Some(current) => (current.format().clone(), Some(error)),
                None => (Format::compile(&Settings { access_log_format: None, ..settings.clone() })?, Some(error)),
            },
        };
        let next = match current {
            Some(current) if current.output().path() == file => current.with_format(format),
            _ => AccessLog::start(format, file, self.dropped.clone()).map_err(TelemetryError::Thread)?,
        };
        self.access_log.store(Some(Arc::new(next)));
        // Remembered with the error too: it is told once, not at every reload.
        *applied = Some(wanted);
        error.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Opens the access-log file anew (SIGUSR1, log rotation).
    pub fn reopen(&self) {
        if let Some(log) = self.access_log.load().as_ref() {
            log.output().reopen();
        }
    }

    /// Waits until the access log is written, `limit` at most: before the process ends.
    pub fn flush(&self, limit: Duration) -> bool {
        self.access_log.load().as_ref().is_none_or(|log| log.flush(limit))
    }

    /// One request, or one connection that was not HTTP, has ended.
    pub fn record(&self, record: &Record) {
        self.metrics.record(record);
        if let Some(log) = self.access_log.load().as_ref() {
            log.write(record);
        }
    }
}

impl crate::engine::Sink for Telemetry {
    fn record(&self, record: Record) {
        Self::record(self, &record);
    }

    fn keep_request(&self, headers: &HeaderMap, kept: &mut Kept) {
        if let Some(log) = self.access_log.load().as_ref() {
            kept.keep(headers, &log.headers().request);
        }
    }

    fn keep_response(&self, headers: &HeaderMap, kept: &mut Kept) {
        if let Some(log) = self.access_log.load().as_ref() {
            kept.keep(headers, &log.headers().response);
        }
    }

    fn connection_opened(&self, record: &Record) {
        self.metrics.opened(record);
    }

    fn connection_closed(&self, record: &Record) {
        self.metrics.closed(record);
    }

    fn handshake_accepted(&self, _: &Arc<WorkloadId>, result: Result<(), &str>, _: Duration) {
        self.metrics.handshake_accepted(result.is_ok());
    }

    fn handshake(&self, _: &Arc<WorkloadId>, _: &Arc<Cluster>, result: Result<(), &str>, time: Duration) {
        self.metrics.handshake(result.is_ok(), time);
    }
}
