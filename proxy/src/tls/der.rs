//! Just enough DER to take a signed object apart: what was signed, the algorithm and the signature.
//!
//! Certificates and CRLs share the outer form `SEQUENCE { tbs, AlgorithmIdentifier, BIT STRING }` (RFC 5280 section 4.1).
//! x509-parser understands what is in them but does not keep the algorithm's raw bytes, by which webpki's algorithms are
//! found.

use rustls_pki_types::{SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer};
use webpki::RawPublicKeyEntity;

const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;

/// A certificate or CRL, taken apart.
#[derive(Clone, Debug)]
pub(crate) struct Signed {
    /// The bytes the signature is over, tag and length included.
    tbs: Vec<u8>,
    /// Content of the AlgorithmIdentifier.
    algorithm: Vec<u8>,
    signature: Vec<u8>,
}

/// Why a signature was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SignatureError {
    /// Made with an algorithm or key that is not accepted (SHA-1, RSA below 2048 bits …).
    Unsupported,
    Wrong,
}

impl Signed {
    pub(crate) fn read(der: &[u8]) -> Option<Self> {
        let (whole, rest) = element(SEQUENCE, der)?;
        let (tbs, after_tbs) = element(SEQUENCE, whole.content)?;
        let (algorithm, after_algorithm) = element(SEQUENCE, after_tbs)?;
        let (bits, end) = element(BIT_STRING, after_algorithm)?;
        // The first byte counts unused bits; a signature is whole bytes.
        let (unused, signature) = bits.content.split_first()?;
        (rest.is_empty() && end.is_empty() && *unused == 0).then(|| Self {
            tbs: tbs.whole.to_vec(),
            algorithm: algorithm.content.to_vec(),
            signature: signature.to_vec(),
        })
    }

    /// Whether the key in `spki` (a whole SubjectPublicKeyInfo) made the signature.
    pub(crate) fn verify(
        &self,
        spki: &[u8],
        algorithms: &[&dyn SignatureVerificationAlgorithm],
    ) -> Result<(), SignatureError> {
        let spki = SubjectPublicKeyInfoDer::from(spki);
        let key = RawPublicKeyEntity::try_from(&spki).map_err(|_| SignatureError::Unsupported)?;
        let mut result = Err(SignatureError::Unsupported);
        for algorithm in algorithms.iter().filter(|known| known.signature_alg_id().as_ref() == self.algorithm) {
            match key.verify_signature(*algorithm, &self.tbs, &self.signature) {
                Ok(()) => return Ok(()),
                // Another curve with the same digest: the next candidate may be for this key.
                Err(webpki::Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_)) => {}
                Err(_) => result = Err(SignatureError::Wrong),
            }
        }
        result
    }
}

/// The parts of a certificate around its issuer's name, each with its tag, as they are.
pub(crate) struct Parts<'a> {
    /// Version, serial number and algorithm, as X.509 v3 has them.
    pub before_issuer: &'a [u8],
    /// Validity and what follows.
    pub after_issuer: &'a [u8],
    /// The outer AlgorithmIdentifier.
    pub algorithm: &'a [u8],
}

/// Takes an X.509 v3 certificate apart at its issuer's name (RFC 5280 section 4.1).
pub(crate) fn certificate(der: &[u8]) -> Option<Parts<'_>> {
    const VERSION: u8 = 0xa0;
    const INTEGER: u8 = 0x02;
    let (whole, _) = element(SEQUENCE, der)?;
    let (tbs, after_tbs) = element(SEQUENCE, whole.content)?;
    let (algorithm, _) = element(SEQUENCE, after_tbs)?;
    let (_, rest) = element(VERSION, tbs.content)?;
    let (_, rest) = element(INTEGER, rest)?;
    let (_, from_issuer) = element(SEQUENCE, rest)?;
    let (_, after_issuer) = element(SEQUENCE, from_issuer)?;
    let before_issuer = tbs.content.get(..tbs.content.len() - from_issuer.len())?;
    Some(Parts { before_issuer, after_issuer, algorithm: algorithm.whole })
}

/// A signature as a BIT STRING of whole bytes.
pub(crate) fn bit_string(bytes: &[u8]) -> Vec<u8> {
    wrap(BIT_STRING, &[&[0], bytes].concat())
}

/// `content` as a SEQUENCE: webpki hands out names and keys without their outer tag.
pub(crate) fn sequence(content: &[u8]) -> Vec<u8> {
    wrap(SEQUENCE, content)
}

/// `content` under a tag.
pub(crate) fn wrap(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match u8::try_from(content.len()) {
        Ok(short) if short < 0x80 => out.push(short),
        _ => {
            let bytes = content.len().to_be_bytes();
            let bytes = &bytes[bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len())..];
            // At most 8 bytes: a usize.
            out.push(0x80 | bytes.len() as u8);
            out.extend_from_slice(bytes);
        }
    }
    out.extend_from_slice(content);
    out
}

struct Element<'a> {
    whole: &'a [u8],
    content: &'a [u8],
}

/// The element of this tag at the start of `input`, and what follows it. DER lengths only: definite and shortest.
fn element(tag: u8, input: &[u8]) -> Option<(Element<'_>, &[u8])> {
    let (&first, rest) = input.split_first()?;
    let (&length, rest) = rest.split_first()?;
    let (length, rest) = match length {
        0..=0x7f => (usize::from(length), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
            let value = bytes.iter().fold(0_usize, |value, byte| value << 8 | usize::from(*byte));
            let shortest = bytes.first() != Some(&0) && value >= 0x80;
            (shortest.then_some(value)?, rest)
        }
        _ => return None,
    };
    let content = rest.get(..length)?;
    let rest = &rest[length..];
    let whole = &input[..input.len() - rest.len()];
    (first == tag).then_some((Element { whole, content }, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_of_all_lengths_are_read_back() {
        for length in [0, 1, 0x7f, 0x80, 0xff, 0x100, 0x1_0000] {
            let content = vec![7; length];
            let wrapped = sequence(&content);
            let (element, rest) = element(SEQUENCE, &wrapped).unwrap();
            assert_eq!((element.content, element.whole, rest.len()), (&content[..], &wrapped[..], 0), "{length}");
        }
    }

    #[test]
    fn what_is_not_der_is_refused() {
        for bad in
            [&[][..], &[0x30], &[0x30, 0x80, 0, 0], &[0x30, 0x81, 1, 0], &[0x30, 0x82, 0, 0x80], &[0x30, 5, 0], &[4, 0]]
        {
            assert!(element(SEQUENCE, bad).is_none(), "{bad:?}");
            assert!(Signed::read(bad).is_none(), "{bad:?}");
        }
    }
}
