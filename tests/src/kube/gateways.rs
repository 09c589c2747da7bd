//! Objects of the Gateway API in tests, and what a controller says of them.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{ApiServer, crds};
use crate::process::until;

/// As [`super::Client::get`] names kinds.
pub const GATEWAY: &str = "gateway.networking.k8s.io/v1/Gateway";
pub const CLASS: &str = "gateway.networking.k8s.io/v1/GatewayClass";
pub const HTTP_ROUTE: &str = "gateway.networking.k8s.io/v1/HTTPRoute";
pub const TLS_ROUTE: &str = "gateway.networking.k8s.io/v1/TLSRoute";
pub const POLICY: &str = "gateway.networking.k8s.io/v1/BackendTLSPolicy";
pub const DEPLOYMENT: &str = "apps/v1/Deployment";
/// egret's own `controllerName`.
pub const OURS: &str = "egret.dev/gateway-controller";
/// How long the controller has, and whatever else it waits for.
pub const LIMIT: Duration = Duration::from_secs(20);

/// A cluster with all definitions and the namespaces `shop` and `other`.
pub fn cluster() -> Result<ApiServer> {
    let server = ApiServer::start()?;
    server.install_crds(&crds::all())?;
    server.apply_yaml(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: other}\n",
    )?;
    Ok(server)
}

/// An object of the Gateway API in `shop`.
#[must_use]
pub fn object(kind: &str, name: &str, spec: Value) -> Value {
    let (api_version, kind) = kind.rsplit_once('/').unwrap_or(("v1", kind));
    json!({"apiVersion": api_version, "kind": kind, "metadata": {"namespace": "shop", "name": name}, "spec": spec})
}

/// A Gateway of class egret.
#[must_use]
pub fn gateway(name: &str, listeners: Value) -> Value {
    object(GATEWAY, name, json!({"gatewayClassName": "egret", "listeners": listeners}))
}

/// One listener.
#[must_use]
pub fn http() -> Value {
    json!([{"name": "http", "port": 80, "protocol": "HTTP"}])
}

/// An HTTPRoute at a Gateway, to a Service.
#[must_use]
pub fn route(name: &str, parent: Value, backend: Value) -> Value {
    object(HTTP_ROUTE, name, json!({"parentRefs": [parent], "rules": [{"backendRefs": [backend]}]}))
}

/// A Service of `shop`, to port 8080 of the pods `app: NAME`.
#[must_use]
pub fn service(name: &str, port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": name},
        "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": port, "targetPort": 8080}]},
    })
}

/// `Type=Reason` of each condition, with a `!` where it is not true.
#[must_use]
pub fn conditions(list: &Value) -> Vec<String> {
    let shown = |one: &Value| {
        let text = |field: &str| one[field].as_str().unwrap_or_default().to_owned();
        let not = if text("status") == "True" { "" } else { "!" };
        format!("{not}{}={}", text("type"), text("reason"))
    };
    list.as_array().into_iter().flatten().map(shown).collect()
}

/// All conditions of an object by what they are about.
fn said(object: &Value) -> BTreeMap<String, Vec<String>> {
    let status = &object["status"];
    let mut all = BTreeMap::new();
    if status["conditions"].is_array() {
        all.insert(String::new(), conditions(&status["conditions"]));
    }
    for (list, name) in [("listeners", "/name"), ("parents", "/parentRef/name"), ("ancestors", "/ancestorRef/name")] {
        for entry in status[list].as_array().into_iter().flatten() {
            let name = entry.pointer(name).and_then(Value::as_str).unwrap_or_default();
            all.insert(name.to_owned(), conditions(&entry["conditions"]));
        }
    }
    all
}

/// Waits until an object of `shop` says so about one of its parts; hands it back.
pub fn await_said(server: &ApiServer, kind: &str, name: &str, about: &str, wanted: &[&str]) -> Result<Value> {
    let mut last = Value::Null;
    let namespace = if kind == CLASS { "" } else { "shop" };
    let found = until(&format!("{kind} {name} {about}: {wanted:?}"), LIMIT, || {
        last = server.get(kind, namespace, name).ok()??;
        let all = said(&last);
        let own = all.get(about)?;
        wanted.iter().all(|wanted| own.iter().any(|own| own == wanted)).then(|| last.clone())
    });
    let object = found.with_context(|| format!("it says {:#}", last["status"]))?;
    let generation = &object["metadata"]["generation"];
    let observed = format!("\"observedGeneration\":{generation}");
    ensure!(object["status"].to_string().contains(&observed), "of another generation: {:#}", object["status"]);
    Ok(object)
}

/// Waits until an object is there.
pub fn await_object(server: &ApiServer, kind: &str, namespace: &str, name: &str) -> Result<Value> {
    until(&format!("{kind} {name}"), LIMIT, || server.get(kind, namespace, name).ok()?)
}

/// Waits until it is not.
pub fn await_gone(server: &ApiServer, kind: &str, namespace: &str, name: &str) -> Result<()> {
    let gone = || matches!(server.get(kind, namespace, name), Ok(None)).then_some(());
    until(&format!("the end of {kind} {name}"), LIMIT, gone)
}

/// Nothing that the controller or an agent asked for was refused.
pub fn check_rights(server: &ApiServer) -> Result<()> {
    let refused: Vec<_> = server.requests().into_iter().filter(|seen| seen.code == 403).collect();
    ensure!(refused.is_empty(), "{refused:#?}");
    Ok(())
}
