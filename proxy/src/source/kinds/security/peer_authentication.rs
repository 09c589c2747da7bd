//! security.istio.io PeerAuthentication, checked as Istio's own validation does.

use std::collections::BTreeMap;

use super::selector;
use crate::{
    api::security::{PeerAuthentication, PeerMode},
    source::decode::{Field, Fields},
};

const MODES: &[(&str, Option<PeerMode>)] = &[
    ("UNSET", None),
    ("DISABLE", Some(PeerMode::Disable)),
    ("PERMISSIVE", Some(PeerMode::Permissive)),
    ("STRICT", Some(PeerMode::Strict)),
];

/// Reads a PeerAuthentication. One without `spec` says nothing, which is what its author may want of a wider one.
pub fn peer_authentication(root: &Fields<'_>) -> Option<PeerAuthentication> {
    let Some(spec) = root.get("spec") else { return Some(PeerAuthentication::default()) };
    let fields = spec.fields(&["selector", "mtls", "portLevelMtls"], &[], &[])?;
    let selector = selector(&fields);
    let mode = match fields.get("mtls") {
        // An unknown mode must not read as none: the error refuses the whole object.
        Some(field) => read_mode(&field)?,
        None => None,
    };
    let mut ports = BTreeMap::new();
    if let Some(field) = fields.get("portLevelMtls") {
        let entries = field.entries();
        if entries.is_empty() {
            field.error("must name at least one port");
        }
        if selector.is_empty() {
            field.error("goes with a `selector` only: ports are those of workloads, not of a namespace or the mesh");
        }
        for (key, field) in entries {
            let Some(port) = key.parse().ok().filter(|port| *port != 0) else {
                field.error(format!("\"{}\" is not a port: 1 to 65535", key.escape_debug()));
                continue;
            };
            if ports.insert(port, read_mode(&field)?).is_some() {
                field.error(format!("port {port} is given twice"));
            }
        }
    }
    Some(PeerAuthentication { selector, mode, ports })
}

/// `mode` of a MutualTLS; absent is UNSET.
fn read_mode(field: &Field<'_>) -> Option<Option<PeerMode>> {
    if field.node.is_null() {
        return Some(None);
    }
    match field.fields(&["mode"], &[], &[])?.get("mode") {
        Some(field) => field.choice(MODES),
        None => Some(None),
    }
}
