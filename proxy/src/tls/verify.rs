//! The judge of a server's certificate: webpki first, [`chain`](super::chain) where a configured CA issued what webpki does
//! not read, then revocation, then the name.

use std::sync::Arc;

use rustls::{
    DigitallySignedStruct, Error, PeerMisbehaved, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{
        WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature, verify_tls13_signature_with_raw_key,
    },
};
use rustls_pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage, RawPublicKeyEntity};
use x509_parser::{certificate::X509Certificate, prelude::X509Version};

use super::{
    TlsError,
    chain::{self, Anchor, Path, refuse},
    crl::{self, Crl},
    der,
    inspect::{self, distinguished},
    names::{self, Match},
    trust::{Configured, Said, Trust},
};
use crate::limits::CHAIN_CERTIFICATES;

pub(super) struct Verifier {
    pub trust: Trust,
    pub crls: Vec<Crl>,
    /// `subjectAltNames` of the rule, one of which must match; empty: the name the connection is for.
    pub names: Vec<String>,
    pub algorithms: WebPkiSupportedAlgorithms,
    pub said: Arc<Said>,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier")
            .field("trust", &self.trust.name())
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if !matches!(self.trust, Trust::Unchecked) {
            self.judge(end_entity, intermediates, server_name, now).map_err(TlsError::into_rustls)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if EndEntityCert::try_from(cert).is_ok() {
            return verify_tls12_signature(message, cert, dss, &self.algorithms);
        }
        let spki = bare_key(cert)?;
        let key = RawPublicKeyEntity::try_from(&spki).map_err(|_| unreadable_key())?;
        // In TLS 1.2 a scheme does not fix the curve: try each algorithm that the scheme may mean for this key.
        let candidates = self.algorithms.mapping.iter().filter(|(scheme, _)| *scheme == dss.scheme);
        for algorithm in candidates.flat_map(|(_, algorithms)| algorithms.iter()) {
            match key.verify_signature(*algorithm, message, dss.signature()) {
                Ok(()) => return Ok(HandshakeSignatureValid::assertion()),
                Err(webpki::Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_)) => {}
                Err(_) => return Err(TlsError::PeerSignature.into_rustls()),
            }
        }
        Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if EndEntityCert::try_from(cert).is_ok() {
            return verify_tls13_signature(message, cert, dss, &self.algorithms);
        }
        verify_tls13_signature_with_raw_key(message, &bare_key(cert)?, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl Verifier {
    fn judge(
        &self,
        leaf_der: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), TlsError> {
        let leaf = inspect::parse(leaf_der)
            .map_err(|why| TlsError::PeerCertificate { certificate: "(unreadable)".to_owned(), why })?;
        if intermediates.len() >= CHAIN_CERTIFICATES {
            return Err(refuse(&leaf, "the server sends too many certificates with it"));
        }
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        self.check_chain(leaf_der, &leaf, intermediates, now, seconds)?;
        self.check_name(leaf_der, &leaf, server_name)
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
            cert.verify_for_usage(all, anchors, intermediates, now, KeyUsage::server_auth(), None, None)
        });
        match (verified, &self.trust) {
            (Ok(verified), trust) => {
                let spki = der::sequence(verified.anchor().subject_public_key_info.as_ref());
                let signs_crls = match trust {
                    Trust::Configured(configured) => check_anchor(configured, &spki, seconds)?,
                    Trust::System(_) | Trust::Unchecked => true,
                };
                if self.crls.is_empty() {
                    return Ok(());
                }
                let ders: Vec<_> = verified.intermediate_certificates().map(|cert| cert.der()).collect();
                let mut certificates = vec![leaf.clone()];
                for der in &ders {
                    certificates.push(inspect::parse(der).map_err(|why| refuse(leaf, &why))?);
                }
                let path = Path { certificates, anchor: Anchor { spki, signs_crls } };
                crl::check(&path, &self.crls, seconds, self.algorithms.all)
            }
            (Err(error), Trust::Configured(configured)) if chain::is_for_us(leaf, &error) => {
                let others: Vec<_> = intermediates.iter().filter_map(|der| inspect::parse(der).ok()).collect();
                let roots: Vec<_> = configured.certificates.iter().filter_map(|der| inspect::parse(der).ok()).collect();
                let path = chain::build(leaf, &others, &roots, &self.trust.name(), seconds, self.algorithms.all)?;
                if leaf.version() == X509Version::V1 && self.said.first(leaf_der, "v1") {
                    log::warn!(
                        "the server certificate {} is X.509 v1, accepted because {} is configured for it: issue it as v3 \
                         with a subjectAltName",
                        distinguished(leaf.subject()),
                        self.trust.name()
                    );
                }
                if self.crls.is_empty() { Ok(()) } else { crl::check(&path, &self.crls, seconds, self.algorithms.all) }
            }
            (Err(error), _) => Err(self.explain(&error, leaf, intermediates, seconds)),
        }
    }

