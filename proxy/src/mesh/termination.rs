//! What a server's `tls` means for the pod that serves it: settings that can be honoured, or the reason why there is no
//! handshake. Only what objects tell is checked here; what certificates contain is for [`crate::tls`].

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{
    origination::{Holder, Refusal, given, has_ca, has_pair},
    server_tls::{ClientCertificates, ClientTrust, ServerTlsSettings},
    table::{IdentitySource, TrustSource},
};
use crate::{
    api::gateway::{ServerTls, ServerTlsMode},
    tls::check_suites,
};

/// How Istio writes a Secret that a reference of the Gateway API means.
const GRANTED: &str = "kubernetes-gateway://";

/// … and a ConfigMap.
const CONFIG_MAP: &str = "configmap://";
const CA_FIELD: &str = "caCertCredentialName";

/// Namespace and name.
type SecretName = (String, String);

impl Holder<'_> {
    /// SIMPLE, MUTUAL or OPTIONAL_MUTUAL. `granted`: names of Secrets in other namespaces were checked already, as those of
    /// the Gateway API are.
    pub fn terminate(self, tls: &ServerTls, alpn: &[&str], granted: bool) -> Result<ServerTlsSettings, Refusal> {
        one_source(tls)?;
        versions(tls)?;
        check_suites(&tls.cipher_suites).map_err(|error| ("cipherSuites", error.to_string()))?;
        let names = tls.credential_names.iter().map(|name| self.secret_name(tls, name, granted));
        let secrets: Vec<SecretName> = names.collect::<Result<_, _>>()?;
        let identities = self.identities(tls, &secrets)?;
        let clients = match tls.mode {
            Some(ServerTlsMode::Mutual) => ClientCertificates::Required(self.client_trust(tls, &secrets, granted)?),
            Some(ServerTlsMode::OptionalMutual) => {
                ClientCertificates::Optional(self.client_trust(tls, &secrets, granted)?)
            }
            _ => ClientCertificates::None,
        };
        let suites = if tls.cipher_suites.is_empty() { &self.defaults.cipher_suites } else { &tls.cipher_suites };
        Ok(ServerTlsSettings {
            identities,
            clients,
            alpn: alpn.iter().map(|name| (*name).to_owned()).collect(),
            min_version: tls.min_version.clone(),
            max_version: tls.max_version.clone(),
            cipher_suites: suites.clone(),
            curves: self.defaults.curves.clone(),
        })
    }

    fn identities(self, tls: &ServerTls, secrets: &[SecretName]) -> Result<Vec<IdentitySource>, Refusal> {
        if secrets.is_empty() {
            let wanted = |what| format!("{what} is missing, and so is credentialName");
            let certificate = given(tls.server_certificate.as_ref())
                .ok_or_else(|| ("serverCertificate", wanted("the server's certificate")))?;
            let key = given(tls.private_key.as_ref())
                .ok_or_else(|| ("privateKey", wanted("the key of the server's certificate")))?;
            let certificate = self.material("serverCertificate", certificate)?;
            return Ok(vec![IdentitySource::Files { certificate, key: self.material("privateKey", key)? }]);
        }
        let identity = |(namespace, name): &SecretName| match self.secret(namespace, name) {
            None => Err((credential_field(tls), format!("Secret {namespace}/{name} does not exist"))),
            Some(secret) if !has_pair(secret) => Err((
                credential_field(tls),
                format!("Secret {namespace}/{name} lacks tls.crt and tls.key (or cert and key)"),
            )),
            Some(_) => Ok(IdentitySource::Secret { namespace: namespace.clone(), name: name.clone() }),
        };
        secrets.iter().map(identity).collect()
    }

    fn secret_name(self, tls: &ServerTls, written: &str, granted: bool) -> Result<SecretName, Refusal> {
        let refuse = |why: String| Err((credential_field(tls), why));
        if let Some((namespace, name)) = written.strip_prefix(GRANTED).and_then(|rest| rest.split_once('/')) {
            if granted || namespace == self.namespace {
                return Ok((namespace.to_owned(), name.to_owned()));
            }
            return refuse(format!("{written}: only a Gateway of the Gateway API may use Secrets of other namespaces"));
        }
        let name = written.strip_prefix("kubernetes://").unwrap_or(written);
        if name.contains("://") {
            return refuse(format!("{written}: credentials of this kind are not honoured, only Secrets are"));
        }
        if name.is_empty() || name.contains('/') {
            return refuse(format!("{written:?} must name a Secret of the pod's own namespace"));
        }
        Ok((self.namespace.to_owned(), name.to_owned()))
    }

    /// Never the system's bundle: that would let in whoever has bought a certificate.
    fn client_trust(self, tls: &ServerTls, secrets: &[SecretName], granted: bool) -> Result<ClientTrust, Refusal> {
        let ca = match given(tls.ca_credential.as_ref()) {
            Some(name) => self.named_ca(name, granted)?,
            None => self.client_ca(tls, secrets)?,
        };
        Ok(ClientTrust {
            ca,
            crl: given(tls.ca_crl.as_ref()).map(|path| self.material("caCrl", path)).transpose()?,
            subject_alt_names: tls.subject_alt_names.clone(),
            spki: tls.verify_certificate_spki.iter().map(|text| spki(text)).collect::<Result<_, _>>()?,
            hashes: tls.verify_certificate_hash.iter().map(|text| hash(text)).collect::<Result<_, _>>()?,
        })
    }

    /// `caCertCredentialName`: a Secret, or else a ConfigMap.
    fn named_ca(self, written: &str, granted: bool) -> Result<TrustSource, Refusal> {
        let refuse = |why: String| Err((CA_FIELD, why));
        let config_map = written.strip_prefix(CONFIG_MAP);
        let full = config_map.or_else(|| written.strip_prefix(GRANTED));
        let (namespace, name) = match full {
            Some(full) => full.split_once('/').unwrap_or((self.namespace, full)),
            None => (self.namespace, written.strip_prefix("kubernetes://").unwrap_or(written)),
        };
        if namespace != self.namespace && !granted {
            let why = "only a Gateway of the Gateway API may use a CA of another namespace";
            return refuse(format!("{written}: {why}"));
        }
        if name.is_empty() || name.contains('/') {
            return refuse(format!("{written:?} must name a Secret or a ConfigMap of the pod's own namespace"));
        }
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        if config_map.is_none() && self.secret(&namespace, &name).is_some_and(has_ca) {
            return Ok(TrustSource::Secret { namespace, name });
        }
        let data = self.objects.config_map(&namespace, &name).map(|object| &object.spec.data);
        let holds = data.and_then(|data| data.get("ca.crt")).is_some_and(|text| !text.is_empty());
        if holds && (full.is_none() || config_map.is_some()) {
            return Ok(TrustSource::ConfigMap { namespace, name });
        }
        let what = match (config_map, full) {
            (Some(_), _) => "ConfigMap",
            (None, Some(_)) => "Secret",
            (None, None) => "Secret or ConfigMap",
        };
        refuse(format!("there is no {what} {namespace}/{name} with a CA in key ca.crt"))
    }

    fn client_ca(self, tls: &ServerTls, secrets: &[SecretName]) -> Result<TrustSource, Refusal> {
        let Some((namespace, first)) = secrets.first() else {
            let path = given(tls.ca_certificates.as_ref())
                .filter(|path| *path != "system")
                .ok_or(("caCertificates", "there is no CA to check clients with".to_owned()))?;
            return Ok(TrustSource::File(self.material("caCertificates", path)?));
        };
        let holds_ca = |(namespace, name): &&SecretName| {
            let beside = self.secret(namespace, &format!("{name}-cacert"));
            beside.is_some_and(has_ca) || self.secret(namespace, name).is_some_and(has_ca)
        };
        match secrets.iter().find(holds_ca) {
            Some((namespace, name)) => Ok(TrustSource::Secret { namespace: namespace.clone(), name: name.clone() }),
            None => Err((
                credential_field(tls),
                format!(
                    "there is no CA to check clients with: neither Secret {namespace}/{first} has ca.crt or cacert, nor is there a Secret {first}-cacert with it"
                ),
            )),
        }
    }
}

