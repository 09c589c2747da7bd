//! Contexts for mesh mTLS, both sides: our own SPIFFE certificate shown, the peer's judged by the mesh's roots.
//!
//! A context lives as long as the trust it was built from. Our own certificate is looked up at each handshake, so that its
//! renewal changes no context: pooled connections go on, and the next handshake shows the new one.
//!
//! No session is resumed. A resumed session would carry a peer's identity past the end of its certificate or of its root's
//! trust; what it would save is one ECDSA signature and two verifications on each side, for connections that are pooled.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::RwLock;
use rustls::{
    ClientConfig, ServerConfig, SignatureScheme,
    client::{ResolvesClientCert, Resumption},
    crypto::{CryptoProvider, aws_lc_rs},
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{DnsName, ServerName};

use super::{
    ClientContext, ServerContext, Side, TlsError, inspect,
    mesh_verify::{Expected, MeshVerifier, Roots, domain_text},
    params,
};
use crate::{
    identity::{Identities, Trust},
    limits::MESH_CONTEXTS,
    mesh::table::{MeshTls, Peer},
};

/// What a mesh client offers: the application protocol inside is told by the port's declaration.
const CLIENT_ALPN: &[u8] = b"istio";

/// What a mesh server takes: whatever Istio's proxies offer, and what plain h2 and HTTP clients with a mesh certificate do.
const SERVER_ALPN: [&[u8]; 7] =
    [b"istio", b"istio-peer-exchange", b"istio-http/1.1", b"istio-http/1.0", b"istio-h2", b"h2", b"http/1.1"];

/// The contexts of one trust, built when first asked for.
#[derive(Debug)]
pub(super) struct MeshContexts {
    identities: Arc<Identities>,
    trust: Arc<Trust>,
    roots: Arc<Roots>,
    provider: Arc<CryptoProvider>,
    clients: RwLock<Clients>,
    servers: RwLock<HashMap<Arc<str>, Arc<ServerContext>>>,
}

#[derive(Debug, Default)]
struct Clients {
    /// Own identity → rule → the peer's identity (empty: any): so that looking up copies nothing.
    by_own: HashMap<Box<str>, ByRule>,
    count: usize,
}

type ByRule = HashMap<MeshTls, HashMap<Box<str>, Cached>>;

#[derive(Debug)]
struct Cached {
    context: Arc<ClientContext>,
    /// Asked for since the last sweep.
    used: AtomicBool,
}

impl MeshContexts {
    /// Those of `previous` where the trust is the same, else new ones.
    pub(super) fn of(identities: &Arc<Identities>, previous: Option<&Arc<Self>>) -> Result<Arc<Self>, TlsError> {
        let trust = identities.trust().map_err(|error| TlsError::MeshUnavailable { why: error.to_string() })?;
        if let Some(previous) = previous.filter(|previous| previous.trust == trust) {
            return Ok(previous.clone());
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let roots = Roots::new(&trust, provider.signature_verification_algorithms);
        let roots = roots.map_err(|why| TlsError::MeshUnavailable { why: format!("a root is unusable: {why}") })?;
        Ok(Arc::new(Self {
            identities: identities.clone(),
            trust,
            roots: Arc::new(roots),
            provider,
            clients: RwLock::default(),
            servers: RwLock::default(),
        }))
    }

    pub(super) fn client(
        &self,
        own: &str,
        rule: &MeshTls,
        peer: Option<&Peer>,
    ) -> Result<Arc<ClientContext>, TlsError> {
        // The rule's names go before the endpoint's: then all endpoints share one context.
        let peer = peer.filter(|_| rule.subject_alt_names.is_empty()).map_or("", |peer| &*peer.identity);
        if let Some(found) = self.clients.read().get(own, rule, peer) {
            return Ok(found);
        }
        let new = Arc::new(self.new_client(own, rule, peer)?);
        Ok(self.clients.write().insert(own, rule, peer, new))
    }

    fn new_client(&self, own: &str, rule: &MeshTls, peer: &str) -> Result<ClientContext, TlsError> {
        let expected = match peer {
            _ if !rule.subject_alt_names.is_empty() => Expected::OneOf(rule.subject_alt_names.clone()),
            "" => Expected::Domain,
            peer => Expected::OneOf(vec![peer.to_owned()]),
        };
        let own = Own { identities: self.identities.clone(), identity: Arc::from(own) };
        own.leaf()?;
        let expected_text = match &expected {
            Expected::OneOf(names) => names.join(" or "),
            Expected::Domain => domain_text(&self.trust.domains),
        };
        let verifier = MeshVerifier { roots: self.roots.clone(), expected, peer: Side::Server };
        let mut config = ClientConfig::builder_with_details(self.provider.clone(), self.identities.clock())
            .with_protocol_versions(params::at_least(self.trust.min_version.as_deref())?)
            .map_err(nothing_to_offer)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(own.clone()));
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![CLIENT_ALPN.to_vec()];
        // What TLS cannot carry as a name (a wildcard service's) is not sent; the name says nothing about who the peer is.
        let name = match DnsName::try_from(rule.sni.to_ascii_lowercase()) {
            Ok(name) => ServerName::DnsName(name),
            Err(_) => {
                config.enable_sni = false;
                ServerName::IpAddress(std::net::IpAddr::from(std::net::Ipv4Addr::UNSPECIFIED).into())
            }
        };
        Ok(ClientContext::mesh(config, name, own, expected_text))
    }

    pub(super) fn server(&self, own: &str) -> Result<Arc<ServerContext>, TlsError> {
        if let Some(found) = self.servers.read().get(own) {
            return Ok(found.clone());
        }
        let identity: Arc<str> = Arc::from(own);
        let own = Own { identities: self.identities.clone(), identity: identity.clone() };
        own.leaf()?;
        let verifier = MeshVerifier { roots: self.roots.clone(), expected: Expected::Domain, peer: Side::Client };
        let mut config = ServerConfig::builder_with_details(self.provider.clone(), self.identities.clock())
            .with_protocol_versions(params::at_least(self.trust.min_version.as_deref())?)
            .map_err(nothing_to_offer)?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(own.clone()));
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.alpn_protocols = SERVER_ALPN.iter().map(|name| name.to_vec()).collect();
        let context = ServerContext::mesh(config, own, domain_text(&self.trust.domains));
        Ok(self.servers.write().entry(identity).or_insert_with(|| Arc::new(context)).clone())
    }
}

