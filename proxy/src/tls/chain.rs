//! Chains with X.509 v1 in them, which webpki does not read, built and checked by hand: only below a CA that was configured
//! for the destination, or for the clients of a server.
//!
//! The rules are RFC 5280's, at their strictest where leaving something out would only make old certificates work less:
//! - each signature is checked with the algorithms webpki accepts (no SHA-1, no RSA below 2048 bits);
//! - every certificate, the root included, is within its validity period;
//! - what the peer sends as an intermediate must be v3 with `CA:TRUE`: a v1 certificate says nothing about being a CA, so
//!   any v1 leaf of the CA could otherwise issue certificates. Only a configured root may be v1;
//! - pathLen, keyUsage and extendedKeyUsage count where they are; name constraints and unknown critical extensions refuse;
//! - a leaf that is itself in the configured bundle is trusted as it is (self-signed, pinned).

use rustls_pki_types::SignatureVerificationAlgorithm;
use x509_parser::{certificate::X509Certificate, oid_registry, prelude::X509Version};

use super::{
    Side, TlsError, crl,
    der::{SignatureError, Signed},
    inspect::{CertificateSummary, distinguished, timestamp},
};
use crate::limits::{CHAIN_DEPTH, CHAIN_SIGNATURES};

/// A checked path.
pub(super) struct Path<'a> {
    /// The peer's own certificate first; empty where that one is itself the anchor.
    pub certificates: Vec<X509Certificate<'a>>,
    pub anchor: Anchor,
}

pub(super) struct Anchor {
    /// SubjectPublicKeyInfo in DER.
    pub spki: Vec<u8>,
    pub signs_crls: bool,
}

impl Anchor {
    pub(super) fn of(root: &X509Certificate<'_>) -> Self {
        Self { spki: root.public_key().raw.to_vec(), signs_crls: crl::signs_crls(root) }
    }
}

/// Whether a chain is one for this module: webpki cannot read a certificate of it, or takes the peer's own for a CA.
pub(super) fn is_for_us(leaf: &X509Certificate<'_>, error: &webpki::Error) -> bool {
    use webpki::Error as E;
    match error {
        E::UnsupportedCertVersion => leaf.version() == X509Version::V1,
        // A self-signed certificate from `openssl req -x509` says CA:TRUE.
        E::CaUsedAsEndEntity => true,
        _ => false,
    }
}

/// Builds a path from `leaf` to one of `roots`. `trust` names the roots in messages.
pub(super) fn build<'a>(
    side: Side,
    leaf: &X509Certificate<'a>,
    intermediates: &[X509Certificate<'a>],
    roots: &[X509Certificate<'_>],
    trust: &str,
    now: i64,
    algorithms: &[&dyn SignatureVerificationAlgorithm],
) -> Result<Path<'a>, TlsError> {
    check_time(side, leaf, now)?;
    check_leaf(side, leaf)?;
    if let Some(root) = roots.iter().find(|root| root.as_raw() == leaf.as_raw()) {
        return Ok(Path { certificates: Vec::new(), anchor: Anchor::of(root) });
    }
    let mut search = Search {
        side,
        intermediates,
        roots,
        now,
        algorithms,
        signatures: CHAIN_SIGNATURES,
        path: vec![leaf.clone()],
        error: None,
    };
    match search.extend() {
        Some(anchor) => Ok(Path { certificates: search.path, anchor }),
        None => Err(search.error.unwrap_or_else(|| TlsError::PeerUntrusted {
            peer: side,
            certificate: distinguished(leaf.subject()),
            trust: trust.to_owned(),
            more: format!(" (its issuer is {})", distinguished(leaf.issuer())),
        })),
    }
}

struct Search<'s, 'a> {
    side: Side,
    intermediates: &'s [X509Certificate<'a>],
    roots: &'s [X509Certificate<'s>],
    now: i64,
    algorithms: &'s [&'s dyn SignatureVerificationAlgorithm],
    /// Signatures that may still be checked.
    signatures: usize,
    /// From the leaf to the certificate whose issuer is sought.
    path: Vec<X509Certificate<'a>>,
    /// The first thing found wrong with a path that went further than a missing issuer.
    error: Option<TlsError>,
}

