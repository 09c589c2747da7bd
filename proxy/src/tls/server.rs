//! TLS towards those who call us: the rustls configuration of one server, and the handshake.

use std::{io, sync::Arc};

use rustls::{CertificateError, ServerConfig, ServerConnection};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use x509_parser::extensions::GeneralName;

use super::inspect;

/// What connections to one server need. Built at reload (or at renewal of the mesh certificate), never at accept.
#[derive(Debug)]
pub struct ServerContext {
    config: Arc<ServerConfig>,
}

impl ServerContext {
    #[must_use]
    pub fn new(config: Arc<ServerConfig>) -> Self {
        Self { config }
    }

    /// Does the handshake on a connection whose first byte is the ClientHello's.
    ///
    /// # Errors
    /// What rustls says of the client ([`client_fault`] puts it in words), and the stream: the alert that tells the client is
    /// on its way there, and a reset would overtake it.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, io: S) -> Result<TlsStream<S>, (io::Error, S)> {
        TlsAcceptor::from(self.config.clone()).accept(io).into_fallible().await
    }
}

/// The SPIFFE identity of the certificate that the client has proved to be its own; None: it showed none, or it bears no one
/// such name.
#[must_use]
pub fn peer_identity(connection: &ServerConnection) -> Option<Arc<str>> {
    let certificate = inspect::parse(connection.peer_certificates()?.first()?).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let mut found = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) if uri.starts_with("spiffe://") => Some(*uri),
        _ => None,
    });
    // Exactly one (X509-SVID, section 2).
    found.next().filter(|_| found.next().is_none()).map(Arc::from)
}

/// Why a handshake with a client failed, as one sentence for the log.
#[must_use]
pub fn client_fault(error: &io::Error) -> String {
    let Some(fault) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof => "the client closed the connection during the TLS handshake".to_owned(),
            _ => format!("the TLS handshake failed: {error}"),
        };
    };
    match fault {
        rustls::Error::NoCertificatesPresented => "the client showed no certificate".to_owned(),
        rustls::Error::AlertReceived(alert) => format!("the client ended the handshake with the alert {alert:?}"),
        rustls::Error::InvalidCertificate(CertificateError::Other(reason)) => reason.0.to_string(),
        rustls::Error::InvalidCertificate(reason) => format!("the client's certificate is refused: {reason}"),
        other => format!("the TLS handshake failed: {other}"),
    }
}
