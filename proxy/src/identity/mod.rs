//! Mesh identity: where the pods' certificates come from, those in use, and what their peers are checked by.
//!
//! One certificate for each SPIFFE identity, in memory only. On a single host they are issued here ([`local`]), in a cluster
//! the controller is asked for them ([`remote`]), for then no CA's key is on a node. Whoever builds TLS contexts asks for
//! [`Trust`], which changes seldom, and at each handshake for [`Leaf`], which is renewed in place.

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::sync::Notify;

use self::{authority::Authority, local::Local, remote::Remote};
use crate::{api::core::Secret, mesh::Settings};

pub(crate) mod authority;
mod error;
pub(crate) mod leaf;
mod local;
mod remote;
pub(crate) mod request;
pub(crate) mod roots;
mod state;
#[cfg(test)]
pub(crate) mod tests;

pub use authority::AuthorityPem;
pub use error::IdentityError;
pub use leaf::Leaf;
pub(crate) use remote::{TRUST_BUNDLE, TRUST_BUNDLE_KEY};
pub use request::SIGNER;
pub(crate) use request::USAGES;
pub use state::PLUG_IN_PARTS;

/// The Secret of Istio's plug-in CA, in the root namespace.
pub const PLUG_IN_SECRET: &str = "cacerts";

/// By what peers in the mesh are judged. A context of mesh mTLS lives as long as this stays equal.
#[derive(Debug, PartialEq, Eq)]
pub struct Trust {
    /// In force first, then former ones.
    pub roots: Vec<CertificateDer<'static>>,
    /// What issues our own certificates, where that is this agent: another one means new connections, too.
    pub issuer: Option<CertificateDer<'static>>,
    /// The trust domain, then its aliases.
    pub domains: Vec<String>,
    /// `meshMTLS.minProtocolVersion`
    pub min_version: Option<String>,
}

/// All identities of this agent. Shared by every configuration that is put in force.
#[derive(Debug)]
pub struct Identities {
    clock: Arc<dyn TimeProvider>,
    /// Something came that [`Self::renew`] is to take on.
    arrived: Arc<Notify>,
    /// Whoever changes something holds this; who reads takes `view`.
    work: Mutex<Work>,
    view: ArcSwap<View>,
    /// The certificates in use: those of `view`, once [`Self::publish`] said so.
    shown: ArcSwap<Leaves>,
}

type Leaves = HashMap<Arc<str>, Arc<Leaf>>;

#[derive(Debug)]
struct Work {
    issuer: Issuer,
    wanted: Wanted,
}

/// Where certificates come from.
#[derive(Debug)]
enum Issuer {
    /// A CA of this agent's own issues them, at once.
    Local(Local),
    /// The cluster's controller issues them, some time after it was asked.
    Remote(Remote),
}

/// What an issuer has at a time.
#[derive(Debug)]
struct Look {
    anchors: Result<Anchors, IdentityError>,
    leaves: Leaves,
    /// Why there is no certificate for these.
    missing: HashMap<Arc<str>, IdentityError>,
    /// What stands in the way, the worst first.
    complaints: Vec<IdentityError>,
}

#[derive(Debug)]
struct Anchors {
    /// In force first, then former ones.
    roots: Vec<CertificateDer<'static>>,
    issuer: Option<CertificateDer<'static>>,
}

/// What a configuration asks for.
#[derive(Debug, Default)]
struct Wanted {
    plug_in: Option<Result<AuthorityPem, IdentityError>>,
    identities: BTreeSet<Arc<str>>,
    domains: Vec<String>,
    min_version: Option<String>,
}

#[derive(Debug)]
struct View {
    trust: Result<Arc<Trust>, IdentityError>,
    leaves: Arc<Leaves>,
    missing: HashMap<Arc<str>, IdentityError>,
    complaints: Vec<IdentityError>,
}

impl Identities {
    /// With a CA on this host. Nothing is read or made yet: [`Self::update`] does.
    #[must_use]
    pub fn new(state_folder: &Path) -> Arc<Self> {
        Self::with_clock(state_folder, Arc::new(DefaultTimeProvider))
    }

