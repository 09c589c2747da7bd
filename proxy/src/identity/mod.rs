//! Mesh identity: the built-in certificate authority, the certificates of the pods, and what their peers are checked by.
//!
//! One certificate for each SPIFFE identity, in memory only. The CA is Istio's plug-in CA where one is given (Secret
//! `cacerts` of the root namespace, else files of those names in `<state folder>/cacerts`), else one that was made here
//! once. Whoever builds TLS contexts asks for [`Trust`], which changes seldom, and at each handshake for [`Leaf`], which is
//! renewed in place.

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

use self::{
    authority::{Authority, seconds},
    state::State,
};
use crate::{api::core::Secret, mesh::Settings};

mod authority;
mod error;
mod state;
#[cfg(test)]
pub(crate) mod tests;

pub use authority::{AuthorityPem, Leaf};
pub use error::IdentityError;
pub use state::PLUG_IN_PARTS;

/// The Secret of Istio's plug-in CA, in the root namespace.
pub const PLUG_IN_SECRET: &str = "cacerts";

/// By what peers in the mesh are judged. A context of mesh mTLS lives as long as this stays equal.
#[derive(Debug, PartialEq, Eq)]
pub struct Trust {
    /// In force first, then former ones.
    pub roots: Vec<CertificateDer<'static>>,
    /// What issues our own certificates: another one means new connections, too.
    pub issuer: CertificateDer<'static>,
    /// The trust domain, then its aliases.
    pub domains: Vec<String>,
    /// `meshMTLS.minProtocolVersion`
    pub min_version: Option<String>,
}

/// All identities of this agent. Shared by every configuration that is put in force.
#[derive(Debug)]
pub struct Identities {
    clock: Arc<dyn TimeProvider>,
    state: State,
    /// Whoever changes something holds this; who reads takes `view`.
    work: Mutex<Work>,
    view: ArcSwap<View>,
    /// The certificates in use: those of `view`, once [`Self::publish`] said so.
    shown: ArcSwap<Leaves>,
}

type Leaves = HashMap<Arc<str>, Arc<Leaf>>;

#[derive(Debug, Default)]
struct Work {
    authority: Option<Authority>,
    wanted: Wanted,
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
    complaints: Vec<IdentityError>,
}

impl Identities {
    /// Nothing is read or made yet: [`Self::update`] does.
    #[must_use]
    pub fn new(state_folder: &Path) -> Arc<Self> {
        Self::with_clock(state_folder, Arc::new(DefaultTimeProvider))
    }

    /// With a clock of one's own.
    #[must_use]
    pub fn with_clock(state_folder: &Path, clock: Arc<dyn TimeProvider>) -> Arc<Self> {
        let view = View { trust: Err(IdentityError::NotYet), leaves: Arc::default(), complaints: Vec::new() };
        Arc::new(Self {
            clock,
            state: State::new(state_folder),
            work: Mutex::default(),
            view: ArcSwap::from_pointee(view),
            shown: ArcSwap::default(),
        })
    }

    /// Follows a configuration: takes its CA on and has a certificate for each of `identities` (and for no other). A CA that
    /// is not fit is told, and the one before stays. [`Self::publish`] must follow, once contexts with the new trust are in
    /// force: until then the certificates of before are shown, which everybody trusts. `secret` is the plug-in CA's, where there is one.
    ///
    /// Reads and writes files and makes keys: call it off the data path.
    pub fn update(&self, settings: &Settings, identities: BTreeSet<Arc<str>>, secret: Option<&Secret>) {
        let mut work = self.work.lock();
        let plug_in = match secret {
            Some(secret) => Some(plug_in_secret(secret, &settings.root_namespace)),
            None => self.state.plug_in().transpose(),
        };
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

    fn bring_about(&self, work: &mut Work) {
        let now = self.now();
        let mut complaints = Vec::new();
        // Without pods there is nobody to have an identity, and no CA is made.
        if work.authority.is_none() && work.wanted.identities.is_empty() && work.wanted.plug_in.is_none() {
            return;
        }
        match self.authority(work, now) {
            Ok(Some(new)) => {
                log::info!("mesh certificates are issued by {} from {}", new.summary.subject, new.pem.from);
                work.authority = Some(new);
            }
            Ok(None) => {}
            Err(error) => complaints.push(error),
        }
        complaints.extend(work.authority.as_ref().and_then(|authority| authority.expiring(now)));
        let before = self.view.load();
        let trust = match &work.authority {
            Some(authority) => {
                let (former, fault) = self.state.remember(&authority.roots, now);
                complaints.extend(fault);
                let new = Trust {
                    roots: authority.roots.iter().cloned().chain(former).collect(),
                    issuer: authority.certificate.clone(),
                    domains: work.wanted.domains.clone(),
                    min_version: work.wanted.min_version.clone(),
                };
                // The same allocation for the same trust: comparing is then cheap for all who ask.
                match &before.trust {
                    Ok(old) if **old == new => Ok(old.clone()),
                    _ => Ok(Arc::new(new)),
                }
            }
            None => Err(complaints.first().cloned().unwrap_or(IdentityError::NotYet)),
        };
        let mut leaves = HashMap::new();
        for identity in work.authority.as_ref().map(|_| &work.wanted.identities).into_iter().flatten() {
            let Some(authority) = &work.authority else { break };
            let old = before.leaves.get(identity);
            let leaf = match old.filter(|leaf| is_fresh(leaf, authority, now)) {
                Some(leaf) => Some(leaf.clone()),
                None => match authority.issue(identity, now) {
                    Ok(leaf) => {
                        log::debug!("issued a mesh certificate for {identity}, serial {}", leaf.summary.serial);
                        Some(Arc::new(leaf))
                    }
                    Err(error) => {
                        if !complaints.contains(&error) {
                            complaints.push(error);
                        }
                        old.cloned()
                    }
                },
            };
            leaves.extend(leaf.map(|leaf| (identity.clone(), leaf)));
        }
        self.view.store(Arc::new(View { trust, leaves: Arc::new(leaves), complaints }));
    }

    /// The CA that is wanted, where it is not the one in force.
    fn authority(&self, work: &Work, now: UnixTime) -> Result<Option<Authority>, IdentityError> {
        let pem = match &work.wanted.plug_in {
            Some(plug_in) => plug_in.clone()?,
            // Read at each look, not only at start: its loss is told while there is still time.
            None => self.state.built_in(now)?,
        };
        match &work.authority {
            Some(authority) if authority.pem == pem => Ok(None),
            _ => Authority::new(pem, now).map(Some),
        }
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

    /// What stands in the way now, in words.
    #[must_use]
    pub fn complaints(&self) -> Vec<IdentityError> {
        self.view.load().complaints.clone()
    }

    /// Host paths whose change must lead to an [`Self::update`]; they need not exist.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        PLUG_IN_PARTS.iter().map(|part| self.state.plug_in_folder().join(part)).collect()
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

/// Issued by the CA in force, for the time being, and not due for renewal.
fn is_fresh(leaf: &Leaf, authority: &Authority, now: UnixTime) -> bool {
    let now = seconds(now);
    leaf.issuer == authority.certificate && leaf.summary.not_before <= now && now < leaf.renew_at
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
