//! The judge of a server's certificate: its chain, then the name.

use rustls::{
    Error,
    client::danger::{ServerCertVerified, ServerCertVerifier},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::certificate::X509Certificate;

use super::{
    TlsError,
    inspect::distinguished,
    judge::Judge,
    names::{self, Match},
    signatures::handshake_signatures,
    trust::Trust,
};

#[derive(Debug)]
pub(super) struct Verifier {
    pub judge: Judge,
    /// `subjectAltNames` of the rule, one of which must match; empty: the name the connection is for.
    pub names: Vec<String>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if !matches!(self.judge.trust, Trust::Unchecked) {
            let leaf = self.judge.check(end_entity, intermediates, now).map_err(TlsError::into_rustls)?;
            self.check_name(end_entity, &leaf, server_name).map_err(TlsError::into_rustls)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    handshake_signatures!(judge.algorithms);
}

impl Verifier {
    fn check_name(
        &self,
        leaf_der: &CertificateDer<'_>,
        leaf: &X509Certificate<'_>,
        server_name: &ServerName<'_>,
    ) -> Result<(), TlsError> {
        let asked = [server_name.to_str().into_owned()];
        let expected = if self.names.is_empty() { &asked[..] } else { &self.names[..] };
        let allow_common_name = self.judge.is_configured();
        let matched = expected.iter().find_map(|name| names::matches(leaf_der, leaf, name, allow_common_name));
        match matched {
            Some(Match::SubjectAltName) => Ok(()),
            Some(Match::CommonName) => {
                self.judge.note_common_name(leaf_der, leaf);
                Ok(())
            }
            None => Err(TlsError::PeerName {
                certificate: distinguished(leaf.subject()),
                presented: names::presented(leaf),
                expected: expected.join(" or "),
            }),
        }
    }
}
