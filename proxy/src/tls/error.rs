//! Why a TLS rule cannot be honoured, or a handshake failed: each a sentence that says what to do.

use std::{fmt, io, sync::Arc};

use rustls::{AlertDescription, CertificateError, PeerIncompatible};

use super::material::RawIdentity;

/// Who the peer of a connection is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Server,
    Client,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Server => "server",
            Self::Client => "client",
        })
    }
}

/// Shown in the 503 body after `TLS_error: `, in the access log and by `proxy-config secret`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    // What the rule names cannot be used.
    #[error("no TLS context was built for this rule yet: try again in a moment")]
    NotBuilt,
    #[error("secret {namespace}/{name} does not exist: create it, or correct the rule's credentialName")]
    SecretMissing { namespace: String, name: String },
    #[error("secret {secret} has no {wanted}: add it to the secret's data")]
    SecretKeyMissing { secret: String, wanted: String },
    #[error("configmap {namespace}/{name} does not exist: create it, or correct the reference to it")]
    ConfigMapMissing { namespace: String, name: String },
    #[error("configmap {config_map} has no key {key}: add it to the configmap's data")]
    ConfigMapKeyMissing { config_map: String, key: String },
    #[error(
        "there is no CA to check the {peer} with: put it as cacert or ca.crt into secret {namespace}/{name}-cacert or {namespace}/{name}"
    )]
    NoCa { peer: Side, namespace: String, name: String },
    #[error("no certificate is named to show to clients: give the server one")]
    NoOwnCertificate,
    #[error("clients must show a certificate, but no CA is named to check it with: give the server one")]
    NoClientCa,
    #[error("{field} has {value}, which is no SHA-256 {form}: correct or remove it")]
    BadPin { field: &'static str, form: &'static str, value: String },
    #[error("{from} cannot be read ({why}): make the path in the rule name a readable PEM file")]
    Unreadable { from: String, why: String },
    #[error("{from} has more than {limit} bytes: make sure it is a PEM file and nothing else")]
    TooLarge { from: String, limit: usize },
    #[error("{from} holds no certificate: it must have a PEM block BEGIN CERTIFICATE")]
    NoCertificate { from: String },
    #[error("{from} holds a certificate that cannot be read ({why}): issue it anew, or remove it")]
    BadCertificate { from: String, why: String },
    #[error(
        "{from} holds no private key: it must have an unencrypted PEM block BEGIN PRIVATE KEY (PKCS#8, PKCS#1 or SEC1)"
    )]
    NoKey { from: String },
    #[error("the private key in {from} is encrypted: decrypt it with `openssl pkey -in FILE -out FILE`")]
    EncryptedKey { from: String },
    #[error(
        "the private key in {from} cannot be used ({why}): RSA of 2048 bits and more, ECDSA P-256, P-384, P-521 and Ed25519 can"
    )]
    BadKey { from: String, why: String },
    #[error(
        "the private key in {key} does not belong to the certificate in {certificate} ({subject}): put the matching pair there"
    )]
    KeyMismatch { certificate: String, key: String, subject: String },
    #[error("our certificate {subject} from {from} expired at {when}: renew it")]
    IdentityExpired { from: String, subject: String, when: String },
    #[error("our certificate {subject} from {from} is valid only from {when}: check the clock, or issue it anew")]
    IdentityNotYetValid { from: String, subject: String, when: String },
    #[error("the system has no CA bundle ({why}): install ca-certificates, set SSL_CERT_FILE, or give the rule a CA")]
    NoSystemTrust { why: String },
    #[error("the CRL in {from} cannot be used ({why}): publish a complete CRL in PEM or DER, or remove it")]
    BadCrl { from: String, why: String },
    #[error("{field} {name} is not known: use TLSV1_2 or TLSV1_3")]
    UnknownVersion { field: &'static str, name: String },
    #[error("minProtocolVersion {min} is above maxProtocolVersion {max}: swap them")]
    NoVersion { min: String, max: String },
    #[error("maxProtocolVersion {max} allows nothing above TLS 1.1, which is not spoken here: use TLSV1_2 or TLSV1_3")]
    TooOld { max: String },
    #[error("cipher suite {name} is not available: use some of {known}")]
    UnknownSuite { name: String, known: String },
    #[error("curve {name} is not available: use some of {known}")]
    UnknownCurve { name: String, known: String },
    #[error("the versions and cipher suites leave nothing to offer ({why}): allow a suite of an allowed version")]
    NothingToOffer { why: String },

    // What was asked for cannot be asked for.
    #[error("there is no name to check the server's certificate against: set sni or subjectAltNames in the rule")]
    NoName,
    #[error("{name} is no host name that a certificate could bear: set sni in the rule, or correct the request's Host")]
    BadName { name: String },

    // What the server showed.
    #[error(
        "the {peer}'s certificate {certificate} is not issued by {trust}: give the rule the CA that issued it{more}"
    )]
    PeerUntrusted { peer: Side, certificate: String, trust: String, more: String },
    #[error(
        "the server's certificate {certificate} is for {presented}, not for {expected}: correct the host, sni or subjectAltNames"
    )]
    PeerName { certificate: String, presented: String, expected: String },
    #[error("the certificate {certificate} in the {peer}'s chain expired at {when}: renew it")]
    PeerExpired { peer: Side, certificate: String, when: String },
    #[error(
        "the certificate {certificate} in the {peer}'s chain is valid only from {when}: check the clocks, or issue it anew"
    )]
    PeerNotYetValid { peer: Side, certificate: String, when: String },
    #[error(
        "the certificate {certificate} with serial {serial} in the {peer}'s chain is revoked: the {peer} must get a new one"
    )]
    PeerRevoked { peer: Side, certificate: String, serial: String },
    #[error("the rule has a CRL, but none of {issuer}, who issued {certificate}: add that CRL")]
    CrlMissing { issuer: String, certificate: String },
    #[error("the CRL of {issuer} ran out at {when}: publish a new one")]
    CrlExpired { issuer: String, when: String },
    #[error("the CRL of {issuer} is not signed by that CA: publish a new one")]
    CrlForged { issuer: String },
    #[error("the {peer}'s certificate {certificate} cannot be accepted ({why}): issue it anew")]
    PeerCertificate { peer: Side, certificate: String, why: String },
    #[error(
        "the client's certificate {certificate} is for {presented}, not for {expected}: correct subjectAltNames of the server's tls"
    )]
    ClientName { certificate: String, presented: String, expected: String },
    #[error(
        "the client's certificate {certificate} (SHA-256 {hash}, of its key {spki}) is none of those that verifyCertificateHash and verifyCertificateSpki allow"
    )]
    ClientPin { certificate: String, hash: String, spki: String },
    #[error("the server did not prove that it has the key of its certificate: its handshake signature is wrong")]
    PeerSignature,

    // Mesh mTLS.
    #[error("mesh mTLS cannot be used: {why}")]
    MeshUnavailable { why: String },
    #[error("no mesh certificate yet for our own identity {identity}: {why}")]
    NoMeshIdentity { identity: String, why: String },
    #[error(
        "the {peer} showed the identity {shown}, but {expected} was expected: correct the pod's service account, or subjectAltNames in the rule"
    )]
    PeerIdentity { peer: Side, shown: String, expected: String },
    #[error("the {peer}'s mesh certificate for {shown} is refused ({why}); {expected} was expected")]
    PeerMeshCertificate { peer: Side, shown: String, expected: String, why: String },
    #[error("the client showed no certificate; {expected} was expected: it must speak mesh mTLS")]
    NoPeerCertificate { expected: String },
    #[error(
        "the {peer} refused our identity {own} with the alert {alert}: the log of its agent says why; {expected} was expected there"
    )]
    MeshAlert { peer: Side, own: String, expected: String, alert: String },

    // What the handshake came to.
    #[error("the server ended the handshake with the alert {alert}: {hint}")]
    Alert { alert: String, hint: &'static str },
    #[error(
        "the server and this proxy have no TLS parameters in common ({why}): it must speak TLS 1.2 or 1.3 with ECDHE"
    )]
    Incompatible { why: String },
    #[error("the server did not answer in TLS ({why}): check that the port is a TLS port")]
    NotTls { why: String },
    #[error("the server closed the connection during the TLS handshake: its own log should say why")]
    Closed,
    #[error("the TLS handshake failed: {why}")]
    Io { why: String },
    #[error("the TLS handshake failed: {why}")]
    Other { why: String },
}

