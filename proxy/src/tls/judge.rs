//! The judge of a chain that a peer shows, server or client: webpki first, [`chain`](super::chain) where a configured CA
//! issued what webpki does not read, then revocation. What the certificate must say of the peer is for its verifier.

use std::sync::Arc;

use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::{certificate::X509Certificate, extensions::ExtendedKeyUsage, prelude::X509Version};

use super::{
    Side, TlsError,
    chain::{self, Anchor, Path, refuse},
    crl::{self, Crl},
    der,
    inspect::{self, distinguished},
    trust::{Configured, Said, Trust},
};
use crate::limits::CHAIN_CERTIFICATES;

pub(super) struct Judge {
    /// Who is judged.
    pub side: Side,
    pub trust: Trust,
    pub crls: Vec<Crl>,
    pub algorithms: WebPkiSupportedAlgorithms,
    pub said: Arc<Said>,
}

impl std::fmt::Debug for Judge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Judge").field("side", &self.side).field("trust", &self.trust.name()).finish_non_exhaustive()
    }
}

impl Side {
    fn usage(self) -> KeyUsage {
        match self {
            Self::Server => KeyUsage::server_auth(),
            Self::Client => KeyUsage::client_auth(),
        }
    }

    pub(super) fn is_allowed_by(self, usage: &ExtendedKeyUsage<'_>) -> bool {
        match self {
            _ if usage.any => true,
            Self::Server => usage.server_auth,
            Self::Client => usage.client_auth,
        }
    }

    pub(super) fn wrong_usage(self) -> &'static str {
        match self {
            Self::Server => "its extendedKeyUsage is not for servers",
            Self::Client => "its extendedKeyUsage is not for clients",
        }
    }
}

impl Judge {
    /// The certificate that the peer has shown, where it may be believed.
    pub(super) fn check<'a>(
        &self,
        leaf_der: &'a CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<X509Certificate<'a>, TlsError> {
        let leaf = inspect::parse(leaf_der).map_err(|why| TlsError::PeerCertificate {
            peer: self.side,
            certificate: "(unreadable)".to_owned(),
            why,
        })?;
        if intermediates.len() >= CHAIN_CERTIFICATES {
            return Err(refuse(self.side, &leaf, "too many certificates come with it"));
        }
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        self.check_chain(leaf_der, &leaf, intermediates, now, seconds)?;
        Ok(leaf)
    }

    /// The CA was configured for these peers: what stands for a name in old certificates counts.
    pub(super) fn is_configured(&self) -> bool {
        matches!(self.trust, Trust::Configured(_))
    }

    /// Said once for each certificate.
    pub(super) fn note_common_name(&self, leaf_der: &CertificateDer<'_>, leaf: &X509Certificate<'_>) {
        if self.said.first(leaf_der, "cn") {
            log::warn!(
                "the {} certificate {} has no subjectAltName, so its CN is taken for its name because {} is configured \
                 for it: issue it with a subjectAltName",
                self.side,
                distinguished(leaf.subject()),
                self.trust.name()
            );
        }
    }

