//! TLS origination: credentials to rustls client contexts, and the handshake.
//!
//! The mesh compiler says what a rule wants ([`TlsSettings`]); [`Contexts::build`] turns each into a [`ClientContext`] at
//! reload, never at connect, so that a credential that cannot be used is known before the first request and is told as
//! one sentence ([`TlsError`]). Whoever holds the Secrets and the files implements [`MaterialReader`].
//!
//! Server certificates are judged by webpki first. Certificates that it cannot read at all (X.509 v1, as `openssl x509
//! -req` makes them) or whose only name is the CN are accepted where the CA was configured for the destination, never
//! with the system's bundle: `verify` and `chain` say how.

use std::{io, path::Path, sync::Arc};

use crate::{
    api::core::{ConfigMap, Secret},
    mesh::table::TlsSettings,
};

mod chain;
mod context;
mod contexts;
mod crl;
pub(crate) mod der;
mod error;
pub mod inspect;
mod material;
mod mesh;
mod mesh_rows;
mod mesh_verify;
mod names;
mod p521;
mod params;
mod refused;
mod server;
mod session;
#[cfg(test)]
mod tests;
mod trust;
mod verify;

pub use context::{ClientContext, UpstreamName, alpn_is_h2};
pub use contexts::{Contexts, SecretRow};
pub use error::TlsError;
pub use material::read_host_file;
pub use params::check_suites;
pub use refused::refused;
pub use server::{ClientCertificate, ServerContext, client_fault, peer_certificate, peer_identity};
pub use session::SessionParameters;

/// Where the bytes of credentials come from.
pub trait MaterialReader: Send + Sync {
    /// The Secret of this namespace and name, where there is one.
    fn secret(&self, namespace: &str, name: &str) -> Option<Arc<Secret>>;
    /// The ConfigMap of this namespace and name, where there is one.
    fn config_map(&self, namespace: &str, name: &str) -> Option<Arc<ConfigMap>>;
    /// The bytes of a file on the host; [`read_host_file`] is how to read one.
    fn file(&self, path: &Path) -> io::Result<Vec<u8>>;
}
