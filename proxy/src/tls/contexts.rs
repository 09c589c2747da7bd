//! All contexts of a reload, by the settings they are for.

use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    sync::Arc,
};

use super::{
    ClientContext, MaterialReader, SecretRow, ServerContext, TlsContextSettings, TlsError, TlsSettings,
    material::{self, Inputs, ServerInputs},
    mesh::MeshContexts,
    mesh_rows,
    secret_rows::{self, Rows},
    trust::{Said, SystemBundle},
};
use crate::{
    identity::Identities,
    mesh::{MeshTls, Peer, ServerTlsSettings},
};

/// Every TLS rule and server in force, usable or with the reason why not. Immutable; a reload builds the next from it.
#[derive(Debug, Default)]
pub struct Contexts {
    /// Asked for each request.
    clients: HashMap<Arc<TlsContextSettings>, Entry<Inputs, ClientContext>, foldhash::fast::RandomState>,
    servers: HashMap<Arc<ServerTlsSettings>, Entry<ServerInputs, ServerContext>>,
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

/// What a context was built from, and what came of it.
#[derive(Debug)]
struct Entry<I, C> {
    inputs: I,
    context: Result<Arc<C>, Arc<TlsError>>,
}

impl Contexts {
    /// The first of all, with no rule yet: every one built from it takes mesh identities from here.
    #[must_use]
    pub fn with_identities(identities: Arc<Identities>) -> Self {
        Self { mesh: Some(Mesh::new(&identities, None)), ..Self::default() }
    }

    /// Builds a context for each distinct one of `clients` (but for the server's name) and `servers`. Where all bytes read are
    /// what they were in `previous`, its context stays, with its id, its sessions and its tickets. A rule that cannot be
    /// honoured keeps its reason, and harms no other.
    ///
    /// Reads files and the system's bundle: call it off the data path.
    #[must_use]
    pub fn build(
        previous: &Self,
        clients: impl IntoIterator<Item = Arc<TlsSettings>>,
        servers: impl IntoIterator<Item = Arc<ServerTlsSettings>>,
        reader: &dyn MaterialReader,
    ) -> Self {
        let mut new = Self { said: Arc::clone(&previous.said), ..Self::default() };
        let mut rows = Rows::default();
        let mut system = System { previous: previous.system.as_ref(), loaded: None };
        for settings in clients {
            let settings = settings.context.clone();
            if new.clients.contains_key(&settings) {
                continue;
            }
            let inputs = material::read(&settings, reader, &mut || system.get());
            new.files.extend(material::files(&settings));
            let build = |inputs: &Inputs| ClientContext::new(&settings, inputs, &new.said);
            let entry = Entry::of(previous.clients.get(&settings), inputs, ClientContext::check_identity, build);
            rows.add_client(&settings, &entry.inputs, entry.context.as_ref().err());
            new.clients.insert(settings, entry);
        }
        for settings in servers {
            if new.servers.contains_key(&settings) {
                continue;
            }
            let inputs = material::read_server(&settings, reader);
            new.files.extend(material::server_files(&settings));
            let build = |inputs: &ServerInputs| ServerContext::new(&settings, inputs, &new.said);
            let entry = Entry::of(previous.servers.get(&settings), inputs, ServerContext::check_validity, build);
            rows.add_server(&settings, &entry.inputs, entry.context.as_ref().err());
            new.servers.insert(settings, entry);
        }
        if let Some(Ok(bundle)) = system.loaded {
            new.system = Some(bundle);
            new.files.extend(SystemBundle::paths());
        }
        new.secrets = rows.into_list();
        new.warnings = secret_rows::warnings(&new.secrets, &new.said);
        new.mesh = previous.mesh.as_ref().map(|mesh| Mesh::new(&mesh.identities, mesh.contexts.as_ref().ok()));
        new
    }

    /// The context for a rule, or why there is none: say that in the 503.
    pub fn get(&self, settings: &TlsContextSettings) -> Result<Arc<ClientContext>, Arc<TlsError>> {
        match self.clients.get(settings) {
            Some(entry) => entry.context.clone(),
            None => Err(Arc::new(TlsError::NotBuilt)),
        }
    }

    /// The context of a server that takes TLS off, or why there is none: its clients get no handshake.
    pub fn server(&self, settings: &ServerTlsSettings) -> Result<Arc<ServerContext>, Arc<TlsError>> {
        match self.servers.get(settings) {
            Some(entry) => entry.context.clone(),
            None => Err(Arc::new(TlsError::NotBuilt)),
        }
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
    pub fn failures(&self) -> impl Iterator<Item = (&Arc<TlsContextSettings>, &Arc<TlsError>)> {
        self.clients.iter().filter_map(|(settings, entry)| Some((settings, entry.context.as_ref().err()?)))
    }

    /// The servers that let nobody in, with their reasons.
    pub fn server_failures(&self) -> impl Iterator<Item = (&Arc<ServerTlsSettings>, &Arc<TlsError>)> {
        self.servers.iter().filter_map(|(settings, entry)| Some((settings, entry.context.as_ref().err()?)))
    }
}

impl<I: PartialEq, C> Entry<I, C> {
    /// The context of `previous` where it was built from the same bytes, and they are still good; else a new one.
    fn of(
        previous: Option<&Self>,
        inputs: I,
        check: impl FnOnce(&C) -> Result<(), TlsError>,
        build: impl FnOnce(&I) -> Result<C, TlsError>,
    ) -> Self {
        let context = match previous {
            Some(Self { inputs: old, context: Ok(context) }) if *old == inputs => {
                check(context).map(|()| Arc::clone(context))
            }
            _ => build(&inputs).map(Arc::new),
        };
        Self { inputs, context: context.map_err(Arc::new) }
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
        self.loaded.get_or_insert_with(|| SystemBundle::load(previous)).clone()
    }
}