    fn check_chain(
        &self,
        leaf_der: &CertificateDer<'_>,
        leaf: &X509Certificate<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        seconds: i64,
    ) -> Result<(), TlsError> {
        let verified = EndEntityCert::try_from(leaf_der);
        let verified = verified.as_ref().map_err(Clone::clone).and_then(|cert| {
            let (all, anchors) = (self.algorithms.all, self.trust.anchors());
            cert.verify_for_usage(all, anchors, intermediates, now, self.side.usage(), None, None)
        });
        match (verified, &self.trust) {
            (Ok(verified), trust) => {
                let spki = der::sequence(verified.anchor().subject_public_key_info.as_ref());
                let signs_crls = match trust {
                    Trust::Configured(configured) => check_anchor(self.side, configured, &spki, seconds)?,
                    Trust::System(_) | Trust::Unchecked => true,
                };
                if self.crls.is_empty() {
                    return Ok(());
                }
                let ders: Vec<_> = verified.intermediate_certificates().map(|cert| cert.der()).collect();
                let mut certificates = vec![leaf.clone()];
                for der in &ders {
                    certificates.push(inspect::parse(der).map_err(|why| refuse(self.side, leaf, &why))?);
                }
                let path = Path { certificates, anchor: Anchor { spki, signs_crls } };
                crl::check(self.side, &path, &self.crls, seconds, self.algorithms.all)
            }
            (Err(error), Trust::Configured(configured)) if chain::is_for_us(leaf, &error) => {
                let others: Vec<_> = intermediates.iter().filter_map(|der| inspect::parse(der).ok()).collect();
                let roots: Vec<_> = configured.certificates.iter().filter_map(|der| inspect::parse(der).ok()).collect();
                let path =
                    chain::build(self.side, leaf, &others, &roots, &self.trust.name(), seconds, self.algorithms.all)?;
                if leaf.version() == X509Version::V1 && self.said.first(leaf_der, "v1") {
                    log::warn!(
                        "the {} certificate {} is X.509 v1, accepted because {} is configured for it: issue it as v3 with a \
                         subjectAltName",
                        self.side,
                        distinguished(leaf.subject()),
                        self.trust.name()
                    );
                }
                if self.crls.is_empty() {
                    Ok(())
                } else {
                    crl::check(self.side, &path, &self.crls, seconds, self.algorithms.all)
                }
            }
            (Err(error), _) => Err(self.explain(&error, leaf, intermediates, seconds)),
        }
    }

    fn explain(
        &self,
        error: &webpki::Error,
        leaf: &X509Certificate<'_>,
        intermediates: &[CertificateDer<'_>],
        now: i64,
    ) -> TlsError {
        use webpki::Error as E;
        let certificate = distinguished(leaf.subject());
        match error {
            E::CertExpired { .. } | E::CertNotValidYet { .. } | E::InvalidCertValidity => {
                // webpki does not say which of the chain it was.
                let others = intermediates.iter().filter_map(|der| inspect::parse(der).ok());
                let mut faults = std::iter::once(leaf.clone())
                    .chain(others)
                    .filter_map(|c| chain::check_time(self.side, &c, now).err());
                faults.next().unwrap_or_else(|| refuse(self.side, leaf, &error.to_string()))
            }
            E::UnknownIssuer | E::InvalidSignatureForPublicKey => {
                let issuer = distinguished(leaf.issuer());
                let more = if matches!(error, E::UnknownIssuer) {
                    format!(" (its issuer is {issuer}), or have the {} send its intermediates", self.side)
                } else {
                    format!(" (a CA named {issuer} is known, but its key did not sign this certificate)")
                };
                TlsError::PeerUntrusted { peer: self.side, certificate, trust: self.trust.name(), more }
            }
            E::UnsupportedCertVersion if leaf.version() == X509Version::V1 => refuse(
                self.side,
                leaf,
                "it is X.509 v1, which only a CA that the rule itself configures may have issued",
            ),
            E::UnsupportedCertVersion => refuse(
                self.side,
                leaf,
                "its chain leads over a certificate that is not X.509 v3, which says nothing about being a CA",
            ),
            other => refuse(self.side, leaf, &other.to_string()),
        }
    }
}

/// A configured CA that has expired is trusted no longer (webpki does not look). Returns whether it may sign CRLs. Several
/// certificates may bear the same key: one that is valid is enough.
fn check_anchor(side: Side, configured: &Configured, spki: &[u8], now: i64) -> Result<bool, TlsError> {
    let mut fault = None;
    for root in configured.roots.iter().filter(|root| root.spki == spki) {
        match chain::check_period(side, &root.summary, now) {
            Ok(()) => return Ok(root.signs_crls),
            Err(error) => fault = Some(error),
        }
    }
    // None at all cannot be, as the anchors are made from the same certificates; refuse then, too.
    Err(fault
        .unwrap_or_else(|| TlsError::Other { why: "the CA of the chain is not among the configured ones".to_owned() }))
}
