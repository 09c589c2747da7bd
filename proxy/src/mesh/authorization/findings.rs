//! What `egret check` says of policies.

use super::{
    super::{
        findings::Findings,
        table::{OutboundPolicy, Settings},
    },
    rules::header_of,
};
use crate::api::{
    Object, Objects, Severity, gateway_api,
    security::{AuthorizationPolicy, PolicyAction, Source},
};

pub fn tell(object: &Object<AuthorizationPolicy>, objects: &Objects, settings: &Settings, findings: &mut Findings) {
    let spec = &object.spec;
    match &spec.action {
        PolicyAction::Allow | PolicyAction::Deny => {}
        PolicyAction::Audit => {
            let message = "AUDIT decides nothing, and nothing is audited";
            findings.add(object, Severity::Info, "spec.action", message);
        }
        PolicyAction::Custom { provider } => {
            let message =
                format!("{provider} is not asked, as egret asks no authorizer: what the rules match is denied");
            findings.error(object, "spec.action", message);
        }
    }
    if spec.dry_run {
        let message = "dry run: the policy is not enforced; what it would do is in the log, at level debug";
        findings.warn(object, "metadata.annotations[istio.io/dry-run]", message);
    }
    targets(object, objects, settings, findings);
    for (at, rule) in spec.rules.iter().enumerate() {
        for (from, source) in rule.from.iter().enumerate() {
            let field = |name: &str| format!("spec.rules[{at}].from[{from}].source.{name}");
            for (name, list) in asking_for_tokens(source) {
                if !list.is_empty() {
                    findings.error(object, &field(name), NO_TOKENS);
                }
            }
            for (name, list) in
                [("remoteIpBlocks", &source.remote_ip_blocks), ("notRemoteIpBlocks", &source.not_remote_ip_blocks)]
            {
                if !list.is_empty() {
                    findings.add(object, Severity::Info, &field(name), NO_PROXIES);
                }
            }
        }
        for (when, condition) in rule.when.iter().enumerate() {
            let field = format!("spec.rules[{at}].when[{when}].key");
            let header = header_of(&condition.key);
            let of_heads =
                header.is_some_and(|name| name.starts_with(':') && name != ":authority" && name != ":method");
            if condition.key.starts_with("experimental.") || of_heads {
                let effect = match spec.action {
                    PolicyAction::Allow => "the rule never matches",
                    _ => "the rule matches as if this were not there",
                };
                findings.error(object, &field, format!("{} cannot be found out here: {effect}", condition.key));
            }
            if condition.key.starts_with("request.auth.") {
                findings.error(object, &field, NO_TOKENS);
            }
            if condition.key == "remote.ip" {
                findings.add(object, Severity::Info, &field, NO_PROXIES);
            }
        }
    }
}

const NO_TOKENS: &str = "no token is looked at (RequestAuthentication is not honoured): no request has this";
const NO_PROXIES: &str = "no proxy in front is trusted to tell addresses: this is the other end of the connection";

fn asking_for_tokens(source: &Source) -> [(&'static str, &Vec<String>); 2] {
    [("requestPrincipals", &source.request_principals), ("notRequestPrincipals", &source.not_request_principals)]
}

/// A policy about what is not there protects nothing.
fn targets(object: &Object<AuthorizationPolicy>, objects: &Objects, settings: &Settings, findings: &mut Findings) {
    for (at, target) in object.spec.targets.iter().enumerate() {
        let namespace = &object.meta.namespace;
        let there = match target.kind.as_str() {
            "Service" => objects.services.contains(namespace, &target.name),
            "ServiceEntry" => objects.service_entries.contains(namespace, &target.name),
            "Gateway" => objects.kube_gateways.contains(namespace, &target.name),
            // Those of Istio need not be written down.
            _ => objects.kube_gateways.values().any(|gateway| gateway.spec.class == target.name),
        };
        let field = format!("spec.targetRefs[{at}]");
        let gateways = target.group == gateway_api::GROUP && target.kind == "GatewayClass";
        if gateways && *namespace != settings.root_namespace {
            let root = &settings.root_namespace;
            findings.error(
                object,
                &field,
                format!("counts in the root namespace {root} only: the policy does nothing"),
            );
        } else if !there {
            let place = if gateways { String::new() } else { format!(" in namespace {namespace}") };
            let what = if gateways { "Gateway of class" } else { &target.kind };
            let message = format!("there is no {what} {}{place}: the policy does nothing for it", target.name);
            findings.error(object, &field, message);
        }
        if there && target.kind == "ServiceEntry" && settings.outbound_policy == OutboundPolicy::AllowAny {
            let message = "outboundTrafficPolicy is ALLOW_ANY: a pod that dials the service's address under no name of it, or on another port, is let through; REGISTRY_ONLY blocks that";
            findings.add(object, Severity::Info, &field, message);
        }
    }
}
