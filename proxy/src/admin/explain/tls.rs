//! What protects a connection to a cluster, and with whose credentials.

use std::{collections::BTreeSet, net::IpAddr};

use super::{Kind, Steps, Target};
use crate::{
    engine::Snapshot,
    mesh::{
        ClientCertificates, Cluster, Discovery, IdentitySource, MeshTls, Peer, Protocol, ServerTlsSettings,
        TlsSettings, TrustSource, UpstreamTls, Workload,
    },
};

/// What the bytes are sent in.
pub enum Protection {
    None,
    /// `SIMPLE TLS`, `MUTUAL TLS`, `mesh mTLS`
    Tls(&'static str),
}

/// What is done about TLS, step by step, or why the rule cannot be honoured.
pub fn protection(
    snapshot: &Snapshot,
    workload: &Workload,
    target: &Target,
    cluster: &Cluster,
    steps: &mut Steps,
) -> Result<Protection, String> {
    let settings = match &cluster.tls {
        UpstreamTls::Plain => {
            steps.add("tls", "-", "none is originated");
            return Ok(Protection::None);
        }
        UpstreamTls::Refuse(reason) => {
            steps.add("tls", "refused", &**reason);
            return Err(reason.trim_end_matches('.').to_owned());
        }
        UpstreamTls::Mesh(mesh) => return in_the_mesh(snapshot, workload, cluster, mesh, steps),
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
        Ok(_) => Ok(Protection::Tls(mode(settings))),
        Err(error) => {
            steps.add("credentials", "unusable", error.to_string());
            Err(error.to_string())
        }
    }
}

/// How a gateway takes a client's TLS off, or why it cannot.
pub fn terminated(snapshot: &Snapshot, settings: &ServerTlsSettings, steps: &mut Steps) -> Result<(), String> {
    let (mode, asked) = match &settings.clients {
        ClientCertificates::None => ("SIMPLE TLS", None),
        ClientCertificates::Optional(trust) => ("OPTIONAL_MUTUAL TLS", Some(("may show one", trust))),
        ClientCertificates::Required(trust) => ("MUTUAL TLS", Some(("must show one", trust))),
    };
    steps.add("tls", mode, "ends at the gateway");
    let shown: Vec<_> = settings.identities.iter().map(identity_name).collect();
    steps.add("presents", shown.join(", "), "the server's certificate");
    match asked {
        None => steps.add("clients", "any", "none is asked for a certificate"),
        Some((demand, asked)) => {
            let names = match asked.subject_alt_names.as_slice() {
                [] => String::new(),
                names => format!("; its name must be one of {}", names.join(", ")),
            };
            steps.add(
                "clients",
                format!("{demand} under {}", trust(&asked.ca)),
                format!("the client's certificate{names}"),
            );
        }
    }
    match snapshot.tls.server(settings) {
        Ok(_) => Ok(()),
        Err(error) => {
            steps.add("credentials", "unusable", error.to_string());
            Err(error.to_string())
        }
    }
}

/// ISTIO_MUTUAL, or auto mTLS where the endpoints take it.
fn in_the_mesh(
    snapshot: &Snapshot,
    workload: &Workload,
    cluster: &Cluster,
    mesh: &MeshTls,
    steps: &mut Steps,
) -> Result<Protection, String> {
    let peers: Vec<Option<&Peer>> = match &cluster.discovery {
        Discovery::Static(endpoints) => endpoints.iter().map(|endpoint| endpoint.peer.as_deref()).collect(),
        _ => Vec::new(),
    };
    let captured = match &cluster.discovery {
        Discovery::Static(endpoints) => endpoints.iter().filter(|endpoint| endpoint.mtls_peer().is_some()).count(),
        _ => 0,
    };
    if !mesh.required && captured == 0 && !peers.is_empty() {
        steps.add("tls", "-", "no endpoint takes mesh mTLS, and no rule asks for it");
        return Ok(Protection::None);
    }
    let why = match (mesh.required, captured == peers.len()) {
        (true, _) => "ISTIO_MUTUAL, the rule's own",
        (false, true) => "auto mTLS: the endpoints are enrolled pods that take it",
        (false, false) => "auto mTLS, to enrolled pods that take it; the others get plain text",
    };
    steps.add("tls", "mesh mTLS", why);
    steps.add("presents", &*workload.identity, "the pod's own identity");
    steps.add("sni", &mesh.sni, "");
    let known: BTreeSet<&str> = peers.iter().flatten().map(|peer| &*peer.identity).collect();
    match (mesh.subject_alt_names.as_slice(), known.is_empty()) {
        ([], true) => steps.add("verifies", "any identity of the mesh", "the endpoint's own is not known"),
        ([], false) => {
            let list: Vec<_> = known.into_iter().collect();
            steps.add("verifies", list.join(", "), "the identity of the endpoint dialled");
        }
        (names, _) => steps.add("verifies", names.join(", "), "subjectAltNames: one of these must be its identity"),
    }
    let peer = peers.iter().flatten().next().copied();
    match snapshot.tls.mesh_client(&workload.identity, mesh, peer) {
        Ok(_) => Ok(Protection::Tls("mesh mTLS")),
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
        TrustSource::ConfigMap { namespace, name } => format!("configmap://{namespace}/{name}"),
        TrustSource::File(material) => format!("file-root:{}", material.path),
    }
}

fn identity_name(identity: &IdentitySource) -> String {
    match identity {
        IdentitySource::Secret { name, namespace } => format!("kubernetes://{name} of namespace {namespace}"),
        IdentitySource::Files { certificate, key } => format!("file-cert:{}~{}", certificate.path, key.path),
    }
}

/// How the way ends where nothing stands in it.
pub fn verdict(target: &Target, cluster: &Cluster, protection: &Protection) -> String {
    let wraps = target.kind == Kind::Https && matches!(cluster.protocol, Protocol::Https | Protocol::Tls);
    match protection {
        Protection::Tls(mode) if wraps => {
            format!("Sent inside a second TLS connection ({mode}): the rule wraps the application's own TLS.")
        }
        Protection::Tls(mode) => format!("Sent as {mode} to {}.", cluster.host),
        Protection::None if target.kind == Kind::Https => format!("Passed through untouched to {}.", cluster.host),
        Protection::None => format!("Sent in plain text to {}: no rule originates TLS for it.", cluster.host),
    }
}