    /// With a CA on this host, and a clock of one's own.
    #[must_use]
    pub fn with_clock(state_folder: &Path, clock: Arc<dyn TimeProvider>) -> Arc<Self> {
        Self::with_issuer(Issuer::Local(Local::new(state_folder)), clock, Arc::default())
    }

    /// With certificates that the cluster's controller issues. `namespace` is the agent's own, in which the trust bundle is.
    ///
    /// To be called within the runtime that is to ask for them.
    #[must_use]
    pub fn of_cluster(client: kube::Client, namespace: &str) -> Arc<Self> {
        let clock: Arc<dyn TimeProvider> = Arc::new(DefaultTimeProvider);
        let arrived = Arc::<Notify>::default();
        let remote = Remote::start(client, namespace, clock.clone(), arrived.clone());
        Self::with_issuer(Issuer::Remote(remote), clock, arrived)
    }

    fn with_issuer(issuer: Issuer, clock: Arc<dyn TimeProvider>, arrived: Arc<Notify>) -> Arc<Self> {
        let view = View {
            trust: Err(IdentityError::NotYet),
            leaves: Arc::default(),
            missing: HashMap::new(),
            complaints: Vec::new(),
        };
        Arc::new(Self {
            clock,
            arrived,
            work: Mutex::new(Work { issuer, wanted: Wanted::default() }),
            view: ArcSwap::from_pointee(view),
            shown: ArcSwap::default(),
        })
    }

    /// Follows a configuration: takes its CA on and has a certificate for each of `identities` (and for no other), or asks for
    /// one. A CA that is not fit is told, and the one before stays. [`Self::publish`] must follow, once contexts with the new trust are in
    /// force: until then the certificates of before are shown, which everybody trusts. `secret` is the plug-in CA's, where there is one.
    ///
    /// Reads and writes files and makes keys: call it off the data path.
    pub fn update(&self, settings: &Settings, identities: BTreeSet<Arc<str>>, secret: Option<&Secret>) {
        let mut work = self.work.lock();
        let plug_in = secret.map(|secret| plug_in_secret(secret, &settings.root_namespace));
        let domains = std::iter::once(&settings.trust_domain).chain(&settings.trust_domain_aliases).cloned().collect();
        work.wanted = Wanted { plug_in, identities, domains, min_version: settings.mesh_tls_min_version.clone() };
        self.bring_about(&mut work);
    }

    /// Shows the certificates of the last [`Self::update`] from the next handshake on.
    pub fn publish(&self) {
        self.shown.store(self.view.load().leaves.clone());
    }

    /// Renews what is due. True where something changed that a new configuration must be built for (by [`Self::update`], contexts
    /// and [`Self::publish`]): the trusted roots, or what is to be told.
    pub fn renew(&self) -> bool {
        let mut work = self.work.lock();
        if work.wanted.domains.is_empty() {
            return false;
        }
        let before = self.view.load_full();
        self.bring_about(&mut work);
        let after = self.view.load();
        if after.trust == before.trust {
            self.publish();
        }
        after.trust != before.trust || after.complaints != before.complaints
    }

    /// Returns when [`Self::renew`] has something to take on before its time. For one caller at a time.
    pub async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// Returns when no certificate is [awaited](Self::awaited) any more. Takes the place of [`Self::arrived`] meanwhile.
    pub async fn complete(&self) {
        while !self.awaited().is_empty() {
            self.arrived().await;
            self.renew();
        }
    }

    fn bring_about(&self, work: &mut Work) {
        let now = self.now();
        let look = match &mut work.issuer {
            Issuer::Local(local) => local.look(&work.wanted, now),
            Issuer::Remote(remote) => Some(remote.look(&work.wanted.identities, now)),
        };
        let Some(Look { anchors, leaves, missing, complaints }) = look else { return };
        let before = self.view.load();
        let trust = anchors.map(|Anchors { roots, issuer }| {
            let (domains, min_version) = (work.wanted.domains.clone(), work.wanted.min_version.clone());
            let new = Trust { roots, issuer, domains, min_version };
            // The same allocation for the same trust: comparing is then cheap for all who ask.
            match &before.trust {
                Ok(old) if **old == new => old.clone(),
                _ => Arc::new(new),
            }
        });
        self.view.store(Arc::new(View { trust, leaves: Arc::new(leaves), missing, complaints }));
    }

