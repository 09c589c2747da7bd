//! All contexts of a reload, by the settings they are for.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::PathBuf,
    sync::Arc,
    time::SystemTime,
};

use super::{
    ClientContext, MaterialReader, ServerContext, TlsError, TlsSettings,
    inspect::{self, CertificateSummary},
    material::{self, Blob, Inputs, RawTrust},
    mesh::MeshContexts,
    mesh_rows,
    trust::{Said, SystemBundle},
};
use crate::{
    identity::Identities,
    limits::EXPIRY_WARNING,
    mesh::ServerTlsSettings,
    mesh::table::{IdentitySource, Material, MeshTls, Peer, Place, TrustSource},
};

/// Every TLS rule in force, usable or with the reason why not. Immutable; a reload builds the next from it.
#[derive(Debug, Default)]
pub struct Contexts {
    entries: HashMap<Arc<TlsSettings>, Entry>,
    files: BTreeSet<PathBuf>,
    secrets: Vec<SecretRow>,
    warnings: Vec<String>,
    said: Arc<Said>,
    system: Option<Arc<SystemBundle>>,
    mesh: Option<Mesh>,
}

/// Mesh mTLS: who we are, and the contexts for it, or why there are none.
#[derive(Debug)]
struct Mesh {
    identities: Arc<Identities>,
    contexts: Result<Arc<MeshContexts>, Arc<TlsError>>,
}

#[derive(Debug)]
struct Entry {
    inputs: Inputs,
    context: Result<Arc<ClientContext>, Arc<TlsError>>,
}

/// One line of `proxy-config secret`: a certificate chain, or a CA bundle, that rules use.
#[derive(Clone, Debug)]
pub struct SecretRow {
    /// `kubernetes://X`, `kubernetes://X-cacert`, `file-cert:crt~key`, `file-root:ca`, `default`, `ROOTCA`
    pub name: String,
    /// Of the Secret; empty for files of the host.
    pub namespace: String,
    /// `Cert Chain`, or `CA` where basicConstraints of the first certificate say so (as istioctl decides it).
    pub kind: &'static str,
    /// `ACTIVE`, or why it cannot be used.
    pub status: String,
    /// Usable, and within its validity period at the time of the reload; [`Self::is_valid_at`] looks again.
    pub valid: bool,
    /// Of the first certificate, in decimal; empty where there is none.
    pub serial: String,
    /// Seconds since the epoch, of the first certificate.
    pub not_after: Option<i64>,
    /// Seconds since the epoch, of the first certificate.
    pub not_before: Option<i64>,
    /// All certificates of the chain or bundle, in order.
    pub chain: Vec<CertificateSummary>,
    /// The rules that use it: the workloads whose clusters have one of these settings see the row.
    pub settings: Vec<Arc<TlsSettings>>,
}

impl SecretRow {
    /// A row about the first certificate of `chain`, of no rule yet; validity is as of `now`.
    pub(super) fn new(
        name: &str,
        namespace: &str,
        kind: &'static str,
        status: String,
        chain: Vec<CertificateSummary>,
        now: SystemTime,
    ) -> Self {
        let first = chain.first();
        let mut row = Self {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            kind,
            status,
            valid: false,
            serial: first.map(|first| first.serial.clone()).unwrap_or_default(),
            not_after: first.map(|first| first.not_after),
            not_before: first.map(|first| first.not_before),
            chain,
            settings: Vec::new(),
        };
        row.valid = row.is_valid_at(now);
        row
    }

    /// `VALID CERT` now.
    #[must_use]
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        self.status == ACTIVE && self.chain.first().is_some_and(|first| first.is_valid_at(now))
    }
}

pub(super) const ACTIVE: &str = "ACTIVE";

impl Contexts {
    /// The first of all, with no rule yet: every one built from it takes mesh identities from here.
    #[must_use]
    pub fn with_identities(identities: Arc<Identities>) -> Self {
        Self { mesh: Some(Mesh::new(&identities, None)), ..Self::default() }
    }

