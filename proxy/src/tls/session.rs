//! What a handshake has agreed on, by the names that OpenSSL (and so Envoy's access log) has for it.

use rustls::{ProtocolVersion, ServerConnection};

use super::params;

/// Version and cipher suite of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionParameters {
    /// `TLSv1.3`
    pub version: &'static str,
    /// `TLS_AES_256_GCM_SHA384`, `ECDHE-RSA-AES128-GCM-SHA256`
    pub cipher: &'static str,
}

impl SessionParameters {
    /// None before the handshake has ended.
    #[must_use]
    pub fn of(connection: &ServerConnection) -> Option<Self> {
        let version = match connection.protocol_version()? {
            ProtocolVersion::TLSv1_3 => "TLSv1.3",
            _ => "TLSv1.2",
        };
        let cipher = params::suite_name(connection.negotiated_cipher_suite()?)?;
        Some(Self { version, cipher })
    }
}
