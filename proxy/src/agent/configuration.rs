//! From changed files to a new snapshot in force: parse, compile, build TLS contexts, install, enrol.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::time::timeout;

use crate::{
    api::{
        CredentialRef, Diagnostic, Objects, Severity,
        core::{ConfigMap, Secret},
    },
    engine::{Engine, Snapshot},
    identity::{Identities, PLUG_IN_SECRET},
    limits,
    mesh::{self, Mesh, NodePods, PodAddresses},
    source::store::{Batch, FileChange, Store},
    sys,
    telemetry::Telemetry,
    tls::{Contexts, MaterialReader, read_host_file, refused},
};

use super::{fleet::Fleet, place::Place, shared::Shared, source::Source, state_dir::StateDir};

pub struct Configuration {
    engine: Arc<Engine>,
    telemetry: Arc<Telemetry>,
    shared: Arc<Shared>,
    identities: Arc<Identities>,
    store: Store,
    /// Of what the store holds.
    index: mesh::Index,
    /// The pods of this machine, as the store has them; None: to be found again.
    pods: Option<NodePods>,
    rejected: usize,
    /// Findings of the documents; those of the compiler come with each table.
    findings: Vec<Diagnostic>,
    /// Said already, so that a reload tells only what is new.
    told: BTreeSet<String>,
    generation: u64,
    /// With which the table in force was made.
    addresses: PodAddresses,
    /// What it was made from besides the rules.
    asked: BTreeSet<CredentialRef>,
    /// Before the first table is in force it may be another agent's.
    place: Option<Place>,
}

impl Configuration {
    /// What is in force before anything was read: no pod, no service.
    pub fn empty(identities: &Arc<Identities>) -> Snapshot {
        let tls = Contexts::with_identities(identities.clone());
        Snapshot { mesh: Arc::new(Mesh::default()), tls: Arc::new(tls), generation: 0 }
    }

    pub fn new(
        engine: Arc<Engine>,
        telemetry: Arc<Telemetry>,
        shared: Arc<Shared>,
        identities: Arc<Identities>,
        node: Option<&str>,
        place: Place,
    ) -> Self {
        Self {
            engine,
            telemetry,
            shared,
            identities,
            store: Store::of_node(node),
            index: mesh::Index::default(),
            pods: None,
            rejected: 0,
            findings: Vec::new(),
            told: BTreeSet::new(),
            generation: 0,
            addresses: PodAddresses::default(),
            asked: BTreeSet::new(),
            place: Some(place),
        }
    }

    /// The lock of the state folder, where this agent has it.
    pub fn into_lock(self) -> Option<StateDir> {
        match self.place {
            Some(Place::Own(lock)) => Some(lock),
            _ => None,
        }
    }

    /// One reload: everything that changed at once. No change of a document (a certificate file was renewed) builds the
    /// TLS contexts anew and leaves the rest. Takes milliseconds to a second: never called where traffic is served.
    ///
    /// # Errors
    /// At the first table only: the agent before did not hand over, and serves on.
    pub async fn apply(
        &mut self,
        changes: Vec<FileChange>,
        fleet: &mut Fleet,
        source: &mut Source,
    ) -> anyhow::Result<()> {
        let mut batch = None;
        if !changes.is_empty() || self.generation == 0 {
            batch = Some(self.read(changes));
        }
        let replaced = self.put_in_force(fleet, batch.as_ref(), source).await?;
        // Whole where no document is refused.
        fleet.forget_strangers(self.rejected == 0);
        // Counted once it is in force: whoever sees the count rise finds the change served.
        if let Some(batch) = &batch {
            self.telemetry.metrics.reload(batch.accepted, batch.rejected_now);
        }
        drop((replaced, batch));
        sys::release_free_memory();
        Ok(())
    }

