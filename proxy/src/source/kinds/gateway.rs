//! networking.istio.io Gateway, checked as Istio's own validation does.

use std::net::IpAddr;

use super::super::{
    decode::{Field, Fields},
    values,
};
use crate::api::gateway::{Gateway, Server, ServerPort, ServerProtocol, ServerTls, ServerTlsMode};

const PROTOCOLS: &[(&str, ServerProtocol)] = &[
    ("HTTP", ServerProtocol::Http),
    ("HTTPS", ServerProtocol::Https),
    ("HTTP2", ServerProtocol::Http2),
    ("GRPC", ServerProtocol::Grpc),
    ("GRPC-WEB", ServerProtocol::Http),
    ("TLS", ServerProtocol::Tls),
    ("TCP", ServerProtocol::Tcp),
    ("MONGO", ServerProtocol::Tcp),
];
const MODES: &[(&str, ServerTlsMode)] = &[
    ("PASSTHROUGH", ServerTlsMode::Passthrough),
    ("SIMPLE", ServerTlsMode::Simple),
    ("MUTUAL", ServerTlsMode::Mutual),
    ("OPTIONAL_MUTUAL", ServerTlsMode::OptionalMutual),
    ("AUTO_PASSTHROUGH", ServerTlsMode::AutoPassthrough),
    ("ISTIO_MUTUAL", ServerTlsMode::IstioMutual),
];
const TLS_READ: &[&str] = &[
    "httpsRedirect",
    "mode",
    "serverCertificate",
    "privateKey",
    "caCertificates",
    "caCrl",
    "credentialName",
    "credentialNames",
    "caCertCredentialName",
    "subjectAltNames",
    "verifyCertificateSpki",
    "verifyCertificateHash",
    "minProtocolVersion",
    "maxProtocolVersion",
    "cipherSuites",
];

/// Reads a Gateway.
pub fn gateway(root: &Fields<'_>) -> Option<Gateway> {
    let fields = root.require("spec")?.fields(&["selector", "servers"], &[], &[])?;
    let selector = fields.string_map("selector");
    if selector.is_empty() {
        fields.field.warn("without `selector` every gateway pod serves it");
    }
    let given = fields.items("servers");
    if given.is_empty() {
        fields.field.error("`servers` must have at least one entry");
    }
    let mut servers: Vec<Server> = Vec::new();
    for field in &given {
        let Some(server) = server(field) else { continue };
        if let Some(name) = Some(&server.port.name).filter(|name| !name.is_empty())
            && servers.iter().any(|other| other.port.name == *name)
        {
            field.error(format!("port name \"{name}\" is given twice in this Gateway"));
        }
        servers.push(server);
    }
    Some(Gateway { selector, servers, ..Gateway::default() })
}

fn server(field: &Field<'_>) -> Option<Server> {
    let fields = field.fields(&["port", "bind", "hosts", "tls", "defaultEndpoint", "name"], &[], &[])?;
    if let Some(field) = fields.get("defaultEndpoint") {
        field.warn("means nothing at a gateway: ignored, as in Istio");
    }
    let port = fields.require("port").and_then(|f| port(&f))?;
    let hosts = fields.each("hosts", host);
    if hosts.is_empty() {
        fields.field.error("`hosts` must name at least one host");
    }
    let tls = fields.get("tls").and_then(|f| tls(&f));
    match (port.protocol, &tls) {
        (ServerProtocol::Https | ServerProtocol::Tls, None) => {
            fields.field.error("`tls` is missing: protocols HTTPS and TLS want it");
        }
        (ServerProtocol::Http | ServerProtocol::Http2 | ServerProtocol::Grpc, Some(tls)) if tls.mode.is_some() => {
            if let Some(field) = fields.get("tls") {
                field.error("a plain HTTP port takes `httpsRedirect` only: TLS wants protocol HTTPS");
            }
        }
        _ => {}
    }
    Some(Server {
        name: fields.string("name").unwrap_or_default(),
        port,
        bind: fields.get("bind").and_then(|f| bind(&f)),
        hosts,
        tls,
    })
}