impl TlsError {
    /// What an error on a TLS stream means. In TLS 1.3 a server refuses our certificate only after our handshake
    /// is done, so the refusal is met at the first read: hand that error to this function too.
    #[must_use]
    pub fn from_io(error: &io::Error) -> Self {
        if let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            return Self::from_rustls(inner);
        }
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Closed,
            _ => Self::Io { why: error.to_string() },
        }
    }

    fn from_rustls(error: &rustls::Error) -> Self {
        use rustls::Error as E;
        match error {
            E::InvalidCertificate(CertificateError::Other(_)) => {
                Self::own(error).unwrap_or_else(|| Self::Other { why: error.to_string() })
            }
            E::InvalidCertificate(CertificateError::BadSignature) => Self::PeerSignature,
            E::AlertReceived(alert) => Self::Alert { alert: format!("{alert:?}"), hint: hint(*alert) },
            E::PeerIncompatible(why) => Self::Incompatible { why: incompatible(why) },
            E::InvalidMessage(why) => Self::NotTls { why: format!("{why:?}") },
            E::InappropriateMessage { .. } | E::PeerSentOversizedRecord => Self::NotTls { why: error.to_string() },
            _ => Self::Other { why: error.to_string() },
        }
    }

    /// What our own verifier said, where it is that.
    pub(super) fn own(error: &rustls::Error) -> Option<Self> {
        match error {
            rustls::Error::InvalidCertificate(CertificateError::Other(other)) => other.0.downcast_ref().cloned(),
            _ => None,
        }
    }

    /// As rustls carries it from the verifier to the caller.
    pub(super) fn into_rustls(self) -> rustls::Error {
        rustls::Error::InvalidCertificate(CertificateError::Other(rustls::OtherError(Arc::new(self))))
    }
}

