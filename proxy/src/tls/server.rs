//! TLS towards those who call us: the rustls configuration of one server, and the handshake.

use std::{io, sync::Arc};

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

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
    /// What rustls says of the client: no certificate, one of a foreign authority, no protocol in common …
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, io: S) -> io::Result<TlsStream<S>> {
        TlsAcceptor::from(self.config.clone()).accept(io).await
    }
}