    /// Builds a context for each distinct one of `settings`. Where all bytes read are what they were in `previous`, its
    /// context stays, with its id and its sessions. A rule that cannot be honoured keeps its reason, and harms no other.
    ///
    /// Reads files and the system's bundle: call it off the data path.
    #[must_use]
    pub fn build(
        previous: &Self,
        settings: impl IntoIterator<Item = Arc<TlsSettings>>,
        _servers: impl IntoIterator<Item = Arc<ServerTlsSettings>>,
        reader: &dyn MaterialReader,
    ) -> Self {
        let mut new = Self { said: Arc::clone(&previous.said), ..Self::default() };
        let mut rows = BTreeMap::new();
        let mut system = System { previous: previous.system.as_ref(), loaded: None };
        for settings in settings {
            if new.entries.contains_key(&settings) {
                continue;
            }
            let inputs = material::read(&settings, reader, &mut || system.get());
            new.files.extend(material::files(&settings));
            let context = match previous.entries.get(&settings) {
                Some(Entry { inputs: old, context: Ok(context) }) if *old == inputs => {
                    context.check_identity().map(|()| Arc::clone(context)).map_err(Arc::new)
                }
                _ => ClientContext::new(&settings, &inputs, &new.said).map(Arc::new).map_err(Arc::new),
            };
            add_rows(&mut rows, &settings, &inputs, context.as_ref().err());
            new.entries.insert(settings, Entry { inputs, context });
        }
        if let Some(Ok(bundle)) = system.loaded {
            new.system = Some(bundle);
            new.files.extend(SystemBundle::paths());
        }
        new.secrets = rows.into_values().collect();
        new.warnings = warnings(&new.secrets, &new.said);
        new.mesh = previous.mesh.as_ref().map(|mesh| Mesh::new(&mesh.identities, mesh.contexts.as_ref().ok()));
        new
    }

    /// The context for a rule, or why there is none: say that in the 503.
    pub fn get(&self, settings: &TlsSettings) -> Result<Arc<ClientContext>, Arc<TlsError>> {
        match self.entries.get(settings) {
            Some(entry) => entry.context.clone(),
            None => Err(Arc::new(TlsError::NotBuilt)),
        }
    }

    /// The context of a server that takes TLS off, or why there is none: its clients get no handshake.
    pub fn server(&self, _settings: &ServerTlsSettings) -> Result<Arc<ServerContext>, Arc<TlsError>> {
        Err(Arc::new(TlsError::NotBuilt))
    }

    /// The context for mesh mTLS of the workload with the SPIFFE identity `own` towards `peer`: one for each of (own, rule,
    /// expected peer), the same as long as the trusted roots and our CA are the same.
    ///
    /// # Errors
    /// There is no mesh CA, or no certificate for `own`, with the reason.
    pub fn mesh_client(
        &self,
        own: &str,
        settings: &MeshTls,
        peer: Option<&Peer>,
    ) -> Result<Arc<ClientContext>, Arc<TlsError>> {
        self.mesh()?.client(own, settings, peer).map_err(Arc::new)
    }

    /// The server side of mesh mTLS for the workload with the SPIFFE identity `own`: a client must show a certificate of the
    /// mesh, whoever it is.
    ///
    /// # Errors
    /// As [`Self::mesh_client`].
    pub fn mesh_server(&self, own: &str) -> Result<Arc<ServerContext>, Arc<TlsError>> {
        self.mesh()?.server(own).map_err(Arc::new)
    }

    fn mesh(&self) -> Result<&Arc<MeshContexts>, Arc<TlsError>> {
        match &self.mesh {
            Some(mesh) => mesh.contexts.as_ref().map_err(Arc::clone),
            None => Err(Arc::new(TlsError::MeshUnavailable { why: "this agent holds no mesh identities".to_owned() })),
        }
    }

    /// Host paths whose change must lead to a new [`Contexts::build`]; some may not exist (yet).
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        let identities = self.mesh.iter().flat_map(|mesh| mesh.identities.files());
        self.files.iter().cloned().chain(identities).collect()
    }

    /// Rows for `proxy-config secret` and for expiry metrics, by name.
    #[must_use]
    pub fn secrets(&self) -> &[SecretRow] {
        &self.secrets
    }

    /// Rows for our own mesh certificates (`default`) and the mesh's roots (`ROOTCA`), of one SPIFFE identity or of all, as
    /// they are now: renewals come between two reloads.
    #[must_use]
    pub fn mesh_secrets(&self, identity: Option<&str>) -> Vec<SecretRow> {
        self.mesh.as_ref().map_or_else(Vec::new, |mesh| mesh_rows::rows(&mesh.identities, identity))
    }

    /// What should be said about configured certificates, once for each: those that this build found first.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The rules that cannot be honoured, with their reasons.
    pub fn failures(&self) -> impl Iterator<Item = (&Arc<TlsSettings>, &Arc<TlsError>)> {
        self.entries.iter().filter_map(|(settings, entry)| Some((settings, entry.context.as_ref().err()?)))
    }
}

impl Mesh {
    fn new(identities: &Arc<Identities>, previous: Option<&Arc<MeshContexts>>) -> Self {
        let contexts = MeshContexts::of(identities, previous).map_err(Arc::new);
        Self { identities: identities.clone(), contexts }
    }
}

/// The system's bundle, read at most once a build, and the previous one kept where it did not change.
struct System<'a> {
    previous: Option<&'a Arc<SystemBundle>>,
    loaded: Option<Result<Arc<SystemBundle>, TlsError>>,
}

