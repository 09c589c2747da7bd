//! Handshakes with real servers, under certificates that the real `openssl` made.

mod credentials;
mod handshake;
pub mod lab;
mod mesh;
mod refusals;
mod revocation;
mod server_clients;
mod server_lab;
mod servers;
mod stream;

use std::sync::Arc;

use crate::mesh::table::{TlsContextSettings, TlsSettings, TrustSource};

/// SIMPLE with the system's trust.
pub(crate) fn settings() -> TlsSettings {
    TlsSettings {
        sni: None,
        context: Arc::new(TlsContextSettings {
            subject_alt_names: Vec::new(),
            insecure_skip_verify: false,
            identity: None,
            trust: TrustSource::System,
            crl: None,
            alpn: Vec::new(),
            min_version: None,
            cipher_suites: Vec::new(),
            curves: Vec::new(),
        }),
    }
}

/// The same, but for what `change` changes of the context.
pub(crate) fn settings_with(mut settings: TlsSettings, change: impl FnOnce(&mut TlsContextSettings)) -> TlsSettings {
    change(Arc::make_mut(&mut settings.context));
    settings
}
