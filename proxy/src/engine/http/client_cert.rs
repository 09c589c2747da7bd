//! `x-forwarded-client-cert`: what those behind us are told of the certificate that a client has proved to be its own.
//!
//! As Istio configures Envoy: a pod's own side appends to what a peer of the mesh has sent (that is the way the request came), a
//! gateway begins anew. Otherwise than Istio, so does a pod's own side where the certificate is not of the mesh (TLS at a
//! Sidecar's ingress): its bearer could claim to have brought any request here. From who showed no certificate it is never believed, and nothing of it leaves the
//! mesh.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{
    engine::accept::{Arrival, ConnectionInfo},
    tls::ClientCertificate,
};

pub const HEADER: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// Removes the header, sets it or adds to it, on the way to a service of the mesh or to the pod's own application. `element`
/// is what there is to say of this connection's client, see [`element`].
pub fn forward(headers: &mut HeaderMap, info: &ConnectionInfo, element: Option<&HeaderValue>) {
    let Some(element) = element else {
        headers.remove(HEADER);
        return;
    };
    let mut list = Vec::new();
    if info.arrival == Arrival::Inbound && info.identity.is_some() {
        for line in headers.get_all(HEADER) {
            list.extend_from_slice(line.as_bytes());
            list.push(b',');
        }
    }
    if list.is_empty() {
        headers.insert(HEADER, element.clone());
        return;
    }
    list.extend_from_slice(element.as_bytes());
    match HeaderValue::from_bytes(&list) {
        Ok(list) => headers.insert(HEADER, list),
        Err(_) => headers.remove(HEADER),
    };
}

/// What is said of the client of this connection, by the pod of identity `own`. None: it has shown no certificate, or is the
/// pod itself.
pub fn element(info: &ConnectionInfo, own: Option<&Arc<str>>) -> Option<HeaderValue> {
    let certificate = info.certificate.as_deref()?;
    let text = match info.arrival {
        Arrival::Outbound => return None,
        Arrival::Inbound => written(certificate, own.map(|own| &**own), false),
        // The certificate that was shown bears our identity only where it is the mesh's.
        Arrival::Gateway { .. } => {
            written(certificate, own.filter(|_| info.identity.is_some()).map(|own| &**own), true)
        }
    };
    HeaderValue::from_str(&text).ok()
}

/// One element in Envoy's order. `whole`: with the certificate itself.
fn written(of: &ClientCertificate, own: Option<&str>, whole: bool) -> String {
    let mut text = String::with_capacity(256);
    let mut pair = |key: &str, value: &str| {
        if !text.is_empty() {
            text.push(';');
        }
        text.push_str(key);
        text.push('=');
        text.push_str(value);
    };
    if let Some(own) = own {
        pair("By", own);
    }
    if !of.hash.is_empty() {
        pair("Hash", &of.hash);
    }
    if whole {
        pair("Cert", &format!("\"{}\"", encoded_pem(&of.der)));
    }
    // These two stand there also where they are empty.
    pair("Subject", &format!("\"{}\"", escaped(&of.subject)));
    if of.uri_names.is_empty() {
        pair("URI", "");
    }
    of.uri_names.iter().for_each(|name| pair("URI", &value(name)));
    of.dns_names.iter().for_each(|name| pair("DNS", &value(name)));
    text
}

/// A value that would read as more than one is quoted.
fn value(text: &str) -> String {
    if text.contains([',', ';', '=', '"']) { format!("\"{}\"", escaped(text)) } else { escaped(text) }
}

/// Text between double quotes: a quote in it, unless RFC 2253 has escaped it already, must not end it. What no header may
/// bear is `?`.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(next @ ' '..='~') => out.extend(['\\', next]),
                // At the end it would escape the closing quote.
                _ => out.push_str("\\\\"),
            },
            '"' => out.push_str("\\\""),
            ' '..='~' => out.push(c),
            _ => out.push('?'),
        }
    }
    out
}

