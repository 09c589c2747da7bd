//! The rows of `proxy-config`, in istioctl's words, from the table in force.

use std::{
    collections::{BTreeSet, HashSet},
    net::SocketAddr,
    sync::Arc,
    time::SystemTime,
};

use futures_util::{StreamExt as _, stream};

use super::{
    AdminState, inbound,
    rows::{ClusterRow, EndpointRow, SecretRow},
};
use crate::{
    engine::Snapshot,
    limits::ADMIN_LOOKUPS,
    mesh::{
        Application, Cluster, Discovery, EndpointAddress, OutboundPolicy, ServerTlsSettings, TlsContextSettings,
        UpstreamTls, Workload,
    },
    tls::{self, inspect::CertificateSummary},
};

/// The cluster for what no service matches.
pub fn unmatched(policy: OutboundPolicy) -> &'static str {
    match policy {
        OutboundPolicy::AllowAny => "PassthroughCluster",
        OutboundPolicy::RegistryOnly => "BlackHoleCluster",
    }
}

/// Every cluster that the pod's connections may go to.
fn all_clusters(workload: &Workload) -> impl Iterator<Item = &Arc<Cluster>> {
    let passed_on = workload.gateway.iter().flat_map(|gateway| gateway.by_mesh_name());
    workload.outbound.all_clusters().chain(passed_on)
}

pub fn clusters(workload: &Workload) -> Vec<ClusterRow> {
    let mut rows: Vec<_> = all_clusters(workload).map(|cluster| cluster_row(cluster)).collect();
    rows.extend(workload.inbound.iter().flat_map(|table| inbound::clusters(table)));
    let own = |name: &str, kind: &str| ClusterRow {
        name: name.to_owned(),
        service: name.to_owned(),
        port: None,
        subset: String::new(),
        direction: String::new(),
        kind: kind.to_owned(),
        destination_rule: String::new(),
    };
    rows.push(own("BlackHoleCluster", "STATIC"));
    rows.push(own("PassthroughCluster", "ORIGINAL_DST"));
    rows.sort_by(|a, b| (&a.service, a.port, &a.subset, &a.name).cmp(&(&b.service, b.port, &b.subset, &b.name)));
    rows
}

fn cluster_row(cluster: &Cluster) -> ClusterRow {
    ClusterRow {
        name: cluster.name.clone(),
        service: cluster.host.to_string(),
        port: Some(cluster.port),
        subset: cluster.subset.clone(),
        direction: "outbound".to_owned(),
        kind: discovery(&cluster.discovery).to_owned(),
        destination_rule: cluster
            .destination_rule
            .as_ref()
            .map_or_else(String::new, |rule| format!("{}.{}", rule.name, rule.namespace)),
    }
}

/// Envoy's name for a way of discovery.
pub fn discovery(discovery: &Discovery) -> &'static str {
    match discovery {
        Discovery::Static(_) => "EDS",
        Discovery::Dns { one_at_a_time: false, .. } => "STRICT_DNS",
        Discovery::Dns { one_at_a_time: true, .. } => "LOGICAL_DNS",
        Discovery::OriginalDestination { .. } => "ORIGINAL_DST",
        Discovery::Dynamic { .. } => "DYNAMIC_DNS",
        Discovery::Application(Application::Dialled) => "ORIGINAL_DST",
        Discovery::Application(_) => "STATIC",
    }
}

/// The addresses that a cluster has for this pod now, and what could not be resolved.
pub async fn addresses(state: &dyn AdminState, workload: &Workload, cluster: &Cluster) -> (Vec<String>, Vec<String>) {
    let (mut found, mut failed) = (Vec::new(), Vec::new());
    match &cluster.discovery {
        Discovery::Static(endpoints) => found.extend(endpoints.iter().map(|endpoint| match &endpoint.address {
            EndpointAddress::Ip(address) => address.to_string(),
            EndpointAddress::Unix(path) => format!("unix://{}", path.display()),
        })),
        Discovery::Dns { targets, .. } => {
            for target in targets {
                if let Ok(address) = target.name.parse() {
                    found.push(SocketAddr::new(address, target.port).to_string());
                    continue;
                }
                match state.resolve(&workload.id, &target.name).await {
                    Ok(addresses) => {
                        found.extend(addresses.into_iter().map(|ip| SocketAddr::new(ip, target.port).to_string()));
                    }
                    Err(error) => failed.push(error),
                }
            }
        }
        Discovery::OriginalDestination { .. } | Discovery::Dynamic { .. } | Discovery::Application(_) => {}
    }
    (found, failed)
}