    fn read(&mut self, changes: Vec<FileChange>) -> Batch {
        let read: BTreeSet<_> = changes.iter().map(|change| change.path.clone()).collect();
        let mut batch = self.store.apply(changes);
        self.rejected = batch.rejected_now;
        self.index.update(&batch.changed);
        let node = self.store.objects().node.as_deref();
        if batch.changed.iter().any(|changed| mesh::concerns_node(node, changed)) {
            self.pods = None;
        }
        // What was found in files that did not change still holds.
        self.findings.retain(|finding| !read.contains(&*finding.file));
        self.findings.append(&mut batch.diagnostics);
        batch
    }

    /// Nothing was read yet: what is enrolled must not be served by an empty table.
    pub fn is_empty(&self) -> bool {
        self.generation == 0
    }

    /// Namespaces come and go, and get addresses, without a change of the configuration.
    pub async fn check_pods(&mut self, fleet: &mut Fleet, source: &mut Source) -> anyhow::Result<()> {
        if fleet.changed() {
            self.put_in_force(fleet, None, source).await?;
        } else if fleet.settle() {
            self.shared.configured(self.generation, self.all_findings(), fleet);
        }
        Ok(())
    }

    /// Pods of the kubelet have come, or may be about to.
    pub async fn look_for_pods(&mut self, fleet: &mut Fleet, source: &mut Source) -> anyhow::Result<()> {
        if fleet.look_for_pods() && !self.is_empty() {
            self.put_in_force(fleet, None, source).await?;
        }
        Ok(())
    }

    /// Mesh certificates run out, and so does the trust in former roots, without a change of the configuration.
    pub async fn renew_identities(&mut self, fleet: &mut Fleet, source: &mut Source) -> anyhow::Result<()> {
        if self.identities.renew() {
            self.put_in_force(fleet, None, source).await?;
        }
        Ok(())
    }

    /// Files on the host that rules name: certificates, keys, CAs.
    pub fn files(&self) -> Vec<PathBuf> {
        self.engine.snapshot().tls.files()
    }

    /// Answers what was in force, for which thousands of hosts take milliseconds to let go.
    async fn put_in_force(
        &mut self,
        fleet: &mut Fleet,
        batch: Option<&Batch>,
        source: &mut Source,
    ) -> anyhow::Result<Arc<Snapshot>> {
        let mut addresses = fleet.open(self.node_pods());
        let mut mesh = self.compile(&addresses, batch);
        loop {
            let more = source.credentials(|| self.asked.clone()).await;
            if more.is_empty() {
                break;
            }
            self.read(more);
            addresses = fleet.open(self.node_pods());
            mesh = self.compile_all(&addresses);
        }
        self.addresses = addresses;
        let reader = Reader { objects: self.store.objects() };
        let identities = mesh.workloads.values().map(|workload| workload.identity.clone()).collect();
        let plug_in = reader.secret(&mesh.settings.root_namespace, PLUG_IN_SECRET);
        self.identities.update(&mesh.settings, identities, plug_in.as_deref());
        if matches!(self.place, Some(Place::After(..))) {
            let _ = timeout(limits::HANDOVER_CERTIFICATES, self.identities.complete()).await;
        }
        let previous = self.engine.snapshot();
        let settings = mesh.tls_settings().iter().cloned();
        let tls = Contexts::build(&previous.tls, settings, mesh.server_tls_settings(), &reader);
        self.tell(&mesh, &tls);
        if let Err(error) = self.telemetry.reconfigure(&mesh) {
            log::error!("{error}; the access log stays as it was");
        }
        if let Some(place) = self.place.take_if(|place| matches!(place, Place::After(..))) {
            // From here on the agent before has its old connections and nothing else.
            let (lock, handed_over) = place.take().await?;
            self.place = Some(Place::Own(lock));
            fleet.inherit(handed_over)?;
        }
        self.generation += 1;
        fleet.harden(&mesh);
        self.engine.install(Snapshot { mesh, tls: Arc::new(tls), generation: self.generation });
        self.identities.publish();
        fleet.settle();
        self.forget(fleet);
        self.shared.configured(self.generation, self.all_findings(), fleet);
        Ok(previous)
    }