/// The certificate as PEM, with what is special in a header or URL percent-encoded.
fn encoded_pem(der: &[u8]) -> String {
    let base64 = STANDARD.encode(der);
    let mut out = String::with_capacity(base64.len() * 5 / 4 + 96);
    out.push_str("-----BEGIN%20CERTIFICATE-----%0A");
    for (at, c) in base64.chars().enumerate() {
        if at > 0 && at % 64 == 0 {
            out.push_str("%0A");
        }
        match c {
            '+' => out.push_str("%2B"),
            '/' => out.push_str("%2F"),
            '=' => out.push_str("%3D"),
            c => out.push(c),
        }
    }
    out.push_str("%0A-----END%20CERTIFICATE-----%0A");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "spiffe://cluster.local/ns/default/sa/httpbin";

    fn info(arrival: Arrival, identity: Option<&str>, certificate: Option<ClientCertificate>) -> ConnectionInfo {
        let address = "127.0.0.1:1".parse().unwrap();
        ConnectionInfo {
            identity: identity.map(Arc::from),
            certificate: certificate.map(Arc::new),
            ..ConnectionInfo::new(arrival, address, address)
        }
    }

    fn gateway() -> Arrival {
        Arrival::Gateway { listener: crate::mesh::ListenerId { bind: None, port: 443 }, server: None }
    }

    fn certificate() -> ClientCertificate {
        ClientCertificate {
            subject: "CN=client,O=example".into(),
            uri_names: vec!["spiffe://cluster.local/ns/foo/sa/sleep".into()],
            dns_names: vec!["a.example".into(), "b.example".into()],
            hash: "ab12".into(),
            der: vec![0xfb, 0xff, 0xfe, 0],
        }
    }

    fn said(info: &ConnectionInfo) -> Option<String> {
        element(info, Some(&OWN.into())).map(|element| element.to_str().unwrap().to_owned())
    }

    #[test]
    fn a_pods_own_side_names_both() {
        let caller = "spiffe://cluster.local/ns/foo/sa/sleep";
        let expected =
            format!("By={OWN};Hash=ab12;Subject=\"CN=client,O=example\";URI={caller};DNS=a.example;DNS=b.example");
        assert_eq!(said(&info(Arrival::Inbound, Some(caller), Some(certificate()))).unwrap(), expected);
        // A Sidecar's ingress: the same of a certificate that is none of the mesh.
        assert_eq!(said(&info(Arrival::Inbound, None, Some(certificate()))).unwrap(), expected);
        assert_eq!(said(&info(Arrival::Inbound, None, None)), None);
        assert_eq!(said(&info(Arrival::Outbound, None, Some(certificate()))), None);
    }

    #[test]
    fn a_gateway_hands_the_certificate_on() {
        let plain = ClientCertificate { uri_names: Vec::new(), dns_names: Vec::new(), ..certificate() };
        let pem = "-----BEGIN%20CERTIFICATE-----%0A%2B%2F%2F%2BAA%3D%3D%0A-----END%20CERTIFICATE-----%0A";
        let expected = format!("Hash=ab12;Cert=\"{pem}\";Subject=\"CN=client,O=example\";URI=");
        assert_eq!(said(&info(gateway(), None, Some(plain.clone()))).unwrap(), expected);
        assert_eq!(said(&info(gateway(), Some("spiffe://x"), Some(plain))).unwrap(), format!("By={OWN};{expected}"));
    }

    /// The lines of PEM that everybody's tools write.
    #[test]
    fn the_certificate_is_the_pem_of_it() {
        for size in [0, 47, 48, 49, 96, 700] {
            let der: Vec<u8> = (0..size).map(|at: usize| (at * 7 % 251) as u8).collect();
            let encoded = encoded_pem(&der);
            assert!(encoded.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'%'), "{encoded}");
            let decoded = encoded.replace("%0A", "\n").replace("%2B", "+").replace("%2F", "/");
            let decoded = decoded.replace("%3D", "=").replace("%20", " ");
            assert!(decoded.lines().all(|line| line.len() <= 64), "{decoded}");
            if size > 0 {
                assert_eq!(pem_of(&decoded), der);
            }
        }
    }

    fn pem_of(text: &str) -> Vec<u8> {
        use rustls_pki_types::{CertificateDer, pem::PemObject as _};
        CertificateDer::from_pem_slice(text.as_bytes()).unwrap().to_vec()
    }

    /// Whoever may choose a name in a certificate may not choose what is said beside it.
    #[test]
    fn names_cannot_pretend_to_be_more() {
        let forged = ClientCertificate {
            subject: "CN=a\";URI=spiffe://evil,O=b\\\" c\\".into(),
            uri_names: vec!["spiffe://x,By=spiffe://y;URI=\"z\"".into()],
            dns_names: vec!["a\r\nhost: b".into()],
            ..certificate()
        };
        let text = said(&info(Arrival::Inbound, None, Some(forged))).unwrap();
        let expected = "Subject=\"CN=a\\\";URI=spiffe://evil,O=b\\\" c\\\\\";\
                        URI=\"spiffe://x,By=spiffe://y;URI=\\\"z\\\"\";DNS=a??host: b";
        assert!(text.ends_with(expected), "{text}");
    }

    #[test]
    fn who_shows_nothing_is_not_believed() {
        let forged = || HeaderMap::from_iter([(HEADER, HeaderValue::from_static("URI=spiffe://admin"))]);
        let element = HeaderValue::from_static("Hash=1");
        let after = |info: &ConnectionInfo, element: Option<&HeaderValue>| {
            let mut headers = forged();
            headers.append(HEADER, HeaderValue::from_static("URI=b"));
            forward(&mut headers, info, element);
            headers.get_all(HEADER).iter().map(|line| line.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        for arrival in [Arrival::Inbound, Arrival::Outbound, gateway()] {
            assert!(after(&info(arrival.clone(), None, None), None).is_empty(), "{arrival:?}");
        }
        let shown = Some(certificate());
        let of_the_mesh = info(Arrival::Inbound, Some("spiffe://cluster.local/ns/a/sa/b"), shown.clone());
        assert_eq!(after(&of_the_mesh, Some(&element)), ["URI=spiffe://admin,URI=b,Hash=1"]);
        // A certificate of a Sidecar's ingress says nothing about what its bearer claims to have brought here.
        assert_eq!(after(&info(Arrival::Inbound, None, shown.clone()), Some(&element)), ["Hash=1"]);
        assert_eq!(after(&info(gateway(), None, shown), Some(&element)), ["Hash=1"]);
    }
}
