//! What a rule's `tls` means for one workload: settings that can be honoured, or the reason why traffic is refused.
//! Only what objects tell is checked here; what certificates contain is for [`crate::tls`].

use std::{collections::BTreeMap, sync::Arc};

use super::{
    findings::Findings,
    rules::Tls,
    table::{
        IdentitySource, Material, MeshTls, Place, Protocol, TlsContextSettings, TlsSettings, TrustSource, UpstreamTls,
    },
    volumes::{Candidate, Volumes},
};
use crate::api::{
    Objects,
    core::Secret,
    istio::{CaSource, ClientTls, MeshConfig, TlsMode},
};

/// `tlsDefaults` of the mesh configuration.
#[derive(Clone, Debug, Default)]
pub struct Defaults {
    pub min_version: Option<String>,
    pub cipher_suites: Vec<String>,
    pub curves: Vec<String>,
}

impl Defaults {
    pub fn new(config: Option<&MeshConfig>) -> Self {
        config.map_or_else(Self::default, |config| Self {
            min_version: config.tls_min_version.clone(),
            cipher_suites: config.tls_cipher_suites.clone(),
            curves: config.tls_curves.clone(),
        })
    }
}

/// Whose credentials count.
#[derive(Clone, Copy, Debug)]
pub struct Holder<'a> {
    pub objects: &'a Objects,
    pub defaults: &'a Defaults,
    /// Namespace of the workload: its Secrets are meant.
    pub namespace: &'a str,
    pub volumes: &'a Volumes,
}

/// What the service says that the rule does not.
#[derive(Clone, Copy, Debug)]
pub struct Upstream<'a> {
    pub protocol: Protocol,
    pub h2_upgrade: bool,
    pub subject_alt_names: &'a [String],
    /// The server name of mesh mTLS, where the rule has none.
    pub mesh_sni: &'a str,
}

impl Upstream<'_> {
    /// Mesh mTLS, as a rule asks for it, or by itself where none speaks of TLS. Nothing in it is the client's own.
    pub fn mesh(self, rule: Option<&ClientTls>) -> UpstreamTls {
        let own_names = rule.map(|tls| tls.subject_alt_names.as_slice()).filter(|names| !names.is_empty());
        UpstreamTls::Mesh(Arc::new(MeshTls {
            required: rule.is_some(),
            sni: rule.and_then(|tls| given(tls.sni.as_ref())).unwrap_or(self.mesh_sni).to_owned(),
            subject_alt_names: own_names.unwrap_or(self.subject_alt_names).to_vec(),
        }))
    }
}

