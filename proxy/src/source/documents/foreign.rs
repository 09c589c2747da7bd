//! Documents of kinds that are not read.

use super::{Header, Reader, finding};
use crate::{
    api::{ObjectId, Severity},
    source::{
        decode::{Finding, similar},
        yaml::Fault,
    },
};

/// Kinds that the data plane will read one day. Their absence changes what happens to traffic, so it is said.
const LATER: &[(&str, &[&str])] = &[
    ("", &["Endpoints"]),
    ("networking.istio.io", &["WorkloadEntry", "WorkloadGroup", "EnvoyFilter", "ProxyConfig"]),
    ("security.istio.io", &["RequestAuthentication"]),
    ("telemetry.istio.io", &["Telemetry"]),
    ("extensions.istio.io", &["WasmPlugin"]),
    ("gateway.networking.k8s.io", &["GRPCRoute", "TCPRoute", "UDPRoute"]),
];

/// Kinds that are read, for hints at misspelt ones.
const READ: &[(&str, &[&str])] = &[
    ("", &["ConfigMap", "Namespace", "Pod", "Secret", "Service"]),
    ("discovery.k8s.io", &["EndpointSlice"]),
    ("networking.istio.io", &["DestinationRule", "Gateway", "ServiceEntry", "Sidecar", "VirtualService"]),
    ("security.istio.io", &["AuthorizationPolicy", "PeerAuthentication"]),
    ("gateway.networking.k8s.io", &["BackendTLSPolicy", "Gateway", "HTTPRoute", "ReferenceGrant", "TLSRoute"]),
];

impl Reader<'_> {
    /// A kind that is not read: a warning where traffic would go otherwise if it were, else one info for each kind.
    pub(super) fn foreign(&mut self, header: &Header<'_>, faults: &[Fault]) {
        if !faults.is_empty() {
            return self.refuse(None, faults.iter().map(finding).collect());
        }
        let later = LATER.iter().find(|(group, _)| *group == header.group);
        let at = header.root.get("kind").map_or(header.root.at, |node| node.at);
        let (severity, object, message) = match later.and_then(|(_, kinds)| kinds.iter().find(|k| **k == header.kind)) {
            Some(kind) => {
                let text = |key: &str| Some(header.root.get("metadata")?.get(key)?.text()?.to_owned());
                let namespace = text("namespace").unwrap_or_else(|| "default".to_owned());
                let object = text("name").map(|name| ObjectId::new(kind, namespace, name));
                (Severity::Warning, object, format!("kind {kind} is not honoured yet"))
            }
            None => {
                if !self.skipped.insert(header.kind.to_owned()) {
                    return;
                }
                let read = READ.iter().find(|(group, _)| *group == header.group);
                match read.and_then(|(_, kinds)| similar(header.kind, kinds)).filter(|near| *near != header.kind) {
                    Some(near) => (
                        Severity::Warning,
                        None,
                        format!("unknown kind {} (did you mean `{near}`?): skipped", header.kind.escape_debug()),
                    ),
                    None => (
                        Severity::Info,
                        None,
                        format!("kind {} means nothing to the data plane: skipped", header.kind.escape_debug()),
                    ),
                }
            }
        };
        let field = String::new();
        let found = vec![Finding { severity, at, field, message }];
        self.note(object.as_ref(), found);
    }
}
