//! What a server that takes TLS off is built from: at a gateway's listener, or at a `Sidecar`'s ingress.

use serde::Serialize;

use super::cluster::{IdentitySource, Material, TrustSource};

/// Everything that decides a TLS server context. Equal settings share one context, and so its session tickets.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct ServerTlsSettings {
    /// Certificates to choose from by what the client can verify: RSA and ECDSA side by side. Never empty.
    pub identities: Vec<IdentitySource>,
    pub clients: ClientCertificates,
    /// Offered in this order; empty: no ALPN.
    pub alpn: Vec<String>,
    /// As Istio writes them (`TLSV1_2`); None: what egret speaks.
    pub min_version: Option<String>,
    pub max_version: Option<String>,
    /// By OpenSSL's or IANA's names; empty: all of ours.
    pub cipher_suites: Vec<String>,
    /// `tlsDefaults.ecdhCurves`
    pub curves: Vec<String>,
}

/// Which certificate a client must show.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum ClientCertificates {
    /// SIMPLE: it is not asked for one.
    None,
    /// OPTIONAL_MUTUAL: one that it shows must be good.
    Optional(ClientTrust),
    /// MUTUAL.
    Required(ClientTrust),
}

impl ClientCertificates {
    /// What certificates are checked against, where any are asked for.
    #[must_use]
    pub fn trust(&self) -> Option<&ClientTrust> {
        match self {
            Self::None => None,
            Self::Optional(trust) | Self::Required(trust) => Some(trust),
        }
    }
}

/// What a client's certificate is checked against: all of it must hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct ClientTrust {
    /// Never [`TrustSource::System`].
    pub ca: TrustSource,
    pub crl: Option<Material>,
    /// Exact names, one of which the certificate must bear; empty: any.
    pub subject_alt_names: Vec<String>,
    /// Base64 of the SHA-256 of its public key (`verifyCertificateSpki`), one of which must match; empty: any.
    pub spki: Vec<String>,
    /// SHA-256 of the certificate in hex, colons left out, in lower case (`verifyCertificateHash`). A certificate that
    /// matches one of `spki` or one of `hashes` is enough where both are given, as in Envoy.
    pub hashes: Vec<String>,
}