/// A field below `tls`, and why it cannot be honoured.
pub type Refusal = (&'static str, String);

/// What a file lacks.
enum Lack {
    Object,
    Key,
    Content,
}

impl Holder<'_> {
    pub fn originate(self, tls: &Tls<'_>, upstream: Upstream<'_>, findings: &mut Findings) -> UpstreamTls {
        match tls.settings.mode {
            TlsMode::Disable => return UpstreamTls::Plain,
            TlsMode::IstioMutual => return upstream.mesh(Some(tls.settings)),
            TlsMode::Simple | TlsMode::Mutual => {}
        }
        if let Some(why) = &tls.settings.refused {
            // Said where the CA is referred to.
            return UpstreamTls::Refuse(Arc::from(why.as_str()));
        }
        match self.settings(tls.settings, upstream) {
            Ok(settings) => UpstreamTls::Originate(Arc::new(settings)),
            Err((field, why)) => {
                let field = if field.is_empty() { tls.field.clone() } else { format!("{}.{field}", tls.field) };
                let whose = format!("{why}: traffic of workloads in {} under this rule is refused", self.namespace);
                let reason: Arc<str> = Arc::from(format!("{}: {why}", tls.object.id));
                findings.refused(tls.object, &field, whose, reason.clone());
                UpstreamTls::Refuse(reason)
            }
        }
    }

    fn settings(self, tls: &ClientTls, upstream: Upstream<'_>) -> Result<TlsSettings, Refusal> {
        let (identity, trust) = match given(tls.credential_name.as_ref()) {
            Some(name) => self.secret_material(name, tls)?,
            None => self.file_material(tls)?,
        };
        let subject_alt_names =
            if tls.subject_alt_names.is_empty() { upstream.subject_alt_names } else { &tls.subject_alt_names };
        let crl = given(tls.ca_crl.as_ref()).map(|path| self.material("caCrl", path)).transpose()?;
        let context = TlsContextSettings {
            subject_alt_names: subject_alt_names.to_vec(),
            insecure_skip_verify: tls.insecure_skip_verify,
            identity,
            trust,
            crl,
            alpn: alpn(upstream).iter().map(|name| (*name).to_owned()).collect(),
            min_version: self.defaults.min_version.clone(),
            cipher_suites: self.defaults.cipher_suites.clone(),
            curves: self.defaults.curves.clone(),
        };
        Ok(TlsSettings { sni: given(tls.sni.as_ref()).map(str::to_owned), context: Arc::new(context) })
    }

    /// `credentialName`: certificate, key and CA of a Secret in the workload's namespace; never the system's CAs.
    fn secret_material(self, name: &str, tls: &ClientTls) -> Result<(Option<IdentitySource>, TrustSource), Refusal> {
        let field = "credentialName";
        let refuse = |why: String| Err((field, why));
        let name = name.strip_prefix("kubernetes://").unwrap_or(name);
        if name.contains('/') {
            return refuse(format!("{name} must name a Secret of the workload's own namespace"));
        }
        let namespace = self.namespace;
        let own = self.secret(namespace, name);
        let beside = self.secret(namespace, &format!("{name}-cacert"));
        if own.is_none() && (tls.mode == TlsMode::Mutual || beside.is_none()) {
            return refuse(format!("Secret {namespace}/{name} does not exist"));
        }
        let ca = beside.is_some_and(has_ca) || own.is_some_and(has_ca);
        if !ca && !tls.insecure_skip_verify {
            return refuse(format!(
                "there is no CA to check the server with: neither Secret {namespace}/{name} has ca.crt or cacert, nor is there a Secret {name}-cacert with it"
            ));
        }
        let identity = match (tls.mode, own) {
            (TlsMode::Mutual, Some(own)) => {
                if !has_pair(own) {
                    return refuse(format!("Secret {namespace}/{name} lacks tls.crt and tls.key (or cert and key)"));
                }
                Some(IdentitySource::Secret { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => None,
        };
        Ok((identity, TrustSource::Secret { namespace: namespace.to_owned(), name: name.to_owned() }))
    }

    fn file_material(self, tls: &ClientTls) -> Result<(Option<IdentitySource>, TrustSource), Refusal> {
        let identity = if tls.mode == TlsMode::Mutual {
            let certificate = given(tls.client_certificate.as_ref())
                .ok_or(("clientCertificate", "MUTUAL wants a client certificate, or credentialName".to_owned()))?;
            let key = given(tls.private_key.as_ref())
                .ok_or(("privateKey", "MUTUAL wants the key of the client certificate".to_owned()))?;
            let certificate = self.material("clientCertificate", certificate)?;
            Some(IdentitySource::Files { certificate, key: self.material("privateKey", key)? })
        } else {
            None
        };
        let trust = match (tls.ca.clone(), given(tls.ca_certificates.as_ref())) {
            (Some(CaSource::ConfigMap { namespace, name }), _) => TrustSource::ConfigMap { namespace, name },
            (Some(CaSource::Secret { namespace, name }), _) => TrustSource::Secret { namespace, name },
            (None, None | Some("system")) => TrustSource::System,
            (None, Some(path)) => TrustSource::File(self.material("caCertificates", path)?),
        };
        Ok((identity, trust))
    }

    /// The file that a field of the rule names.
    pub fn material(self, field: &'static str, path: &str) -> Result<Material, Refusal> {
        let candidates = self.volumes.candidates(path).map_err(|why| (field, why))?;
        match self.first(candidates) {
            Ok(place) => Ok(Material { path: path.to_owned(), place }),
            Err(why) => Err((field, format!("{path}: {why}"))),
        }
    }

    /// The first of the candidates that has the file. No other is looked for: what is not needed is not read.
    fn first(self, candidates: Vec<Candidate>) -> Result<Place, String> {
        let mut passed = Vec::new();
        for Candidate { place, absent_may_pass, lacking_may_pass } in candidates {
            let place = place?;
            let Some((lack, said)) = self.lack(&place) else { return Ok(place) };
            passed.push(said);
            let may_pass = match lack {
                Lack::Object => absent_may_pass,
                Lack::Key => lacking_may_pass,
                Lack::Content => false,
            };
            if !may_pass {
                break;
            }
        }
        Err(passed.join(", and "))
    }

    /// What is missing at that place, and in words.
    fn lack(self, place: &Place) -> Option<(Lack, String)> {
        let (what, found, key) = match place {
            Place::Host => return None,
            Place::Secret { namespace, name, key } => {
                let secret = self.secret(namespace, name);
                let length = secret.map(|secret| secret.data.get(key).map(Vec::len));
                (format!("Secret {namespace}/{name}"), length, key)
            }
            Place::ConfigMap { namespace, name, key } => {
                let object = self.objects.config_map(namespace, name);
                let length = object.map(|object| object.spec.data.get(key).map(String::len));
                (format!("ConfigMap {namespace}/{name}"), length, key)
            }
        };
        match found {
            None => Some((Lack::Object, format!("{what} does not exist"))),
            Some(None) => Some((Lack::Key, format!("{what} has no key {key}"))),
            Some(Some(0)) => Some((Lack::Content, format!("{what} has no PEM under the key {key}"))),
            Some(Some(_)) => None,
        }
    }

    pub fn secret(&self, namespace: &str, name: &str) -> Option<&Secret> {
        self.objects.secret(namespace, name).map(|object| &object.spec)
    }
}

/// A certificate and its key.
pub fn has_pair(secret: &Secret) -> bool {
    let pairs = [["cert", "key"], ["tls.crt", "tls.key"]];
    pairs.iter().any(|pair| pair.iter().all(|key| filled(secret, key)))
}

pub fn has_ca(secret: &Secret) -> bool {
    ["cacert", "ca.crt"].iter().any(|key| filled(secret, key))
}

fn filled(secret: &Secret, key: &str) -> bool {
    secret.data.get(key).is_some_and(|value| !value.is_empty())
}

/// Set and not empty: protobuf knows no difference.
pub fn given(value: Option<&String>) -> Option<&str> {
    value.map(String::as_str).filter(|value| !value.is_empty())
}

fn alpn(upstream: Upstream<'_>) -> &'static [&'static str] {
    match upstream.protocol {
        Protocol::Http2 | Protocol::Grpc => &["h2", "http/1.1"],
        Protocol::Http | Protocol::Auto if upstream.h2_upgrade => &["h2", "http/1.1"],
        Protocol::Http | Protocol::Auto => &["http/1.1"],
        // Raw bytes; for HTTPS and TLS they are the application's own TLS.
        Protocol::Https | Protocol::Tls | Protocol::Tcp => &[],
    }
}

/// Where each path that some rule names may lie for a pod: pods that agree may share tables.
pub fn places(paths: &[String], volumes: &Volumes) -> Places {
    paths.iter().map(|path| volumes.candidates(path)).collect()
}

/// See [`places`].
pub type Places = Vec<Result<Vec<Candidate>, String>>;

/// Labels of nobody.
pub static NO_LABELS: BTreeMap<String, String> = BTreeMap::new();
