//! The certificate authority of the mesh: what signs the pods' certificates, and what they are checked against.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber, SignatureAlgorithm,
    SigningKey, string::Ia5String,
};
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject};
use x509_parser::{certificate::X509Certificate, extensions::ParsedExtension};

use super::{
    IdentityError,
    leaf::{self, Leaf, verify},
};
use crate::{
    limits::{CLOCK_SKEW, EXPIRY_WARNING, LEAF_LIFETIME, ROOT_LIFETIME},
    tls::{
        der,
        inspect::{self, CertificateSummary},
    },
};

/// The four parts of a CA as Istio names them, in PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthorityPem {
    /// In words, for messages: `secret istio-system/cacerts`, or a folder.
    pub from: String,
    /// `ca-cert.pem`: the certificate that issues.
    pub certificate: Vec<u8>,
    /// `ca-key.pem`
    pub key: Vec<u8>,
    /// `root-cert.pem`: what is trusted; several during a rotation.
    pub roots: Vec<u8>,
    /// `cert-chain.pem`: from the issuing certificate towards the root. Empty: the issuing certificate alone.
    pub chain: Vec<u8>,
}

impl std::fmt::Debug for AuthorityPem {
    /// Says where from, never what: a private key is in it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthorityPem").field("from", &self.from).finish_non_exhaustive()
    }
}

/// A CA that was found fit to issue.
#[derive(Debug)]
pub(crate) struct Authority {
    pub pem: AuthorityPem,
    pub certificate: CertificateDer<'static>,
    pub summary: CertificateSummary,
    pub roots: Vec<CertificateDer<'static>>,
    /// What is sent after a leaf: intermediates, without the roots, which the peer must have itself.
    chain: Vec<CertificateDer<'static>>,
    key: KeyPair,
    /// Writes what is to be signed: everything but the issuer's name and the signature.
    draft: Issuer<'static, PublicKey>,
}

impl Authority {
    /// Takes a CA on: key and certificate match, it may issue, it is valid at `now`, and what it issues leads to its roots.
    pub fn new(pem: AuthorityPem, now: UnixTime) -> Result<Self, IdentityError> {
        let from = &pem.from;
        let bad = |part: &str, why: String| IdentityError::BadCertificate { from: format!("{from}, {part}"), why };
        let read = |part: &str, bytes: &[u8]| inspect::certificates(bytes).map_err(|why| bad(part, why));
        let nothing = || "it holds no certificate".to_owned();
        let certificate = read("ca-cert.pem", &pem.certificate)?;
        let certificate = certificate.into_iter().next().ok_or_else(|| bad("ca-cert.pem", nothing()))?;
        let parsed = inspect::parse(&certificate).map_err(|why| bad("ca-cert.pem", why))?;
        let summary = CertificateSummary::of(&parsed);
        let signs = parsed.key_usage().map_err(|error| bad("ca-cert.pem", error.to_string()))?;
        if !summary.is_ca || signs.is_some_and(|usage| !usage.value.key_cert_sign()) {
            return Err(IdentityError::NotCa { from: from.clone(), subject: summary.subject });
        }
        check_time(from, &summary, now)?;
        let key = signing_key(&pem, parsed.public_key().raw, &summary)?;
        let roots = read("root-cert.pem", &pem.roots)?;
        if roots.is_empty() {
            return Err(bad("root-cert.pem", nothing()));
        }
        let mut chain = read("cert-chain.pem", &pem.chain)?;
        if chain.first() != Some(&certificate) {
            chain.insert(0, certificate.clone());
        }
        chain.retain(|certificate| !roots.contains(certificate));
        let draft = draft(&parsed, &key);
        drop(parsed);
        let new = Self { certificate, summary, roots, chain, key, draft, pem };
        new.probe(now)?;
        Ok(new)
    }

    /// The issuing certificate or a root of it that soon runs out.
    pub fn expiring(&self, now: UnixTime) -> Option<IdentityError> {
        let roots = self.roots.iter().filter_map(|root| CertificateSummary::from_der(root).ok());
        let soon = seconds(now) + lasting(EXPIRY_WARNING);
        let first =
            std::iter::once(self.summary.clone()).chain(roots).find(|certificate| certificate.not_after < soon)?;
        let when = inspect::timestamp(first.not_after);
        Some(IdentityError::Expiring { from: self.pem.from.clone(), subject: first.subject, when })
    }

    /// A certificate of a workload with a key of its own, which is made here.
    pub fn issue(&self, identity: &str, now: UnixTime) -> Result<Leaf, IdentityError> {
        let key = leaf::new_key(identity)?;
        let chain = self.certify(identity, &key, LEAF_LIFETIME, now)?;
        Leaf::new(identity, key, chain, now)
    }

