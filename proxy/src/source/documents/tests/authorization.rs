//! AuthorizationPolicies as their authors write them.

use super::*;
use crate::api::security::{AuthorizationPolicy, PolicyAction};

fn policy(annotations: &str, spec: &str) -> (Option<AuthorizationPolicy>, Vec<String>) {
    let text = format!(
        "apiVersion: security.istio.io/v1beta1\nkind: AuthorizationPolicy\nmetadata: {{name: p, annotations: {annotations}}}\n{spec}"
    );
    let parsed = parse(&text);
    let found = parsed.objects.iter().find_map(|object| match object {
        AnyObject::AuthorizationPolicy(object) => Some(object.spec.clone()),
        _ => None,
    });
    (found, said(&parsed))
}

const EVERYTHING: &str = r#"spec:
  selector: {matchLabels: {app: web}}
  action: DENY
  rules:
  - from:
    - source:
        principals: [cluster.local/ns/a/sa/b]
        not_principals: ["*"]
        requestPrincipals: ["*"]
        notRequestPrincipals: [x/y]
        namespaces: [a]
        notNamespaces: [b]
        ipBlocks: [10.0.0.0/8, "::1"]
        notIpBlocks: [10.0.0.1]
        remoteIpBlocks: [1.2.3.4]
        notRemoteIpBlocks: [1.2.3.5]
    - source: {serviceAccounts: [sleep, a/b], notServiceAccounts: [c]}
    to:
    - operation:
        hosts: [a.com]
        notHosts: [b.com]
        ports: ["80", 81]
        notPorts: ["82"]
        methods: [GET]
        notMethods: [PUT]
        paths: ["/a/{*}/b/{**}"]
        notPaths: ["/c*"]
    when:
    - {key: "request.headers[x]", values: [a]}
    - {key: destination.port, not_values: ["0x50", 81]}
  - {}
"#;

