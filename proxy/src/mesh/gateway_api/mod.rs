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
use crate::api::{Object, ObjectMeta, Objects, Origin, Written};

/// The classes that egret serves with no GatewayClass that says so.
const CLASSES: [&str; 2] = ["istio", "egret"];
/// `controllerName`s of GatewayClasses that are egret's to serve.
const CONTROLLERS: [&str; 2] = ["istio.io/gateway-controller", "egret.dev/gateway-controller"];
/// Pods with this label serve the Gateway of that name.
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// Annotation: the name of the Gateway's Service, instead of `<gateway>-<class>`.
const NAME_OVERRIDE: &str = "gateway.istio.io/name-override";

/// All objects with what Gateways and HTTPRoutes come to among them, and the conditions that a controller would report.
/// Nothing is copied where there are none.
pub fn convert<'a>(objects: &'a Objects, findings: &mut Findings) -> (Cow<'a, Objects>, Vec<ObjectStatus>) {
    if objects.kube_gateways.is_empty()
        && objects.http_routes.is_empty()
        && objects.tls_routes.is_empty()
        && objects.backend_tls_policies.is_empty()
    {
        return (Cow::Borrowed(objects), Vec::new());
    }
    let mut all = objects.clone();
    let (mut gateways, services) = gateways::convert(objects, findings);
    for service in services {
        all.services.insert(key(&service.meta.namespace, &service.meta.name), service);
    }
    let (virtual_services, of_routes) = routes::convert(&all, &mut gateways, findings);
    let (of_tls, of_tls_routes) = tls_routes::convert(&all, &mut gateways, findings);
    for object in virtual_services.into_iter().chain(of_tls) {
        all.virtual_services.insert(key(&object.meta.namespace, &object.meta.name), object);
    }
    for object in gateways.made() {
        all.gateways.insert(key(&object.meta.namespace, &object.meta.name), object);
    }
    let of_policies = backend_tls::convert(&mut all, findings);
    let statuses = gateways.statuses().into_iter().chain(of_routes).chain(of_tls_routes).chain(of_policies).collect();
    (Cow::Owned(all), statuses)
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
