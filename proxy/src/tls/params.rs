//! `tlsDefaults`: protocol versions, cipher suites and curves by the names that Istio's users write.

use rustls::{
    SupportedCipherSuite, SupportedProtocolVersion,
    crypto::{
        CryptoProvider, SupportedKxGroup,
        aws_lc_rs::{self, cipher_suite as suite, kx_group as group},
    },
};

use super::{TlsError, p521};

/// OpenSSL's name, the IANA name, the suite.
const SUITES: [(&str, &str, SupportedCipherSuite); 9] = [
    (
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
        suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    ),
    (
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
        suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    ),
    (
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
    (
        "ECDHE-RSA-AES256-GCM-SHA384",
        "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
        suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    ),
    (
        "ECDHE-RSA-AES128-GCM-SHA256",
        "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    ),
    (
        "ECDHE-RSA-CHACHA20-POLY1305",
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
        suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
    ("TLS_AES_256_GCM_SHA384", "TLS_AES_256_GCM_SHA384", suite::TLS13_AES_256_GCM_SHA384),
    ("TLS_AES_128_GCM_SHA256", "TLS_AES_128_GCM_SHA256", suite::TLS13_AES_128_GCM_SHA256),
    ("TLS_CHACHA20_POLY1305_SHA256", "TLS_CHACHA20_POLY1305_SHA256", suite::TLS13_CHACHA20_POLY1305_SHA256),
];

/// OpenSSL's name of a suite.
pub(super) fn suite_name(of: SupportedCipherSuite) -> Option<&'static str> {
    SUITES.iter().find(|(_, _, suite)| suite.suite() == of.suite()).map(|(openssl, _, _)| *openssl)
}

/// Names of a curve, in lower case, Istio's first.
static CURVES: [(&[&str], &dyn SupportedKxGroup); 6] = [
    (&["x25519mlkem768"], group::X25519MLKEM768),
    (&["secp256r1mlkem768"], group::SECP256R1MLKEM768),
    (&["x25519"], group::X25519),
    (&["p-256", "secp256r1", "prime256v1"], group::SECP256R1),
    (&["p-384", "secp384r1"], group::SECP384R1),
    (&["p-521", "secp521r1"], p521::SECP521R1),
];

/// What is offered to peers under these settings; nothing named: all there is.
pub(super) fn provider(cipher_suites: &[String], curves: &[String]) -> Result<CryptoProvider, TlsError> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups.push(p521::SECP521R1);
    if cipher_suites.is_empty() {
        provider.cipher_suites = cheapest_first(provider.cipher_suites);
    } else {
        provider.cipher_suites = suites(cipher_suites, provider.cipher_suites)?;
    }
    if !curves.is_empty() {
        provider.kx_groups = curves.iter().map(|name| curve(name)).collect::<Result<_, _>>()?;
    }
    Ok(provider)
}

/// AES-128 with SHA-256 before AES-256 with SHA-384, within each version: a handshake costs a tenth less where the processor
/// has instructions for SHA-256 (none has them for SHA-384), and nobody can break either. Envoy and browsers offer them so.
fn cheapest_first(mut all: Vec<SupportedCipherSuite>) -> Vec<SupportedCipherSuite> {
    all.sort_by_key(|suite| {
        let name = suite_name(*suite).unwrap_or_default();
        let size =
            if name.contains("AES128") || name.contains("AES_128") { 0 } else { 1 + u8::from(!name.contains("AES")) };
        (suite.tls13().is_none(), size)
    });
    all
}

static ONLY_12: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12];
static ONLY_13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// All versions from the one named on. Older versions as a minimum mean 1.2: nothing older is spoken.
pub(super) fn at_least(min: Option<&str>) -> Result<&'static [&'static SupportedProtocolVersion], TlsError> {
    between(min, None)
}

/// Those of TLS 1.2 and 1.3 that lie between the versions named.
pub(super) fn between(
    min: Option<&str>,
    max: Option<&str>,
) -> Result<&'static [&'static SupportedProtocolVersion], TlsError> {
    let number = |field, name: Option<&str>| match name.unwrap_or_default() {
        "" | "TLS_AUTO" => Ok(None),
        "TLSV1_0" => Ok(Some(0)),
        "TLSV1_1" => Ok(Some(1)),
        "TLSV1_2" => Ok(Some(2)),
        "TLSV1_3" => Ok(Some(3)),
        name => Err(TlsError::UnknownVersion { field, name: name.to_owned() }),
    };
    let (lowest, highest) = (number("minProtocolVersion", min)?, number("maxProtocolVersion", max)?);
    let text = |name: Option<&str>| name.unwrap_or_default().to_owned();
    match (lowest.unwrap_or(0), highest.unwrap_or(3)) {
        (lowest, highest) if lowest > highest => Err(TlsError::NoVersion { min: text(min), max: text(max) }),
        (_, 0 | 1) => Err(TlsError::TooOld { max: text(max) }),
        (_, 2) => Ok(ONLY_12),
        (3, _) => Ok(ONLY_13),
        _ => Ok(rustls::ALL_VERSIONS),
    }
}

