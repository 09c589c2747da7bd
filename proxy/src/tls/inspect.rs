//! What a PEM chain holds, for people: rows of `proxy-config secret`, expiry metrics and messages.

use std::time::{Duration, SystemTime};

use rustls_pki_types::{CertificateDer, pem::PemObject};
use x509_parser::{
    certificate::X509Certificate,
    extensions::GeneralName,
    prelude::{FromDer, X509Version},
    x509::X509Name,
};

/// One certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateSummary {
    /// `CN=example.com,O=example Inc.`: most specific part first, as RFC 4514 has it.
    pub subject: String,
    pub issuer: String,
    /// In decimal.
    pub serial: String,
    /// Seconds since the epoch.
    pub not_before: i64,
    /// Seconds since the epoch.
    pub not_after: i64,
    /// As basicConstraints say; X.509 v1 never says so.
    pub is_ca: bool,
    /// 1 for X.509 v1, 3 for v3.
    pub version: u32,
    /// `example.com`, `10.0.0.1`, `spiffe://…`
    pub subject_alt_names: Vec<String>,
}

impl CertificateSummary {
    /// Reads one certificate in DER. Errors: a sentence fragment saying what is wrong with it.
    pub fn from_der(der: &[u8]) -> Result<Self, String> {
        parse(der).map(|certificate| Self::of(&certificate))
    }

    pub(crate) fn of(certificate: &X509Certificate<'_>) -> Self {
        let names = certificate.subject_alternative_name().ok().flatten();
        Self {
            subject: distinguished(certificate.subject()),
            issuer: distinguished(certificate.issuer()),
            serial: certificate.tbs_certificate.serial.to_string(),
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
            is_ca: certificate.version() == X509Version::V3 && certificate.is_ca(),
            version: certificate.version().0 + 1,
            subject_alt_names: names
                .map(|names| names.value.general_names.iter().filter_map(general_name).collect())
                .unwrap_or_default(),
        }
    }

    /// True where `now` lies within the validity period.
    #[must_use]
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        let now = unix_seconds(now);
        self.not_before <= now && now <= self.not_after
    }
}

/// Summaries of all readable certificates of a PEM text (or of one certificate in DER), in order.
/// Errors: there are some, but none is readable; a sentence fragment saying what is wrong.
pub fn chain(bytes: &[u8]) -> Result<Vec<CertificateSummary>, String> {
    let mut fault = None;
    let read = |der: CertificateDer<'_>| CertificateSummary::from_der(&der).map_err(|why| fault = Some(why)).ok();
    let chain: Vec<_> = certificates(bytes)?.into_iter().filter_map(read).collect();
    match fault {
        Some(why) if chain.is_empty() => Err(why),
        _ => Ok(chain),
    }
}

/// The library names what is missing by its bytes.
pub(crate) fn pem_fault(error: &rustls::pki_types::pem::Error) -> String {
    use rustls::pki_types::pem::Error;
    match error {
        Error::MissingSectionEnd { .. } => "its END line is missing: the file is cut off".to_owned(),
        Error::NoItemsFound => "there is none in it".to_owned(),
        other => other.to_string(),
    }
}

/// PEM of certificates, one after the other.
pub(crate) fn to_pem<'a>(certificates: impl IntoIterator<Item = &'a CertificateDer<'static>>) -> String {
    use base64::Engine as _;
    let mut pem = String::new();
    for certificate in certificates {
        pem.push_str("-----BEGIN CERTIFICATE-----\n");
        let text = base64::engine::general_purpose::STANDARD.encode(certificate);
        for line in text.as_bytes().chunks(64) {
            pem.extend(line.iter().copied().map(char::from));
            pem.push('\n');
        }
        pem.push_str("-----END CERTIFICATE-----\n");
    }
    pem
}

/// All certificates of a PEM text, or the one that the bytes are in DER. Empty: neither.
pub(crate) fn certificates(bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    if is_der(bytes) {
        return Ok(vec![CertificateDer::from(bytes.to_vec())]);
    }
    CertificateDer::pem_slice_iter(bytes).collect::<Result<_, _>>().map_err(|error| pem_fault(&error))
}

/// DER of anything that matters here is a SEQUENCE, whose tag is also the digit `0`: text before a PEM block may begin so.
pub(crate) fn is_der(bytes: &[u8]) -> bool {
    const BEGIN: &[u8] = b"-----BEGIN";
    bytes.first() == Some(&0x30) && !bytes.windows(BEGIN.len()).any(|window| window == BEGIN)
}

pub(crate) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, String> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err("bytes follow the certificate".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// A distinguished name as RFC 4514 writes it: last part first, commas between.
pub(crate) fn distinguished(name: &X509Name<'_>) -> String {
    let text = name.to_string();
    if text.is_empty() {
        return "(no subject)".to_owned();
    }
    let mut parts: Vec<String> = name.iter_rdn().map(relative).collect();
    parts.reverse();
    parts.join(",")
}

fn relative(part: &x509_parser::x509::RelativeDistinguishedName<'_>) -> String {
    let values: Vec<String> = part
        .iter()
        .map(|attribute| {
            let kind = x509_parser::objects::oid2abbrev(attribute.attr_type(), x509_parser::objects::oid_registry())
                .map_or_else(|_| attribute.attr_type().to_id_string(), str::to_owned);
            // Control bytes in a name of a stranger's making must not reach a log line.
            let value = attribute.as_str().unwrap_or("?").escape_default().to_string();
            format!("{kind}={value}")
        })
        .collect();
    values.join("+")
}

fn general_name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) | GeneralName::URI(name) | GeneralName::RFC822Name(name) => {
            Some(name.escape_default().to_string())
        }
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| std::net::Ipv4Addr::from(bytes).to_string()),
            16 => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| std::net::Ipv6Addr::from(bytes).to_string()),
            _ => None,
        },
        _ => None,
    }
}

/// `2026-11-20T22:36:17Z`
pub(crate) fn timestamp(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| format!("{seconds} s"), |time| time.to_string())
}

pub(crate) fn unix_seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
