//! What the pods that are called take on their own ports.

use std::{net::SocketAddr, sync::Arc};

use super::{Kind, Steps, Target};
use crate::{
    admin::AdminState,
    engine::Snapshot,
    mesh::{InboundTable, MtlsMode, UpstreamTls, WorkloadId},
};

/// What is sent, and where it leads.
pub struct Called<'a> {
    pub target: &'a Target,
    pub tls: &'a UpstreamTls,
    /// As [`super::super::tables::addresses`] has them; none: the address dialled.
    pub addresses: &'a [String],
    pub dialled: Option<SocketAddr>,
}

impl Called<'_> {
    /// Tells what those that are called take, where they are pods whose ports are captured; answers with how the call ends
    /// where none of them takes what is sent.
    pub fn receive(&self, state: &dyn AdminState, snapshot: &Snapshot, steps: &mut Steps) -> Option<String> {
        let plain = self.target.kind != Kind::Https;
        let listed = self.addresses.iter().filter_map(|address| address.parse().ok());
        let addresses: Vec<SocketAddr> = match self.addresses {
            [] => self.dialled.into_iter().collect(),
            _ => listed.collect(),
        };
        let mut ends = Vec::new();
        let mut told: Vec<(u16, *const InboundTable)> = Vec::new();
        for address in addresses {
            let Some((id, table)) = pod(state, snapshot, address) else {
                ends.push(None);
                continue;
            };
            let port = address.port();
            let mode = table.modes.of(port);
            ends.push(end(mode, self.tls, plain && table.port(port).tls.is_some()));
            // Pods of one Deployment are one to the reader.
            if told.contains(&(port, Arc::as_ptr(&table))) {
                continue;
            }
            told.push((port, Arc::as_ptr(&table)));
            let said_by: Vec<_> = table
                .said_by
                .iter()
                .map(|policy| {
                    let place = snapshot.mesh.origins.get(policy);
                    place.map_or_else(|| policy.to_string(), |place| format!("{policy} ({place})"))
                })
                .collect();
            let why =
                if said_by.is_empty() { "no PeerAuthentication speaks of it".to_owned() } else { said_by.join(", ") };
            steps.add("takes", format!("{} on port {port} of {id}", mode.name()), why);
        }
        ends.into_iter().collect::<Option<Vec<_>>>()?.into_iter().next()
    }
}

/// The enrolled pod that bears this address, and its own ports.
fn pod(state: &dyn AdminState, snapshot: &Snapshot, address: SocketAddr) -> Option<(WorkloadId, Arc<InboundTable>)> {
    // Most addresses are no pod's: the table of those is quicker to ask.
    snapshot.mesh.peers.get(&address.ip().to_canonical())?.captured.as_ref()?;
    let text = address.ip().to_string();
    let pods = state.status().pods;
    let bears = pods.iter().find(|pod| pod.addresses.contains(&text))?;
    let workload = snapshot.mesh.workloads.values().find(|known| known.id.to_string() == bears.pod)?;
    Some((workload.id.clone(), workload.inbound.clone()?))
}

/// `wants_tls`: a Sidecar ends TLS on the port, and what the application sends is none.
fn end(mode: MtlsMode, sent: &UpstreamTls, wants_tls: bool) -> Option<String> {
    let auto = matches!(sent, UpstreamTls::Mesh(mesh) if !mesh.required);
    match (mode, sent) {
        (MtlsMode::Strict, UpstreamTls::Plain | UpstreamTls::Originate(_)) => {
            Some("Reset by the pod that is called: its port takes mesh mTLS only (STRICT).".to_owned())
        }
        (MtlsMode::Disable, UpstreamTls::Mesh(mesh)) if mesh.required => {
            Some("Fails with 503 (UF): the port of the pod that is called takes no mesh mTLS (DISABLE).".to_owned())
        }
        (MtlsMode::Disable, _) if wants_tls && (auto || *sent == UpstreamTls::Plain) => Some(
            "Reset by the pod that is called: its Sidecar ends TLS on the port, and this is plain text.".to_owned(),
        ),
        _ => None,
    }
}