impl Clients {
    fn get(&self, own: &str, rule: &MeshTls, peer: &str) -> Option<Arc<ClientContext>> {
        let cached = self.by_own.get(own)?.get(rule)?.get(peer)?;
        cached.used.store(true, Ordering::Relaxed);
        Some(cached.context.clone())
    }

    /// Keeps it, unless another thread was faster: then there is that one only, so that its connections are shared.
    fn insert(&mut self, own: &str, rule: &MeshTls, peer: &str, context: Arc<ClientContext>) -> Arc<ClientContext> {
        if let Some(found) = self.get(own, rule, peer) {
            return found;
        }
        if self.count >= MESH_CONTEXTS {
            self.sweep();
        }
        let cached = Cached { context: context.clone(), used: AtomicBool::new(true) };
        self.by_own.entry(own.into()).or_default().entry(rule.clone()).or_default().insert(peer.into(), cached);
        self.count += 1;
        context
    }

    /// Lets go of what was not asked for since the last sweep; of everything, where everything was.
    fn sweep(&mut self) {
        self.count = 0;
        self.by_own.retain(|_, rules| {
            rules.retain(|_, peers| {
                peers.retain(|_, cached| cached.used.swap(false, Ordering::Relaxed));
                self.count += peers.len();
                !peers.is_empty()
            });
            !rules.is_empty()
        });
        if self.count >= MESH_CONTEXTS {
            *self = Self::default();
        }
    }
}

fn nothing_to_offer(error: rustls::Error) -> TlsError {
    TlsError::NothingToOffer { why: error.to_string() }
}

/// Our own side of a mesh connection: the identity, and its certificate as it is at the time.
#[derive(Clone, Debug)]
pub(super) struct Own {
    identities: Arc<Identities>,
    pub identity: Arc<str>,
}

impl Own {
    /// The certificate, valid now.
    pub(super) fn leaf(&self) -> Result<Arc<CertifiedKey>, TlsError> {
        let missing = |why| TlsError::NoMeshIdentity { identity: self.identity.to_string(), why };
        let Some(leaf) = self.identities.leaf(&self.identity) else {
            let why = self.identities.missing(&self.identity);
            return Err(missing(why.map_or_else(|| "its pod is not enrolled".to_owned(), |why| why.to_string())));
        };
        let now = i64::try_from(self.identities.now().as_secs()).unwrap_or(i64::MAX);
        if now > leaf.summary.not_after {
            let when = inspect::timestamp(leaf.summary.not_after);
            return Err(missing(format!("the last one expired at {when}, and no new one could be made")));
        }
        Ok(leaf.key.clone())
    }
}

impl ResolvesClientCert for Own {
    fn resolve(&self, _roots: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.identities.leaf(&self.identity).map(|leaf| leaf.key.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for Own {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.identities.leaf(&self.identity).map(|leaf| leaf.key.clone())
    }
}