fn credential_field(tls: &ServerTls) -> &'static str {
    if tls.credential_names.len() > 1 { "credentialNames" } else { "credentialName" }
}

/// As Istio's `validateTLSOptions`.
fn one_source(tls: &ServerTls) -> Result<(), Refusal> {
    let named = !tls.credential_names.is_empty();
    let files = [&tls.server_certificate, &tls.private_key].iter().all(|file| given(file.as_ref()).is_some());
    let crl = given(tls.ca_crl.as_ref()).is_some();
    if named && files {
        return Err(("serverCertificate", "files and credentialName exclude each other".to_owned()));
    }
    if crl && named {
        return Err(("caCrl", "with credentialName the CRL belongs into the Secret, as ca.crl".to_owned()));
    }
    if crl && !matches!(tls.mode, Some(ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual)) {
        return Err(("caCrl", "without MUTUAL no client shows a certificate that it could be about".to_owned()));
    }
    Ok(())
}

fn versions(tls: &ServerTls) -> Result<(), Refusal> {
    let (min, max) = (tls.min_version.as_deref(), tls.max_version.as_deref());
    if let Some(max @ ("TLSV1_0" | "TLSV1_1")) = max {
        return Err(("maxProtocolVersion", format!("{max} is too old: TLS 1.2 and 1.3 are spoken")));
    }
    // Their names sort as they do.
    match (min, max) {
        (Some(min), Some(max)) if min > max => {
            Err(("minProtocolVersion", format!("{min} is above maxProtocolVersion {max}")))
        }
        _ => Ok(()),
    }
}

fn spki(text: &str) -> Result<String, Refusal> {
    match STANDARD.decode(text) {
        Ok(bytes) if bytes.len() == 32 => Ok(text.to_owned()),
        _ => Err(("verifyCertificateSpki", format!("{text:?} is not the base64 of a SHA-256"))),
    }
}

fn hash(text: &str) -> Result<String, Refusal> {
    let digits = text.replace(':', "").to_ascii_lowercase();
    if digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(digits);
    }
    Err(("verifyCertificateHash", format!("{text:?} is not a SHA-256 in hex")))
}
