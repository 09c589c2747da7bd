//! The enrolled pods: their namespaces, listeners and captures, kept in step with the configuration and with what
//! happens to the namespaces.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use tokio::task::JoinHandle;

use crate::{
    admin::rows::PodStatus,
    capture::Capture,
    engine::{Engine, accept::Role, pod::Pod, resolve::Resolver},
    limits,
    mesh::{PodAddresses, WorkloadId},
    netns::{Namespace, listener_sockets},
};

/// Workload to the value of its `egret.dev/netns`.
pub type Wanted = BTreeMap<WorkloadId, String>;

pub struct Fleet {
    capture: Arc<Capture>,
    engine: Arc<Engine>,
    pods: BTreeMap<WorkloadId, Member>,
    /// Wanted, and why they are not enrolled.
    failed: BTreeMap<WorkloadId, (String, String)>,
}

/// One pod whose namespace is open.
struct Member {
    netns: String,
    namespace: Arc<Namespace>,
    addresses: Vec<IpAddr>,
    serving: Option<Serving>,
}

struct Serving {
    pod: Arc<Pod>,
    tasks: Vec<JoinHandle<()>>,
}

impl Fleet {
    pub fn new(capture: Arc<Capture>, engine: Arc<Engine>) -> Self {
        Self { capture, engine, pods: BTreeMap::new(), failed: BTreeMap::new() }
    }

    /// Lets go of pods that are not wanted any more or whose namespace is gone, opens those that are new, and answers
    /// the addresses of all.
    pub fn open(&mut self, wanted: &Wanted) -> PodAddresses {
        let gone: Vec<_> = self
            .pods
            .iter()
            .filter(|(id, member)| wanted.get(*id) != Some(&member.netns) || !member.namespace.is_current())
            .map(|(id, _)| id.clone())
            .collect();
        for id in gone {
            self.retire(&id);
        }
        self.failed.retain(|id, (netns, _)| wanted.get(id) == Some(netns));
        for (id, netns) in wanted {
            if self.pods.contains_key(id) {
                continue;
            }
            match open_one(netns) {
                Ok(member) => {
                    self.pods.insert(id.clone(), member);
                }
                Err(why) => self.fail(id.clone(), netns.clone(), why),
            }
        }
        self.pods.iter().map(|(id, member)| (id.clone(), member.addresses.clone())).collect()
    }

    /// Serves and captures every open pod that is not yet; true where what is in service, or in the way, is no longer the same. Called once the engine
    /// knows them, and again as long as something is in the way (no address yet, a port that is taken).
    pub fn enrol(&mut self) -> bool {
        let waiting: Vec<_> =
            self.pods.iter().filter(|(_, member)| member.serving.is_none()).map(|(id, _)| id.clone()).collect();
        if waiting.is_empty() {
            return false;
        }
        let before = self.failed.clone();
        let mut enrolled = false;
        for id in waiting {
            let Some(member) = self.pods.get_mut(&id) else { continue };
            match start(&self.capture, &self.engine, &id, member) {
                Ok(serving) => {
                    log::info!("pod {id}: enrolled ({}, {})", member.netns, list(&member.addresses));
                    member.serving = Some(serving);
                    self.failed.remove(&id);
                    enrolled = true;
                }
                Err(why) => {
                    let netns = member.netns.clone();
                    self.fail(id, netns, why);
                }
            }
        }
        enrolled || self.failed != before
    }

    /// True where a namespace went away, came back or changed its addresses, so that the pods must be opened anew.
    pub fn changed(&mut self) -> bool {
        let mut missing = self.failed.iter().filter(|(id, _)| !self.pods.contains_key(*id));
        let mut changed = missing.any(|(_, (netns, _))| Namespace::open(netns).is_ok());
        for (id, member) in &mut self.pods {
            if !member.namespace.is_current() {
                log::info!("pod {id}: its namespace {} is gone or was made again", member.netns);
                changed = true;
                continue;
            }
            match member.namespace.addresses() {
                Ok(addresses) if addresses != member.addresses => {
                    log::info!("pod {id}: its addresses are now {}", list(&addresses));
                    readdress(&self.capture, &self.engine, member, addresses);
                    changed = true;
                }
                Ok(_) => {}
                Err(error) => log::warn!("pod {id}: cannot read the addresses of {}: {error}", member.netns),
            }
        }
        changed
    }

    /// After the first configuration: namespaces that an earlier agent captured and nobody wants now are let go, but
    /// only where the configuration is whole, for a document that is refused may be the one that wants them.
    pub fn forget_strangers(&self, whole: bool) {
        let ours: BTreeSet<u64> = self.pods.values().map(|member| member.namespace.cookie()).collect();
        let strangers = match self.capture.enrolled() {
            Ok(cookies) => cookies.into_iter().filter(|cookie| !ours.contains(cookie)),
            Err(error) => return log::warn!("cannot list what an earlier agent captured: {error}"),
        };
        for cookie in strangers {
            if whole {
                if let Err(error) = self.capture.unenrol(cookie) {
                    log::warn!("cannot let go of a namespace that an earlier agent captured: {error}");
                }
            } else {
                log::warn!(
                    "a namespace that an earlier agent captured (cookie {cookie}) stays refused while documents are: mend them"
                );
            }
        }
    }

