//! A workload's certificate: its key, its life, and whether peers would take it.

use std::sync::Arc;

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::{crypto::aws_lc_rs, sign::CertifiedKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use super::{
    IdentityError,
    authority::{lasting, seconds},
};
use crate::{
    limits::{LEAF_RENEW_AT, LEAF_RENEW_JITTER},
    tls::inspect::CertificateSummary,
};

/// A workload's certificate with its key, which is in memory only.
#[derive(Debug)]
pub struct Leaf {
    pub key: Arc<CertifiedKey>,
    pub summary: CertificateSummary,
    /// Seconds since the epoch.
    pub(super) renew_at: i64,
}

impl Leaf {
    /// From a key and what was issued for it, the leaf first.
    pub(super) fn new(
        identity: &str,
        key: KeyPair,
        chain: Vec<CertificateDer<'static>>,
        now: UnixTime,
    ) -> Result<Self, IdentityError> {
        let failed = |why: String| IdentityError::Issue { identity: identity.to_owned(), why };
        let leaf = chain.first().ok_or_else(|| failed("there is no certificate".to_owned()))?;
        let summary = CertificateSummary::from_der(leaf).map_err(failed)?;
        let key = PrivateKeyDer::from(key);
        let key = aws_lc_rs::sign::any_supported_type(&key).map_err(|error| failed(error.to_string()))?;
        let key = CertifiedKey::new(chain, key);
        key.keys_match().map_err(|error| failed(error.to_string()))?;
        let seconds = seconds(now);
        let half = lasting(LEAF_RENEW_AT).min((summary.not_after - seconds) / 2);
        let early = rand::random_range(0..=lasting(LEAF_RENEW_JITTER)).min(half / 10);
        Ok(Self { key: Arc::new(key), summary, renew_at: seconds + half - early })
    }

    /// Valid, and not due for renewal.
    pub(super) fn is_fresh(&self, now: UnixTime) -> bool {
        let now = seconds(now);
        self.summary.not_before <= now && now < self.renew_at
    }
}

/// A key for a workload's certificate: what every peer of the mesh can verify, at the least cost.
pub(super) fn new_key(identity: &str) -> Result<KeyPair, IdentityError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
        .map_err(|error| IdentityError::Issue { identity: identity.to_owned(), why: error.to_string() })
}

/// Whether a peer that trusts these roots would take the chain, from both sides of a connection. Errors: a sentence fragment.
pub(crate) fn verify(
    chain: &[CertificateDer<'static>],
    roots: &[CertificateDer<'static>],
    now: UnixTime,
) -> Result<(), String> {
    let (leaf, intermediates) = chain.split_first().ok_or("there is no certificate")?;
    let leaf = EndEntityCert::try_from(leaf).map_err(|error| error.to_string())?;
    let anchors: Result<Vec<_>, _> = roots.iter().map(webpki::anchor_from_trusted_cert).collect();
    let anchors = anchors.map_err(|error| error.to_string())?;
    for usage in [KeyUsage::client_auth(), KeyUsage::server_auth()] {
        leaf.verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &anchors, intermediates, now, usage, None, None)
            .map_err(|error| error.to_string())?;
    }
    Ok(())
}
