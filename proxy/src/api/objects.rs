//! The objects that egret reads, by kind. The spec types grow with what is supported.

use std::{collections::BTreeMap, sync::Arc};

use super::meta::{Diagnostic, ObjectId, ObjectMeta, Origin, Severity};

/// One object of one kind.
#[derive(Clone, Debug)]
pub struct Object<S> {
    pub id: ObjectId,
    pub meta: ObjectMeta,
    pub spec: S,
    pub origin: Origin,
}

impl<S> Object<S> {
    /// A finding about `field` of this object, with its line and column: those of the object that was written, where this
    /// one was made from others.
    pub fn diagnostic(&self, severity: Severity, field: &str, message: impl Into<String>) -> Diagnostic {
        let (object, origin, field) = match self.origin.written(field) {
            Some((written, field)) => (&written.object, &written.origin, field),
            None => (&self.id, &self.origin, field.to_owned()),
        };
        let (line, column) = origin.locate(&field);
        let (object, file) = (Some(object.clone()), origin.file.clone());
        Diagnostic { severity, object, file, line, column, field, message: message.into() }
    }
}

/// Every object in force, by kind, each sorted by namespace and name. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    pub pods: Kind<super::core::Pod>,
    pub services: Kind<super::core::Service>,
    pub namespaces: Kind<super::core::Namespace>,
    pub secrets: Kind<super::core::Secret>,
    pub service_entries: Kind<super::istio::ServiceEntry>,
    pub destination_rules: Kind<super::istio::DestinationRule>,
    pub virtual_services: Kind<super::virtual_service::VirtualService>,
    pub gateways: Kind<super::gateway::Gateway>,
    pub gateway_classes: Kind<super::gateway_api::GatewayClass>,
    /// Gateways of the Gateway API.
    pub kube_gateways: Kind<super::gateway_api::Gateway>,
    pub http_routes: Kind<super::gateway_api::HttpRoute>,
    pub reference_grants: Kind<super::gateway_api::ReferenceGrant>,
    pub config_maps: Kind<super::core::ConfigMap>,
    pub tls_routes: Kind<super::gateway_api::TlsRoute>,
    pub backend_tls_policies: Kind<super::gateway_api::BackendTlsPolicy>,
    pub peer_authentications: Kind<super::security::PeerAuthentication>,
    pub authorization_policies: Kind<super::security::AuthorizationPolicy>,
    pub sidecars: Kind<super::sidecar::Sidecar>,
    /// ConfigMap `istio` (key `mesh`) or IstioOperator `spec.meshConfig`; the last one read counts.
    pub mesh_configs: Kind<super::istio::MeshConfig>,
}

pub type Kind<S> = BTreeMap<(String, String), Arc<Object<S>>>;

/// One object of any kind that egret reads.
#[derive(Clone, Debug)]
pub enum AnyObject {
    Pod(Arc<Object<super::core::Pod>>),
    Service(Arc<Object<super::core::Service>>),
    Namespace(Arc<Object<super::core::Namespace>>),
    Secret(Arc<Object<super::core::Secret>>),
    ServiceEntry(Arc<Object<super::istio::ServiceEntry>>),
    DestinationRule(Arc<Object<super::istio::DestinationRule>>),
    VirtualService(Arc<Object<super::virtual_service::VirtualService>>),
    Gateway(Arc<Object<super::gateway::Gateway>>),
    GatewayClass(Arc<Object<super::gateway_api::GatewayClass>>),
    KubeGateway(Arc<Object<super::gateway_api::Gateway>>),
    HttpRoute(Arc<Object<super::gateway_api::HttpRoute>>),
    ReferenceGrant(Arc<Object<super::gateway_api::ReferenceGrant>>),
    ConfigMap(Arc<Object<super::core::ConfigMap>>),
    TlsRoute(Arc<Object<super::gateway_api::TlsRoute>>),
    BackendTlsPolicy(Arc<Object<super::gateway_api::BackendTlsPolicy>>),
    PeerAuthentication(Arc<Object<super::security::PeerAuthentication>>),
    AuthorizationPolicy(Arc<Object<super::security::AuthorizationPolicy>>),
    Sidecar(Arc<Object<super::sidecar::Sidecar>>),
    MeshConfig(Arc<Object<super::istio::MeshConfig>>),
}

