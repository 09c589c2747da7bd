//! Certificates that the cluster's controller issues: one task for each identity keeps its certificate, another one follows the
//! trust bundle. What they get lies ready until the next look, of which they tell.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, pin_mut};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt as _, watcher},
};
use parking_lot::Mutex;
use rustls::time_provider::TimeProvider;
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::sleep,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Anchors, IdentityError, Leaves, Look,
    authority::seconds,
    leaf::{Leaf, verify},
    request,
};
use crate::{
    limits::{CERTIFICATE_PAUSE, CERTIFICATE_PAUSE_MOST, CERTIFICATE_REQUESTS, IDENTITY_CHECK},
    tls::inspect,
};

/// The ConfigMap of the mesh's roots, in the agent's own namespace.
pub const TRUST_BUNDLE: &str = "egret-ca-root";
/// Its key: PEM, roots in force first, then former ones.
pub const TRUST_BUNDLE_KEY: &str = "root-cert.pem";

#[derive(Debug)]
pub(super) struct Remote {
    asker: Arc<Asker>,
    bundle: watch::Receiver<Bundle>,
    _watch: AbortOnDropHandle<()>,
    /// Identities, each with the task that keeps its certificate.
    asking: HashMap<Arc<str>, AbortOnDropHandle<()>>,
    /// By which the certificates held were judged.
    judged_by: Roots,
}

type Roots = Option<Arc<Vec<CertificateDer<'static>>>>;

/// The last good bundle, and what is wrong with the one that is there.
#[derive(Clone, Debug, Default)]
struct Bundle {
    roots: Roots,
    fault: Option<IdentityError>,
}

/// What the tasks share.
struct Asker {
    client: Client,
    clock: Arc<dyn TimeProvider>,
    bundle: watch::Receiver<Bundle>,
    /// Places for requests under way.
    room: Semaphore,
    held: Mutex<Held>,
    arrived: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Held {
    issued: Leaves,
    /// Why the last attempt gave none.
    faults: HashMap<Arc<str>, IdentityError>,
}

impl std::fmt::Debug for Asker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asker").field("held", &self.held).finish_non_exhaustive()
    }
}

impl Remote {
    pub fn start(client: Client, namespace: &str, clock: Arc<dyn TimeProvider>, arrived: Arc<Notify>) -> Self {
        let (sender, bundle) = watch::channel(Bundle::default());
        let api = Api::namespaced(client.clone(), namespace);
        let follow = follow(api, format!("{namespace}/{TRUST_BUNDLE}"), sender, arrived.clone());
        let asker = Asker {
            client,
            clock,
            bundle: bundle.clone(),
            room: Semaphore::new(CERTIFICATE_REQUESTS),
            held: Mutex::default(),
            arrived,
        };
        Self {
            asker: Arc::new(asker),
            bundle,
            _watch: AbortOnDropHandle::new(tokio::spawn(follow)),
            asking: HashMap::new(),
            judged_by: None,
        }
    }

    /// What there is for these identities, and for no other; what is missing is asked for.
    pub fn look(&mut self, wanted: &BTreeSet<Arc<str>>, now: UnixTime) -> Look {
        let bundle = self.bundle.borrow().clone();
        let mut held = self.asker.held.lock();
        self.asking.retain(|identity, _| wanted.contains(identity));
        held.issued.retain(|identity, _| wanted.contains(identity));
        held.faults.retain(|identity, _| wanted.contains(identity));
        if bundle.roots != self.judged_by {
            let roots = bundle.roots.as_deref().map_or(&[][..], Vec::as_slice);
            held.issued.retain(|identity, leaf| {
                let stays = verify(&leaf.key.cert, roots, now);
                if let Err(why) = &stays {
                    log::warn!(
                        "the mesh certificate of {identity} counts no more with the trusted roots of now ({why})"
                    );
                    // Its task waits for the time of renewal: another one asks at once.
                    self.asking.remove(identity);
                }
                stays.is_ok()
            });
            self.judged_by.clone_from(&bundle.roots);
        }
        for identity in wanted {
            self.asking
                .entry(identity.clone())
                .or_insert_with(|| AbortOnDropHandle::new(tokio::spawn(keep(self.asker.clone(), identity.clone()))));
        }
        // Without roots nobody asks, and what is wrong with those is why.
        let common = bundle.fault.as_ref().filter(|_| bundle.roots.is_none()).unwrap_or(&IdentityError::Awaited);
        let without = wanted.iter().filter(|identity| !held.issued.contains_key(*identity));
        let missing =
            without.map(|identity| (identity.clone(), held.faults.get(identity).unwrap_or(common).clone())).collect();
        let mut complaints: Vec<_> = held.faults.values().cloned().collect();
        complaints.sort_by_cached_key(ToString::to_string);
        complaints.dedup();
        complaints.splice(0..0, bundle.fault.clone());
        Look {
            anchors: match bundle.roots {
                Some(roots) => Ok(Anchors { roots: roots.to_vec(), issuer: None }),
                None => Err(bundle.fault.unwrap_or(IdentityError::Awaited)),
            },
            missing,
            leaves: held.issued.clone(),
            complaints,
        }
    }
}

