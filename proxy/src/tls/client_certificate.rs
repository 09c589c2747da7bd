//! What a client's certificate says of it, for those behind us.

use std::fmt::Write as _;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::ServerConnection;
use x509_parser::{
    extensions::GeneralName,
    x509::{AttributeTypeAndValue, X509Name},
};

use super::{der, inspect, to_hex};

/// A certificate that a client has proved to be its own, as those behind us are told of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientCertificate {
    /// As RFC 2253 has it: `CN=client,O=example`. ASCII without control characters, whatever the certificate holds.
    pub subject: String,
    pub uri_names: Vec<String>,
    pub dns_names: Vec<String>,
    /// SHA-256 of its DER, in hex.
    pub hash: String,
    pub der: Vec<u8>,
}

/// What the client has shown; None: no certificate. To be asked once a connection.
#[must_use]
pub fn peer_certificate(connection: &ServerConnection) -> Option<ClientCertificate> {
    let der = connection.peer_certificates()?.first()?;
    let certificate = inspect::parse(der).ok()?;
    let mut found = ClientCertificate {
        subject: rfc2253(certificate.subject()),
        hash: to_hex(digest(&SHA256, der).as_ref()),
        der: der.to_vec(),
        ..ClientCertificate::default()
    };
    let names = certificate.subject_alternative_name().ok().flatten();
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        match name {
            GeneralName::URI(uri) => found.uri_names.push((*uri).to_owned()),
            GeneralName::DNSName(dns) => found.dns_names.push((*dns).to_owned()),
            _ => {}
        }
    }
    Some(found)
}

/// The name as OpenSSL prints it with `-nameopt RFC2253`, and so Envoy: most specific part first, specials escaped.
fn rfc2253(name: &X509Name<'_>) -> String {
    let mut parts: Vec<String> = name
        .iter_rdn()
        .map(|part| {
            let mut values: Vec<String> = part.iter().map(attribute).collect();
            values.reverse();
            values.join("+")
        })
        .collect();
    parts.reverse();
    parts.join(",")
}

/// Short names that OpenSSL has for what occurs in subjects; all else is told by its number.
const SHORT: [(&str, &str); 17] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.4", "SN"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "street"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.12", "title"),
    ("2.5.4.13", "description"),
    ("2.5.4.41", "name"),
    ("2.5.4.42", "GN"),
    ("2.5.4.46", "dnQualifier"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("1.2.840.113549.1.9.1", "emailAddress"),
];

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let number = attribute.attr_type().to_id_string();
    let short = SHORT.iter().find(|(known, _)| *known == number);
    match (short, attribute.as_str()) {
        (Some((_, short)), Ok(text)) => format!("{short}={}", escape(text)),
        (short, _) => {
            // RFC 2253 section 2.4: what has no string form is `#` and its BER in hex.
            let kind = short.map_or(&*number, |(_, short)| short);
            let value = attribute.attr_value();
            let tag = u8::try_from(value.tag().0).unwrap_or_default();
            format!("{kind}=#{}", to_hex(&der::wrap(tag, value.data)).to_uppercase())
        }
    }
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let last = text.len().saturating_sub(1);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => out.extend(['\\', char::from(byte)]),
            b'#' if at == 0 => out.push_str("\\#"),
            b' ' if at == 0 || at == last => out.push_str("\\ "),
            b' '..=b'~' => out.push(char::from(byte)),
            // Writing to a String cannot fail.
            _ => drop(write!(out, "\\{byte:02X}")),
        }
    }
    out
}
