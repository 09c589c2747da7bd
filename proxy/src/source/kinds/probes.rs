//! What the kubelet asks of a container over the network, as it will ask it (Kubernetes `pkg/kubelet/prober`).

use std::fmt::Write as _;

use super::super::decode::{Field, Fields};
use crate::api::core::{ContainerPort, Probe, ProbeRequest};

const KINDS: [&str; 3] = ["livenessProbe", "readinessProbe", "startupProbe"];
const IGNORED: &[&str] = &[
    "exec",
    "failureThreshold",
    "initialDelaySeconds",
    "periodSeconds",
    "successThreshold",
    "tcpSocket",
    "terminationGracePeriodSeconds",
    "timeoutSeconds",
];

/// The probes of a container that has these ports.
pub fn of_container(container: &Fields<'_>, ports: &[ContainerPort]) -> Vec<Probe> {
    let probes = KINDS.iter().filter_map(|kind| container.get(kind)?.fields(&["httpGet", "grpc"], IGNORED, &[]));
    probes
        .filter_map(|probe| match probe.get("httpGet") {
            Some(field) => http_get(&field, ports),
            None => grpc(&probe.get("grpc")?),
        })
        .collect()
}

fn http_get(field: &Field<'_>, ports: &[ContainerPort]) -> Option<Probe> {
    let fields = field.fields(&["host", "path", "port", "scheme"], &["httpHeaders"], &[])?;
    let port = port(&fields.require("port")?, ports);
    let https = fields.get("scheme").and_then(|f| f.choice(&[("HTTP", false), ("HTTPS", true), ("", false)]));
    let target = target(&fields.string("path").unwrap_or_default());
    // Then it is that host which is asked, and not the pod.
    if fields.string("host").is_some() {
        return None;
    }
    let request = ProbeRequest::HttpGet { https: https.unwrap_or_default(), target };
    Some(Probe { port: port?, request, field: field.path.clone() })
}

fn grpc(field: &Field<'_>) -> Option<Probe> {
    let fields = field.fields(&["port"], &["service"], &[])?;
    let port = fields.require("port")?.port()?;
    Some(Probe { port, request: ProbeRequest::Grpc, field: field.path.clone() })
}

/// By number, or by the name of a port of this container; a number may be written as text (`ResolveContainerPort`).
fn port(field: &Field<'_>, ports: &[ContainerPort]) -> Option<u16> {
    let text = field.node.text().unwrap_or_default();
    let named = ports.iter().find(|port| port.name.as_deref() == Some(text)).map(|port| port.port);
    if let Some(port) = named.or_else(|| text.parse().ok().filter(|port| *port != 0)) {
        return Some(port);
    }
    // As every name of a port has.
    if !text.contains(|c: char| c.is_ascii_alphabetic()) {
        return field.port();
    }
    let shown = text.escape_debug();
    field.warn(format!("no port of this container is named \"{shown}\": the kubelet finds nothing to ask"));
    None
}

/// What Go's `net/url` makes of `path` in a request line: rooted, without a fragment, and what no target may hold escaped.
fn target(path: &str) -> String {
    let path = path.split('#').next().unwrap_or_default();
    let mut target = String::with_capacity(path.len() + 1);
    if !path.starts_with('/') {
        target.push('/');
    }
    for byte in path.bytes() {
        if byte.is_ascii_graphic() && !matches!(byte, b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}') {
            target.push(char::from(byte));
        } else {
            let _ = write!(target, "%{byte:02X}");
        }
    }
    target
}

#[cfg(test)]
mod tests {
    use super::target;

    #[test]
    fn a_target_is_what_go_sends() {
        for (path, sent) in [
            ("", "/"),
            ("/", "/"),
            ("healthz", "/healthz"),
            ("/a/b?x=1&y=%2F", "/a/b?x=1&y=%2F"),
            ("?ready", "/?ready"),
            ("/a b/ä", "/a%20b/%C3%A4"),
            ("/a%20b;c!*'()", "/a%20b;c!*'()"),
            ("/a#b", "/a"),
        ] {
            assert_eq!(target(path), sent);
        }
    }
}