/// What usually lies behind an alert (RFC 8446 section 6.2), as seen from a client.
fn hint(alert: AlertDescription) -> &'static str {
    use AlertDescription as A;
    match alert {
        A::CertificateRequired => "it demands a client certificate, so the rule needs mode MUTUAL with one",
        A::BadCertificate
        | A::UnknownCA
        | A::CertificateUnknown
        | A::CertificateRevoked
        | A::CertificateExpired
        | A::UnsupportedCertificate
        | A::AccessDenied => "it does not accept our certificate, so issue one from a CA that it trusts",
        A::HandshakeFailure => {
            "nothing offered suits it, or it demands a client certificate that the rule does not give (mode MUTUAL)"
        }
        A::ProtocolVersion => "it speaks no TLS version that is allowed here (1.2 and 1.3, see tlsDefaults)",
        A::UnrecognisedName => "it serves no such name, so correct the host, or the rule's sni",
        A::NoApplicationProtocol => {
            "it speaks none of the application protocols offered, so correct the port's protocol"
        }
        _ => "its own log should say why",
    }
}

fn incompatible(why: &PeerIncompatible) -> String {
    match why {
        PeerIncompatible::ServerDoesNotSupportTls12Or13 => "it is older than TLS 1.2".to_owned(),
        PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig => {
            "its TLS version is below minProtocolVersion".to_owned()
        }
        other => format!("{other:?}"),
    }
}

impl TlsError {
    /// Whether the fault lies with this certificate of ours, or with its key.
    pub(super) fn is_about(&self, identity: &RawIdentity) -> bool {
        let (certificate, key) = (&identity.certificate.from, &identity.key.from);
        match self {
            Self::BadCertificate { from, .. }
            | Self::NoCertificate { from }
            | Self::IdentityExpired { from, .. }
            | Self::IdentityNotYetValid { from, .. }
            | Self::KeyMismatch { certificate: from, .. } => from == certificate,
            Self::NoKey { from } | Self::EncryptedKey { from } | Self::BadKey { from, .. } => from == key,
            _ => false,
        }
    }
}
