//! DestinationRules, Gateways and Sidecars whose certificates, keys or CAs are there and cannot be used.

use std::{collections::HashSet, sync::Arc};

use super::{Contexts, TlsContextSettings, TlsError};
use crate::{
    api::{Diagnostic, ObjectId, Severity},
    mesh::{IdentitySource, Material, Mesh, Place, ServerTlsSettings, TlsSettings, TrustSource, UpstreamTls},
};

pub struct Refused {
    pub rule: ObjectId,
    /// The fault may be in a file of the host, not in an object.
    pub on_host: bool,
    pub error: Arc<TlsError>,
}

impl Refused {
    /// At the rule; None where the mesh does not know it.
    #[must_use]
    pub fn diagnostic(&self, mesh: &Mesh, severity: Severity) -> Option<Diagnostic> {
        let place = mesh.origins.get(&self.rule)?;
        Some(Diagnostic {
            severity,
            object: Some(self.rule.clone()),
            file: place.file.clone(),
            line: place.line,
            column: 1,
            field: "tls".to_owned(),
            message: self.error.to_string(),
        })
    }
}

/// Each rule and server with each reason. A rule for gateways, whose volumes have its files, is none of them where only the host
/// lacks these.
#[must_use]
pub fn refused(mesh: &Mesh, contexts: &Contexts) -> Vec<Refused> {
    let usable = |settings: &TlsSettings| contexts.get(settings).is_ok();
    let for_gateways: HashSet<_> = mesh
        .gateways_originate(usable)
        .filter(|cluster| matches!(cluster.tls, UpstreamTls::Originate(_)))
        .filter_map(|cluster| cluster.destination_rule.as_ref())
        .collect();
    let mut found = Vec::new();
    for (settings, error) in contexts.failures() {
        let on_host = on_host(settings);
        let elsewhere = |rule: &ObjectId| on_host && for_gateways.contains(rule);
        for rule in rules(mesh, settings).into_iter().filter(|rule| !elsewhere(rule)) {
            found.push(Refused { rule, on_host, error: error.clone() });
        }
    }
    for (settings, error) in contexts.server_failures() {
        let on_host = server_on_host(settings);
        let rules = servers(mesh, settings).into_iter();
        found.extend(rules.map(|rule| Refused { rule, on_host, error: error.clone() }));
    }
    found
}

/// The DestinationRules that lead to these settings.
fn rules(mesh: &Mesh, settings: &TlsContextSettings) -> HashSet<ObjectId> {
    let clusters = mesh.clusters().filter(|cluster| match &cluster.tls {
        UpstreamTls::Originate(used) => *used.context == *settings,
        UpstreamTls::Plain | UpstreamTls::Mesh(_) | UpstreamTls::Refuse(_) => false,
    });
    clusters.filter_map(|cluster| cluster.destination_rule.clone()).collect()
}

/// The Gateways and Sidecars of which a server has these settings.
fn servers(mesh: &Mesh, settings: &ServerTlsSettings) -> HashSet<ObjectId> {
    let all = mesh.workloads.values().flat_map(|workload| workload.tls_servers());
    all.filter(|(_, used)| ***used == *settings).map(|(source, _)| source.clone()).collect()
}

fn on_host(settings: &TlsContextSettings) -> bool {
    let public = settings.trust == TrustSource::System;
    public || any_on_host(settings.identity.as_slice(), Some(&settings.trust), settings.crl.as_ref())
}

fn server_on_host(settings: &ServerTlsSettings) -> bool {
    let clients = settings.clients.trust();
    any_on_host(&settings.identities, clients.map(|trust| &trust.ca), clients.and_then(|trust| trust.crl.as_ref()))
}

fn any_on_host(identities: &[IdentitySource], trust: Option<&TrustSource>, crl: Option<&Material>) -> bool {
    let host = |material: &Material| material.place == Place::Host;
    let identity = |source: &IdentitySource| match source {
        IdentitySource::Files { certificate, key } => host(certificate) || host(key),
        IdentitySource::Secret { .. } => false,
    };
    let trust = trust.is_some_and(|trust| matches!(trust, TrustSource::File(material) if host(material)));
    identities.iter().any(identity) || trust || crl.is_some_and(host)
}
