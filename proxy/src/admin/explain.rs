//! `egret explain POD URL`: the data path's own lookups, with what decided at each step.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use http::Uri;

use super::{
    AdminState,
    rows::{Explanation, Step},
    tables,
};
use crate::{
    engine::Snapshot,
    mesh::{
        Cluster, Decision, Discovery, FirstBytes, HttpDecision, IdentitySource, Outbound, Protocol, TlsSettings,
        TrustSource, UpstreamTls, Workload,
    },
};

/// What a URL says of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub kind: Kind,
    /// Without brackets.
    pub host: String,
    pub port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Http,
    Https,
    Tcp,
}

impl Target {
    /// Reads `http://host[:port]/path`, `https://…`, `tcp://host:port`; no scheme means http.
    pub fn parse(url: &str) -> Result<Self, String> {
        let whole = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let uri: Uri = whole.parse().map_err(|error| format!("`{url}` is no URL: {error}"))?;
        let (kind, default) = match uri.scheme_str() {
            Some("http" | "ws" | "grpc") => (Kind::Http, Some(80)),
            Some("https" | "wss" | "tls") => (Kind::Https, Some(443)),
            Some("tcp") => (Kind::Tcp, None),
            other => return Err(format!("scheme `{}` is none of http, https and tcp", other.unwrap_or_default())),
        };
        let host = uri.host().unwrap_or_default();
        let host = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host).to_owned();
        if host.is_empty() {
            return Err(format!("`{url}` names no host"));
        }
        let port = uri.port_u16().or(default).filter(|port| *port != 0);
        Ok(Self { kind, host, port: port.ok_or_else(|| format!("`{url}` names no port"))? })
    }
}

struct Steps(Vec<Step>);

impl Steps {
    fn add(&mut self, what: &str, value: impl Into<String>, why: impl Into<String>) {
        self.0.push(Step { what: what.to_owned(), value: value.into(), why: why.into() });
    }
}

/// Follows one request of `workload`.
pub async fn explain(state: &dyn AdminState, snapshot: &Snapshot, workload: &Workload, target: &Target) -> Explanation {
    let mut steps = Steps(Vec::new());
    let dialled = dialled(state, workload, target, &mut steps).await;
    let verdict = if dialled.ip().is_loopback() {
        "Not captured: loopback traffic never leaves the pod.".to_owned()
    } else {
        let decision = decide(&workload.outbound, dialled, target, &mut steps);
        follow(state, snapshot, workload, target, decision, &mut steps).await
    };
    Explanation { pod: workload.id.to_string(), url: target.url(), steps: steps.0, verdict }
}

impl Target {
    fn url(&self) -> String {
        let scheme = match self.kind {
            Kind::Http => "http",
            Kind::Https => "https",
            Kind::Tcp => "tcp",
        };
        if self.host.contains(':') {
            format!("{scheme}://[{}]:{}", self.host, self.port)
        } else {
            format!("{scheme}://{}:{}", self.host, self.port)
        }
    }
}

/// The address that the application would dial.
async fn dialled(state: &dyn AdminState, workload: &Workload, target: &Target, steps: &mut Steps) -> SocketAddr {
    if let Ok(address) = target.host.parse() {
        let dialled = SocketAddr::new(address, target.port);
        steps.add("dials", dialled.to_string(), "");
        return dialled;
    }
    match state.resolve(&workload.id, &target.host).await {
        Ok(addresses) if !addresses.is_empty() => {
            let dialled = SocketAddr::new(addresses[0], target.port);
            let why = format!("{} as the pod resolves it ({} in all)", target.host, addresses.len());
            steps.add("dials", dialled.to_string(), why);
            dialled
        }
        answer => {
            let reason = answer.err().unwrap_or_else(|| format!("{} has no address", target.host));
            steps.add("dials", format!("port {}", target.port), format!("the pod does not resolve the name: {reason}"));
            SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), target.port)
        }
    }
}