    pub fn status(&self) -> Vec<PodStatus> {
        let members = self.pods.iter().map(|(id, member)| PodStatus {
            pod: id.to_string(),
            netns: member.netns.clone(),
            addresses: member.addresses.iter().map(ToString::to_string).collect(),
            state: match (&member.serving, self.failed.get(id)) {
                (Some(_), _) => "enrolled".to_owned(),
                (None, Some((_, why))) => why.clone(),
                (None, None) => "starting".to_owned(),
            },
        });
        let missing = self.failed.iter().filter(|(id, _)| !self.pods.contains_key(*id));
        let failed = missing.map(|(id, (netns, why))| PodStatus {
            pod: id.to_string(),
            netns: netns.clone(),
            addresses: Vec::new(),
            state: why.clone(),
        });
        members.chain(failed).collect()
    }

    /// The pods in service, for the admin side.
    pub fn serving(&self) -> BTreeMap<WorkloadId, Arc<Pod>> {
        let serving = |(id, member): (&WorkloadId, &Member)| Some((id.clone(), member.serving.as_ref()?.pod.clone()));
        self.pods.iter().filter_map(serving).collect()
    }

    pub fn summary(&self) -> String {
        let serving = self.pods.values().filter(|member| member.serving.is_some()).count();
        match self.failed.len() {
            0 => format!("{serving} pods"),
            failed => format!("{serving} pods, {failed} not enrolled yet"),
        }
    }

    /// Ends every listener and connection. Capture stays: what pods dial now is refused.
    pub fn close(&mut self) {
        for member in self.pods.values_mut() {
            member.stop();
        }
    }

    fn fail(&mut self, id: WorkloadId, netns: String, why: String) {
        if self.failed.get(&id).is_none_or(|(_, known)| *known != why) {
            log::error!("pod {id}: {why}");
        }
        self.failed.insert(id, (netns, why));
    }

    /// Map entry first, then the listener: a connection on its way finds the one or the other.
    fn retire(&mut self, id: &WorkloadId) {
        let Some(mut member) = self.pods.remove(id) else { return };
        if let Err(error) = self.capture.unenrol(member.namespace.cookie()) {
            log::warn!("pod {id}: {error}");
        }
        member.stop();
        log::info!("pod {id}: no longer enrolled");
    }
}

impl Member {
    fn stop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.pod.closed.cancel();
            for task in serving.tasks {
                task.abort();
            }
        }
    }
}

fn open_one(netns: &str) -> Result<Member, String> {
    let namespace = Namespace::open(netns).map_err(|error| error.to_string())?;
    let addresses = namespace.addresses().map_err(|error| format!("cannot read the addresses of {netns}: {error}"))?;
    Ok(Member { netns: netns.to_owned(), namespace: Arc::new(namespace), addresses, serving: None })
}

/// Listeners first, map entry last.
fn start(capture: &Arc<Capture>, engine: &Arc<Engine>, id: &WorkloadId, member: &Member) -> Result<Serving, String> {
    let port = limits::OUTBOUND_PORT;
    let pod = Arc::new(Pod::new(
        Arc::new(id.clone()),
        member.namespace.clone(),
        capture.clone(),
        Resolver::new(member.namespace.clone(), member.namespace.resolver_files()),
        member.addresses.clone(),
        port,
    ));
    let mut listeners = Vec::new();
    for local in listener_sockets(&member.addresses, port) {
        let listener = member.namespace.listener(local).map_err(|error| match error.kind() {
            std::io::ErrorKind::AddrInUse => format!(
                "port {port} is taken in its namespace {}: egret listens there; stop what uses it (ss -tlnp)",
                member.netns
            ),
            _ => format!("cannot listen on {local} in {}: {error}", member.netns),
        })?;
        listeners.push(listener);
    }
    if listeners.is_empty() {
        return Err(format!("its namespace {} bears no address yet: bring an interface up in it", member.netns));
    }
    capture.enrol(&member.namespace, port, &member.addresses).map_err(|error| error.to_string())?;
    let tasks = listeners.into_iter().map(|listener| engine.serve(listener, pod.clone(), Role::Outbound)).collect();
    Ok(Serving { pod, tasks })
}

/// Serves and captures at the new addresses; connections that are open go on.
fn readdress(capture: &Capture, engine: &Arc<Engine>, member: &mut Member, addresses: Vec<IpAddr>) {
    let port = limits::OUTBOUND_PORT;
    if let Some(serving) = &mut member.serving {
        let known = listener_sockets(&member.addresses, port);
        for local in listener_sockets(&addresses, port).into_iter().filter(|local| !known.contains(local)) {
            match member.namespace.listener(local) {
                Ok(listener) => serving.tasks.push(engine.serve(listener, serving.pod.clone(), Role::Outbound)),
                Err(error) => log::error!("pod {}: cannot listen on {local}: {error}", serving.pod.id),
            }
        }
        serving.pod.set_own_addresses(addresses.clone());
        if let Err(error) = capture.enrol(&member.namespace, port, &addresses) {
            log::error!("pod {}: {error}", serving.pod.id);
        }
    }
    member.addresses = addresses;
}

fn list(addresses: &[IpAddr]) -> String {
    let texts: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    texts.join(", ")
}
