//! TLS towards those who call us: the rustls configuration of one server, and the handshake.

use std::{io, sync::Arc};

use rustls::{CertificateError, HandshakeKind, ServerConfig, ServerConnection, server::Acceptor};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio_rustls::{LazyConfigAcceptor, TlsAcceptor, server::TlsStream};

use super::{
    Side, TlsError,
    clients::ClientVerifier,
    inspect,
    material::ServerInputs,
    mesh, mesh_verify,
    server_config::{self, Built, Shown},
    trust::Said,
};
use crate::mesh::ServerTlsSettings;

/// What connections to one server need. Built at reload, never at accept; a renewed mesh certificate is shown from the next
/// handshake on.
#[derive(Debug)]
pub struct ServerContext {
    config: Arc<ServerConfig>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Mesh(Mesh),
    Own(Own),
}

/// What is said in refusals on a server of the mesh.
#[derive(Debug)]
struct Mesh {
    own: mesh::Own,
    expected: String,
}

/// A server with certificates that somebody configured for it.
#[derive(Debug)]
struct Own {
    shown: Arc<Shown>,
    clients: Option<Arc<ClientVerifier>>,
    /// For clients that offer only application protocols which are not spoken here. RFC 7301 wants them sent away; Envoy
    /// goes on without, so that a client which offers `foo` and then speaks HTTP/1.1 is served.
    without_alpn: Arc<ServerConfig>,
}

/// What went wrong with a handshake, and the stream where it is still there.
type Failed<S> = (io::Error, Option<S>);

fn stream_too<S>((error, io): (io::Error, S)) -> Failed<S> {
    (error, Some(io))
}

impl ServerContext {
    pub(super) fn new(settings: &ServerTlsSettings, inputs: &ServerInputs, said: &Arc<Said>) -> Result<Self, TlsError> {
        let Built { config, shown, clients } = server_config::build(settings, inputs, said)?;
        let mut without_alpn = config.clone();
        without_alpn.alpn_protocols.clear();
        let own = Own { shown, clients, without_alpn: Arc::new(without_alpn) };
        Ok(Self { config: Arc::new(config), kind: Kind::Own(own) })
    }

    pub(super) fn mesh(config: ServerConfig, own: mesh::Own, expected: String) -> Self {
        Self { config: Arc::new(config), kind: Kind::Mesh(Mesh { own, expected }) }
    }

    /// A server of the mesh: who calls is a workload.
    #[must_use]
    pub fn is_mesh(&self) -> bool {
        matches!(self.kind, Kind::Mesh(_))
    }

    /// One of the certificates shown here is good for this host, a name or an address without a port. A mesh certificate
    /// names a workload, not hosts, and is good for any.
    #[must_use]
    pub fn covers(&self, host: &str) -> bool {
        match &self.kind {
            Kind::Mesh(_) => true,
            Kind::Own(own) => own.shown.covers(host),
        }
    }

    /// Our own certificates are valid now. An expired one would only earn an alert, and the log here would not say why.
    pub(super) fn check_validity(&self) -> Result<(), TlsError> {
        match &self.kind {
            Kind::Mesh(mesh) => mesh.own.leaf().map(drop),
            Kind::Own(own) => own.shown.check_validity(),
        }
    }

    /// Does the handshake on a connection whose first byte is the ClientHello's. Unbounded in time: the caller's limit
    /// covers it.
    ///
    /// # Errors
    /// What is wrong with the client, or with our own certificate ([`client_fault`] puts it in words: which identity was shown
    /// and which expected), and the stream: the alert that tells the client is on its way there, and a reset would overtake it.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, io: S) -> Result<TlsStream<S>, Failed<S>> {
        if let Err(error) = self.check_validity() {
            return Err((io::Error::other(error), Some(io)));
        }
        let accepted = match &self.kind {
            Kind::Mesh(_) => {
                TlsAcceptor::from(self.config.clone()).accept(io).into_fallible().await.map_err(stream_too)
            }
            Kind::Own(own) => match self.accept_any_protocol(own, io).await {
                Ok(stream) => own.check_resumed(stream).await,
                Err(error) => Err(error),
            },
        };
        accepted.map_err(|(error, io)| (self.explain(error), io))
    }

    async fn accept_any_protocol<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        own: &Own,
        io: S,
    ) -> Result<TlsStream<S>, Failed<S>> {
        let ours = &self.config.alpn_protocols;
        if ours.is_empty() {
            return TlsAcceptor::from(self.config.clone()).accept(io).into_fallible().await.map_err(stream_too);
        }
        let mut acceptor = LazyConfigAcceptor::new(Acceptor::default(), io);
        let start = match (&mut acceptor).await {
            Ok(start) => start,
            Err(error) => return Err((error, acceptor.take_io())),
        };
        let is_ours = |theirs: &[u8]| ours.iter().any(|ours| ours == theirs);
        let foreign = start.client_hello().alpn().is_some_and(|mut offered| !offered.any(is_ours));
        let config = if foreign { &own.without_alpn } else { &self.config };
        start.into_stream(config.clone()).into_fallible().await.map_err(stream_too)
    }

    /// Adds who was expected to what rustls says.
    fn explain(&self, error: io::Error) -> io::Error {
        let Kind::Mesh(mesh) = &self.kind else { return error };
        let Some(fault) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else { return error };
        let expected = mesh.expected.clone();
        let explained = match fault {
            rustls::Error::NoCertificatesPresented => TlsError::NoPeerCertificate { expected },
            rustls::Error::AlertReceived(alert) => {
                let (own, alert) = (mesh.own.identity.to_string(), format!("{alert:?}"));
                TlsError::MeshAlert { peer: Side::Client, own, expected, alert }
            }
            _ => return error,
        };
        io::Error::new(error.kind(), explained)
    }
}

impl Own {
    /// A session that is resumed brings its client's certificate along unchecked; what would be refused in a full handshake
    /// by now (it has expired, or a list of revoked ones has run out) is refused here as well.
    async fn check_resumed<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: TlsStream<S>,
    ) -> Result<TlsStream<S>, Failed<S>> {
        let connection = stream.get_ref().1;
        let checked = match &self.clients {
            Some(clients) if connection.handshake_kind() == Some(HandshakeKind::Resumed) => {
                clients.check_again(connection.peer_certificates())
            }
            _ => return Ok(stream),
        };
        let Err(error) = checked else { return Ok(stream) };
        let (mut io, mut connection) = stream.into_inner();
        connection.send_close_notify();
        let mut last = Vec::new();
        // Nobody is owed this goodbye: the connection ends either way.
        if connection.write_tls(&mut last).is_ok() {
            let _ = io.write_all(&last).await;
        }
        Err((io::Error::new(io::ErrorKind::InvalidData, error), Some(io)))
    }
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
