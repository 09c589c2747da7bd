//! What is different with the pods of a kubelet: they are found by what appears in the tree of cgroups, and each is refused
//! from its creation until it is enrolled or left alone.

use std::collections::HashSet;

use super::{Fleet, member::Member};
use crate::mesh::Netns;

impl Fleet {
    /// Tells the programs where pods are, and asks what an earlier agent has decided.
    pub(super) fn hold_pods(&mut self) {
        let kubepods = self.node.as_ref().map(|node| node.kubepods()).unwrap_or_default();
        if let Err(error) = self.capture.hold_pods(&kubepods) {
            log::error!("{error}");
        }
        let Some(node) = &self.node else { return };
        match (kubepods.is_empty(), node.roots().as_slice()) {
            (false, _) => log::info!("pods get no TCP connection out before they are enrolled or left alone"),
            (true, []) => log::warn!("there is no cgroup of pods (kubepods) yet: waiting for the kubelet to make it"),
            (true, roots) => log::warn!(
                "the pods' cgroups are not in the cgroup2 tree but in {} only: in the moment between its start and its \
                 enrolment a pod can open connections that are not captured (cgroup v2, or the systemd driver of the \
                 kubelet, closes this)",
                roots.iter().map(|root| root.display().to_string()).collect::<Vec<_>>().join(", ")
            ),
        }
        self.know_left_alone();
    }

    /// What an earlier agent has left alone.
    pub(super) fn know_left_alone(&mut self) {
        match self.capture.left_alone() {
            Ok(cgroups) => self.alone = cgroups.into_iter().collect(),
            Err(error) => log::warn!("{error}"),
        }
    }

    /// Returns when pods may have come or gone; never on a single host.
    pub async fn woken(&mut self) {
        let Some(node) = &mut self.node else { return std::future::pending().await };
        let starting = |netns: &Netns| matches!(netns, Netns::OfPod { uid } if node.is_starting(uid));
        let awaited = self.missing.values().any(|(netns, _)| starting(netns))
            || self.pods.values().any(|member| !member.is_serving() && starting(&member.netns));
        node.woken(awaited).await;
    }

    /// Enrols at once what has come, by the table in force, which knows all but the addresses; and leaves alone what is to be.
    /// True where the table is to be made anew.
    pub fn look_for_pods(&mut self) -> bool {
        let Some(node) = &mut self.node else { return false };
        let held = !node.kubepods().is_empty();
        node.refresh();
        if held == node.kubepods().is_empty() {
            self.hold_pods();
        }
        self.leave_alone();
        let node = self.node.as_ref();
        let mut came = false;
        for (id, (netns, why)) in &mut self.missing {
            match Member::open(netns, node) {
                Ok(member) => {
                    self.pods.insert(id.clone(), member);
                    came = true;
                }
                Err(now) => {
                    self.said |= *why != now;
                    *why = now;
                }
            }
        }
        self.missing.retain(|id, _| !self.pods.contains_key(id));
        for (id, member) in self.pods.iter_mut().filter(|(_, member)| !member.is_serving()) {
            match member.namespace.addresses() {
                Ok(addresses) if addresses != member.addresses => {
                    member.readdress(&self.capture, &self.engine, addresses);
                    came = true;
                }
                Ok(_) => {}
                Err(error) => log::debug!("pod {id}: {error}"),
            }
        }
        if came {
            self.settle();
        }
        came
    }

    /// Lets the pods go their own way that are to be left alone, as far as they have a cgroup.
    pub(super) fn leave_alone(&mut self) {
        let Some(node) = &self.node else { return };
        for uid in &self.wanted.left_alone {
            let Some(cgroup) = node.cgroup(uid) else { continue };
            if self.alone.contains(&cgroup) {
                continue;
            }
            match self.capture.leave_alone(cgroup) {
                Ok(()) => drop(self.alone.insert(cgroup)),
                Err(error) => log::error!("pod {uid}: {error}: its connections are refused"),
            }
        }
        let there = node.cgroups();
        self.hold(|cgroup| !there.contains(&cgroup));
    }

    /// After pods were enrolled that were left alone before: captured first, so that they are refused no moment.
    pub(super) fn hold_enrolled(&mut self) {
        let Some(node) = &self.node else { return };
        if self.alone.is_empty() {
            return;
        }
        let uid = |netns: &Netns| match netns {
            Netns::OfPod { uid } => node.cgroup(uid),
            Netns::Named(_) => None,
        };
        let enrolled: HashSet<u64> = self.wanted.enrolled.values().filter_map(uid).collect();
        self.hold(|cgroup| enrolled.contains(&cgroup));
    }

    /// Of those that an earlier agent left alone, what no document speaks of is refused; where some document is refused now, it
    /// may be the one that does.
    pub(super) fn forget_alone(&mut self, whole: bool) {
        let Some(node) = self.node.as_ref().filter(|_| whole) else { return };
        let decided: HashSet<u64> = self.wanted.left_alone.iter().filter_map(|uid| node.cgroup(uid)).collect();
        self.hold(|cgroup| !decided.contains(&cgroup));
    }

    fn hold(&mut self, unwanted: impl Fn(u64) -> bool) {
        self.alone.retain(|cgroup| {
            if !unwanted(*cgroup) {
                return true;
            }
            // What could not be removed is tried again.
            self.capture.hold(*cgroup).inspect_err(|error| log::warn!("{error}")).is_err()
        });
    }
}
