//! Whether a certificate is for a name.
//!
//! Subject alternative names decide where there are any (RFC 9525). Where there are none at all, and only where the caller
//! allows it, the one CN of the subject stands for them: exact, or `*.` for one label.

use std::net::IpAddr;

use rustls_pki_types::{CertificateDer, ServerName};
use webpki::EndEntityCert;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName};

use super::inspect::CertificateSummary;

/// How a certificate came to match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Match {
    SubjectAltName,
    CommonName,
}

/// Matches `expected`: a DNS name, an address, or a URI or whatever else stands in a subject alternative name.
pub(super) fn matches(
    der: &CertificateDer<'_>,
    certificate: &X509Certificate<'_>,
    expected: &str,
    allow_common_name: bool,
) -> Option<Match> {
    // Twice the same extension is Err: no name at all then, rather than either.
    let names = certificate.subject_alternative_name().ok()?;
    let host = host(expected);
    match names {
        Some(names) => {
            let by_webpki = host.as_ref().is_some_and(|host| {
                EndEntityCert::try_from(der).is_ok_and(|cert| cert.verify_is_valid_for_subject_name(host).is_ok())
            });
            // `spiffe://…`, or a wildcard written the same on both sides.
            let literal = names.value.general_names.iter().any(|name| match name {
                GeneralName::URI(uri) => *uri == expected,
                GeneralName::DNSName(dns) => dns.starts_with("*.") && dns.eq_ignore_ascii_case(expected),
                _ => false,
            });
            (by_webpki || literal).then_some(Match::SubjectAltName)
        }
        None if allow_common_name => {
            let Some(ServerName::DnsName(host)) = &host else { return None };
            name_matches(common_name(certificate)?, host.as_ref()).then_some(Match::CommonName)
        }
        None => None,
    }
}

/// Whether a certificate bears exactly this name: one of its DNS names, URIs, addresses or mail addresses; where it has no
/// alternative name at all, and where the caller allows it, its one CN.
pub(super) fn bears(certificate: &X509Certificate<'_>, expected: &str, allow_common_name: bool) -> Option<Match> {
    let Some(names) = certificate.subject_alternative_name().ok()? else {
        let same = allow_common_name && common_name(certificate) == Some(expected);
        return same.then_some(Match::CommonName);
    };
    let address = expected.parse().ok();
    let same = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(dns) => dns.eq_ignore_ascii_case(expected),
        GeneralName::URI(name) | GeneralName::RFC822Name(name) => *name == expected,
        GeneralName::IPAddress(bytes) => address.is_some() && address == ip(bytes),
        _ => false,
    };
    names.value.general_names.iter().any(same).then_some(Match::SubjectAltName)
}

/// The hosts that a certificate is good for, read out once: its alternative names, or its one CN where it has none.
#[derive(Debug)]
pub(super) struct HostNames {
    patterns: Vec<String>,
    addresses: Vec<IpAddr>,
}

impl HostNames {
    pub(super) fn of(certificate: &X509Certificate<'_>) -> Self {
        let mut new = Self { patterns: Vec::new(), addresses: Vec::new() };
        match certificate.subject_alternative_name() {
            Ok(Some(names)) => {
                for name in &names.value.general_names {
                    match name {
                        GeneralName::DNSName(dns) => new.patterns.push((*dns).to_owned()),
                        GeneralName::IPAddress(bytes) => new.addresses.extend(ip(bytes)),
                        _ => {}
                    }
                }
            }
            Ok(None) => new.patterns.extend(common_name(certificate).map(str::to_owned)),
            // Twice the same extension: no name rather than either.
            Err(_) => {}
        }
        new
    }

    /// `host` is a name or an address, without a port.
    pub(super) fn cover(&self, host: &str) -> bool {
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return self.addresses.contains(&address);
        }
        let host = host.strip_suffix('.').unwrap_or(host);
        self.patterns.iter().any(|pattern| name_matches(pattern, host))
    }
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// What the certificate is for, for a message.
pub(super) fn presented(certificate: &X509Certificate<'_>) -> String {
    let names = CertificateSummary::of(certificate).subject_alt_names;
    if !names.is_empty() {
        return names.join(", ");
    }
    match common_name(certificate) {
        Some(name) => format!("CN {}", name.escape_default()),
        None => "no name".to_owned(),
    }
}