    /// By what peers are judged, or why there is no mesh mTLS.
    pub fn trust(&self) -> Result<Arc<Trust>, IdentityError> {
        self.view.load().trust.clone()
    }

    /// The certificate of this identity as it is now.
    #[must_use]
    pub fn leaf(&self, identity: &str) -> Option<Arc<Leaf>> {
        self.shown.load().get(identity).cloned()
    }

    /// The certificates of all identities, by name.
    #[must_use]
    pub fn leaves(&self) -> Vec<(Arc<str>, Arc<Leaf>)> {
        let mut leaves: Vec<_> = self.shown.load().iter().map(|(name, leaf)| (name.clone(), leaf.clone())).collect();
        leaves.sort_by(|(one, _), (other, _)| one.cmp(other));
        leaves
    }

    /// Why there is no certificate for this identity, as far as that is known.
    #[must_use]
    pub fn missing(&self, identity: &str) -> Option<IdentityError> {
        let view = self.view.load();
        let first = || view.complaints.iter().find(|error| !error.is_warning());
        view.missing.get(identity).or_else(first).cloned()
    }

    /// The identities whose certificates are awaited: asked for, and neither issued nor refused yet.
    #[must_use]
    pub fn awaited(&self) -> Vec<Arc<str>> {
        let view = self.view.load();
        let awaited = view.missing.iter().filter(|(_, why)| matches!(why, IdentityError::Awaited));
        let mut awaited: Vec<_> = awaited.map(|(identity, _)| identity.clone()).collect();
        awaited.sort();
        awaited
    }

    /// What stands in the way now, in words.
    #[must_use]
    pub fn complaints(&self) -> Vec<IdentityError> {
        self.view.load().complaints.clone()
    }

    /// Host paths whose change must lead to an [`Self::update`]; they need not exist.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        match &self.work.lock().issuer {
            Issuer::Local(local) => local.files(),
            Issuer::Remote(_) => Vec::new(),
        }
    }

    /// The clock that certificates are issued and judged by.
    #[must_use]
    pub fn clock(&self) -> Arc<dyn TimeProvider> {
        self.clock.clone()
    }

    /// What that clock shows.
    #[must_use]
    pub fn now(&self) -> UnixTime {
        let fallback = || UnixTime::since_unix_epoch(SystemTime::UNIX_EPOCH.elapsed().unwrap_or(Duration::ZERO));
        self.clock.current_time().unwrap_or_else(fallback)
    }
}

/// Whether the plug-in CA of this Secret is fit, now, on this machine's clock: for `egret check`.
pub fn check_plug_in(secret: &Secret, namespace: &str) -> Result<(), IdentityError> {
    let now = UnixTime::since_unix_epoch(SystemTime::UNIX_EPOCH.elapsed().unwrap_or(Duration::ZERO));
    let authority = Authority::new(plug_in_secret(secret, namespace)?, now)?;
    authority.expiring(now).map_or(Ok(()), Err)
}

fn plug_in_secret(secret: &Secret, namespace: &str) -> Result<AuthorityPem, IdentityError> {
    let from = format!("secret {namespace}/{PLUG_IN_SECRET}");
    let part = |name: &'static str| {
        let bytes = secret.data.get(name).filter(|bytes| !bytes.is_empty()).cloned();
        bytes.ok_or_else(|| IdentityError::Missing { from: from.clone(), missing: name, other: "" })
    };
    let [certificate, key, roots, chain] = PLUG_IN_PARTS;
    Ok(AuthorityPem {
        certificate: part(certificate)?,
        key: part(key)?,
        roots: part(roots)?,
        chain: part(chain).unwrap_or_default(),
        from: from.clone(),
    })
}
