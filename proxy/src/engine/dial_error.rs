//! Why there is no upstream connection, and how the client and the access log are told.

use std::{io, net::SocketAddr, sync::Arc};

use super::resolve::ResolveError;
use crate::telemetry::record::Flag;

/// Why there is no upstream connection.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DialError {
    /// A limit of `connectionPool` is reached; names which.
    #[error("{0} reached")]
    Overflow(&'static str),
    /// The cluster has no endpoint.
    #[error("no endpoint")]
    NoEndpoints,
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// A TLS rule cannot be honoured; nothing was dialled.
    #[error("{0}")]
    Refused(Arc<str>),
    /// The endpoint is the agent's own listener.
    #[error("{0} is the proxy's own listener")]
    Myself(SocketAddr),
    #[error("{address}: {source}")]
    Connect { address: String, source: Arc<io::Error> },
    /// TCP connect and TLS handshake took longer than `connectTimeout`.
    #[error("{address}: no connection within the connect timeout")]
    Timeout { address: String },
    #[error("{reason}")]
    Tls { address: String, reason: Arc<str> },
}

impl DialError {
    /// True where another attempt may succeed, and nothing was sent.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::Timeout { .. } | Self::Tls { .. })
    }

    /// The access log's response flag.
    pub fn flag(&self) -> Flag {
        match self {
            Self::Overflow(_) => Flag::UO,
            Self::NoEndpoints | Self::Resolve(_) => Flag::UH,
            _ => Flag::UF,
        }
    }

    /// Response code details, as Envoy words them.
    pub fn details(&self) -> String {
        match self {
            Self::Overflow(_) => "upstream_reset_before_response_started{overflow}".to_owned(),
            Self::NoEndpoints | Self::Resolve(_) => "no_healthy_upstream".to_owned(),
            Self::Timeout { .. } => "upstream_reset_before_response_started{connection_timeout}".to_owned(),
            other => {
                let reason = other.reason().unwrap_or_default().replace(char::is_whitespace, "_");
                format!("upstream_reset_before_response_started{{remote_connection_failure|{reason}}}")
            }
        }
    }

    /// `%UPSTREAM_TRANSPORT_FAILURE_REASON%`.
    pub fn reason(&self) -> Option<String> {
        match self {
            Self::Overflow(_) => None,
            Self::NoEndpoints => None,
            Self::Resolve(error) => Some(error.to_string()),
            Self::Refused(reason) => Some(format!("TLS_error: {reason}")),
            Self::Tls { reason, .. } => Some(format!("TLS_error: {reason}")),
            Self::Myself(_) => Some(self.to_string()),
            Self::Connect { source, .. } => Some(format!("delayed connect error: {}", plain(source))),
            Self::Timeout { .. } => Some("connection timeout".to_owned()),
        }
    }

    /// The body of the 503 that tells an HTTP client.
    pub fn body(&self) -> String {
        const START: &str = "upstream connect error or disconnect/reset before headers. reset reason:";
        match self {
            Self::NoEndpoints | Self::Resolve(_) => "no healthy upstream".to_owned(),
            Self::Overflow(_) => format!("{START} overflow"),
            Self::Timeout { .. } => format!("{START} connection timeout"),
            other => {
                let reason = other.reason().unwrap_or_default();
                format!("{START} remote connection failure, transport failure reason: {reason}")
            }
        }
    }

    /// The endpoint that failed, where one was tried.
    pub fn upstream_host(&self) -> Option<&str> {
        match self {
            Self::Connect { address, .. } | Self::Timeout { address } | Self::Tls { address, .. } => Some(address),
            _ => None,
        }
    }
}

/// An I/O error without Rust's `(os error N)`.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}
