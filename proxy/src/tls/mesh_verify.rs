//! The judge of a peer's mesh certificate, on both sides: chain to a root of the mesh, validity, SPIFFE identity.

use std::sync::Arc;

use rustls::{
    DistinguishedName, Error,
    client::danger::{ServerCertVerified, ServerCertVerifier},
    crypto::WebPkiSupportedAlgorithms,
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName};

use super::{
    Side, TlsError, der,
    inspect::{self, CertificateSummary, distinguished},
    signatures::handshake_signatures,
};
use crate::{identity::Trust, limits::CHAIN_CERTIFICATES};

/// The roots of the mesh and its trust domains, read out once.
#[derive(Debug)]
pub(super) struct Roots {
    anchors: Vec<TrustAnchor<'static>>,
    /// SubjectPublicKeyInfo in DER, and when it is valid: webpki does not look at an anchor's validity.
    validity: Vec<(Vec<u8>, CertificateSummary)>,
    domains: Vec<String>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// Whom a peer must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// One of these identities; an alias of the trust domain stands for the trust domain.
    OneOf(Vec<String>),
    /// Anybody of the trust domain or its aliases.
    Domain,
}

#[derive(Debug)]
pub(super) struct MeshVerifier {
    pub roots: Arc<Roots>,
    pub expected: Expected,
    pub peer: Side,
}

impl Roots {
    pub(super) fn new(trust: &Trust, algorithms: WebPkiSupportedAlgorithms) -> Result<Self, String> {
        let mut new = Self { anchors: Vec::new(), validity: Vec::new(), domains: trust.domains.clone(), algorithms };
        for root in &trust.roots {
            let parsed = inspect::parse(root)?;
            new.anchors.push(webpki::anchor_from_trusted_cert(root).map_err(|error| error.to_string())?.to_owned());
            new.validity.push((parsed.public_key().raw.to_vec(), CertificateSummary::of(&parsed)));
        }
        Ok(new)
    }

    /// The trust domain, or an alias of it.
    fn is_ours(&self, identity: &str) -> bool {
        split(identity).is_some_and(|(domain, _)| self.domains.iter().any(|ours| ours == domain))
    }

    /// The same identity, or the same one under another name of our trust domain.
    fn is_same(&self, shown: &str, expected: &str) -> bool {
        shown == expected
            || self.is_ours(shown)
                && self.is_ours(expected)
                && split(shown).map(|(_, path)| path) == split(expected).map(|(_, path)| path)
    }

    /// Several certificates may bear the same key: one that is valid is enough.
    fn check_root(&self, anchor: &TrustAnchor<'_>, now: i64) -> Result<(), String> {
        let key = der::sequence(anchor.subject_public_key_info.as_ref());
        let mut fault = "its root is not among those of the mesh".to_owned();
        for (_, root) in self.validity.iter().filter(|(spki, _)| *spki == key) {
            match check_time(root, now) {
                Ok(()) => return Ok(()),
                Err(why) => fault = format!("of the root {}: {why}", root.subject),
            }
        }
        Err(fault)
    }
}

impl MeshVerifier {
    fn judge(
        &self,
        leaf_der: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), TlsError> {
        let refuse = |shown: String, why: String| TlsError::PeerMeshCertificate {
            peer: self.peer,
            shown,
            expected: self.expected_text(),
            why,
        };
        let leaf = inspect::parse(leaf_der).map_err(|why| refuse("(unreadable)".to_owned(), why))?;
        let identity = spiffe(&leaf);
        // Named in every refusal, even where the chain is false: it is what the peer claims to be.
        let shown =
            identity.as_ref().map_or_else(|_| distinguished(leaf.subject()), |name| name.escape_default().to_string());
        self.check_chain(leaf_der, &leaf, intermediates, now, usage).map_err(|why| refuse(shown.clone(), why))?;
        let identity = identity.map_err(|why| refuse(shown.clone(), why))?;
        match &self.expected {
            Expected::OneOf(names) if names.iter().any(|name| self.roots.is_same(identity, name)) => Ok(()),
            Expected::Domain if self.roots.is_ours(identity) => Ok(()),
            _ => Err(TlsError::PeerIdentity { peer: self.peer, shown, expected: self.expected_text() }),
        }
    }

