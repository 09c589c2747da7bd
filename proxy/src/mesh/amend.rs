//! A table after a change of few services, rules or endpoints, without compiling the many others anew.
//!
//! What is compiled is the changed objects with those that meet at the same hosts and everything that is not about hosts, once
//! as they were and once as they are. The first tells what of the table in force came from them, the second what takes its
//! place. That is right only where nothing else meets there: see [`Part::of`] before, and [`clashes::are_there`] after, which
//! say no where in doubt; then everything is compiled.

mod clashes;
mod part;
mod tables;

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::{Arc, OnceLock},
};

use self::{part::Part, tables::Tables};
use super::{
    compile::compile,
    index::Index,
    origins::Origins,
    table::{Mesh, Peer, PodAddresses, Workload},
};
use crate::{
    api::{Diagnostic, Objects},
    source::Changed,
};

/// What [`compile`] would make of `objects`, out of what it made (`previous`) before `changed` were changed, with the same pod
/// `addresses`. None: it must be asked itself. `index` is that of `objects`. `moved`: documents lie on other lines of their
/// files.
#[must_use]
pub fn amend(
    previous: &Mesh,
    (objects, index, addresses): (&Objects, &Index, &PodAddresses),
    changed: &[Changed],
    moved: bool,
) -> Option<Mesh> {
    let part = Part::of(objects, index, previous, changed)?;
    let (before, after) = (compile(&part.before, addresses), compile(&part.after, addresses));
    // A finding about what has only moved is still in its old place.
    if moved && !(previous.diagnostics.is_empty() && before.diagnostics.is_empty()) {
        return None;
    }
    let same_pods = |mesh: &Mesh| mesh.workloads.keys().eq(previous.workloads.keys());
    if !same_pods(&before) || !same_pods(&after) {
        return None;
    }
    let peers = peers(previous, &before, &after);
    if clashes::are_there(&part, (objects, index, addresses), (previous, &peers), (&before, &after)) {
        return None;
    }
    let mut tables = Tables::default();
    let mut workloads = previous.workloads.clone();
    for (id, workload) in &mut workloads {
        let (was, is) = (before.workloads.get(id)?, after.workloads.get(id)?);
        let outbound = tables.table(&workload.outbound, &was.outbound, &is.outbound)?;
        *workload = Arc::new(Workload { outbound, ..(**workload).clone() });
    }
    let tls = OnceLock::new();
    if same_contexts(&before, &after) {
        let _ = tls.set(previous.tls_settings().to_vec());
    }
    Some(Mesh {
        settings: previous.settings.clone(),
        workloads,
        diagnostics: findings(previous, &before, after.diagnostics),
        origins: Origins::new(objects),
        peers,
        statuses: previous.statuses.clone(),
        tls,
    })
}

/// Who is at which address, where the changed part says other than before.
fn peers(previous: &Mesh, before: &Mesh, after: &Mesh) -> Arc<HashMap<IpAddr, Arc<Peer>>> {
    let mut peers = previous.peers.clone();
    if before.peers != after.peers {
        let all = Arc::make_mut(&mut peers);
        before
            .peers
            .keys()
            .filter(|address| !after.peers.contains_key(address))
            .for_each(|gone| drop(all.remove(gone)));
        let new = after.peers.iter().filter(|(address, peer)| before.peers.get(*address) != Some(peer));
        all.extend(new.map(|(address, peer)| (*address, peer.clone())));
    }
    peers
}

/// The changed part leads to the same TLS contexts as before.
fn same_contexts(before: &Mesh, after: &Mesh) -> bool {
    let [before, after] = [before, after].map(|mesh| {
        let contexts = mesh.tls_settings().iter().map(|settings| &*settings.context);
        contexts.collect::<HashSet<_>>()
    });
    before == after
}

/// Those of before, but for what was said of the changed part and is not said any more.
fn findings(previous: &Mesh, before: &Mesh, after: Vec<Diagnostic>) -> Vec<Diagnostic> {
    let gone = |said: &Diagnostic| before.diagnostics.contains(said) && !after.contains(said);
    let mut all: Vec<_> = previous.diagnostics.iter().filter(|said| !gone(said)).cloned().collect();
    all.extend(after.iter().filter(|said| !before.diagnostics.contains(said)).cloned());
    super::findings::sort(&mut all);
    all
}