fn decide(outbound: &Outbound, dialled: SocketAddr, target: &Target, steps: &mut Steps) -> Decision {
    let port = dialled.port();
    match (outbound.first_bytes(dialled), target.kind) {
        (FirstBytes::None, _) => {
            steps.add("listener", format!("{dialled} ALL"), "a TCP service claims this address, nothing is read first");
            outbound.tcp(dialled)
        }
        (FirstBytes::Sniff, Kind::Http) => {
            steps.add(
                "listener",
                format!("0.0.0.0:{port} HTTP"),
                "the first bytes are an HTTP request; its Host decides",
            );
            match outbound.http(dialled, &target.host) {
                HttpDecision::Host(host) => match host.clusters().next() {
                    Some(cluster) => Decision::Cluster(cluster.clone()),
                    None => Decision::Block,
                },
                HttpDecision::NotFound => Decision::Block,
                HttpDecision::Unmatched(decision) => decision,
            }
        }
        (FirstBytes::Sniff, Kind::Https) => {
            let sni = target.host.parse::<IpAddr>().is_err().then_some(target.host.as_str());
            let value = sni
                .map_or_else(|| format!("0.0.0.0:{port} TLS without SNI"), |sni| format!("0.0.0.0:{port} SNI: {sni}"));
            steps.add("listener", value, "the application brings its own TLS; it is passed through by SNI");
            outbound.tls(dialled, sni)
        }
        (FirstBytes::Sniff, Kind::Tcp) => {
            steps.add("listener", format!("0.0.0.0:{port} TCP"), "neither HTTP nor TLS; the address dialled decides");
            outbound.tcp(dialled)
        }
    }
}

/// What comes of the decision, and the verdict.
async fn follow(
    state: &dyn AdminState,
    snapshot: &Snapshot,
    workload: &Workload,
    target: &Target,
    decision: Decision,
    steps: &mut Steps,
) -> String {
    match decision {
        Decision::Route(_) => "A tcp or tls route of a VirtualService decides.".to_owned(),
        Decision::Cluster(cluster) => {
            if target.kind == Kind::Http {
                steps.add("route", "default", format!("virtual host {}:{}", cluster.host, target.port));
            }
            cluster_steps(snapshot, &cluster, steps);
            let tls = tls_steps(snapshot, target, &cluster, steps);
            if let Err(reason) = &tls {
                return format!("Refused: {reason}. Plain text is never sent instead.");
            }
            let addresses = endpoint_steps(state, workload, target, &cluster, steps).await;
            if !addresses {
                return "Fails with 503 (no healthy upstream, UH): the service has no address now.".to_owned();
            }
            match (tls, target.kind) {
                (Ok(Some(settings)), Kind::Https) if matches!(cluster.protocol, Protocol::Https | Protocol::Tls) => {
                    format!(
                        "Sent inside a second TLS connection ({}): the rule wraps the application's own TLS.",
                        mode(&settings)
                    )
                }
                (Ok(Some(settings)), _) => format!("Sent as {} to {}.", mode(&settings), cluster.host),
                (_, Kind::Https) => format!("Passed through untouched to {}.", cluster.host),
                _ => format!("Sent in plain text to {}: no rule originates TLS for it.", cluster.host),
            }
        }
        Decision::Passthrough => {
            steps.add("cluster", "PassthroughCluster", "no service matches, and outboundTrafficPolicy is ALLOW_ANY");
            "Passed on to the address dialled, as it is.".to_owned()
        }
        Decision::Block => {
            steps.add("cluster", "BlackHoleCluster", "no service matches, and outboundTrafficPolicy is REGISTRY_ONLY");
            match target.kind {
                Kind::Http => "Blocked: 502 with an empty body.".to_owned(),
                Kind::Https | Kind::Tcp => "Blocked: the connection is reset.".to_owned(),
            }
        }
        Decision::Refuse(reason) => {
            steps.add("refused", "a TLS rule names this destination", &*reason);
            format!("Refused: {}. Plain text is never sent instead.", reason.trim_end_matches('.'))
        }
    }
}

fn cluster_steps(snapshot: &Snapshot, cluster: &Cluster, steps: &mut Steps) {
    let place = |id| snapshot.mesh.origins.get(id).map_or_else(String::new, |location| format!(" ({location})"));
    steps.add("cluster", &cluster.name, format!("defined by {}{}", cluster.service, place(&cluster.service)));
    match &cluster.destination_rule {
        Some(rule) => steps.add("rule", format!("{}.{}", rule.name, rule.namespace), format!("{rule}{}", place(rule))),
        None => steps.add("rule", "-", "no DestinationRule applies"),
    }
}

