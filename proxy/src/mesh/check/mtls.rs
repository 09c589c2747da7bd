//! Rules that send to pods what these, by PeerAuthentication, do not take.

use super::super::{
    findings::Findings,
    inbound::MtlsMode,
    origination::NO_LABELS,
    registry::{Entry, EntryPort, Registry},
    rules::{Rules, Tls},
    table::EndpointAddress,
};
use crate::api::istio::TlsMode;

pub fn conflicts(registry: &Registry, rules: &Rules, findings: &mut Findings) {
    for entry in &registry.entries {
        let ports = entry.body.ports.iter().map(|port| (port, modes(entry, port)));
        let ports: Vec<_> = ports.filter(|(_, modes)| modes.iter().any(|mode| *mode != MtlsMode::Permissive)).collect();
        if ports.is_empty() {
            continue;
        }
        for index in rules.naming(&entry.host, |namespace| entry.body.visibility.holds(namespace)) {
            let Some(merged) = rules.merge(&[index], &mut Findings::default()) else { continue };
            let subsets = std::iter::once(None).chain((0..merged.subsets().count()).map(Some));
            for subset in subsets {
                for (port, modes) in &ports {
                    if let Some(tls) = merged.policy(port.number, subset).tls {
                        conflict(entry, port.number, modes, &tls, findings);
                    }
                }
            }
        }
    }
}

/// What the pods behind a port take.
fn modes(entry: &Entry, port: &EntryPort) -> Vec<MtlsMode> {
    let endpoints = entry.listed(port, &NO_LABELS);
    let modes = endpoints.iter().filter_map(|endpoint| match &endpoint.address {
        EndpointAddress::Ip(address) => Some(endpoint.peer.as_ref()?.captured.as_ref()?.of(address.port())),
        EndpointAddress::Unix(_) => None,
    });
    modes.collect()
}

fn conflict(entry: &Entry, port: u16, modes: &[MtlsMode], tls: &Tls<'_>, findings: &mut Findings) {
    let of = |mode| modes.contains(&mode);
    let (takes, ends) = match tls.settings.mode {
        TlsMode::IstioMutual if of(MtlsMode::Disable) => {
            ("no mesh mTLS (PeerAuthentication DISABLE)", "this handshake fails there")
        }
        TlsMode::Disable | TlsMode::Simple | TlsMode::Mutual if of(MtlsMode::Strict) => {
            ("mesh mTLS only (PeerAuthentication STRICT)", "what this sends is reset there")
        }
        _ => return,
    };
    let message = format!("pods behind port {port} of {} take {takes}: {ends}", entry.object);
    findings.warn(tls.object, &format!("{}.mode", tls.field), message);
}
