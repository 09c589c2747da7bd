//! The rustls configuration of a server that takes TLS off with certificates of its own.

use std::sync::Arc;

use rustls::{
    ServerConfig, SignatureAlgorithm,
    crypto::aws_lc_rs::Ticketer,
    server::{ClientHello, NoClientAuth, NoServerSessionStorage, ResolvesServerCert, danger::ClientCertVerifier},
    sign::CertifiedKey,
};

use super::{
    Side, TlsError,
    clients::ClientVerifier,
    crl,
    judge::Judge,
    material::ServerInputs,
    params,
    presented::Presented,
    trust::{Said, Trust},
};
use crate::mesh::{ClientCertificates, ServerTlsSettings};

/// What is shown, who is let in, and the configuration that does both.
pub(super) struct Built {
    pub config: ServerConfig,
    pub shown: Arc<Shown>,
    pub clients: Option<Arc<ClientVerifier>>,
}

/// All of it must be usable: a server of which one certificate is missing would surprise those that need that one.
pub(super) fn build(settings: &ServerTlsSettings, inputs: &ServerInputs, said: &Arc<Said>) -> Result<Built, TlsError> {
    let (min, max) = (settings.min_version.as_deref(), settings.max_version.as_deref());
    let provider = Arc::new(params::provider(&settings.cipher_suites, &settings.curves)?);
    let shown = inputs.identities.iter().map(|raw| Presented::new(raw.as_ref().map_err(Clone::clone)?, &provider));
    let shown = Arc::new(Shown::new(shown.collect::<Result<_, _>>()?)?);
    let clients = match (&settings.clients, &inputs.clients) {
        (ClientCertificates::None, _) => None,
        (_, None) => return Err(TlsError::NoClientCa),
        (ClientCertificates::Optional(trust) | ClientCertificates::Required(trust), Some(read)) => {
            let judge = Judge {
                side: Side::Client,
                trust: Trust::new(read.trust.clone()?)?,
                crls: crl::read_all(&read.crls.clone()?)?,
                algorithms: provider.signature_verification_algorithms,
                said: Arc::clone(said),
            };
            let required = matches!(settings.clients, ClientCertificates::Required(_));
            Some(Arc::new(ClientVerifier::new(judge, trust, required)?))
        }
    };
    let verifier: Arc<dyn ClientCertVerifier> = match &clients {
        Some(verifier) => verifier.clone(),
        None => Arc::new(NoClientAuth),
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(params::between(min, max)?)
        .map_err(|error| TlsError::NothingToOffer { why: error.to_string() })?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(shown.clone());
    config.alpn_protocols = settings.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    // Keys that change by themselves, and belong to this server only: a session of one that demands less of its clients
    // opens nothing here. What clients keep needs no memory of ours.
    config.ticketer = Ticketer::new().map_err(|error| TlsError::Other { why: error.to_string() })?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    // Early data can be played again by whoever recorded it. (Compression and renegotiation rustls does not have.)
    config.max_early_data_size = 0;
    Ok(Built { config, shown, clients })
}

/// The certificates that clients can be shown, in the order in which they are tried.
#[derive(Debug)]
pub(super) struct Shown(Vec<Presented>);

impl Shown {
    /// ECDSA and Ed25519 go before RSA, whose signatures cost many times theirs; else the order stays.
    fn new(mut all: Vec<Presented>) -> Result<Self, TlsError> {
        if all.is_empty() {
            return Err(TlsError::NoOwnCertificate);
        }
        all.sort_by_key(|one| one.key.key.algorithm() == SignatureAlgorithm::RSA);
        Ok(Self(all))
    }

    pub(super) fn check_validity(&self) -> Result<(), TlsError> {
        self.0.iter().try_for_each(Presented::check_validity)
    }

    pub(super) fn covers(&self, host: &str) -> bool {
        self.0.iter().any(|one| one.hosts.cover(host))
    }
}

impl ResolvesServerCert for Shown {
    /// One that the client can check, and of those one for the name it asks for.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let usable = || self.0.iter().filter(|one| one.key.key.choose_scheme(hello.signature_schemes()).is_some());
        let named = hello.server_name().and_then(|name| usable().find(|one| one.hosts.cover(name)));
        // Where it can check none, rustls says so, which is clearer than no certificate at all.
        named.or_else(|| usable().next()).or_else(|| self.0.first()).map(|one| one.key.clone())
    }
}
