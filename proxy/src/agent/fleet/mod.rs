//! The enrolled pods: their namespaces, listeners and captures, kept in step with the configuration and with what
//! happens to the namespaces.

mod listeners;
mod member;
mod on_node;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::TcpListener,
    sync::Arc,
};

use self::member::{Member, list};
use super::handover::{Ending, Listeners};
use crate::{
    admin::rows::PodStatus,
    capture::{Capture, CaptureError},
    engine::{Engine, pod::Pod},
    mesh::{Mesh, Netns, NodePods, PodAddresses, WorkloadId},
    node::Node,
};

pub struct Fleet {
    capture: Arc<Capture>,
    engine: Arc<Engine>,
    pods: BTreeMap<WorkloadId, Member>,
    /// Wanted, and why their namespaces could not be opened.
    missing: BTreeMap<WorkloadId, (Netns, String)>,
    /// Of a cluster.
    node: Option<Node>,
    /// What the configuration in force says of the pods here.
    wanted: NodePods,
    /// Cgroups of pods that are left alone, by an earlier agent too.
    alone: HashSet<u64>,
    /// What is said of missing pods is no longer what it was.
    said: bool,
    /// What an agent before has handed over, until the pods that it belongs to are served.
    inherited: Listeners,
    /// Cookies of namespaces that an earlier agent captured and that nobody has asked for yet; None: not looked at yet.
    strangers: Option<BTreeSet<u64>>,
}

impl Fleet {
    /// `node`: of a cluster, whose pods are the kubelet's.
    pub fn new(capture: Arc<Capture>, engine: Arc<Engine>, node: Option<Node>) -> Self {
        let mut fleet = Self {
            capture,
            engine,
            pods: BTreeMap::new(),
            missing: BTreeMap::new(),
            node,
            wanted: NodePods::default(),
            alone: HashSet::new(),
            said: false,
            inherited: Listeners::default(),
            strangers: None,
        };
        fleet.hold_pods();
        fleet
    }

    /// Takes up what an agent before has handed over; that one changes nothing any more. None: it ended without.
    pub fn inherit(&mut self, handed_over: Option<(Listeners, Ending)>) -> Result<(), CaptureError> {
        self.capture.attach(handed_over.is_some())?;
        if let Some((listeners, before)) = handed_over {
            log::info!("took {} listening sockets over", listeners.len());
            self.inherited = listeners;
            let capture = self.capture.clone();
            tokio::spawn(async move {
                before.ended().await;
                if let Err(error) = capture.forget_former() {
                    log::warn!("{error}");
                }
            });
        }
        self.know_left_alone();
        Ok(())
    }

    /// Lets go of pods that are not wanted any more or whose namespace is gone, opens those that are new, and answers
    /// the addresses of all.
    pub fn open(&mut self, wanted: NodePods) -> PodAddresses {
        self.wanted = wanted;
        if let Some(node) = &mut self.node {
            node.refresh();
        }
        // Before others are let go: a pod that is to be left alone now is refused no moment.
        self.leave_alone();
        let (wanted, node) = (&self.wanted.enrolled, self.node.as_ref());
        let gone = self.pods.iter_mut().filter_map(|(id, member)| {
            let kept = wanted.get(id) == Some(&member.netns) && member.is_current(node);
            (!kept).then(|| id.clone())
        });
        for id in gone.collect::<Vec<_>>() {
            let Some(mut member) = self.pods.remove(&id) else { continue };
            member.release(&self.capture, &id);
            log::info!("pod {id}: no longer enrolled");
        }
        self.missing.retain(|id, (netns, _)| wanted.get(id) == Some(netns));
        for (id, netns) in wanted {
            if self.pods.contains_key(id) {
                continue;
            }
            match Member::open(netns, node) {
                Ok(member) => {
                    self.missing.remove(id);
                    self.pods.insert(id.clone(), member);
                }
                Err(why) => {
                    if self.missing.get(id).is_none_or(|(_, known)| *known != why) {
                        // That a pod of the kubelet is not there yet is the way of things.
                        let level =
                            if matches!(netns, Netns::Named(_)) { log::Level::Error } else { log::Level::Debug };
                        log::log!(level, "pod {id}: {why}");
                    }
                    self.missing.insert(id.clone(), (netns.clone(), why));
                }
            }
        }
        self.pods.iter().map(|(id, member)| (id.clone(), member.addresses.clone())).collect()
    }

    /// Before a table comes in force: the pods in which it forbids something are refused while no agent runs. Those in which
    /// nothing is forbidden any more are told by [`Fleet::settle`], after.
    pub fn harden(&mut self, mesh: &Mesh) {
        for (id, member) in &mut self.pods {
            let inbound = mesh.workloads.get(id).and_then(|workload| workload.inbound.as_ref());
            if inbound.is_some_and(|table| table.fail_closed()) {
                member.harden();
            }
        }
    }

    /// Serves and captures every open pod as the table in force has it; true where what is in service, or in the way, is no
    /// longer the same. Called after each reload, and again as long as something is in the way (no address yet, a port that
    /// is taken).
    pub fn settle(&mut self) -> bool {
        let mesh = self.engine.snapshot().mesh.clone();
        let mut changed = std::mem::take(&mut self.said);
        for (id, member) in &mut self.pods {
            let workload = mesh.workloads.get(id).map(AsRef::as_ref);
            changed |= member.settle(&self.capture, &self.engine, id, workload, &mut self.inherited);
        }
        // What is left is of pods that are no more, and listeners that nobody wants now.
        self.inherited = Listeners::default();
        self.hold_enrolled();
        changed
    }

