//! Certificate revocation lists (RFC 5280 section 5), as OpenSSL with `CRL_CHECK_ALL` treats them, and so Envoy.
//!
//! Where a rule has any CRL, every CA of the chain must have one: signed by that CA and not past its nextUpdate. webpki
//! reads only version 2, while `openssl ca -gencrl` makes version 1 by default, and chains built by hand need the check as
//! well: so it is done here for both. Lists that cover only a part (delta, indirect, by distribution point) are refused.

use std::collections::HashSet;

use rustls_pki_types::{CertificateRevocationListDer, SignatureVerificationAlgorithm, pem::PemObject};
use x509_parser::{prelude::FromDer, revocation_list::CertificateRevocationList};

use super::{
    Side, TlsError,
    chain::Path,
    der::Signed,
    inspect::{self, distinguished, timestamp},
    material::Blob,
};

/// One complete list.
#[derive(Debug)]
pub(super) struct Crl {
    /// The issuer's name in DER.
    issuer: Vec<u8>,
    /// The same for people.
    issuer_name: String,
    signed: Signed,
    /// Serial numbers, big-endian without leading zeros.
    revoked: HashSet<Vec<u8>>,
    /// Seconds since the epoch.
    this_update: i64,
    /// Seconds since the epoch.
    next_update: Option<i64>,
}

/// Reads every list of every blob, PEM or DER.
pub(super) fn read_all(blobs: &[Blob]) -> Result<Vec<Crl>, TlsError> {
    let mut lists = Vec::new();
    for blob in blobs {
        let bad = |why: String| TlsError::BadCrl { from: blob.from.clone(), why };
        if inspect::is_der(&blob.bytes) {
            lists.push(read(&blob.bytes).map_err(bad)?);
            continue;
        }
        let before = lists.len();
        for der in CertificateRevocationListDer::pem_slice_iter(&blob.bytes) {
            let der = der.map_err(|error| bad(error.to_string()))?;
            lists.push(read(&der).map_err(bad)?);
        }
        if lists.len() == before {
            return Err(bad("it holds no PEM block BEGIN X509 CRL".to_owned()));
        }
    }
    Ok(lists)
}

fn read(der: &[u8]) -> Result<Crl, String> {
    let (rest, list) = CertificateRevocationList::from_der(der).map_err(|error| error.to_string())?;
    if !rest.is_empty() {
        return Err("bytes follow the list".to_owned());
    }
    let signed = Signed::read(der).ok_or("it is no DER")?;
    if list.signature_algorithm != list.tbs_cert_list.signature {
        return Err("its two algorithm fields differ".to_owned());
    }
    // A critical extension changes what the list covers: delta (2.5.29.27), distribution point (2.5.29.28).
    if let Some(critical) = list.extensions().iter().find(|extension| extension.critical) {
        return Err(format!("it has the critical extension {}, so it is not a complete list", critical.oid));
    }
    let mut revoked = HashSet::new();
    for entry in list.iter_revoked_certificates() {
        if let Some(critical) = entry.extensions().iter().find(|extension| extension.critical) {
            return Err(format!("an entry has the critical extension {}, as indirect lists do", critical.oid));
        }
        revoked.insert(normal(entry.raw_serial()));
    }
    Ok(Crl {
        issuer: list.issuer().as_raw().to_vec(),
        issuer_name: distinguished(list.issuer()),
        signed,
        revoked,
        this_update: list.last_update().timestamp(),
        next_update: list.next_update().map(|time| time.timestamp()),
    })
}

/// Checks every certificate of a path below its anchor.
pub(super) fn check(
    side: Side,
    path: &Path<'_>,
    lists: &[Crl],
    now: i64,
    algorithms: &[&dyn SignatureVerificationAlgorithm],
) -> Result<(), TlsError> {
    for (position, certificate) in path.certificates.iter().enumerate() {
        let issuer_name = distinguished(certificate.issuer());
        let subject = distinguished(certificate.subject());
        let (spki, signs) = match path.certificates.get(position + 1) {
            Some(issuer) => (issuer.public_key().raw, signs_crls(issuer)),
            None => (path.anchor.spki.as_slice(), path.anchor.signs_crls),
        };
        let of_issuer: Vec<&Crl> = lists.iter().filter(|list| list.issuer == certificate.issuer().as_raw()).collect();
        if of_issuer.is_empty() {
            return Err(TlsError::CrlMissing { issuer: issuer_name, certificate: subject });
        }
        let genuine: Vec<&Crl> =
            of_issuer.into_iter().filter(|list| signs && list.signed.verify(spki, algorithms).is_ok()).collect();
        if genuine.is_empty() {
            return Err(TlsError::CrlForged { issuer: issuer_name });
        }
        let serial = normal(certificate.raw_serial());
        if genuine.iter().any(|list| list.revoked.contains(&serial)) {
            let serial = certificate.tbs_certificate.serial.to_string();
            return Err(TlsError::PeerRevoked { peer: side, certificate: subject, serial });
        }
        let current = |list: &&Crl| list.this_update <= now && list.next_update.is_none_or(|next| now < next);
        if !genuine.iter().any(current) {
            let newest = genuine.iter().max_by_key(|list| list.next_update);
            let when = timestamp(newest.and_then(|list| list.next_update).unwrap_or(now));
            let issuer = newest.map_or(issuer_name, |list| list.issuer_name.clone());
            return Err(TlsError::CrlExpired { issuer, when });
        }
    }
    Ok(())
}

/// RFC 5280 section 6.3.3 (f): where keyUsage is there, it must allow signing CRLs.
pub(super) fn signs_crls(issuer: &x509_parser::certificate::X509Certificate<'_>) -> bool {
    match issuer.key_usage() {
        Ok(usage) => usage.is_none_or(|usage| usage.value.crl_sign()),
        Err(_) => false,
    }
}

fn normal(serial: &[u8]) -> Vec<u8> {
    serial.iter().copied().skip_while(|byte| *byte == 0).collect()
}