#[test]
fn a_policy_in_full() {
    let (spec, said) = policy("{istio.io/dry-run: 'true'}", EVERYTHING);
    assert_eq!(said, Vec::<String>::new());
    let spec = spec.unwrap();
    assert!(spec.dry_run);
    assert_eq!((&spec.action, spec.selector["app"].as_str()), (&PolicyAction::Deny, "web"));
    let [rule, any] = spec.rules.as_slice() else { panic!("{:?}", spec.rules) };
    assert_eq!(*any, Default::default());
    let [source, accounts] = rule.from.as_slice() else { panic!("{:?}", rule.from) };
    assert_eq!(source.not_principals, ["*"]);
    assert_eq!(source.ip_blocks, ["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()]);
    assert_eq!(source.not_remote_ip_blocks, ["1.2.3.5/32".parse().unwrap()]);
    assert_eq!((accounts.service_accounts.len(), accounts.not_service_accounts.len()), (2, 1));
    assert_eq!((&*rule.to[0].ports, &*rule.to[0].not_ports), (&[80, 81][..], &[82][..]));
    assert_eq!(rule.to[0].paths, ["/a/{*}/b/{**}"]);
    assert_eq!(rule.when[1].not_values, ["80", "81"]);
}

#[test]
fn the_least_that_can_be_said() {
    for spec in ["", "spec:\n", "spec: {}\n", "spec: {action: ALLOW, rules: []}\n"] {
        let (found, said) = policy("{}", spec);
        assert_eq!((found, said), (Some(AuthorizationPolicy::default()), Vec::new()), "{spec}");
    }
    for (spec, kind) in [
        ("{targetRef: {kind: Gateway, group: gateway.networking.k8s.io, name: g}}", "Gateway"),
        ("{targetRefs: [{kind: Service, group: core, name: g}]}", "Service"),
        ("{targetRefs: [{kind: Service, group: '', name: g}]}", "Service"),
        ("{targetRefs: [{kind: ServiceEntry, group: networking.istio.io, name: g}]}", "ServiceEntry"),
    ] {
        let (found, said) = policy("{}", &format!("spec: {spec}\n"));
        let found = found.unwrap_or_else(|| panic!("{said:?}"));
        assert_eq!(found.targets[0].kind, kind);
    }
    let (found, _) = policy("{}", "spec: {action: CUSTOM, provider: {name: opa}, rules: [{}]}\n");
    assert_eq!(found.unwrap().action, PolicyAction::Custom { provider: "opa".into() });
}

#[test]
fn what_is_refused() {
    for (spec, field) in [
        ("{action: DENNY}", "spec.action"),
        ("{action: DENY}", "spec"),
        ("{action: CUSTOM, provider: {name: x}}", "spec"),
        ("{action: CUSTOM, rules: [{}]}", "spec"),
        ("{provider: {name: x}}", "spec.provider"),
        ("{action: CUSTOM, provider: {name: x}, rules: [{from: [{source: {namespaces: [a]}}]}]}", "spec.rules[0].from"),
        (
            "{action: CUSTOM, provider: {name: x}, rules: [{when: [{key: source.principal, values: [a]}]}]}",
            "spec.rules[0].when",
        ),
        ("{rules: [null]}", "spec.rules[0]"),
        ("{rules: [{from: []}]}", "spec.rules[0].from"),
        ("{rules: [{to: []}]}", "spec.rules[0].to"),
        ("{rules: [{from: [{}]}]}", "spec.rules[0].from[0]"),
        ("{rules: [{from: [{source: {}}]}]}", "spec.rules[0].from[0].source"),
        ("{rules: [{from: [{source: {principals: []}}]}]}", "spec.rules[0].from[0].source"),
        ("{rules: [{from: [{source: {principals: ['']}}]}]}", "spec.rules[0].from[0].source.principals[0]"),
        ("{rules: [{from: [{source: {namespaces: [a], principal: [b]}}]}]}", "spec.rules[0].from[0].source.principal"),
        ("{rules: [{from: [{source: {ipBlocks: [a]}}]}]}", "spec.rules[0].from[0].source.ipBlocks[0]"),
        ("{rules: [{from: [{source: {ipBlocks: [10.0.0.0/33]}}]}]}", "spec.rules[0].from[0].source.ipBlocks[0]"),
        (
            "{rules: [{from: [{source: {serviceAccounts: ['a/*']}}]}]}",
            "spec.rules[0].from[0].source.serviceAccounts[0]",
        ),
        ("{rules: [{from: [{source: {serviceAccounts: [a], namespaces: [b]}}]}]}", "spec.rules[0].from[0].source"),
        ("{rules: [{to: [{operation: {}}]}]}", "spec.rules[0].to[0].operation"),
        ("{rules: [{to: [{operation: {ports: [http]}}]}]}", "spec.rules[0].to[0].operation.ports[0]"),
        ("{rules: [{to: [{operation: {ports: [65536]}}]}]}", "spec.rules[0].to[0].operation.ports[0]"),
        ("{rules: [{to: [{operation: {paths: ['/*/{*}']}}]}]}", "spec.rules[0].to[0].operation.paths[0]"),
        ("{rules: [{when: [{key: source.ip}]}]}", "spec.rules[0].when[0]"),
        ("{rules: [{when: [{values: [a]}]}]}", "spec.rules[0].when[0]"),
        ("{rules: [{when: [{key: source.ip, values: [a]}]}]}", "spec.rules[0].when[0].values[0]"),
        ("{rules: [{when: [{key: destination.port, notValues: [a]}]}]}", "spec.rules[0].when[0].notValues[0]"),
        ("{rules: [{when: [{key: source.name, values: [a]}]}]}", "spec.rules[0].when[0].key"),
        ("{rules: [{when: [{key: 'request.headers[]', values: [a]}]}]}", "spec.rules[0].when[0].key"),
        ("{rules: [{when: [{key: destination.labels, values: [a]}]}]}", "spec.rules[0].when[0].key"),
        ("{selector: {matchLabels: {a: 'b*'}}}", "spec.selector.matchLabels.a"),
        ("{selector: {matchLabel: {a: b}}}", "spec.selector.matchLabel"),
        ("{selector: {matchLabels: {a: b}}, targetRefs: [{kind: Service, group: '', name: x}]}", "spec"),
        ("{targetRefs: [{kind: Pod, group: '', name: x}]}", "spec.targetRefs[0]"),
        ("{targetRefs: [{kind: Service, group: '', name: x, namespace: y}]}", "spec.targetRefs[0].namespace"),
        ("{targetRefs: [{kind: Service, group: ''}]}", "spec.targetRefs[0]"),
    ] {
        let (found, said) = policy("{}", &format!("spec: {spec}\n"));
        assert!(found.is_none(), "{spec}");
        let wanted = format!(": error: AuthorizationPolicy default/p: {field}: ");
        assert!(said.iter().any(|line| line.contains(&wanted)), "{spec}: {said:#?}");
    }
}

#[test]
fn a_deny_by_requests_alone_closes_tcp() {
    let warns = |rule: &str| {
        let (found, said) = policy("{}", &format!("spec: {{action: DENY, rules: [{rule}]}}\n"));
        assert!(found.is_some(), "{said:?}");
        said.iter().any(|line| line.contains("connections that are not HTTP"))
    };
    assert!(warns("{to: [{operation: {methods: [GET]}}]}"));
    assert!(warns("{from: [{source: {requestPrincipals: ['*']}}]}"));
    assert!(!warns("{to: [{operation: {methods: [GET], ports: ['80']}}]}"));
    assert!(!warns("{from: [{source: {namespaces: [a]}}]}"));
    assert!(!warns("{}"));
}

#[test]
fn a_dry_run_is_a_truth_as_go_has_it() {
    for (value, dry) in [("true", true), ("1", true), ("false", false), ("yes", false)] {
        let (found, said) = policy(&format!("{{istio.io/dry-run: '{value}'}}"), "");
        assert_eq!(found.unwrap().dry_run, dry, "{value}");
        assert_eq!(!said.is_empty(), value == "yes", "{said:?}");
    }
}