/// A list that names suites of one TLS version only says nothing about the other, whose suites then stay.
fn suites(names: &[String], all: Vec<SupportedCipherSuite>) -> Result<Vec<SupportedCipherSuite>, TlsError> {
    let mut chosen = Vec::new();
    for name in names {
        let known = SUITES
            .iter()
            .find(|(openssl, iana, _)| name.eq_ignore_ascii_case(openssl) || name.eq_ignore_ascii_case(iana));
        match known {
            Some((_, _, suite)) => chosen.push(*suite),
            None => {
                let known = SUITES.map(|(openssl, _, _)| openssl).join(", ");
                return Err(TlsError::UnknownSuite { name: name.clone(), known });
            }
        }
    }
    for is_tls13 in [true, false] {
        if !chosen.iter().any(|suite| suite.tls13().is_some() == is_tls13) {
            chosen.extend(all.iter().filter(|suite| suite.tls13().is_some() == is_tls13));
        }
    }
    Ok(chosen)
}

/// Whether every one of these cipher suites is there.
///
/// # Errors
/// The first that is not, with those that are.
pub fn check_suites(names: &[String]) -> Result<(), TlsError> {
    suites(names, Vec::new()).map(drop)
}

fn curve(name: &str) -> Result<&'static dyn SupportedKxGroup, TlsError> {
    let lower = name.to_ascii_lowercase();
    match CURVES.iter().find(|(names, _)| names.contains(&lower.as_str())) {
        Some((_, group)) => Ok(*group),
        None => {
            let known = "X25519MLKEM768, SecP256r1MLKEM768, X25519, P-256, P-384, P-521".to_owned();
            Err(TlsError::UnknownCurve { name: name.to_owned(), known })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_tls12_suite_leaves_tls13_alone() {
        let provider = provider(&names(&["ECDHE-RSA-AES128-GCM-SHA256"]), &[]).unwrap();
        let count = |tls13| provider.cipher_suites.iter().filter(|suite| suite.tls13().is_some() == tls13).count();
        assert_eq!((count(true), count(false)), (3, 1));
    }

    #[test]
    fn unknown_names_are_refused_with_what_there_is() {
        let error = provider(&names(&["AES256-SHA"]), &[]).unwrap_err().to_string();
        assert!(error.contains("AES256-SHA") && error.contains("ECDHE-RSA-AES256-GCM-SHA384"), "{error}");
        assert!(matches!(provider(&[], &names(&["sect163k1"])), Err(TlsError::UnknownCurve { .. })));
        assert!(matches!(at_least(Some("SSLV3")), Err(TlsError::UnknownVersion { .. })));
    }

    #[test]
    fn post_quantum_comes_first_by_default() {
        let provider = provider(&[], &[]).unwrap();
        assert_eq!(provider.kx_groups[0].name(), rustls::NamedGroup::X25519MLKEM768);
    }

    #[test]
    fn the_cheapest_suites_come_first_by_default() {
        let named = provider(&[], &[]).unwrap().cipher_suites.into_iter().filter_map(suite_name).collect::<Vec<_>>();
        let expected = [
            "TLS_AES_128_GCM_SHA256",
            "TLS_AES_256_GCM_SHA384",
            "TLS_CHACHA20_POLY1305_SHA256",
            "ECDHE-ECDSA-AES128-GCM-SHA256",
            "ECDHE-RSA-AES128-GCM-SHA256",
            "ECDHE-ECDSA-AES256-GCM-SHA384",
        ];
        assert_eq!(named[..6], expected);
        let chosen = provider(&names(&["TLS_AES_256_GCM_SHA384"]), &[]).unwrap().cipher_suites;
        assert_eq!(suite_name(chosen[0]), Some("TLS_AES_256_GCM_SHA384"));
    }

    #[test]
    fn versions_lie_between_those_named() {
        let count = |min, max| between(min, max).map(<[_]>::len);
        for (min, max) in [(None, None), (Some("TLSV1_0"), Some("TLSV1_3")), (Some("TLSV1_2"), Some("TLS_AUTO"))] {
            assert_eq!(count(min, max), Ok(2), "{min:?} {max:?}");
        }
        assert_eq!(between(None, Some("TLSV1_2")).unwrap()[0].version, rustls::ProtocolVersion::TLSv1_2);
        assert_eq!(count(Some("TLSV1_3"), None), Ok(1));
        assert!(matches!(count(Some("TLSV1_3"), Some("TLSV1_2")), Err(TlsError::NoVersion { .. })));
        assert!(matches!(count(Some("TLSV1_1"), Some("TLSV1_0")), Err(TlsError::NoVersion { .. })));
        assert!(matches!(count(None, Some("TLSV1_1")), Err(TlsError::TooOld { .. })));
        let error = count(None, Some("1.2")).unwrap_err().to_string();
        assert!(error.contains("maxProtocolVersion 1.2 is not known"), "{error}");
    }
}
