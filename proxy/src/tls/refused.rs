//! DestinationRules whose certificates, keys or CAs are there and cannot be used.

use std::{collections::HashSet, sync::Arc};

use super::{Contexts, TlsError, TlsSettings};
use crate::{
    api::{Diagnostic, ObjectId, Severity},
    mesh::{IdentitySource, Material, Mesh, Place, TrustSource, UpstreamTls},
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

/// Each rule with each reason. A rule for gateways, whose volumes have its files, is none of them where only the host
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
    found
}

/// The DestinationRules that lead to these settings.
fn rules(mesh: &Mesh, settings: &TlsSettings) -> HashSet<ObjectId> {
    let clusters = mesh.clusters().filter(|cluster| match &cluster.tls {
        UpstreamTls::Originate(used) => **used == *settings,
        UpstreamTls::Plain | UpstreamTls::Mesh(_) | UpstreamTls::Refuse(_) => false,
    });
    clusters.filter_map(|cluster| cluster.destination_rule.clone()).collect()
}

fn on_host(settings: &TlsSettings) -> bool {
    let host = |material: &Material| material.place == Place::Host;
    let identity = match &settings.identity {
        Some(IdentitySource::Files { certificate, key }) => host(certificate) || host(key),
        Some(IdentitySource::Secret { .. }) | None => false,
    };
    let trust = match &settings.trust {
        TrustSource::File(material) => host(material),
        TrustSource::System => true,
        TrustSource::Secret { .. } | TrustSource::ConfigMap { .. } => false,
    };
    identity || trust || settings.crl.as_ref().is_some_and(host)
}