fn host(text: &str) -> Option<ServerName<'static>> {
    ServerName::try_from(text.strip_suffix('.').unwrap_or(text).to_owned()).ok()
}

/// The one CN. Several, and it would be a guess which of them the CA vouched for as a host.
pub(super) fn common_name<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a str> {
    let mut names = certificate.subject().iter_common_name();
    match (names.next(), names.next()) {
        (Some(name), None) => name.as_str().ok(),
        _ => None,
    }
}

fn name_matches(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix("*.") {
        // One label, and the rest must have two of its own: `*.com` is no host's certificate.
        Some(rest) => {
            rest.contains('.')
                && is_host(rest)
                && host
                    .split_once('.')
                    .is_some_and(|(label, domain)| !label.is_empty() && domain.eq_ignore_ascii_case(rest))
        }
        None => is_host(pattern) && pattern.eq_ignore_ascii_case(host),
    }
}

fn is_host(name: &str) -> bool {
    matches!(ServerName::try_from(name), Ok(ServerName::DnsName(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_names() {
        assert!(name_matches("my-nginx.mesh-external.svc", "MY-nginx.mesh-external.svc"));
        assert!(name_matches("*.example.com", "a.example.com"));
        for (pattern, host) in [
            ("*.example.com", "example.com"),
            ("*.example.com", "a.b.example.com"),
            ("*.com", "example.com"),
            ("*", "example.com"),
            ("example.com", "a.example.com"),
            ("a*.example.com", "ab.example.com"),
            ("example.com\0.evil.org", "example.com"),
            ("", "example.com"),
        ] {
            assert!(!name_matches(pattern, host), "{pattern} {host}");
        }
    }

    fn matches_der(der: &[u8], expected: &str, allow_common_name: bool) -> Option<Match> {
        let certificate = crate::tls::inspect::parse(der).unwrap();
        matches(&CertificateDer::from(der), &certificate, expected, allow_common_name)
    }

    fn certificate(names: &[&str], common_names: &[&str]) -> Vec<u8> {
        let mut params =
            rcgen::CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for name in common_names {
            params.distinguished_name.push(rcgen::DnType::CommonName, *name);
        }
        if names.iter().any(|name| name.starts_with("spiffe")) {
            params.subject_alt_names =
                names.iter().map(|name| rcgen::SanType::URI((*name).try_into().unwrap())).collect();
        }
        let key = rcgen::KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn a_subject_alternative_name_silences_the_common_name() {
        let der = certificate(&["other.example"], &["wanted.example"]);
        assert_eq!(matches_der(&der, "wanted.example", true), None);
        assert_eq!(matches_der(&der, "other.example", true), Some(Match::SubjectAltName));
    }

    #[test]
    fn the_common_name_counts_only_where_allowed() {
        let der = certificate(&[], &["wanted.example"]);
        assert_eq!(matches_der(&der, "wanted.example", true), Some(Match::CommonName));
        assert_eq!(matches_der(&der, "wanted.example", false), None);
        assert_eq!(matches_der(&der, "10.0.0.1", true), None);
    }

    #[test]
    fn addresses_and_uris() {
        let der = certificate(&["10.0.0.1", "2001:db8::1"], &["x"]);
        assert_eq!(matches_der(&der, "10.0.0.1", false), Some(Match::SubjectAltName));
        assert_eq!(matches_der(&der, "2001:db8::1", false), Some(Match::SubjectAltName));
        assert_eq!(matches_der(&der, "10.0.0.2", false), None);
        let der = certificate(&["spiffe://cluster.local/ns/a/sa/b"], &["x"]);
        assert_eq!(matches_der(&der, "spiffe://cluster.local/ns/a/sa/b", false), Some(Match::SubjectAltName));
        assert_eq!(matches_der(&der, "spiffe://cluster.local/ns/a/sa/c", false), None);
    }
}