impl Search<'_, '_> {
    fn extend(&mut self) -> Option<Anchor> {
        let last = self.path.last()?.clone();
        let (side, roots, intermediates) = (self.side, self.roots, self.intermediates);
        for root in roots.iter().filter(|root| root.subject().as_raw() == last.issuer().as_raw()) {
            match self.issued(&last, root).and_then(|()| check_root(side, root)) {
                Ok(()) => return Some(Anchor::of(root)),
                Err(error) => self.note(error),
            }
        }
        if self.path.len() > CHAIN_DEPTH {
            return None;
        }
        for issuer in intermediates.iter().filter(|issuer| issuer.subject().as_raw() == last.issuer().as_raw()) {
            if self.path.iter().any(|used| used.as_raw() == issuer.as_raw()) {
                continue;
            }
            match self.issued(&last, issuer).and_then(|()| check_intermediate(side, issuer, &self.path)) {
                Ok(()) => {
                    self.path.push(issuer.clone());
                    if let Some(anchor) = self.extend() {
                        return Some(anchor);
                    }
                    self.path.pop();
                }
                Err(error) => self.note(error),
            }
        }
        None
    }

    /// Whether the key of `issuer` signed `certificate`, and `issuer` is valid now.
    fn issued(&mut self, certificate: &X509Certificate<'_>, issuer: &X509Certificate<'_>) -> Result<(), TlsError> {
        let (side, subject) = (self.side, distinguished(certificate.subject()));
        if self.signatures == 0 {
            return Err(refuse(side, certificate, "the chain takes too many signatures to check"));
        }
        self.signatures -= 1;
        let signed = Signed::read(certificate.as_raw())
            .filter(|_| certificate.signature_algorithm == certificate.tbs_certificate.signature)
            .ok_or_else(|| refuse(side, certificate, "its signature cannot be read"))?;
        match signed.verify(issuer.public_key().raw, self.algorithms) {
            Ok(()) => check_time(side, issuer, self.now),
            Err(SignatureError::Unsupported) => {
                Err(refuse(side, certificate, "it is signed with an algorithm or key that is too weak or not known"))
            }
            Err(SignatureError::Wrong) => Err(TlsError::PeerUntrusted {
                peer: side,
                certificate: subject,
                trust: distinguished(issuer.subject()),
                more: " (a CA of that name is known, but its key did not sign this certificate)".to_owned(),
            }),
        }
    }

    fn note(&mut self, error: TlsError) {
        self.error.get_or_insert(error);
    }
}

/// `webpki` checks no anchor's validity period; OpenSSL does, and so is it done here for a CA that was configured.
pub(super) fn check_time(side: Side, certificate: &X509Certificate<'_>, now: i64) -> Result<(), TlsError> {
    check_period(side, &CertificateSummary::of(certificate), now)
}

pub(super) fn check_period(side: Side, certificate: &CertificateSummary, now: i64) -> Result<(), TlsError> {
    let name = || certificate.subject.clone();
    if now > certificate.not_after {
        return Err(TlsError::PeerExpired { peer: side, certificate: name(), when: timestamp(certificate.not_after) });
    }
    if now < certificate.not_before {
        return Err(TlsError::PeerNotYetValid {
            peer: side,
            certificate: name(),
            when: timestamp(certificate.not_before),
        });
    }
    Ok(())
}