    /// The certificate of a workload for the key that somebody has, valid from a little before `now` and for `lifetime`, and
    /// behind it what a peer needs to find the way to a root.
    pub fn certify(
        &self,
        identity: &str,
        key: &impl PublicKeyData,
        lifetime: Duration,
        now: UnixTime,
    ) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
        check_time(&self.pem.from, &self.summary, now)?;
        let failed = |why: String| IdentityError::Issue { identity: identity.to_owned(), why };
        let name = Ia5String::try_from(identity).map_err(|error| failed(error.to_string()))?;
        let seconds = seconds(now);
        // No certificate outlives the one that issued it: a peer would refuse the chain.
        let not_after = (seconds + lasting(lifetime)).min(self.summary.not_after);
        let mut params = CertificateParams::default();
        set_validity(&mut params, seconds - lasting(CLOCK_SKEW), not_after);
        params.serial_number = Some(random_serial());
        // An empty subject makes the SAN critical, as RFC 5280 section 4.2.1.6 wants it and Istio does it.
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(name)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let draft = params.signed_by(key, &self.draft).map_err(|error| failed(error.to_string()))?;
        let leaf = self.sign(draft.der()).map_err(failed)?;
        Ok(std::iter::once(leaf).chain(self.chain.iter().cloned()).collect())
    }

    /// Puts our CA's name into a draft, byte by byte as its certificate has it, and signs. rcgen would write the name anew,
    /// which loses some of them (`DC=corp, DC=example` becomes one part), and peers compare bytes.
    fn sign(&self, draft: &CertificateDer<'_>) -> Result<CertificateDer<'static>, String> {
        let own = inspect::parse(&self.certificate)?;
        let parts = der::certificate(draft).ok_or("its draft cannot be read")?;
        let tbs = der::sequence(&[parts.before_issuer, own.subject().as_raw(), parts.after_issuer].concat());
        let signature = SigningKey::sign(&self.key, &tbs).map_err(|error| error.to_string())?;
        Ok(CertificateDer::from(der::sequence(&[&tbs, parts.algorithm, &der::bit_string(&signature)].concat())))
    }

    /// Issues one certificate and has it verified, as a peer would.
    fn probe(&self, now: UnixTime) -> Result<(), IdentityError> {
        let leaf = self.issue("spiffe://probe.invalid/ns/probe/sa/probe", now)?;
        verify(&leaf.key.cert, &self.roots, now)
            .map_err(|why| IdentityError::NoPath { from: self.pem.from.clone(), why })
    }
}

/// A public key and what it signs with, as certificates bear it.
#[derive(Debug)]
pub(crate) struct PublicKey {
    pub bits: Vec<u8>,
    pub algorithm: &'static SignatureAlgorithm,
}

impl PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.bits
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}

/// Signs nothing: of a draft only what is to be signed counts.
impl SigningKey for PublicKey {
    fn sign(&self, _message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(Vec::new())
    }
}

fn draft(certificate: &X509Certificate<'_>, key: &KeyPair) -> Issuer<'static, PublicKey> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let identifier = certificate.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(identifier) => Some(identifier.0.to_vec()),
        _ => None,
    });
    if let Some(identifier) = identifier {
        params.key_identifier_method = KeyIdMethod::PreSpecified(identifier);
    }
    let bits = PublicKeyData::der_bytes(key).to_vec();
    Issuer::new(params, PublicKey { bits, algorithm: key.algorithm() })
}

/// A new root that issues by itself.
pub(crate) fn new_root(from: String, now: UnixTime) -> Result<AuthorityPem, IdentityError> {
    let failed =
        |error: rcgen::Error| IdentityError::Issue { identity: "the mesh CA".to_owned(), why: error.to_string() };
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let mut params = CertificateParams::default();
    let seconds = seconds(now);
    set_validity(&mut params, seconds - lasting(CLOCK_SKEW), seconds + lasting(ROOT_LIFETIME));
    let serial = random_serial();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "egret");
    // Roots of several nodes, or of a time before, must not be mistaken for one another by their names.
    params.distinguished_name.push(DnType::CommonName, format!("egret mesh CA {serial}"));
    params.serial_number = Some(serial);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let root = params.self_signed(&key).map_err(failed)?.pem().into_bytes();
    let key = key.serialize_pem().into_bytes();
    Ok(AuthorityPem { from, certificate: root.clone(), key, roots: root, chain: Vec::new() })
}

fn signing_key(pem: &AuthorityPem, public: &[u8], summary: &CertificateSummary) -> Result<KeyPair, IdentityError> {
    let bad = |why: String| IdentityError::BadKey { from: format!("{}, ca-key.pem", pem.from), why };
    let key = PrivateKeyDer::from_pem_slice(&pem.key).map_err(|error| bad(inspect::pem_fault(&error)))?;
    // rustls's loader tells the public half as it stands in a certificate, and refuses keys that are too weak.
    let loaded = aws_lc_rs::sign::any_supported_type(&key).map_err(|error| bad(error.to_string()))?;
    if loaded.public_key().is_none_or(|own| own.as_ref() != public) {
        return Err(IdentityError::KeyMismatch {
            key: "ca-key.pem".to_owned(),
            certificate: format!("ca-cert.pem in {}", pem.from),
            subject: summary.subject.clone(),
            other: ": put the matching pair there",
        });
    }
    KeyPair::try_from(&key).map_err(|error| bad(error.to_string()))
}

fn check_time(from: &str, summary: &CertificateSummary, now: UnixTime) -> Result<(), IdentityError> {
    let (from, subject, now) = (from.to_owned(), summary.subject.clone(), seconds(now));
    if now > summary.not_after {
        return Err(IdentityError::Expired { from, subject, when: inspect::timestamp(summary.not_after) });
    }
    // The CA may have been made on a node whose clock is a little ahead.
    if now + lasting(CLOCK_SKEW) < summary.not_before {
        return Err(IdentityError::NotYetValid { from, subject, when: inspect::timestamp(summary.not_before) });
    }
    Ok(())
}

/// 127 random bits: positive, and unique without counting (RFC 5280 section 4.1.2.2).
fn random_serial() -> SerialNumber {
    SerialNumber::from((rand::random::<u128>() >> 1).to_be_bytes().to_vec())
}

pub(crate) fn seconds(time: UnixTime) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

pub(crate) fn lasting(time: Duration) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

fn set_validity(params: &mut CertificateParams, not_before: i64, not_after: i64) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let at = |seconds: i64| epoch + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    (params.not_before, params.not_after) = (at(not_before), at(not_after));
}