    /// True where a namespace went away, came back or changed its addresses, so that the pods must be opened anew.
    pub fn changed(&mut self) -> bool {
        let mut changed = self.look_for_pods();
        let node = self.node.as_ref();
        changed |= self.missing.values().any(|(netns, _)| Member::open(netns, node).is_ok());
        for (id, member) in &mut self.pods {
            if !member.is_current(node) {
                log::info!("pod {id}: its namespace {} is gone or was made again", member.namespace.name());
                changed = true;
                continue;
            }
            match member.namespace.addresses() {
                Ok(addresses) if addresses != member.addresses => {
                    log::info!("pod {id}: its addresses are now {}", list(&addresses));
                    member.readdress(&self.capture, &self.engine, addresses);
                    changed = true;
                }
                Ok(_) => {}
                Err(error) => log::warn!("pod {id}: cannot read the addresses of {}: {error}", member.namespace.name()),
            }
        }
        changed
    }

    /// After each configuration: namespaces that an earlier agent captured and nobody wants now are let go, but only where
    /// the configuration is whole, for a document that is refused may be the one that wants them. Until then they stay
    /// refused.
    pub fn forget_strangers(&mut self, whole: bool) {
        self.forget_alone(whole);
        let ours: BTreeSet<u64> = self.pods.values().map(|member| member.namespace.cookie()).collect();
        let first = self.strangers.is_none();
        let known = match self.strangers.take() {
            Some(strangers) => strangers,
            None => match self.capture.enrolled() {
                Ok(cookies) => cookies.into_iter().collect(),
                Err(error) => return log::warn!("cannot list what an earlier agent captured: {error}"),
            },
        };
        let mut left = BTreeSet::new();
        for cookie in known.difference(&ours).copied() {
            if !whole {
                left.insert(cookie);
            } else if let Err(error) = self.capture.unenrol(cookie) {
                log::warn!("cannot let go of a namespace that an earlier agent captured: {error}");
            }
        }
        for cookie in left.iter().filter(|_| first) {
            log::warn!(
                "a namespace that an earlier agent captured (cookie {cookie}) stays refused while documents are: mend them"
            );
        }
        self.strangers = Some(left);
    }

    pub fn status(&self) -> Vec<PodStatus> {
        let members = self.pods.iter().map(|(id, member)| PodStatus {
            pod: id.to_string(),
            netns: member.namespace.name().to_owned(),
            addresses: member.addresses.iter().map(ToString::to_string).collect(),
            inbound: member.inbound(),
            state: member.state(),
        });
        let missing = self.missing.iter().map(|(id, (netns, why))| PodStatus {
            pod: id.to_string(),
            netns: netns.to_string(),
            state: why.clone(),
            ..PodStatus::default()
        });
        members.chain(missing).collect()
    }

    /// What an agent that is to be ready waits for: pods of a single host that are not served whole. Those of a cluster come
    /// and go by the hour, and one that cannot be served says so in its status: each is refused until it is enrolled, and one
    /// that never comes up must not keep the agent of its node from being ready. At start those that run are enrolled before
    /// there is a configuration in force.
    pub fn awaited(&self) -> Vec<String> {
        if self.node.is_some() {
            return Vec::new();
        }
        let pods = self.status().into_iter().filter(|pod| pod.state != "enrolled");
        pods.map(|pod| format!("pod {}: {}", pod.pod, pod.state)).collect()
    }

    /// The pods in service, for the admin side.
    pub fn serving(&self) -> BTreeMap<WorkloadId, Arc<Pod>> {
        let serving = |(id, member): (&WorkloadId, &Member)| Some((id.clone(), member.pod()?.clone()));
        self.pods.iter().filter_map(serving).collect()
    }

    pub fn summary(&self) -> String {
        let serving = self.pods.values().filter(|member| member.pod().is_some()).count();
        match self.pods.len() + self.missing.len() - serving {
            0 => format!("{serving} pods"),
            waiting => format!("{serving} pods, {waiting} not enrolled yet"),
        }
    }

    /// Accepts nothing more, and answers the listening sockets of all pods for the next agent.
    pub fn hand_over(&mut self) -> Vec<TcpListener> {
        self.pods.values_mut().flat_map(Member::hand_over).collect()
    }

    /// What pods dial from now on is refused.
    pub fn stop_outbound(&mut self) {
        self.pods.values_mut().for_each(Member::stop_outbound);
    }

    /// What comes to pods' own ports from now on is not taken any more.
    pub fn stop_inbound(&mut self) {
        self.pods.values_mut().for_each(Member::stop_inbound);
    }

    /// Gateways' listeners close.
    pub fn stop_gateways(&mut self) {
        self.pods.values_mut().for_each(Member::stop_gateway);
    }

    /// Ends every listener and connection. Capture stays: what pods dial now is refused.
    pub fn close(&mut self) {
        self.pods.values_mut().for_each(Member::stop);
    }
}