fn port(field: &Field<'_>) -> Option<ServerPort> {
    let fields = field.fields(&["number", "protocol", "name"], &[], &["targetPort"])?;
    let number = fields.require("number").and_then(|f| f.port());
    let protocol = fields.require("protocol").and_then(|f| {
        // Istio takes any case.
        let name = f.string()?.to_ascii_uppercase();
        let found = PROTOCOLS.iter().find(|(known, _)| *known == name).map(|(_, protocol)| *protocol);
        if found.is_none() {
            let names: Vec<_> = PROTOCOLS.iter().map(|(name, _)| *name).collect();
            f.error(format!("\"{name}\" is not one of {}", names.join(", ")));
        }
        found
    });
    let name = fields.require("name").and_then(|f| f.string()).unwrap_or_default();
    Some(ServerPort { number: number?, name, protocol: protocol? })
}

/// An address to listen on; None: all.
pub fn bind(field: &Field<'_>) -> Option<IpAddr> {
    let text = field.string()?;
    if text.starts_with("unix://") {
        field.error("a Unix socket cannot be listened on: give an IP address");
        return None;
    }
    // Every address is what no `bind` means.
    field.ip().filter(|ip| !ip.is_unspecified())
}

/// `host`, with `namespace/` before it.
fn host(field: &Field<'_>) -> Option<String> {
    let text = field.string()?.to_ascii_lowercase();
    let (namespace, name) = text.split_once('/').map_or((None, text.as_str()), |(ns, name)| (Some(ns), name));
    if let Some(namespace) = namespace
        && !matches!(namespace, "." | "*")
        && !values::dns_label(namespace)
    {
        field.error(format!("\"{namespace}\" is neither `.`, `*` nor the name of a namespace"));
    }
    if name.parse::<IpAddr>().is_err()
        && let Err(reason) = values::host_pattern(name)
    {
        field.error(format!("\"{name}\" {reason}"));
    }
    Some(text)
}

/// Reads ServerTLSSettings.
pub fn tls(field: &Field<'_>) -> Option<ServerTls> {
    let fields = field.fields(TLS_READ, &[], &["tlsCertificates"])?;
    let mut names = fields.strings("credentialNames");
    if let Some(name) = fields.string("credentialName") {
        if !names.is_empty() {
            fields.field.error("`credentialName` and `credentialNames` exclude each other");
        }
        names.push(name);
    }
    let https_redirect = fields.get("httpsRedirect").and_then(|f| f.boolean()).unwrap_or_default();
    let mode = match fields.get("mode") {
        // An unknown mode must not read as another one: the error refuses the whole object.
        Some(field) => Some(field.choice(MODES)?),
        None => None,
    };
    let version = |name: &str| {
        let versions = ["TLS_AUTO", "TLSV1_0", "TLSV1_1", "TLSV1_2", "TLSV1_3"].map(|name| (name, name));
        fields.get(name).and_then(|f| f.choice(&versions)).filter(|name| *name != "TLS_AUTO").map(str::to_owned)
    };
    let tls = ServerTls {
        https_redirect,
        mode,
        server_certificate: fields.string("serverCertificate"),
        private_key: fields.string("privateKey"),
        ca_certificates: fields.string("caCertificates"),
        ca_crl: fields.string("caCrl"),
        credential_names: names,
        ca_credential: fields.string("caCertCredentialName").filter(|name| !name.is_empty()),
        subject_alt_names: fields.strings("subjectAltNames"),
        verify_certificate_spki: fields.strings("verifyCertificateSpki"),
        verify_certificate_hash: fields.strings("verifyCertificateHash"),
        min_version: version("minProtocolVersion"),
        max_version: version("maxProtocolVersion"),
        cipher_suites: fields.strings("cipherSuites"),
        refused: None,
    };
    if tls.mode == Some(ServerTlsMode::IstioMutual) {
        let own = ["serverCertificate", "privateKey", "caCertificates", "credentialName", "credentialNames"];
        for name in own.into_iter().chain(["caCertCredentialName"]) {
            if let Some(field) = fields.get(name) {
                field.error("ISTIO_MUTUAL uses the mesh's own certificates: leave it out");
            }
        }
    }
    Some(tls)
}
