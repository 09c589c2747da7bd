//! Certificates of our own, as we show them to servers and to clients.

use std::{sync::Arc, time::SystemTime};

use rustls::{crypto::CryptoProvider, sign::CertifiedKey};
use rustls_pki_types::{PrivateKeyDer, pem::PemObject};

use super::{
    TlsError,
    inspect::{self, CertificateSummary},
    material::RawIdentity,
    names::HostNames,
};

/// A chain with its key, and what must be known of it later.
#[derive(Debug)]
pub(super) struct Presented {
    pub key: Arc<CertifiedKey>,
    /// The hosts it is good for.
    pub hosts: HostNames,
    from: String,
    summary: CertificateSummary,
}

impl Presented {
    /// The certificate is not put through webpki, which reads no X.509 v1, though many accept it gladly; that the pair
    /// belongs together is therefore checked here.
    pub(super) fn new(raw: &RawIdentity, provider: &CryptoProvider) -> Result<Self, TlsError> {
        let from = raw.certificate.from.clone();
        let bad = |why| TlsError::BadCertificate { from: from.clone(), why };
        let chain = inspect::certificates(&raw.certificate.bytes).map_err(bad)?;
        let first = chain.first().ok_or_else(|| TlsError::NoCertificate { from: from.clone() })?;
        let leaf = inspect::parse(first).map_err(bad)?;
        let summary = CertificateSummary::of(&leaf);
        for other in chain.iter().skip(1) {
            inspect::parse(other).map_err(bad)?;
        }
        let bad_key = |error: rustls::Error| TlsError::BadKey { from: raw.key.from.clone(), why: error.to_string() };
        let key = provider.key_provider.load_private_key(private_key(raw)?).map_err(bad_key)?;
        // Every key type that aws-lc-rs loads tells its public half; one that did not could not be checked, so: no match.
        if key.public_key().is_none_or(|public| public.as_ref() != leaf.public_key().raw) {
            let (certificate, key) = (from, raw.key.from.clone());
            return Err(TlsError::KeyMismatch { certificate, key, subject: summary.subject });
        }
        let hosts = HostNames::of(&leaf);
        let presented = Self { key: Arc::new(CertifiedKey::new(chain.clone(), key)), hosts, from, summary };
        presented.check_validity()?;
        Ok(presented)
    }

    /// What was valid at the last reload may have expired since.
    pub(super) fn check_validity(&self) -> Result<(), TlsError> {
        let (now, summary) = (inspect::unix_seconds(SystemTime::now()), &self.summary);
        let named = || (self.from.clone(), summary.subject.clone());
        if now > summary.not_after {
            let (from, subject) = named();
            return Err(TlsError::IdentityExpired { from, subject, when: inspect::timestamp(summary.not_after) });
        }
        if now < summary.not_before {
            let (from, subject) = named();
            return Err(TlsError::IdentityNotYetValid { from, subject, when: inspect::timestamp(summary.not_before) });
        }
        Ok(())
    }
}

fn private_key(raw: &RawIdentity) -> Result<PrivateKeyDer<'static>, TlsError> {
    let (from, bytes) = (&raw.key.from, &raw.key.bytes);
    let missing = || TlsError::NoKey { from: from.clone() };
    if inspect::is_der(bytes) {
        return PrivateKeyDer::try_from(bytes.clone()).map_err(|_| missing());
    }
    let text = String::from_utf8_lossy(bytes);
    if text.contains("BEGIN ENCRYPTED PRIVATE KEY") || text.contains("Proc-Type: 4,ENCRYPTED") {
        return Err(TlsError::EncryptedKey { from: from.clone() });
    }
    PrivateKeyDer::from_pem_slice(bytes).map_err(|_| missing())
}