/// Has a certificate for one identity, for ever.
async fn keep(asker: Arc<Asker>, identity: Arc<str>) {
    let mut pause = CERTIFICATE_PAUSE;
    loop {
        match asker.ask(&identity).await {
            Ok(leaf) => {
                log::debug!("got a mesh certificate for {identity}, serial {}", leaf.summary.serial);
                let renew_at = leaf.renew_at;
                asker.put(&identity, Ok(leaf));
                pause = CERTIFICATE_PAUSE;
                // In steps: the machine may sleep meanwhile, or its clock be set.
                while let Some(left) = asker.until(renew_at) {
                    sleep(left.min(IDENTITY_CHECK)).await;
                }
            }
            Err(error) => {
                asker.put(&identity, Err(error));
                // So that the agents of all nodes, refused together, do not come back together.
                sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
                pause = (pause * 2).min(CERTIFICATE_PAUSE_MOST);
            }
        }
    }
}

impl Asker {
    async fn ask(&self, identity: &str) -> Result<Leaf, IdentityError> {
        // Without roots nothing that comes could be judged. The sender lives as long as the task that this runs in.
        let _ = self.bundle.clone().wait_for(|bundle| bundle.roots.is_some()).await;
        let Ok(_place) = self.room.acquire().await else { return Err(IdentityError::Awaited) };
        let (key, chain) = request::certificate(&self.client, identity).await?;
        let now = self.clock.current_time().ok_or(IdentityError::NotYet)?;
        let roots = self.bundle.borrow().roots.clone().unwrap_or_default();
        request::accept(identity, key, chain, &roots, now)
    }

    fn put(&self, identity: &Arc<str>, answer: Result<Leaf, IdentityError>) {
        let mut held = self.held.lock();
        match answer {
            Ok(leaf) => {
                held.faults.remove(identity);
                held.issued.insert(identity.clone(), Arc::new(leaf));
            }
            Err(error) => {
                held.faults.insert(identity.clone(), error);
            }
        }
        drop(held);
        self.arrived.notify_one();
    }

    /// None: it is past.
    fn until(&self, time: i64) -> Option<Duration> {
        let left = time - seconds(self.clock.current_time()?);
        u64::try_from(left).ok().filter(|left| *left > 0).map(Duration::from_secs)
    }
}

/// Follows the trust bundle. One that is gone or damaged is told, and the last good one goes on: who removes a ConfigMap by
/// mistake has not meant to trust nobody.
async fn follow(api: Api<ConfigMap>, name: String, bundle: watch::Sender<Bundle>, arrived: Arc<Notify>) {
    let objects = watcher::watch_object(api, TRUST_BUNDLE).default_backoff();
    pin_mut!(objects);
    while let Some(object) = objects.next().await {
        let read = match object {
            Ok(Some(object)) => read(&object, &name),
            Ok(None) => Err(IdentityError::NoBundle { name: name.clone() }),
            // What is known of it holds; the watch is taken up again.
            Err(_) if bundle.borrow().roots.is_some() => continue,
            Err(error) => Err(IdentityError::Api { what: format!("read ConfigMap {name}"), why: error.to_string() }),
        };
        bundle.send_modify(|bundle| match read {
            Ok(roots) => *bundle = Bundle { roots: Some(Arc::new(roots)), fault: None },
            Err(error) => bundle.fault = Some(error),
        });
        arrived.notify_one();
    }
}

fn read(object: &ConfigMap, name: &str) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let bad = |why| IdentityError::BadCertificate { from: format!("ConfigMap {name}, {TRUST_BUNDLE_KEY}"), why };
    let text = object.data.as_ref().and_then(|data| data.get(TRUST_BUNDLE_KEY)).map_or("", String::as_str);
    let roots = inspect::certificates(text.as_bytes()).map_err(bad)?;
    for root in &roots {
        inspect::parse(root).map_err(bad)?;
        webpki::anchor_from_trusted_cert(root).map_err(|error| bad(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(bad("it holds no certificate".to_owned()));
    }
    Ok(roots)
}