    fn check_name(
        &self,
        leaf_der: &CertificateDer<'_>,
        leaf: &X509Certificate<'_>,
        server_name: &ServerName<'_>,
    ) -> Result<(), TlsError> {
        let asked = [server_name.to_str().into_owned()];
        let expected = if self.names.is_empty() { &asked[..] } else { &self.names[..] };
        let allow_common_name = matches!(self.trust, Trust::Configured(_));
        let matched = expected.iter().find_map(|name| names::matches(leaf_der, leaf, name, allow_common_name));
        match matched {
            Some(Match::SubjectAltName) => Ok(()),
            Some(Match::CommonName) => {
                if self.said.first(leaf_der, "cn") {
                    log::warn!(
                        "the server certificate {} has no subjectAltName, so its CN is taken for its name because {} is \
                         configured for it: issue it with a subjectAltName",
                        distinguished(leaf.subject()),
                        self.trust.name()
                    );
                }
                Ok(())
            }
            None => Err(TlsError::PeerName {
                certificate: distinguished(leaf.subject()),
                presented: names::presented(leaf),
                expected: expected.join(" or "),
            }),
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
                let mut faults =
                    std::iter::once(leaf.clone()).chain(others).filter_map(|c| chain::check_time(&c, now).err());
                faults.next().unwrap_or_else(|| refuse(leaf, &error.to_string()))
            }
            E::UnknownIssuer | E::InvalidSignatureForPublicKey => {
                let issuer = distinguished(leaf.issuer());
                let more = if matches!(error, E::UnknownIssuer) {
                    format!(" (its issuer is {issuer}), or have the server send its intermediates")
                } else {
                    format!(" (a CA named {issuer} is known, but its key did not sign this certificate)")
                };
                TlsError::PeerUntrusted { certificate, trust: self.trust.name(), more }
            }
            E::UnsupportedCertVersion if leaf.version() == X509Version::V1 => {
                refuse(leaf, "it is X.509 v1, which only a CA that the rule itself configures may have issued")
            }
            E::UnsupportedCertVersion => refuse(
                leaf,
                "its chain leads over a certificate that is not X.509 v3, which says nothing about being a CA",
            ),
            other => refuse(leaf, &other.to_string()),
        }
    }
}

/// A configured CA that has expired is trusted no longer (webpki does not look). Returns whether it may sign CRLs. Several
/// certificates may bear the same key: one that is valid is enough.
fn check_anchor(configured: &Configured, spki: &[u8], now: i64) -> Result<bool, TlsError> {
    let mut fault = None;
    for root in configured.roots.iter().filter(|root| root.spki == spki) {
        match chain::check_period(&root.summary, now) {
            Ok(()) => return Ok(root.signs_crls),
            Err(error) => fault = Some(error),
        }
    }
    // None at all cannot be, as the anchors are made from the same certificates; refuse then, too.
    Err(fault
        .unwrap_or_else(|| TlsError::Other { why: "the CA of the chain is not among the configured ones".to_owned() }))
}

fn bare_key(cert: &CertificateDer<'_>) -> Result<SubjectPublicKeyInfoDer<'static>, Error> {
    match inspect::parse(cert) {
        Ok(certificate) => Ok(SubjectPublicKeyInfoDer::from(certificate.public_key().raw.to_vec())),
        Err(_) => Err(unreadable_key()),
    }
}

fn unreadable_key() -> Error {
    rustls::CertificateError::BadEncoding.into()
}
