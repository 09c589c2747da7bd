//! The rows `default` and `ROOTCA` of `proxy-config secret`: our own mesh certificates and the roots, as they are now.

use std::time::{Duration, SystemTime};

use super::{SecretRow, inspect::CertificateSummary, secret_rows::ACTIVE};
use crate::identity::Identities;

/// Of one identity, or of all: `default` for each, then `ROOTCA`. None where no workload is enrolled.
pub(super) fn rows(identities: &Identities, only: Option<&str>) -> Vec<SecretRow> {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(identities.now().as_secs());
    let trust = identities.trust();
    let leaves = identities.leaves();
    let mut rows = Vec::new();
    for (identity, leaf) in leaves.iter().filter(|(identity, _)| only.is_none_or(|only| only == &**identity)) {
        let chain = leaf.key.cert.iter().filter_map(|der| CertificateSummary::from_der(der).ok()).collect();
        rows.push(SecretRow::new("default", namespace(identity), "Cert Chain", ACTIVE.to_owned(), chain, now));
    }
    if let (Some(only), true) = (only, rows.is_empty()) {
        let why = identities.missing(only).or(trust.as_ref().err().cloned());
        let why = why.map_or_else(|| "no certificate was issued yet".to_owned(), |why| why.to_string());
        rows.push(SecretRow::new("default", namespace(only), "Cert Chain", why, Vec::new(), now));
    }
    match trust {
        Ok(trust) => {
            let chain = trust.roots.iter().filter_map(|der| CertificateSummary::from_der(der).ok()).collect();
            let row = SecretRow::new("ROOTCA", "", "CA", ACTIVE.to_owned(), chain, now);
            rows.push(SecretRow { bundle: true, ..row });
        }
        Err(_) if rows.is_empty() => {}
        Err(error) => rows.push(SecretRow::new("ROOTCA", "", "CA", error.to_string(), Vec::new(), now)),
    }
    rows
}

/// Of `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
fn namespace(identity: &str) -> &str {
    identity.split('/').nth(4).unwrap_or_default()
}
