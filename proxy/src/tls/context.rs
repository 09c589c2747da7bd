//! One usable rule: the rustls configuration with identity, trust and session store, and the handshake.

use std::{
    borrow::Cow,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use rustls::ClientConfig;
use rustls_pki_types::{DnsName, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    Side, TlsContextSettings, TlsError, crl,
    judge::Judge,
    material::Inputs,
    mesh::Own,
    params,
    presented::Presented,
    sessions::Sessions,
    stream::TlsStream,
    trust::{Said, Trust},
    verify::Verifier,
};

/// Whom a connection is for.
#[derive(Clone, Copy, Debug, Default)]
pub struct UpstreamName<'a> {
    /// The rule's `sni`, else the Host asked for without its port (HTTP), else the service's host.
    pub host: Option<&'a str>,
}

/// What a connection under one [`TlsContextSettings`] needs. Built at reload.
#[derive(Debug)]
pub struct ClientContext {
    /// Unique in this process, and new whenever what the context was built from changed: part of the pool key, so that no
    /// request travels on a connection made with credentials of the past.
    pub id: u64,
    config: Arc<ClientConfig>,
    identity: Option<Presented>,
    mesh: Option<Mesh>,
}

/// What only mesh mTLS needs.
#[derive(Debug)]
struct Mesh {
    own: Own,
    /// The SNI, whatever the connection is for.
    name: ServerName<'static>,
    /// Whom the server must be, in words.
    expected: String,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl ClientContext {
    pub(super) fn new(settings: &TlsContextSettings, inputs: &Inputs, said: &Arc<Said>) -> Result<Self, TlsError> {
        let provider = Arc::new(params::provider(&settings.cipher_suites, &settings.curves)?);
        let judge = Judge {
            side: Side::Server,
            trust: Trust::new(inputs.trust.clone()?)?,
            crls: crl::read_all(&inputs.crls.clone()?)?,
            algorithms: provider.signature_verification_algorithms,
            said: Arc::clone(said),
        };
        let verifier = Verifier { judge, names: settings.subject_alt_names.clone() };
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(params::at_least(settings.min_version.as_deref())?)
            .map_err(|error| TlsError::NothingToOffer { why: error.to_string() })?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let (mut config, identity) = match &inputs.identity {
            None => (builder.with_no_client_auth(), None),
            Some(raw) => {
                let presented = Presented::new(raw.as_ref().map_err(Clone::clone)?, &provider)?;
                let resolver = Arc::new(rustls::sign::SingleCertAndKey::from(presented.key.clone()));
                (builder.with_client_cert_resolver(resolver), Some(presented))
            }
        };
        config.resumption = Sessions::resumption();
        config.alpn_protocols = settings.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        Ok(Self { id, config: Arc::new(config), identity, mesh: None })
    }

    pub(super) fn mesh(config: ClientConfig, name: ServerName<'static>, own: Own, expected: String) -> Self {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let mesh = Some(Mesh { own, name, expected });
        Self { id, config: Arc::new(config), identity: None, mesh }
    }

    /// The TLS handshake over `io`. Unbounded in time: the caller's connect timeout covers it.
    ///
    /// # Errors
    /// One sentence for the 503: which certificate was shown and what is wrong with it, or what the server answered.
    pub async fn connect<IO>(&self, name: UpstreamName<'_>, io: IO) -> Result<TlsStream<IO>, TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.handshake(name, self.config.alpn_protocols.clone(), io).await
    }

    /// The same, with h2 left out of what is offered: for a request that only HTTP/1.1 can carry.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn connect_without_h2<IO>(&self, name: UpstreamName<'_>, io: IO) -> Result<TlsStream<IO>, TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let offered = self.config.alpn_protocols.iter();
        self.handshake(name, offered.filter(|protocol| *protocol != b"h2").cloned().collect(), io).await
    }

    async fn handshake<IO>(&self, name: UpstreamName<'_>, alpn: Vec<Vec<u8>>, io: IO) -> Result<TlsStream<IO>, TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.check_identity()?;
        let name = self.server_name(name)?;
        let connecting = TlsStream::connect(Arc::clone(&self.config), name, alpn, io);
        connecting.await.map_err(|error| self.explain(TlsError::from_io(&error)))
    }

    /// In the mesh nobody configured a client certificate, so the hints for that do not help.
    fn explain(&self, error: TlsError) -> TlsError {
        match (error, &self.mesh) {
            (TlsError::Alert { alert, .. }, Some(mesh)) => TlsError::MeshAlert {
                peer: Side::Server,
                own: mesh.own.identity.to_string(),
                expected: mesh.expected.clone(),
                alert,
            },
            (error, _) => error,
        }
    }

    /// The SNI that is sent, or the address that is checked where none is: connections of different names must not be
    /// shared, so this belongs to a pool key beside [`Self::id`].
    ///
    /// # Errors
    /// There is no name, or it is none.
    pub fn server_name(&self, name: UpstreamName<'_>) -> Result<ServerName<'static>, TlsError> {
        if let Some(mesh) = &self.mesh {
            return Ok(mesh.name.clone());
        }
        let text = name.host.ok_or(TlsError::NoName)?;
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(ServerName::IpAddress(address.into()));
        }
        let lower = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        match DnsName::try_from(lower) {
            Ok(name) => Ok(ServerName::DnsName(name)),
            Err(_) => Err(TlsError::BadName { name: text.escape_default().to_string() }),
        }
    }

    /// The text of [`Self::server_name`], for finding a connection: not judged, and mostly not copied.
    ///
    /// # Errors
    /// There is no name.
    pub fn name_text<'n>(&'n self, name: UpstreamName<'n>) -> Result<Cow<'n, str>, TlsError> {
        if let Some(mesh) = &self.mesh {
            return Ok(mesh.name.to_str());
        }
        let text = name.host.ok_or(TlsError::NoName)?;
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(Cow::Owned(address.to_string()));
        }
        let text = text.strip_suffix('.').unwrap_or(text);
        let upper = text.bytes().any(|byte| byte.is_ascii_uppercase());
        Ok(if upper { Cow::Owned(text.to_ascii_lowercase()) } else { Cow::Borrowed(text) })
    }

    /// A certificate that was valid at the last reload may have expired since.
    pub(super) fn check_identity(&self) -> Result<(), TlsError> {
        if let Some(mesh) = &self.mesh {
            mesh.own.leaf()?;
        }
        self.identity.as_ref().map_or(Ok(()), Presented::check_validity)
    }
}

/// True where the server chose h2 by ALPN.
pub fn alpn_is_h2<IO>(stream: &TlsStream<IO>) -> bool {
    stream.get_ref().1.alpn_protocol() == Some(b"h2")
}