    fn check_chain(
        &self,
        leaf_der: &CertificateDer<'_>,
        leaf: &X509Certificate<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), String> {
        if intermediates.len() >= CHAIN_CERTIFICATES {
            return Err("too many certificates come with it".to_owned());
        }
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let roots = &self.roots;
        let verified = EndEntityCert::try_from(leaf_der).and_then(|certificate| {
            let (all, anchors) = (roots.algorithms.all, &roots.anchors);
            let path = certificate.verify_for_usage(all, anchors, intermediates, now, usage, None, None)?;
            Ok(roots.check_root(path.anchor(), seconds))
        });
        match verified {
            Ok(root) => root,
            Err(webpki::Error::UnknownIssuer) => {
                Err(format!("no CA of this mesh issued it; its issuer is {}", distinguished(leaf.issuer())))
            }
            Err(webpki::Error::InvalidSignatureForPublicKey) => Err(format!(
                "another CA named {} is known to this mesh, but its key did not sign this certificate",
                distinguished(leaf.issuer())
            )),
            Err(error) => {
                // webpki does not say which of the chain is out of its time.
                let others = intermediates.iter().filter_map(|der| CertificateSummary::from_der(der).ok());
                let mut all = std::iter::once(CertificateSummary::of(leaf)).chain(others);
                Err(all.find_map(|one| check_time(&one, seconds).err()).unwrap_or_else(|| error.to_string()))
            }
        }
    }

    fn expected_text(&self) -> String {
        match &self.expected {
            Expected::OneOf(names) => names.join(" or "),
            Expected::Domain => domain_text(&self.roots.domains),
        }
    }
}

/// `spiffe://cluster.local/*`
pub(super) fn domain_text(domains: &[String]) -> String {
    let all: Vec<_> = domains.iter().map(|domain| format!("spiffe://{domain}/*")).collect();
    all.join(" or ")
}

impl ServerCertVerifier for MeshVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.judge(end_entity, intermediates, now, KeyUsage::server_auth()).map_err(TlsError::into_rustls)?;
        Ok(ServerCertVerified::assertion())
    }

    handshake_signatures!(roots.algorithms);
}

impl ClientCertVerifier for MeshVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Everybody in the mesh has one certificate: there is nothing to choose, and nothing to tell strangers.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.judge(end_entity, intermediates, now, KeyUsage::client_auth()).map_err(TlsError::into_rustls)?;
        Ok(ClientCertVerified::assertion())
    }

    handshake_signatures!(roots.algorithms);
}

/// The SPIFFE identity of a certificate: its one URI (SPIFFE X.509-SVID section 2: exactly one).
pub(super) fn spiffe<'a>(certificate: &'a X509Certificate<'_>) -> Result<&'a str, String> {
    let names = certificate.subject_alternative_name().map_err(|error| error.to_string())?;
    let mut uris = names.into_iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) if split(uri).is_some() => Ok(uri),
        (None, _) => Err("it bears no SPIFFE identity".to_owned()),
        (Some(uri), None) => Err(format!("its URI {} is no SPIFFE identity", uri.escape_default())),
        (Some(_), Some(_)) => Err("it bears several URIs, where a SPIFFE certificate bears one".to_owned()),
    }
}

/// Trust domain and path.
fn split(identity: &str) -> Option<(&str, &str)> {
    let (domain, path) = identity.strip_prefix("spiffe://")?.split_once('/')?;
    (!domain.is_empty() && !path.is_empty()).then_some((domain, path))
}

fn check_time(certificate: &CertificateSummary, now: i64) -> Result<(), String> {
    if now > certificate.not_after {
        return Err(format!("it expired at {}", inspect::timestamp(certificate.not_after)));
    }
    if now < certificate.not_before {
        return Err(format!("it is valid only from {}: check the clocks", inspect::timestamp(certificate.not_before)));
    }
    Ok(())
}
