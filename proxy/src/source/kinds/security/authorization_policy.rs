//! security.istio.io AuthorizationPolicy, checked as Istio's own validation does. A field that is not known is an error
//! here, for a rule means more requests the less it says.

use ipnet::IpNet;

use super::labels;
use crate::{
    api::{
        ObjectMeta,
        path_template::PathTemplate,
        security::{
            AuthorizationPolicy, Condition, Operation, PolicyAction, PolicyRule, PolicyTarget, Source, network,
        },
    },
    source::{
        decode::{Field, Fields, camel},
        yaml::Value,
    },
};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    Allow,
    Deny,
    Audit,
    Custom,
}

const ACTIONS: &[(&str, Action)] =
    &[("ALLOW", Action::Allow), ("DENY", Action::Deny), ("AUDIT", Action::Audit), ("CUSTOM", Action::Custom)];
/// Group and kind of what `targetRefs` may name.
const TARGETS: &[(&str, &str)] = &[
    ("", "Service"),
    ("networking.istio.io", "ServiceEntry"),
    ("gateway.networking.k8s.io", "Gateway"),
    ("gateway.networking.k8s.io", "GatewayClass"),
];
const DRY_RUN: &str = "istio.io/dry-run";

/// Reads an AuthorizationPolicy. One without `spec` allows nothing, as `spec: {}` does.
pub fn authorization_policy(root: &Fields<'_>, meta: &ObjectMeta) -> Option<AuthorizationPolicy> {
    let dry_run = meta.annotations.get(DRY_RUN).is_some_and(|value| {
        let said = truth(value);
        if said.is_none() {
            root.field.warn(format!("annotation {DRY_RUN}: \"{}\" is neither true nor false", value.escape_debug()));
        }
        said.unwrap_or_default()
    });
    let Some(spec) = root.get("spec") else {
        return Some(AuthorizationPolicy { dry_run, ..AuthorizationPolicy::default() });
    };
    let fields = strict(&spec, &["selector", "targetRef", "targetRefs", "action", "provider", "rules"])?;
    let mut targets = fields.each("targetRefs", target);
    targets.extend(fields.get("targetRef").and_then(|f| target(&f)));
    let given = ["selector", "targetRef", "targetRefs"].iter().filter_map(|name| fields.get(name)).count();
    if given > 1 {
        fields.field.error("`selector`, `targetRef` and `targetRefs` exclude each other");
    }
    let selector = fields.get("selector").and_then(|f| strict(&f, &["matchLabels"])?.get("matchLabels"));
    let action = match fields.get("action") {
        // An unknown action must not read as ALLOW: the error refuses the whole object.
        Some(field) => field.choice(ACTIONS)?,
        None => Action::Allow,
    };
    let rules = fields.each("rules", |f| rule(f, action));
    if fields.items("rules").is_empty() && matches!(action, Action::Deny | Action::Custom) {
        fields.field.error("without `rules` this action means nothing: an empty rule `{}` means every request");
    }
    let provider = fields.get("provider").and_then(|f| strict(&f, &["name"])?.string("name"));
    if action != Action::Custom
        && let Some(field) = fields.get("provider")
    {
        field.error("goes with action CUSTOM only");
    }
    let action = match action {
        Action::Allow => PolicyAction::Allow,
        Action::Deny => PolicyAction::Deny,
        Action::Audit => PolicyAction::Audit,
        Action::Custom => {
            if provider.is_none() {
                fields.field.error("action CUSTOM wants `provider.name`");
            }
            PolicyAction::Custom { provider: provider.unwrap_or_default() }
        }
    };
    let selector = selector.map(|field| labels(&field)).unwrap_or_default();
    Some(AuthorizationPolicy { selector, targets, action, rules, dry_run })
}

/// As Go's `strconv.ParseBool` has it.
fn truth(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// A mapping all of whose fields count.
fn strict<'a>(field: &Field<'a>, read: &[&str]) -> Option<Fields<'a>> {
    let Value::Map(entries) = &field.node.value else { return field.fields(read, &[], &[]) };
    let names: Vec<String> = entries.iter().map(|entry| camel(&entry.key)).collect();
    for (entry, name) in entries.iter().zip(&names).filter(|(_, name)| !read.contains(&name.as_str())) {
        let message = "unknown field: without it the policy would mean something else";
        field.child(name, &entry.node).error(message);
    }
    let named: Vec<&str> = names.iter().map(String::as_str).collect();
    field.fields(read, &named, &[])
}