    fn node_pods(&mut self) -> NodePods {
        self.pods.get_or_insert_with(|| mesh::node_pods(self.store.objects())).clone()
    }

    fn compile_all(&mut self, addresses: &PodAddresses) -> Arc<Mesh> {
        let objects = self.store.objects();
        objects.asked.take();
        let mesh = mesh::compile(objects, addresses);
        self.asked = objects.asked.take();
        Arc::new(mesh)
    }

    /// The table of all objects, with as little made anew as can be. `batch`: what has changed since the one in force was made.
    fn compile(&mut self, addresses: &PodAddresses, batch: Option<&Batch>) -> Arc<Mesh> {
        let objects = self.store.objects();
        if self.generation > 0 && *addresses == self.addresses {
            let previous = &self.engine.snapshot().mesh;
            let Some(batch) = batch else { return previous.clone() };
            if let Some(amended) = mesh::amend(previous, (objects, &self.index, addresses), &batch.changed, batch.moved)
            {
                self.asked.extend(objects.asked.take());
                return Arc::new(amended);
            }
        }
        self.compile_all(addresses)
    }

    /// Counters of clusters that are no more. Pooled connections are swept by the next request.
    fn forget(&self, fleet: &Fleet) {
        let snapshot = self.engine.snapshot();
        for (id, pod) in fleet.serving() {
            if let Some(workload) = snapshot.mesh.workloads.get(&id) {
                let passed_on = workload.gateway.iter().flat_map(|gateway| gateway.by_mesh_name());
                let passed_on: BTreeSet<&str> = passed_on.map(|cluster| cluster.name.as_str()).collect();
                pod.forget_clusters(|name| workload.cluster(name).is_some() || passed_on.contains(name));
            }
        }
    }

    fn all_findings(&self) -> Vec<Diagnostic> {
        let mesh = &self.engine.snapshot().mesh;
        self.findings.iter().chain(&mesh.diagnostics).cloned().collect()
    }

    /// Logs each finding once, when it appears.
    fn tell(&mut self, mesh: &Mesh, tls: &Contexts) {
        let mut now = BTreeSet::new();
        let mut say = |severity: Severity, text: String| {
            if !self.told.contains(&text) {
                match severity {
                    Severity::Error => log::error!("{text}"),
                    Severity::Warning => log::warn!("{text}"),
                    Severity::Info => log::info!("{text}"),
                }
            }
            now.insert(text);
        };
        for finding in self.findings.iter().chain(&mesh.diagnostics) {
            say(finding.severity, format!("{finding:#}"));
        }
        for warning in tls.warnings() {
            say(Severity::Warning, warning.clone());
        }
        for finding in refused(mesh, tls).iter().filter_map(|fault| fault.diagnostic(mesh, Severity::Error)) {
            say(Severity::Error, format!("{finding:#}; traffic under this rule is refused"));
        }
        let instead = match self.identities.trust() {
            Ok(_) => "what is in force stays",
            Err(_) => "mesh mTLS is refused until then",
        };
        for error in self.identities.complaints() {
            if error.is_warning() {
                say(Severity::Warning, error.to_string());
            } else {
                say(Severity::Error, format!("{error}; {instead}"));
            }
        }
        self.told = now;
    }
}

/// Secrets and ConfigMaps from the objects, files from the host.
struct Reader<'a> {
    objects: &'a Objects,
}

impl MaterialReader for Reader<'_> {
    fn secret(&self, namespace: &str, name: &str) -> Option<Arc<Secret>> {
        let secret = self.objects.secrets.get(namespace, name)?;
        Some(Arc::new(secret.spec.clone()))
    }

    fn config_map(&self, namespace: &str, name: &str) -> Option<Arc<ConfigMap>> {
        let config_map = self.objects.config_maps.get(namespace, name)?;
        Some(Arc::new(config_map.spec.clone()))
    }

    fn file(&self, path: &Path) -> io::Result<Vec<u8>> {
        read_host_file(path)
    }
}
