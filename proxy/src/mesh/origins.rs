//! Where services and what speaks of them were read.

use super::table::Location;
use crate::api::{AnyObject, ObjectId, Objects};

/// The objects that tables name: each knows its place itself.
#[derive(Clone, Debug, Default)]
pub struct Origins(Objects);

impl Origins {
    /// Of all kinds that tables and findings name.
    pub(super) fn new(objects: &Objects) -> Self {
        Self(Objects {
            service_entries: objects.service_entries.clone(),
            services: objects.services.clone(),
            destination_rules: objects.destination_rules.clone(),
            virtual_services: objects.virtual_services.clone(),
            gateways: objects.gateways.clone(),
            kube_gateways: objects.kube_gateways.clone(),
            backend_tls_policies: objects.backend_tls_policies.clone(),
            http_routes: objects.http_routes.clone(),
            sidecars: objects.sidecars.clone(),
            peer_authentications: objects.peer_authentications.clone(),
            authorization_policies: objects.authorization_policies.clone(),
            tls_routes: objects.tls_routes.clone(),
            ..Objects::default()
        })
    }

    #[must_use]
    pub fn get(&self, id: &ObjectId) -> Option<Location> {
        self.0.find(id).map(|object| location(&object))
    }

    /// By kind, namespace and name.
    pub fn iter(&self) -> impl Iterator<Item = (ObjectId, Location)> {
        self.0.all().map(|object| (object.id().clone(), location(&object)))
    }
}

fn location(object: &AnyObject) -> Location {
    let origin = object.origin();
    Location { file: origin.file.clone(), line: origin.start.get().0 }
}
