//! The judge of a client's certificate: its chain, never against the system's bundle, then names and pins.

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::{
    DistinguishedName, Error,
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::certificate::X509Certificate;

use super::{
    TlsError,
    inspect::distinguished,
    judge::Judge,
    names::{self, Match},
    signatures::handshake_signatures,
};
use crate::mesh::ClientTrust;

#[derive(Debug)]
pub(super) struct ClientVerifier {
    judge: Judge,
    required: bool,
    /// One of which the certificate must bear; empty: any.
    names: Vec<String>,
    pins: Pins,
    /// The names of the CAs, so that a client with several certificates knows which to show.
    hints: Vec<DistinguishedName>,
}

/// SHA-256 of certificates, and of their keys, one of which must match; none at all: any.
#[derive(Debug)]
struct Pins {
    spki: Vec<[u8; 32]>,
    hashes: Vec<[u8; 32]>,
}

impl ClientVerifier {
    pub(super) fn new(judge: Judge, trust: &ClientTrust, required: bool) -> Result<Self, TlsError> {
        let hints =
            judge.trust.anchors().iter().map(|anchor| DistinguishedName::in_sequence(&anchor.subject)).collect();
        let names = trust.subject_alt_names.clone();
        Ok(Self { judge, required, names, pins: Pins::new(trust)?, hints })
    }

    fn check(
        &self,
        leaf_der: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), TlsError> {
        let leaf = self.judge.check(leaf_der, intermediates, now)?;
        self.check_name(leaf_der, &leaf)?;
        self.pins.check(leaf_der, &leaf)
    }

    /// For a session that is resumed: what it brings along is judged anew.
    pub(super) fn check_again(&self, chain: Option<&[CertificateDer<'_>]>) -> Result<(), Error> {
        match chain.unwrap_or_default() {
            [leaf, others @ ..] => self.check(leaf, others, UnixTime::now()).map_err(TlsError::into_rustls),
            [] if self.required => Err(Error::NoCertificatesPresented),
            [] => Ok(()),
        }
    }

    fn check_name(&self, leaf_der: &CertificateDer<'_>, leaf: &X509Certificate<'_>) -> Result<(), TlsError> {
        if self.names.is_empty() {
            return Ok(());
        }
        let allow_common_name = self.judge.is_configured();
        match self.names.iter().find_map(|name| names::bears(leaf, name, allow_common_name)) {
            Some(Match::SubjectAltName) => Ok(()),
            Some(Match::CommonName) => {
                self.judge.note_common_name(leaf_der, leaf);
                Ok(())
            }
            None => Err(TlsError::ClientName {
                certificate: distinguished(leaf.subject()),
                presented: names::presented(leaf),
                expected: self.names.join(" or "),
            }),
        }
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.required
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity, intermediates, now).map_err(TlsError::into_rustls)?;
        Ok(ClientCertVerified::assertion())
    }

    handshake_signatures!(judge.algorithms);
}

impl Pins {
    fn new(trust: &ClientTrust) -> Result<Self, TlsError> {
        let spki = trust.spki.iter().map(|text| {
            let bytes = STANDARD.decode(text).ok();
            pin(bytes, "verifyCertificateSpki", "in base64", text)
        });
        let hashes = trust.hashes.iter().map(|text| pin(from_hex(text), "verifyCertificateHash", "in hex", text));
        Ok(Self { spki: spki.collect::<Result<_, _>>()?, hashes: hashes.collect::<Result<_, _>>()? })
    }

    fn check(&self, der: &[u8], leaf: &X509Certificate<'_>) -> Result<(), TlsError> {
        if self.spki.is_empty() && self.hashes.is_empty() {
            return Ok(());
        }
        let (hash, spki) = (digest(&SHA256, der), digest(&SHA256, leaf.public_key().raw));
        let among = |pins: &[[u8; 32]], found: &[u8]| pins.iter().any(|pin| pin == found);
        if among(&self.spki, spki.as_ref()) || among(&self.hashes, hash.as_ref()) {
            return Ok(());
        }
        Err(TlsError::ClientPin {
            certificate: distinguished(leaf.subject()),
            hash: super::to_hex(hash.as_ref()),
            spki: STANDARD.encode(spki.as_ref()),
        })
    }
}

fn pin(bytes: Option<Vec<u8>>, field: &'static str, form: &'static str, text: &str) -> Result<[u8; 32], TlsError> {
    let exact = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    exact.ok_or_else(|| TlsError::BadPin { field, form, value: text.to_owned() })
}

/// Colons between bytes may be there, as `openssl x509 -fingerprint` writes them.
fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b':').collect();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|value| u8::try_from(value).ok());
    let pairs = digits.chunks(2).map(|pair| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    });
    pairs.collect()
}
