//! GatewayClass and Gateway.

use std::collections::BTreeMap;

use super::{
    super::super::decode::{Field, Fields},
    SECRET, frontend, hostname, object_ref, section_name,
};
use crate::api::gateway_api::{
    Address, AllowedRoutes, CIPHER_SUITES, GROUP, Gateway, GatewayClass, LabelExpression, LabelOperator, LabelSelector,
    Listener, ListenerProtocol, ListenerTls, RoutesFrom, TERMINATE_MODE,
};

const PROTOCOLS: &[(&str, ListenerProtocol)] = &[
    ("HTTP", ListenerProtocol::Http),
    ("HTTPS", ListenerProtocol::Https),
    ("TLS", ListenerProtocol::Tls),
    ("TCP", ListenerProtocol::Tcp),
];
const TERMINATE_MODES: &[&str] = &["SIMPLE", "MUTUAL", "OPTIONAL_MUTUAL", "ISTIO_SIMPLE", "ISTIO_MUTUAL"];

/// Reads a GatewayClass.
pub fn gateway_class(root: &Fields<'_>) -> Option<GatewayClass> {
    let fields = root.require("spec")?.fields(&["controllerName"], &["description"], &["parametersRef"])?;
    Some(GatewayClass { controller_name: fields.require("controllerName")?.string()? })
}

/// Reads a Gateway.
pub fn gateway(root: &Fields<'_>) -> Option<Gateway> {
    let read = &["gatewayClassName", "listeners", "addresses", "infrastructure", "tls", "backendTLS"];
    let fields = root.require("spec")?.fields(read, &[], &["allowedListeners", "defaultScope"])?;
    frontend::backend(&fields);
    let class = fields.require("gatewayClassName").and_then(|field| field.string());
    if let Some(infrastructure) = fields.get("infrastructure") {
        // Labels and annotations for the Deployment and Service that a controller would make.
        infrastructure.fields(&[], &["labels", "annotations"], &["parametersRef"]);
    }
    let given = fields.items("listeners");
    if given.is_empty() {
        fields.field.error("`listeners` must have at least one entry");
    }
    let mut listeners: Vec<Listener> = Vec::new();
    for field in &given {
        let Some(listener) = listener(field) else { continue };
        if listeners.iter().any(|other| other.name == listener.name) {
            field.error(format!("listener \"{}\" is given twice", listener.name));
        }
        listeners.push(listener);
    }
    if let Some(frontend) = fields.get("tls").and_then(|field| frontend::frontend(&field)) {
        frontend.enter(&mut listeners);
    }
    Some(Gateway { class: class?, listeners, addresses: fields.each("addresses", address) })
}

fn address(field: &Field<'_>) -> Option<Address> {
    let fields = field.fields(&["type", "value"], &[], &[])?;
    let kind = fields.string("type").unwrap_or_else(|| "IPAddress".to_owned());
    let value = fields.require("value").and_then(|value| match kind.as_str() {
        "IPAddress" => value.ip().map(|ip| ip.to_string()),
        "Hostname" => hostname(&value, false),
        _ => value.string(),
    })?;
    Some(Address { kind, value })
}

fn listener(field: &Field<'_>) -> Option<Listener> {
    let fields = field.fields(&["name", "hostname", "port", "protocol", "tls", "allowedRoutes"], &[], &[])?;
    let name = fields.require("name").and_then(|field| section_name(&field));
    let port = fields.require("port").and_then(|field| field.port());
    let protocol = fields.require("protocol").and_then(|field| field.choice(PROTOCOLS));
    let hostname_field = fields.get("hostname").filter(|field| field.node.text() != Some(""));
    let hostname = hostname_field.as_ref().and_then(|field| hostname(field, true));
    let tls = fields.get("tls").and_then(|field| tls(&field));
    let allowed_routes = fields.get("allowedRoutes").and_then(|field| allowed_routes(&field)).unwrap_or_default();
    let (name, port, protocol) = (name?, port?, protocol?);
    match (protocol, &tls) {
        (ListenerProtocol::Https | ListenerProtocol::Tls, None) if fields.get("tls").is_none() => {
            fields.field.error("`tls` is missing: protocols HTTPS and TLS want it");
        }
        (ListenerProtocol::Http | ListenerProtocol::Tcp, Some(_)) => {
            refuse(&fields, "tls", "goes with protocols HTTPS and TLS only");
        }
        (ListenerProtocol::Https, Some(tls)) if tls.passthrough => {
            refuse(&fields, "tls", "mode Passthrough goes with protocol TLS; HTTPS is terminated here");
        }
        _ => {}
    }
    if protocol == ListenerProtocol::Tcp && hostname.is_some() {
        refuse(&fields, "hostname", "TCP connections bear no name: leave it out");
    }
    Some(Listener { name, port, protocol, hostname, tls, allowed_routes })
}

fn refuse(fields: &Fields<'_>, name: &str, message: &str) {
    if let Some(field) = fields.get(name) {
        field.error(message);
    }
}