pub async fn endpoints(state: &dyn AdminState, workload: &Workload) -> Vec<EndpointRow> {
    // Side by side: one name that does not resolve would else hold up the rest for seconds.
    let clusters: Vec<_> = all_clusters(workload).cloned().collect();
    let lookups = stream::iter(clusters).map(async |cluster| {
        let (found, _) = addresses(state, workload, &cluster).await;
        found.into_iter().map(|address| (cluster.name.clone(), address)).collect::<Vec<_>>()
    });
    let found: Vec<_> = lookups.buffer_unordered(ADMIN_LOOKUPS).collect().await;
    let rows: BTreeSet<_> = found.into_iter().flatten().collect();
    rows.into_iter()
        .map(|(cluster, endpoint)| {
            let ejected = parsed(&endpoint).is_some_and(|at| state.is_ejected(&workload.id, &cluster, &at));
            // STATUS is what discovery says of it, as in istioctl: ejection is the pod's own finding.
            EndpointRow {
                endpoint,
                status: "HEALTHY".to_owned(),
                outlier_check: if ejected { "FAILED" } else { "OK" }.to_owned(),
                cluster,
            }
        })
        .collect()
}

/// The address that [`addresses`] has as text.
fn parsed(endpoint: &str) -> Option<EndpointAddress> {
    match endpoint.strip_prefix("unix://") {
        Some(path) => Some(EndpointAddress::Unix(path.into())),
        None => endpoint.parse().ok().map(EndpointAddress::Ip),
    }
}

/// Certificates and CAs, of one pod or of all.
pub fn secrets(snapshot: &Snapshot, workload: Option<&Workload>) -> Vec<SecretRow> {
    let used: Option<HashSet<&TlsContextSettings>> = workload.map(|workload| {
        let settings = workload.outbound.all_clusters().filter_map(|cluster| match &cluster.tls {
            UpstreamTls::Originate(settings) => Some(&*settings.context),
            UpstreamTls::Plain | UpstreamTls::Mesh(_) | UpstreamTls::Refuse(_) => None,
        });
        settings.collect()
    });
    let served: HashSet<&ServerTlsSettings> =
        workload.into_iter().flat_map(Workload::tls_servers).map(|(_, settings)| &**settings).collect();
    let now = SystemTime::now();
    let rows = snapshot.tls.secrets().iter().filter(|row| match &used {
        Some(used) => {
            row.settings.iter().any(|settings| used.contains(&**settings))
                || row.servers.iter().any(|settings| served.contains(&**settings))
        }
        None => true,
    });
    let mesh = snapshot.tls.mesh_secrets(workload.map(|workload| &*workload.identity));
    rows.chain(&mesh).flat_map(|row| secret_rows(row, now)).collect()
}

/// One for a chain, about the certificate that it ends with, or for what cannot be read; one for each CA of a bundle.
fn secret_rows(row: &tls::SecretRow, now: SystemTime) -> Vec<SecretRow> {
    let of = |certificate: Option<&CertificateSummary>| SecretRow {
        name: row.name.clone(),
        namespace: row.namespace.clone(),
        kind: match certificate {
            Some(one) if row.bundle => if one.is_ca { "CA" } else { "Cert Chain" }.to_owned(),
            _ => row.kind.to_owned(),
        },
        status: row.status.clone(),
        valid: row.certificate_is_valid_at(certificate, now),
        serial: certificate.map_or_else(String::new, |one| one.serial.clone()),
        not_after: time(certificate.map(|one| one.not_after)),
        not_before: time(certificate.map(|one| one.not_before)),
        subject: certificate.map_or_else(String::new, |one| one.subject.clone()),
        issuer: certificate.map_or_else(String::new, |one| one.issuer.clone()),
        subject_alt_names: certificate.map_or_else(Vec::new, |one| one.subject_alt_names.clone()),
    };
    match row.chain.as_slice() {
        all @ [_, ..] if row.bundle => all.iter().map(|one| of(Some(one))).collect(),
        chain => vec![of(chain.first())],
    }
}

fn time(seconds: Option<i64>) -> String {
    seconds
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
        .map_or_else(String::new, |time| time.to_string())
}