impl System<'_> {
    fn get(&mut self) -> Result<Arc<SystemBundle>, TlsError> {
        let previous = self.previous;
        self.loaded
            .get_or_insert_with(|| {
                let loaded = SystemBundle::load()?;
                Ok(previous.filter(|old| ***old == loaded).map_or_else(|| Arc::new(loaded), Arc::clone))
            })
            .clone()
    }
}

type Rows = BTreeMap<(String, String), SecretRow>;

fn add_rows(rows: &mut Rows, settings: &Arc<TlsSettings>, inputs: &Inputs, failure: Option<&Arc<TlsError>>) {
    if let (Some(source), Some(raw)) = (&settings.identity, &inputs.identity) {
        let (name, namespace) = match source {
            IdentitySource::Secret { namespace, name } => (format!("kubernetes://{name}"), namespace.clone()),
            IdentitySource::Files { certificate, key } => {
                (format!("file-cert:{}~{}", certificate.path, key.path), namespace_of(certificate))
            }
        };
        let raw = raw.as_ref().map(|raw| &raw.certificate);
        // Only what is wrong with this very certificate or key belongs into its row.
        let failure = failure.filter(|error| raw.is_ok_and(|raw| error.is_about_identity(&raw.from)));
        add_row(rows, settings, name, namespace, "Cert Chain", raw, failure);
    }
    let (name, namespace) = match &settings.trust {
        TrustSource::System => return,
        TrustSource::Secret { namespace, name } => (format!("kubernetes://{name}-cacert"), namespace.clone()),
        TrustSource::ConfigMap { namespace, name } => (format!("configmap://{namespace}/{name}"), namespace.clone()),
        TrustSource::File(material) => (format!("file-root:{}", material.path), namespace_of(material)),
    };
    let raw = match &inputs.trust {
        Ok(RawTrust::Configured(blob) | RawTrust::Public(blob)) => Ok(blob),
        Ok(_) => return,
        Err(error) => Err(error),
    };
    add_row(rows, settings, name, namespace, "CA", raw, None);
}

fn add_row(
    rows: &mut Rows,
    settings: &Arc<TlsSettings>,
    name: String,
    namespace: String,
    kind_unread: &'static str,
    raw: Result<&Blob, &TlsError>,
    failure: Option<&Arc<TlsError>>,
) {
    if let Some(row) = rows.get_mut(&(name.clone(), namespace.clone())) {
        row.settings.push(Arc::clone(settings));
        return;
    }
    let (chain, unreadable) = match raw {
        Err(error) => (Vec::new(), Some(error.to_string())),
        Ok(blob) => match inspect::chain(&blob.bytes) {
            Ok(chain) if chain.is_empty() => {
                (chain, Some(TlsError::NoCertificate { from: blob.from.clone() }.to_string()))
            }
            Ok(chain) => (chain, None),
            Err(why) => (Vec::new(), Some(TlsError::BadCertificate { from: blob.from.clone(), why }.to_string())),
        },
    };
    let status = unreadable.or_else(|| failure.map(ToString::to_string)).unwrap_or_else(|| ACTIVE.to_owned());
    let kind = match chain.first() {
        Some(first) if first.is_ca => "CA",
        Some(_) => "Cert Chain",
        None => kind_unread,
    };
    let mut row = SecretRow::new(&name, &namespace, kind, status, chain, SystemTime::now());
    row.settings.push(Arc::clone(settings));
    rows.insert((name, namespace), row);
}

fn namespace_of(material: &Material) -> String {
    match &material.place {
        Place::Host => String::new(),
        Place::Secret { namespace, .. } | Place::ConfigMap { namespace, .. } => namespace.clone(),
    }
}

fn warnings(rows: &[SecretRow], said: &Said) -> Vec<String> {
    let now = inspect::unix_seconds(SystemTime::now());
    let soon = now.saturating_add(i64::try_from(EXPIRY_WARNING.as_secs()).unwrap_or(i64::MAX));
    let mut found = Vec::new();
    for row in rows {
        for certificate in &row.chain {
            let mut say = |remark: &str, text: String| {
                let identity = format!("{}|{}|{}", row.name, certificate.issuer, certificate.serial);
                if said.first(identity.as_bytes(), remark) {
                    found.push(text);
                }
            };
            let (name, subject) = (&row.name, &certificate.subject);
            let when = inspect::timestamp(certificate.not_after);
            if certificate.not_after < now {
                say("expired", format!("{name}: the certificate {subject} expired at {when}: renew it"));
            } else if certificate.not_after < soon {
                say("soon", format!("{name}: the certificate {subject} expires at {when}: renew it"));
            }
            if certificate.version == 1 {
                say("v1", format!("{name}: the certificate {subject} is X.509 v1: it works here, but issue it as v3"));
            }
        }
    }
    found
}