/// The TLS settings in force, or why the rule cannot be honoured.
fn tls_steps(
    snapshot: &Snapshot,
    target: &Target,
    cluster: &Cluster,
    steps: &mut Steps,
) -> Result<Option<std::sync::Arc<TlsSettings>>, String> {
    let settings = match &cluster.tls {
        UpstreamTls::Plain => {
            steps.add("tls", "-", "none is originated");
            return Ok(None);
        }
        UpstreamTls::Refuse(reason) => {
            steps.add("tls", "refused", &**reason);
            return Err(reason.trim_end_matches('.').to_owned());
        }
        UpstreamTls::Mesh(mesh) => {
            let why = if mesh.required { "ISTIO_MUTUAL" } else { "auto mTLS, for endpoints of the mesh" };
            steps.add("tls", "mesh mTLS", why);
            return Ok(None);
        }
        UpstreamTls::Originate(settings) => settings,
    };
    steps.add("tls", mode(settings), "");
    let asked = if target.kind == Kind::Http { target.host.as_str() } else { cluster.host.as_str() };
    let is_ip = settings.sni.is_none() && asked.parse::<IpAddr>().is_ok();
    let sni = settings.sni.as_deref().unwrap_or(asked);
    match (&settings.sni, is_ip) {
        (_, true) => steps.add("sni", "-", "the request is to an IP address"),
        (Some(sni), _) => steps.add("sni", sni, "the rule's own"),
        (None, _) => steps.add("sni", asked, "the host asked for"),
    }
    if settings.insecure_skip_verify {
        steps.add("verifies", "nothing", "insecureSkipVerify");
    } else if settings.subject_alt_names.is_empty() {
        steps.add("verifies", sni, "the name that is asked for must be in the server's certificate");
    } else {
        steps.add("verifies", settings.subject_alt_names.join(", "), "subjectAltNames: one of these must be in it");
    }
    steps.add("ca", trust(&settings.trust), "");
    if let Some(identity) = &settings.identity {
        steps.add("presents", identity_name(identity), "the client certificate");
    }
    match snapshot.tls.get(settings) {
        Ok(_) => Ok(Some(settings.clone())),
        Err(error) => {
            steps.add("credentials", "unusable", error.to_string());
            Err(error.to_string())
        }
    }
}

fn mode(settings: &TlsSettings) -> &'static str {
    if settings.identity.is_some() { "MUTUAL TLS" } else { "SIMPLE TLS" }
}

fn trust(trust: &TrustSource) -> String {
    match trust {
        TrustSource::System => "the system's trust bundle".to_owned(),
        TrustSource::Secret { name, namespace } => format!("kubernetes://{name}-cacert of namespace {namespace}"),
        TrustSource::File(material) => format!("file-root:{}", material.path),
    }
}

fn identity_name(identity: &IdentitySource) -> String {
    match identity {
        IdentitySource::Secret { name, namespace } => format!("kubernetes://{name} of namespace {namespace}"),
        IdentitySource::Files { certificate, key } => format!("file-cert:{}~{}", certificate.path, key.path),
    }
}

/// Whether there is an address to go to.
async fn endpoint_steps(
    state: &dyn AdminState,
    workload: &Workload,
    target: &Target,
    cluster: &Cluster,
    steps: &mut Steps,
) -> bool {
    match &cluster.discovery {
        Discovery::OriginalDestination { port } => {
            let port = port.unwrap_or(target.port);
            steps.add("endpoints", format!("the address dialled, port {port}"), "resolution NONE");
            return true;
        }
        Discovery::Dynamic { port } => {
            steps.add("endpoints", format!("{} as resolved, port {port}", target.host), "resolution DYNAMIC_DNS");
            return true;
        }
        Discovery::Static(_) | Discovery::Dns { .. } => {}
    }
    let (found, failed) = tables::addresses(state, workload, cluster).await;
    steps.add("endpoints", if found.is_empty() { "-".to_owned() } else { found.join(", ") }, failed.join("; "));
    !found.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_with_their_defaults() {
        let target = |kind, host: &str, port| Ok(Target { kind, host: host.to_owned(), port });
        assert_eq!(Target::parse("http://a.com/x?y"), target(Kind::Http, "a.com", 80));
        assert_eq!(Target::parse("a.com:8080"), target(Kind::Http, "a.com", 8080));
        assert_eq!(Target::parse("https://[::1]/"), target(Kind::Https, "::1", 443));
        assert_eq!(Target::parse("tcp://10.0.0.1:3306"), target(Kind::Tcp, "10.0.0.1", 3306));
        for bad in ["", "tcp://a.com", "ftp://a.com", "http://", "http://a b", "http://a:0"] {
            assert!(Target::parse(bad).is_err(), "{bad}");
        }
    }
}