fn tls(field: &Field<'_>) -> Option<ListenerTls> {
    let fields = field.fields(&["mode", "certificateRefs", "options", "frontendValidation"], &[], &[])?;
    let modes = &[("Terminate", false), ("Passthrough", true)];
    let passthrough = match fields.get("mode") {
        // An unknown mode must not read as another one: the error refuses the whole object.
        Some(field) => field.choice(modes)?,
        None => false,
    };
    let mut options = BTreeMap::new();
    for (key, field) in fields.get("options").map(|field| field.entries()).unwrap_or_default() {
        let Some(value) = field.string() else { continue };
        if key != TERMINATE_MODE && key != CIPHER_SUITES {
            field.warn("not honoured");
        } else if key == TERMINATE_MODE && !TERMINATE_MODES.contains(&value.as_str()) {
            field.error(format!("\"{}\" is not one of {}", value.escape_debug(), TERMINATE_MODES.join(", ")));
        }
        options.insert(key.to_owned(), value);
    }
    let mut certificates = Vec::new();
    for field in fields.items("certificateRefs") {
        let given = field.fields(&["group", "kind", "namespace", "name"], &[], &[]);
        certificates.extend(given.and_then(|given| object_ref(&given, SECRET)));
    }
    let own = options.get(TERMINATE_MODE).is_some_and(|mode| mode.starts_with("ISTIO_"));
    if let (Some(field), true) = (fields.get("certificateRefs"), own) {
        field.warn("the mesh's own certificate is served: this does nothing");
    }
    if !passthrough && !own && certificates.is_empty() {
        fields
            .field
            .error(format!("`certificateRefs` is missing: mode Terminate wants it, or option {TERMINATE_MODE}"));
    }
    let clients = fields.get("frontendValidation").and_then(|field| frontend::validation(&field));
    if passthrough {
        for name in ["certificateRefs", "frontendValidation"] {
            if let Some(field) = fields.get(name) {
                field.warn("mode Passthrough leaves TLS to the backend: this does nothing");
            }
        }
    }
    Some(ListenerTls { passthrough, options, certificates, clients })
}

fn allowed_routes(field: &Field<'_>) -> Option<AllowedRoutes> {
    let fields = field.fields(&["namespaces", "kinds"], &[], &[])?;
    let mut allowed = AllowedRoutes::default();
    if let Some(given) = fields.get("namespaces").and_then(|f| f.fields(&["from", "selector"], &[], &[])) {
        let choices = [("Same", 0), ("All", 1), ("None", 2), ("Selector", 3)];
        let from = match given.get("from") {
            Some(field) => field.choice(&choices)?,
            None => 0,
        };
        let selector = given.get("selector").and_then(|field| label_selector(&field));
        allowed.from = match (from, selector) {
            (1, _) => RoutesFrom::All,
            (2, _) => RoutesFrom::None,
            (3, Some(selector)) => RoutesFrom::Selector(selector),
            (3, None) => {
                if given.get("selector").is_none() {
                    given.field.error("`selector` is missing: `from: Selector` wants it");
                }
                RoutesFrom::None
            }
            _ => RoutesFrom::Same,
        };
        if let (Some(field), true) = (given.get("selector"), from != 3) {
            field.warn("does nothing without `from: Selector`");
        }
    }
    for field in fields.items("kinds") {
        let Some(given) = field.fields(&["group", "kind"], &[], &[]) else { continue };
        let group = given.get("group").and_then(|field| field.string()).unwrap_or_else(|| GROUP.to_owned());
        if let Some(kind) = given.require("kind").and_then(|field| field.string()) {
            allowed.kinds.push((group, kind));
        }
    }
    Some(allowed)
}

fn label_selector(field: &Field<'_>) -> Option<LabelSelector> {
    let fields = field.fields(&["matchLabels", "matchExpressions"], &[], &[])?;
    let operators = &[
        ("In", LabelOperator::In),
        ("NotIn", LabelOperator::NotIn),
        ("Exists", LabelOperator::Exists),
        ("DoesNotExist", LabelOperator::DoesNotExist),
    ];
    let mut selector = LabelSelector { labels: fields.string_map("matchLabels"), expressions: Vec::new() };
    for field in fields.items("matchExpressions") {
        let Some(given) = field.fields(&["key", "operator", "values"], &[], &[]) else { continue };
        let key = given.require("key").and_then(|field| field.string());
        let operator = given.require("operator").and_then(|field| field.choice(operators));
        let values = given.strings("values");
        let (Some(key), Some(operator)) = (key, operator) else { continue };
        let wanted = matches!(operator, LabelOperator::In | LabelOperator::NotIn);
        if wanted == values.is_empty() {
            let message = if wanted { "`values` is missing" } else { "`values` goes with operators In and NotIn only" };
            given.field.error(message);
        }
        selector.expressions.push(LabelExpression { key, operator, values });
    }
    Some(selector)
}