impl AnyObject {
    #[must_use]
    pub fn id(&self) -> &ObjectId {
        match self {
            Self::Pod(o) => &o.id,
            Self::Service(o) => &o.id,
            Self::Namespace(o) => &o.id,
            Self::Secret(o) => &o.id,
            Self::ServiceEntry(o) => &o.id,
            Self::DestinationRule(o) => &o.id,
            Self::VirtualService(o) => &o.id,
            Self::Gateway(o) => &o.id,
            Self::GatewayClass(o) => &o.id,
            Self::KubeGateway(o) => &o.id,
            Self::HttpRoute(o) => &o.id,
            Self::ReferenceGrant(o) => &o.id,
            Self::ConfigMap(o) => &o.id,
            Self::TlsRoute(o) => &o.id,
            Self::BackendTlsPolicy(o) => &o.id,
            Self::PeerAuthentication(o) => &o.id,
            Self::AuthorizationPolicy(o) => &o.id,
            Self::Sidecar(o) => &o.id,
            Self::MeshConfig(o) => &o.id,
        }
    }

    #[must_use]
    pub fn origin(&self) -> &Origin {
        match self {
            Self::Pod(o) => &o.origin,
            Self::Service(o) => &o.origin,
            Self::Namespace(o) => &o.origin,
            Self::Secret(o) => &o.origin,
            Self::ServiceEntry(o) => &o.origin,
            Self::DestinationRule(o) => &o.origin,
            Self::VirtualService(o) => &o.origin,
            Self::Gateway(o) => &o.origin,
            Self::GatewayClass(o) => &o.origin,
            Self::KubeGateway(o) => &o.origin,
            Self::HttpRoute(o) => &o.origin,
            Self::ReferenceGrant(o) => &o.origin,
            Self::ConfigMap(o) => &o.origin,
            Self::TlsRoute(o) => &o.origin,
            Self::BackendTlsPolicy(o) => &o.origin,
            Self::PeerAuthentication(o) => &o.origin,
            Self::AuthorizationPolicy(o) => &o.origin,
            Self::Sidecar(o) => &o.origin,
            Self::MeshConfig(o) => &o.origin,
        }
    }
}

impl Objects {
    /// How many there are, of all kinds.
    #[must_use]
    pub fn count(&self) -> usize {
        // Each by name, so that no new kind is forgotten.
        let Self {
            pods,
            services,
            namespaces,
            secrets,
            service_entries,
            destination_rules,
            virtual_services,
            gateways,
            gateway_classes,
            kube_gateways,
            http_routes,
            reference_grants,
            config_maps,
            tls_routes,
            backend_tls_policies,
            peer_authentications,
            authorization_policies,
            sidecars,
            mesh_configs,
        } = self;
        let core = pods.len() + services.len() + namespaces.len() + secrets.len();
        let istio = service_entries.len() + destination_rules.len() + virtual_services.len() + gateways.len();
        let gateway_api = gateway_classes.len() + kube_gateways.len() + http_routes.len() + reference_grants.len();
        let gateway_api = gateway_api + tls_routes.len() + backend_tls_policies.len();
        let security = peer_authentications.len() + authorization_policies.len() + sidecars.len();
        core + istio + gateway_api + security + config_maps.len() + mesh_configs.len()
    }

    /// Adds an object, or replaces the one of the same kind, namespace and name.
    pub fn insert(&mut self, object: AnyObject) {
        let key = (object.id().namespace.clone(), object.id().name.clone());
        match object {
            AnyObject::Pod(o) => drop(self.pods.insert(key, o)),
            AnyObject::Service(o) => drop(self.services.insert(key, o)),
            AnyObject::Namespace(o) => drop(self.namespaces.insert(key, o)),
            AnyObject::Secret(o) => drop(self.secrets.insert(key, o)),
            AnyObject::ServiceEntry(o) => drop(self.service_entries.insert(key, o)),
            AnyObject::DestinationRule(o) => drop(self.destination_rules.insert(key, o)),
            AnyObject::VirtualService(o) => drop(self.virtual_services.insert(key, o)),
            AnyObject::Gateway(o) => drop(self.gateways.insert(key, o)),
            AnyObject::GatewayClass(o) => drop(self.gateway_classes.insert(key, o)),
            AnyObject::KubeGateway(o) => drop(self.kube_gateways.insert(key, o)),
            AnyObject::HttpRoute(o) => drop(self.http_routes.insert(key, o)),
            AnyObject::ReferenceGrant(o) => drop(self.reference_grants.insert(key, o)),
            AnyObject::ConfigMap(o) => drop(self.config_maps.insert(key, o)),
            AnyObject::TlsRoute(o) => drop(self.tls_routes.insert(key, o)),
            AnyObject::BackendTlsPolicy(o) => drop(self.backend_tls_policies.insert(key, o)),
            AnyObject::PeerAuthentication(o) => drop(self.peer_authentications.insert(key, o)),
            AnyObject::AuthorizationPolicy(o) => drop(self.authorization_policies.insert(key, o)),
            AnyObject::Sidecar(o) => drop(self.sidecars.insert(key, o)),
            AnyObject::MeshConfig(o) => drop(self.mesh_configs.insert(key, o)),
        }
    }
}
