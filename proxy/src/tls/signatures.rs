//! That the peer has the key of its certificate: the signatures of the handshake, for every verifier here.

use rustls::{
    CertificateError, DigitallySignedStruct, Error, PeerMisbehaved,
    client::danger::HandshakeSignatureValid,
    crypto::{
        WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature, verify_tls13_signature_with_raw_key,
    },
};
use rustls_pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use webpki::{EndEntityCert, RawPublicKeyEntity};

use super::inspect;

pub(super) fn tls12(
    message: &[u8],
    cert: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    if EndEntityCert::try_from(cert).is_ok() {
        return verify_tls12_signature(message, cert, dss, algorithms);
    }
    let spki = bare_key(cert)?;
    let key = RawPublicKeyEntity::try_from(&spki).map_err(|_| CertificateError::BadEncoding)?;
    // In TLS 1.2 a scheme does not fix the curve: try each algorithm that the scheme may mean for this key.
    let candidates = algorithms.mapping.iter().filter(|(scheme, _)| *scheme == dss.scheme);
    for algorithm in candidates.flat_map(|(_, algorithms)| algorithms.iter()) {
        match key.verify_signature(*algorithm, message, dss.signature()) {
            Ok(()) => return Ok(HandshakeSignatureValid::assertion()),
            Err(webpki::Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_)) => {}
            Err(_) => return Err(CertificateError::BadSignature.into()),
        }
    }
    Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into())
}

pub(super) fn tls13(
    message: &[u8],
    cert: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    if EndEntityCert::try_from(cert).is_ok() {
        return verify_tls13_signature(message, cert, dss, algorithms);
    }
    verify_tls13_signature_with_raw_key(message, &bare_key(cert)?, dss, algorithms)
}

/// The key alone, from a certificate that webpki does not read (X.509 v1).
fn bare_key(cert: &CertificateDer<'_>) -> Result<SubjectPublicKeyInfoDer<'static>, Error> {
    match inspect::parse(cert) {
        Ok(certificate) => Ok(SubjectPublicKeyInfoDer::from(certificate.public_key().raw.to_vec())),
        Err(_) => Err(CertificateError::BadEncoding.into()),
    }
}

/// The methods that rustls wants of a `ServerCertVerifier` and of a `ClientCertVerifier` alike. The argument is where in
/// `self` the algorithms are.
macro_rules! handshake_signatures {
    ($($algorithms:ident).+) => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &rustls_pki_types::CertificateDer<'_>,
            dss: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            super::signatures::tls12(message, cert, dss, &self.$($algorithms).+)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &rustls_pki_types::CertificateDer<'_>,
            dss: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            super::signatures::tls13(message, cert, dss, &self.$($algorithms).+)
        }

        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            self.$($algorithms).+.supported_schemes()
        }
    };
}

pub(super) use handshake_signatures;
