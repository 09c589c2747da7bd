//! The objects that egret reads, by kind. The spec types grow with what is supported.

use std::{collections::BTreeSet, sync::Arc};

use parking_lot::Mutex;

use super::{
    Kind, core, discovery, gateway, gateway_api, istio,
    meta::{Diagnostic, ObjectId, ObjectMeta, Origin, Severity},
    security, sidecar, virtual_service,
};

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

/// Every object in force, by kind, each sorted by namespace and name.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    pub pods: Kind<core::Pod>,
    pub services: Kind<core::Service>,
    pub endpoint_slices: Kind<discovery::EndpointSlice>,
    pub namespaces: Kind<core::Namespace>,
    pub secrets: Kind<core::Secret>,
    pub service_entries: Kind<istio::ServiceEntry>,
    pub destination_rules: Kind<istio::DestinationRule>,
    pub virtual_services: Kind<virtual_service::VirtualService>,
    pub gateways: Kind<gateway::Gateway>,
    pub gateway_classes: Kind<gateway_api::GatewayClass>,
    /// Gateways of the Gateway API.
    pub kube_gateways: Kind<gateway_api::Gateway>,
    pub http_routes: Kind<gateway_api::HttpRoute>,
    pub reference_grants: Kind<gateway_api::ReferenceGrant>,
    pub config_maps: Kind<core::ConfigMap>,
    pub tls_routes: Kind<gateway_api::TlsRoute>,
    pub backend_tls_policies: Kind<gateway_api::BackendTlsPolicy>,
    pub peer_authentications: Kind<security::PeerAuthentication>,
    pub authorization_policies: Kind<security::AuthorizationPolicy>,
    pub sidecars: Kind<sidecar::Sidecar>,
    /// ConfigMap `istio` (key `mesh`) or IstioOperator `spec.meshConfig`; the last one read counts.
    pub mesh_configs: Kind<istio::MeshConfig>,
    /// The node of a cluster that they are compiled for: its pods are enrolled by label. None: a single host, whose pods say
    /// themselves where they are.
    pub node: Option<Arc<str>>,
    /// For the controller of a cluster, which looks at all nodes: `controllerName` of the GatewayClasses whose Gateways it
    /// speaks for. Their credentials are looked at wherever their pods are.
    pub controllers: Option<&'static [&'static str]>,
    /// Which credentials were looked for here, and in clones of this.
    pub asked: Asked,
}

/// A Secret or ConfigMap that a rule or a volume names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CredentialRef {
    pub is_secret: bool,
    pub namespace: String,
    pub name: String,
}

/// What the compiler looked for, found or not: an agent of a cluster reads these Secrets and no others.
#[derive(Clone, Debug, Default)]
pub struct Asked(Arc<Mutex<BTreeSet<CredentialRef>>>);

impl Asked {
    /// What was looked for since this was called last.
    pub fn take(&self) -> BTreeSet<CredentialRef> {
        std::mem::take(&mut self.0.lock())
    }

    fn note(&self, is_secret: bool, namespace: &str, name: &str) {
        let asked = CredentialRef { is_secret, namespace: namespace.to_owned(), name: name.to_owned() };
        self.0.lock().insert(asked);
    }
}

impl Objects {
    /// A Secret that something in force names.
    #[must_use]
    pub fn secret(&self, namespace: &str, name: &str) -> Option<&Arc<Object<core::Secret>>> {
        self.asked.note(true, namespace, name);
        self.secrets.get(namespace, name)
    }

    /// A ConfigMap that something in force names.
    #[must_use]
    pub fn config_map(&self, namespace: &str, name: &str) -> Option<&Arc<Object<core::ConfigMap>>> {
        self.asked.note(false, namespace, name);
        self.config_maps.get(namespace, name)
    }
}

/// What is the same for every kind, each by name, so that no new one is forgotten.
macro_rules! kinds {
    ($($kind:ident($spec:ty) in $field:ident,)*) => {
        /// One object of any kind that egret reads.
        #[derive(Clone, Debug)]
        pub enum AnyObject {
            $($kind(Arc<Object<$spec>>),)*
        }

        impl AnyObject {
            #[must_use]
            pub fn id(&self) -> &ObjectId {
                match self {
                    $(Self::$kind(object) => &object.id,)*
                }
            }

            #[must_use]
            pub fn origin(&self) -> &Origin {
                match self {
                    $(Self::$kind(object) => &object.origin,)*
                }
            }

            /// The very same object, not an equal one.
            #[must_use]
            pub fn is(&self, other: &Self) -> bool {
                match (self, other) {
                    $((Self::$kind(a), Self::$kind(b)) => Arc::ptr_eq(a, b),)*
                    _ => false,
                }
            }
        }

        impl Objects {
            /// How many there are, of all kinds.
            #[must_use]
            pub fn count(&self) -> usize {
                let Self { $($field),*, node: _, controllers: _, asked: _ } = self;
                0 $(+ $field.len())*
            }

            /// Every object, by kind, namespace and name.
            pub fn all(&self) -> impl Iterator<Item = AnyObject> {
                std::iter::empty()$(.chain(self.$field.values().cloned().map(AnyObject::$kind)))*
            }

            /// Adds an object, or replaces the one of the same kind, namespace and name.
            pub fn insert(&mut self, object: AnyObject) {
                match object {
                    $(AnyObject::$kind(object) => drop(self.$field.insert(object)),)*
                }
            }

            /// The object with this identity.
            #[must_use]
            pub fn find(&self, id: &ObjectId) -> Option<AnyObject> {
                $(if let Some(object) = self.$field.get(&id.namespace, &id.name).filter(|object| object.id.kind == id.kind) {
                    return Some(AnyObject::$kind(object.clone()));
                })*
                None
            }

            /// Takes away the object of the same kind, namespace and name.
            pub fn remove(&mut self, object: &AnyObject) {
                let id = object.id();
                match object {
                    $(AnyObject::$kind(_) => drop(self.$field.remove(&id.namespace, &id.name)),)*
                }
            }
        }
    };
}

kinds! {
    Pod(core::Pod) in pods,
    Service(core::Service) in services,
    EndpointSlice(discovery::EndpointSlice) in endpoint_slices,
    Namespace(core::Namespace) in namespaces,
    Secret(core::Secret) in secrets,
    ServiceEntry(istio::ServiceEntry) in service_entries,
    DestinationRule(istio::DestinationRule) in destination_rules,
    VirtualService(virtual_service::VirtualService) in virtual_services,
    Gateway(gateway::Gateway) in gateways,
    GatewayClass(gateway_api::GatewayClass) in gateway_classes,
    KubeGateway(gateway_api::Gateway) in kube_gateways,
    HttpRoute(gateway_api::HttpRoute) in http_routes,
    ReferenceGrant(gateway_api::ReferenceGrant) in reference_grants,
    ConfigMap(core::ConfigMap) in config_maps,
    TlsRoute(gateway_api::TlsRoute) in tls_routes,
    BackendTlsPolicy(gateway_api::BackendTlsPolicy) in backend_tls_policies,
    PeerAuthentication(security::PeerAuthentication) in peer_authentications,
    AuthorizationPolicy(security::AuthorizationPolicy) in authorization_policies,
    Sidecar(sidecar::Sidecar) in sidecars,
    MeshConfig(istio::MeshConfig) in mesh_configs,
}