fn target(field: &Field<'_>) -> Option<PolicyTarget> {
    let fields = strict(field, &["group", "kind", "name", "namespace"])?;
    if let Some(namespace) = fields.get("namespace") {
        namespace.error("a policy is about objects of its own namespace: leave it out");
    }
    let group = fields.string("group").filter(|group| group != "core").unwrap_or_default();
    let kind = fields.require("kind")?.string()?;
    if !TARGETS.contains(&(group.as_str(), kind.as_str())) {
        let known: Vec<_> = TARGETS.iter().map(|(group, kind)| format!("{group}/{kind}")).collect();
        field.error(format!("{group}/{kind} is not one of {}", known.join(", ")));
    }
    let name = fields.require("name")?.string()?;
    if name.is_empty() {
        field.error("`name` is empty");
    }
    Some(PolicyTarget { group, kind, name })
}

fn rule(field: &Field<'_>, action: Action) -> Option<PolicyRule> {
    let fields = strict(field, &["from", "to", "when"])?;
    for name in ["from", "to"] {
        if let Some(field) = fields.get(name)
            && fields.items(name).is_empty()
        {
            field.error("must have at least one entry, or be left out");
        }
    }
    let rule = PolicyRule {
        from: fields.each("from", |f| source(&strict(f, &["source"])?.require("source")?)),
        to: fields.each("to", |f| operation(&strict(f, &["operation"])?.require("operation")?)),
        when: fields.each("when", condition),
    };
    if action == Action::Custom {
        custom(&fields, &rule);
    }
    if action == Action::Deny && denies_all_tcp(&rule) {
        let message = "on connections that are not HTTP this DENY means all of them, for what it asks of requests does not count there: name the ports";
        field.warn(message);
    }
    Some(rule)
}

/// An authorizer is asked before anybody's identity is known.
fn custom(fields: &Fields<'_>, rule: &PolicyRule) {
    let asks_who = |source: &Source| *source != by_address(source);
    if rule.from.iter().any(asks_who)
        && let Some(field) = fields.get("from")
    {
        field.error("action CUSTOM goes by addresses only");
    }
    let keys = ["source.namespace", "source.serviceAccount", "source.principal"];
    let asks_who = |key: &str| keys.contains(&key) || key.starts_with("request.auth.");
    if rule.when.iter().any(|condition| asks_who(&condition.key))
        && let Some(field) = fields.get("when")
    {
        field.error("action CUSTOM takes neither `source` nor `request.auth` keys but those of addresses");
    }
}

fn by_address(source: &Source) -> Source {
    Source {
        ip_blocks: source.ip_blocks.clone(),
        not_ip_blocks: source.not_ip_blocks.clone(),
        remote_ip_blocks: source.remote_ip_blocks.clone(),
        not_remote_ip_blocks: source.not_remote_ip_blocks.clone(),
        ..Source::default()
    }
}

/// Nothing in the rule but what only requests have.
fn denies_all_tcp(rule: &PolicyRule) -> bool {
    let by_request = |source: &Source| {
        let asked = [&source.request_principals, &source.not_request_principals];
        let others = Source { request_principals: Vec::new(), not_request_principals: Vec::new(), ..source.clone() };
        asked.iter().any(|list| !list.is_empty()) && others == Source::default()
    };
    let ports = |operation: &Operation| !operation.ports.is_empty() || !operation.not_ports.is_empty();
    let from = !rule.from.is_empty() && rule.from.iter().all(by_request);
    let to = !rule.to.is_empty() && !rule.to.iter().any(ports);
    (from && rule.to.is_empty()) || to
}

fn source(field: &Field<'_>) -> Option<Source> {
    let fields = strict(
        field,
        &[
            "principals",
            "notPrincipals",
            "requestPrincipals",
            "notRequestPrincipals",
            "namespaces",
            "notNamespaces",
            "serviceAccounts",
            "notServiceAccounts",
            "ipBlocks",
            "notIpBlocks",
            "remoteIpBlocks",
            "notRemoteIpBlocks",
        ],
    )?;
    let read = Source {
        principals: texts(&fields, "principals"),
        not_principals: texts(&fields, "notPrincipals"),
        request_principals: texts(&fields, "requestPrincipals"),
        not_request_principals: texts(&fields, "notRequestPrincipals"),
        namespaces: texts(&fields, "namespaces"),
        not_namespaces: texts(&fields, "notNamespaces"),
        service_accounts: fields.each("serviceAccounts", service_account),
        not_service_accounts: fields.each("notServiceAccounts", service_account),
        ip_blocks: fields.each("ipBlocks", block),
        not_ip_blocks: fields.each("notIpBlocks", block),
        remote_ip_blocks: fields.each("remoteIpBlocks", block),
        not_remote_ip_blocks: fields.each("notRemoteIpBlocks", block),
    };
    let wider = [&read.principals, &read.not_principals, &read.namespaces, &read.not_namespaces];
    let accounts = !read.service_accounts.is_empty() || !read.not_service_accounts.is_empty();
    if accounts && wider.iter().any(|list| !list.is_empty()) {
        field.error("`serviceAccounts` excludes principals and namespaces");
    }
    if read == Source::default() {
        field.error("says nothing: leave `from` out where everybody is meant");
    }
    Some(read)
}

