//! TLS origination: credentials to rustls client contexts, and the handshake.
//! Contract (the engine and the admin side call this):
//!
//! ```text
//! pub trait MaterialReader { fn secret(&self, namespace, name) -> Option<Arc<Secret>>; fn file(&self, &Path) -> io::Result<Vec<u8>>; }
//! Contexts::build(previous: &Contexts, settings: impl Iterator<Item = Arc<TlsSettings>>, reader: &dyn MaterialReader) -> Contexts
//! Contexts::get(&self, &TlsSettings) -> Result<Arc<ClientContext>, Arc<TlsError>>     // unusable rule: its reason
//! ClientContext { id: u64 /* new whenever inputs changed: part of the pool key */, .. }
//! ClientContext::connect(&self, name: UpstreamName, io) -> Result<TlsStream<IO>, TlsError>
//! Contexts::files(&self) -> host paths to watch;   Contexts::secrets(&self) -> rows for `proxy-config secret` and expiry metrics
//! ```

/// The contexts of all rules.
#[derive(Default)]
pub struct Contexts {}
