//! TLS towards those who call us: the rustls configuration of one server, and the handshake.

use std::{io, sync::Arc};

use rustls::{CertificateError, ServerConfig, ServerConnection};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{TlsError, inspect, mesh::Own, mesh_verify};

/// What connections to one server need. Built at reload, never at accept; a renewed mesh certificate is shown from the next
/// handshake on.
#[derive(Debug)]
pub struct ServerContext {
    config: Arc<ServerConfig>,
    mesh: Option<Mesh>,
}

/// What is said in refusals on a server of the mesh.
#[derive(Debug)]
struct Mesh {
    own: Own,
    expected: String,
}

impl ServerContext {
    #[must_use]
    pub fn new(config: Arc<ServerConfig>) -> Self {
        Self { config, mesh: None }
    }

    pub(super) fn mesh(config: ServerConfig, own: Own, expected: String) -> Self {
        Self { config: Arc::new(config), mesh: Some(Mesh { own, expected }) }
    }

    /// A server of the mesh: who calls is a workload.
    #[must_use]
    pub fn is_mesh(&self) -> bool {
        self.mesh.is_some()
    }

    /// One of the certificates shown here is good for this host name.
    #[must_use]
    pub fn covers(&self, _host: &str) -> bool {
        true
    }

    /// Does the handshake on a connection whose first byte is the ClientHello's. Unbounded in time: the caller's limit
    /// covers it.
    ///
    /// # Errors
    /// What is wrong with the client, or with our own certificate ([`client_fault`] puts it in words: which identity was shown
    /// and which expected), and the stream: the alert that tells the client is on its way there, and a reset would overtake it.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, io: S) -> Result<TlsStream<S>, (io::Error, S)> {
        if let Some(mesh) = &self.mesh
            && let Err(error) = mesh.own.leaf()
        {
            // An expired certificate would only earn an alert, and the log here would not say why.
            return Err((io::Error::other(error), io));
        }
        let accepted = TlsAcceptor::from(self.config.clone()).accept(io).into_fallible().await;
        accepted.map_err(|(error, io)| (self.explain(error), io))
    }

    /// Adds who was expected to what rustls says.
    fn explain(&self, error: io::Error) -> io::Error {
        let Some(mesh) = &self.mesh else { return error };
        let Some(fault) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else { return error };
        let expected = mesh.expected.clone();
        let explained = match fault {
            rustls::Error::NoCertificatesPresented => TlsError::NoPeerCertificate { expected },
            rustls::Error::AlertReceived(alert) => {
                let (own, alert) = (mesh.own.identity.to_string(), format!("{alert:?}"));
                TlsError::MeshAlert { peer: "client", own, expected, alert }
            }
            _ => return error,
        };
        io::Error::new(error.kind(), explained)
    }
}

/// A certificate that a client has proved to be its own, as those behind us are told of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientCertificate {
    /// As RFC 2253 has it: `CN=client,O=example`.
    pub subject: String,
    pub uri_names: Vec<String>,
    pub dns_names: Vec<String>,
    /// SHA-256 of its DER, in hex.
    pub hash: String,
    pub der: Vec<u8>,
}

/// What the client has shown; None: no certificate.
#[must_use]
pub fn peer_certificate(connection: &ServerConnection) -> Option<ClientCertificate> {
    let der = connection.peer_certificates()?.first()?.to_vec();
    Some(ClientCertificate { der, ..ClientCertificate::default() })
}

/// The SPIFFE identity of the certificate that the client has proved to be its own; None: it showed none, or it bears no one
/// such name.
#[must_use]
pub fn peer_identity(connection: &ServerConnection) -> Option<Arc<str>> {
    let certificate = inspect::parse(connection.peer_certificates()?.first()?).ok()?;
    mesh_verify::spiffe(&certificate).ok().map(Arc::from)
}

/// Why a handshake with a client failed, as one sentence for the log.
#[must_use]
pub fn client_fault(error: &io::Error) -> String {
    if let Some(own) = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>()) {
        return own.to_string();
    }
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
