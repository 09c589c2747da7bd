//! TLS in both directions: credentials to rustls contexts, and the handshake.
//!
//! The mesh compiler says what a rule or a server wants ([`TlsSettings`], [`crate::mesh::ServerTlsSettings`]);
//! [`Contexts::build`] turns each into a [`ClientContext`] or a [`ServerContext`] at reload, never at connect, so that a credential that cannot be used is known before the first request and is told as
//! one sentence ([`TlsError`]). Whoever holds the Secrets and the files implements [`MaterialReader`].
//!
//! Peers' certificates are judged by webpki first. Certificates that it cannot read at all (X.509 v1, as `openssl x509
//! -req` makes them) or whose only name is the CN are accepted where the CA was configured for the destination or the
//! server, never with the system's bundle: `judge` and `chain` say how.

use std::{io, path::Path, sync::Arc};

use crate::{
    api::core::{ConfigMap, Secret},
    mesh::table::{TlsContextSettings, TlsSettings},
};

mod broken;
mod buffer;
mod chain;
mod client_certificate;
mod clients;
mod context;
mod contexts;
mod crl;
pub(crate) mod der;
mod error;
pub mod inspect;
mod judge;
mod material;
mod mesh;
mod mesh_rows;
mod mesh_verify;
mod names;
mod p521;
mod params;
mod presented;
mod refused;
mod secret_rows;
mod server;
mod server_config;
mod session;
mod sessions;
mod signatures;
mod stream;
#[cfg(test)]
pub(crate) mod tests;
mod trust;
mod verify;

pub use broken::alert;
pub use client_certificate::{ClientCertificate, peer_certificate};
pub use context::{ClientContext, UpstreamName, alpn_is_h2};
pub use contexts::Contexts;
pub use error::{Side, TlsError};
pub use material::read_host_file;
pub use params::check_suites;
pub use refused::refused;
pub use secret_rows::SecretRow;
pub use server::{ServerContext, client_fault, peer_identity};
pub use session::SessionParameters;
pub use stream::TlsStream;

/// Where the bytes of credentials come from.
pub trait MaterialReader: Send + Sync {
    /// The Secret of this namespace and name, where there is one.
    fn secret(&self, namespace: &str, name: &str) -> Option<Arc<Secret>>;
    /// The ConfigMap of this namespace and name, where there is one.
    fn config_map(&self, namespace: &str, name: &str) -> Option<Arc<ConfigMap>>;
    /// The bytes of a file on the host; [`read_host_file`] is how to read one.
    fn file(&self, path: &Path) -> io::Result<Vec<u8>>;
}

/// Lower case.
fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|half| char::from(DIGITS[usize::from(half)])).collect()
}
