//! networking.istio.io Gateway. Gateways of the Gateway API are brought into this shape too.

use std::{collections::BTreeMap, net::IpAddr};

/// networking.istio.io Gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gateway {
    /// Labels of the pods that serve it; in its own namespace or any (Istio's PILOT_SCOPE_GATEWAY_TO_NAMESPACE is false).
    pub selector: BTreeMap<String, String>,
    /// Made from a Gateway of the Gateway API: only pods of this namespace serve it.
    pub pods_of: Option<String>,
    pub servers: Vec<Server>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Server {
    /// `name`, empty where absent.
    pub name: String,
    pub port: ServerPort,
    /// An address to listen on instead of all.
    pub bind: Option<IpAddr>,
    /// As written: `host`, `*.host`, `*`, `namespace/host`, `./host`, `*/host`.
    pub hosts: Vec<String>,
    pub tls: Option<ServerTls>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerPort {
    pub number: u16,
    pub name: String,
    pub protocol: ServerProtocol,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub enum ServerProtocol {
    #[default]
    Http,
    Https,
    Http2,
    Grpc,
    Tls,
    Tcp,
}

/// ServerTLSSettings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerTls {
    /// Answer plain HTTP with a 301 to https; alone among these it belongs on a plain HTTP server.
    pub https_redirect: bool,
    /// None where absent: on an HTTP server with `httpsRedirect` only.
    pub mode: Option<ServerTlsMode>,
    pub server_certificate: Option<String>,
    pub private_key: Option<String>,
    pub ca_certificates: Option<String>,
    pub ca_crl: Option<String>,
    /// `credentialNames`, or the one `credentialName`.
    pub credential_names: Vec<String>,
    /// `caCertCredentialName`: where the CA of client certificates is, instead of beside the server's own certificate.
    /// `NAME` (a Secret, or else a ConfigMap, of the gateway pod's namespace), `kubernetes-gateway://NAMESPACE/NAME` (a
    /// Secret that a ReferenceGrant lets it use) or `configmap://NAMESPACE/NAME` (key `ca.crt`).
    pub ca_credential: Option<String>,
    pub subject_alt_names: Vec<String>,
    pub verify_certificate_spki: Vec<String>,
    pub verify_certificate_hash: Vec<String>,
    /// As written, e.g. `TLSV1_2`.
    pub min_version: Option<String>,
    pub max_version: Option<String>,
    pub cipher_suites: Vec<String>,
    /// Made from a listener of the Gateway API whose references lead nowhere: why no connection is taken. The server is
    /// there all the same, so that none with a wider host name takes them.
    pub refused: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub enum ServerTlsMode {
    Passthrough,
    Simple,
    Mutual,
    OptionalMutual,
    AutoPassthrough,
    IstioMutual,
}
