//! The Gateway API in Istio's own terms: each listener becomes a Gateway, the HTTPRoutes of a listener or a service become
//! VirtualServices, and every Gateway has a Service (Istio `pilot/pkg/config/kube/gateway`). The rest of the compiler
//! knows the converted objects only; what is said about them is said about the fields that were written.

mod attach;
mod backend_tls;
mod backends;
mod credentials;
mod gateways;
mod listeners;
mod namespaces;
mod routes;
mod rules;
mod status;
mod tls;
mod tls_routes;

use std::{borrow::Cow, sync::Arc};

use super::{findings::Findings, table::ObjectStatus};
use crate::api::{Object, ObjectId, ObjectMeta, Objects, Origin, Written, core::Service};

/// `controllerName` of egret's own GatewayClasses.
pub const CONTROLLER: &str = "egret.dev/gateway-controller";
/// That of Istio's, whose Gateways egret serves as well.
pub const ISTIO_CONTROLLER: &str = "istio.io/gateway-controller";
/// The classes that there are without a GatewayClass that says so, and whose they are.
pub const CLASSES: [(&str, &str); 2] = [("istio", ISTIO_CONTROLLER), ("egret", CONTROLLER)];
/// Pods with this label serve the Gateway of that name.
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// … and of this class.
pub const GATEWAY_CLASS_NAME: &str = "gateway.networking.k8s.io/gateway-class-name";
/// Annotation: the name of the Gateway's Service, instead of `<gateway>-<class>`.
const NAME_OVERRIDE: &str = "gateway.istio.io/name-override";

/// What a controller has to do for a Gateway.
#[derive(Debug)]
pub struct Implied {
    pub gateway: ObjectId,
    pub class: String,
    /// The `controllerName` of its class.
    pub controller: &'static str,
    /// The Service that it wants, whose name is that of the Deployment too. None: its author runs the pods.
    pub service: Option<Arc<Object<Service>>>,
    /// Names of the Services, in the Gateway's namespace, whose addresses are the Gateway's.
    pub addressed_by: Vec<String>,
}

/// What a controller reports, and what it runs.
#[derive(Debug, Default)]
pub struct Report {
    pub statuses: Vec<ObjectStatus>,
    pub gateways: Vec<Implied>,
}

/// What the controller of a cluster has to say and to do about these objects.
#[must_use]
pub fn report(objects: &Objects) -> Report {
    convert(objects, &mut Findings::default()).1
}

/// The `controllerName` of those that serve Gateways of this class here.
///
/// # Errors
/// Why they are left alone.
pub fn controller(objects: &Objects, class: &str) -> Result<&'static str, String> {
    let given = objects.gateway_classes.values().find(|object| object.meta.name == class);
    let implied = CLASSES.iter().find(|(name, _)| *name == class).map(|(_, controller)| *controller);
    let named = given.map(|object| object.spec.controller_name.as_str()).or(implied);
    let ours = objects.controllers.unwrap_or(&[ISTIO_CONTROLLER, CONTROLLER]);
    match (ours.iter().find(|own| Some(**own) == named), named) {
        (Some(own), _) => Ok(own),
        (None, Some(other)) => Err(format!("class {class} is served by {other}")),
        (None, None) => {
            let known: Vec<_> = CLASSES.iter().map(|(name, _)| *name).collect();
            Err(format!("class {class} is not one that egret serves ({})", known.join(", ")))
        }
    }
}

/// All objects with what Gateways and HTTPRoutes come to among them, and the conditions that a controller would report.
/// Nothing is copied where there are none.
pub(super) fn convert<'a>(objects: &'a Objects, findings: &mut Findings) -> (Cow<'a, Objects>, Report) {
    if objects.kube_gateways.is_empty()
        && objects.http_routes.is_empty()
        && objects.tls_routes.is_empty()
        && objects.backend_tls_policies.is_empty()
    {
        return (Cow::Borrowed(objects), Report::default());
    }
    let mut all = objects.clone();
    let (mut gateways, implied) = gateways::convert(objects, findings);
    for service in implied.iter().filter_map(|gateway| gateway.service.clone()) {
        // Where somebody made it, that one counts.
        if !all.services.contains(&service.meta.namespace, &service.meta.name) {
            all.services.insert(service);
        }
    }
    let (virtual_services, of_routes) = routes::convert(&all, &mut gateways, findings);
    let (of_tls, of_tls_routes) = tls_routes::convert(&all, &mut gateways, findings);
    all.virtual_services.extend(virtual_services.into_iter().chain(of_tls));
    all.gateways.extend(gateways.made());
    let of_routes: Vec<_> = of_routes.into_iter().chain(of_tls_routes).collect();
    let of_policies = backend_tls::convert(&mut all, &of_routes, findings);
    let statuses = gateways.statuses().into_iter().chain(of_routes).chain(of_policies).collect();
    (Cow::Owned(all), Report { statuses, gateways: implied })
}

/// An object made from the parts of others; `fields` are pairs of the path in the made object and that in the written one.
fn made<S, T>(
    from: &Object<T>,
    meta: ObjectMeta,
    spec: S,
    fields: impl IntoIterator<Item = (String, Written)>,
) -> Arc<Object<S>> {
    let origin = Origin { made_from: Arc::new(fields.into_iter().collect()), ..from.origin.clone() };
    Arc::new(Object { id: from.id.clone(), meta, spec, origin })
}

/// A field of `object`, as one that another is made from.
fn written<T>(object: &Object<T>, field: impl Into<String>) -> Written {
    Written { object: object.id.clone(), origin: object.origin.clone(), field: field.into() }
}

fn key(namespace: &str, name: &str) -> (String, String) {
    (namespace.to_owned(), name.to_owned())
}