fn operation(field: &Field<'_>) -> Option<Operation> {
    let names = ["hosts", "notHosts", "ports", "notPorts", "methods", "notMethods", "paths", "notPaths"];
    let fields = strict(field, &names)?;
    let read = Operation {
        hosts: texts(&fields, "hosts"),
        not_hosts: texts(&fields, "notHosts"),
        ports: fields.each("ports", port),
        not_ports: fields.each("notPorts", port),
        methods: texts(&fields, "methods"),
        not_methods: texts(&fields, "notMethods"),
        paths: fields.each("paths", path),
        not_paths: fields.each("notPaths", path),
    };
    if read == Operation::default() {
        field.error("says nothing: leave `to` out where every request is meant");
    }
    Some(read)
}

fn condition(field: &Field<'_>) -> Option<Condition> {
    let fields = strict(field, &["key", "values", "notValues"])?;
    let at = fields.require("key")?;
    let key = at.string()?;
    if ["values", "notValues"].iter().all(|name| fields.items(name).is_empty()) {
        field.error("wants `values` or `notValues`");
    }
    let bracketed = || key.find('[').is_some_and(|open| open > 0 && key.ends_with(']') && open + 2 < key.len());
    let named = ["request.headers", "request.auth.claims", "experimental.envoy.filters."];
    let read: fn(&Field<'_>) -> Option<String> = match key.as_str() {
        "source.ip" | "remote.ip" | "destination.ip" => |field| block(field).map(|block| block.to_string()),
        "destination.port" => |field| port(field).map(|port| port.to_string()),
        "source.serviceAccount" => service_account,
        "source.namespace"
        | "source.principal"
        | "connection.sni"
        | "request.auth.principal"
        | "request.auth.audiences"
        | "request.auth.presenter" => text,
        _ => {
            if !named.iter().any(|prefix| key.starts_with(prefix)) {
                at.error(format!("\"{}\" is not a key of conditions", key.escape_debug()));
            } else if !bracketed() {
                at.error(format!("\"{}\" wants a name in brackets: a[b]", key.escape_debug()));
            }
            text
        }
    };
    let (values, not_values) = (fields.each("values", read), fields.each("notValues", read));
    Some(Condition { key, values, not_values })
}

fn texts(fields: &Fields<'_>, name: &str) -> Vec<String> {
    fields.each(name, text)
}

fn text(field: &Field<'_>) -> Option<String> {
    let text = field.string()?;
    if text.is_empty() {
        field.error("is empty");
    }
    Some(text)
}

/// `name` or `namespace/name`.
fn service_account(field: &Field<'_>) -> Option<String> {
    let name = text(field)?;
    if name.contains('*') || name.split('/').count() > 2 || name.split('/').any(str::is_empty) {
        let message = "is neither NAME nor NAMESPACE/NAME; wildcards do not count here";
        field.error(format!("\"{}\" {message}", name.escape_debug()));
    }
    Some(name)
}

fn block(field: &Field<'_>) -> Option<IpNet> {
    let text = field.string()?;
    let found = network(&text);
    if found.is_none() {
        field.error(format!("\"{}\" is neither an IP address nor a CIDR block", text.escape_debug()));
    }
    found
}

fn port(field: &Field<'_>) -> Option<u16> {
    field.number(0, u32::from(u16::MAX)).and_then(|port| u16::try_from(port).ok())
}

fn path(field: &Field<'_>) -> Option<String> {
    let path = text(field)?;
    if let Some(Err(why)) = PathTemplate::parse(&path) {
        field.error(format!("\"{}\": {why}", path.escape_debug()));
    }
    Some(path)
}