fn check_leaf(side: Side, leaf: &X509Certificate<'_>) -> Result<(), TlsError> {
    check_form(side, leaf)?;
    let damaged = |_| refuse(side, leaf, "an extension occurs twice");
    if let Some(usage) = leaf.extended_key_usage().map_err(damaged)?
        && !side.is_allowed_by(usage.value)
    {
        return Err(refuse(side, leaf, side.wrong_usage()));
    }
    if let Some(usage) = leaf.key_usage().map_err(damaged)?
        && !(usage.value.digital_signature() || usage.value.key_encipherment() || usage.value.key_agreement())
    {
        return Err(refuse(side, leaf, "its keyUsage is not for TLS"));
    }
    Ok(())
}

/// `below`: the path so far, the leaf first.
fn check_intermediate(side: Side, issuer: &X509Certificate<'_>, below: &[X509Certificate<'_>]) -> Result<(), TlsError> {
    check_form(side, issuer)?;
    let damaged = |_| refuse(side, issuer, "an extension occurs twice");
    let constraints = issuer.basic_constraints().map_err(damaged)?;
    let Some(constraints) = constraints.filter(|constraints| constraints.value.ca) else {
        return Err(refuse(side, issuer, "it is no CA certificate, yet it issued another"));
    };
    // Self-issued certificates do not count (RFC 5280 section 4.2.1.9); counting them is only stricter.
    let intermediates_below = below.len().saturating_sub(1);
    if constraints.value.path_len_constraint.is_some_and(|most| intermediates_below > most as usize) {
        return Err(refuse(side, issuer, "its pathLenConstraint does not allow so long a chain"));
    }
    if let Some(usage) = issuer.extended_key_usage().map_err(damaged)?
        && !side.is_allowed_by(usage.value)
    {
        return Err(refuse(side, issuer, side.wrong_usage()));
    }
    check_key_cert_sign(side, issuer)
}

/// A root is trusted because somebody configured it; what it says about itself counts all the same where it says it.
fn check_root(side: Side, root: &X509Certificate<'_>) -> Result<(), TlsError> {
    check_form(side, root)?;
    let damaged = |_| refuse(side, root, "an extension occurs twice");
    if root.basic_constraints().map_err(damaged)?.is_some_and(|constraints| !constraints.value.ca) {
        return Err(refuse(side, root, "it is no CA certificate, yet it issued another"));
    }
    check_key_cert_sign(side, root)
}

fn check_key_cert_sign(side: Side, issuer: &X509Certificate<'_>) -> Result<(), TlsError> {
    match issuer.key_usage() {
        Ok(usage) if usage.as_ref().is_none_or(|usage| usage.value.key_cert_sign()) => Ok(()),
        _ => Err(refuse(side, issuer, "its keyUsage does not allow issuing certificates")),
    }
}

/// Version and extensions that are understood.
fn check_form(side: Side, certificate: &X509Certificate<'_>) -> Result<(), TlsError> {
    match certificate.version() {
        X509Version::V3 => {}
        X509Version::V1 if certificate.extensions().is_empty() => return Ok(()),
        _ => return Err(refuse(side, certificate, "it is neither X.509 v3 nor plain v1")),
    }
    let understood = [
        oid_registry::OID_X509_EXT_BASIC_CONSTRAINTS,
        oid_registry::OID_X509_EXT_KEY_USAGE,
        oid_registry::OID_X509_EXT_EXTENDED_KEY_USAGE,
        oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME,
    ];
    for extension in certificate.extensions() {
        if extension.oid == oid_registry::OID_X509_EXT_NAME_CONSTRAINTS {
            return Err(refuse(
                side,
                certificate,
                "it has name constraints, which are not checked beside X.509 v1 certificates",
            ));
        }
        if extension.critical && !understood.contains(&extension.oid) {
            return Err(refuse(side, certificate, "it has a critical extension that is not understood"));
        }
        if extension.parsed_extension().error().is_some() {
            return Err(refuse(side, certificate, "an extension of it cannot be read"));
        }
    }
    Ok(())
}

pub(super) fn refuse(side: Side, certificate: &X509Certificate<'_>, why: &str) -> TlsError {
    TlsError::PeerCertificate { peer: side, certificate: distinguished(certificate.subject()), why: why.to_owned() }
}
