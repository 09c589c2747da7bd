//! AuthorizationPolicies: what they allow.

mod places;
mod random;

use http::HeaderMap;

use super::*;

fn policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

/// The verdict in short: `yes`, or what the log says.
fn short(verdict: Verdict) -> String {
    match verdict {
        Verdict::Allowed => "yes".to_owned(),
        Verdict::Denied(details) => {
            let inner = details.strip_prefix("rbac_access_denied_matched_policy[").and_then(|d| d.strip_suffix(']'));
            inner.expect("details as Envoy has them").to_owned()
        }
    }
}

/// A request or connection, with what most of them have.
#[derive(Clone)]
struct Asked {
    principal: Option<&'static str>,
    source: &'static str,
    destination: &'static str,
    sni: Option<&'static str>,
    /// None: TCP.
    method: Option<&'static str>,
    authority: &'static str,
    path: &'static str,
    headers: Vec<(&'static str, &'static str)>,
}

const SLEEP: Option<&str> = Some("spiffe://cluster.local/ns/default/sa/sleep");

fn get(path: &'static str) -> Asked {
    Asked {
        principal: SLEEP,
        source: "10.1.0.7",
        destination: "10.0.0.1:8080",
        sni: None,
        method: Some("GET"),
        authority: "web.foo",
        path,
        headers: Vec::new(),
    }
}

fn tcp() -> Asked {
    Asked { method: None, ..get("/") }
}

impl Asked {
    fn of(&self, policies: &Policies) -> String {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            headers.append(*name, value.parse().expect("a value"));
        }
        let request = self.method.map(|method| RequestHead {
            method,
            scheme: "http",
            authority: self.authority,
            path: self.path,
            query: None,
            headers: &headers,
        });
        short(policies.check(&Attributes {
            principal: self.principal,
            source: ip(self.source),
            remote: ip(self.source),
            destination: dst(self.destination),
            sni: self.sni,
            request: request.as_ref(),
        }))
    }
}

fn inbound(mesh: &Mesh, namespace: &str, name: &str) -> Arc<Policies> {
    let id = WorkloadId { namespace: namespace.into(), name: name.into() };
    mesh.workloads[&id].inbound.as_ref().expect("no gateway").policies.clone()
}

/// What these policies of namespace `foo` say to a pod `web` there.
fn policies(specs: &[(&str, &str)]) -> Arc<Policies> {
    let written: String = specs.iter().map(|(name, spec)| policy("foo", name, spec)).collect();
    inbound(&mesh(&(pod("foo", "web", "{app: web}") + &written)), "foo", "web")
}

/// One policy, and what it says to each.
fn says(spec: &str, cases: &[(Asked, &str)]) {
    let policies = policies(&[("p", spec)]);
    for (at, (asked, want)) in cases.iter().enumerate() {
        assert_eq!(asked.of(&policies), *want, "case {at} of {spec}");
    }
}

const DENIED: &str = "ns[foo]-policy[p]-rule[0]";

#[test]
fn examples_of_istio() {
    says("{}", &[(get("/"), "none"), (tcp(), "none")]);
    says("{rules: [{}]}", &[(get("/"), "yes"), (tcp(), "yes")]);
    says("{action: DENY, rules: [{}]}", &[(get("/"), DENIED), (tcp(), DENIED)]);
    says("{action: AUDIT, rules: [{}]}", &[(get("/"), "yes"), (tcp(), "yes")]);
    let post = |asked: Asked| Asked { method: Some("POST"), ..asked };
    let nobody = |asked: Asked| Asked { principal: None, ..asked };
    let spec = r#"
  rules:
  - from:
    - source: {principals: [cluster.local/ns/default/sa/sleep]}
    - source: {namespaces: [test]}
    to:
    - operation: {methods: [GET], paths: ['/info*']}
    - operation: {methods: [POST], paths: [/data]}
    when:
    - {key: 'request.headers[version]', values: [v1, v2]}"#;
    let v1 = |asked: Asked| Asked { headers: vec![("version", "v1")], ..asked };
    says(
        spec,
        &[
            (v1(get("/info/1")), "yes"),
            (v1(post(get("/data"))), "yes"),
            (v1(post(get("/info"))), "none"),
            (v1(get("/data")), "none"),
            (get("/info"), "none"),
            (Asked { headers: vec![("version", "v3")], ..get("/info") }, "none"),
            (v1(nobody(get("/info"))), "none"),
            (Asked { principal: Some("spiffe://x.org/ns/test/sa/any"), ..v1(get("/info")) }, "yes"),
            (Asked { principal: Some("spiffe://cluster.local/ns/tester/sa/any"), ..v1(get("/info")) }, "none"),
        ],
    );
    let spec = "{action: DENY, rules: [{from: [{source: {notNamespaces: [default, 'prod-*']}}]}]}";
    says(
        spec,
        &[
            (get("/"), "yes"),
            (Asked { principal: Some("spiffe://cluster.local/ns/prod-1/sa/a"), ..get("/") }, "yes"),
            (Asked { principal: Some("spiffe://cluster.local/ns/dev/sa/a"), ..get("/") }, DENIED),
            (nobody(get("/")), DENIED),
            (nobody(tcp()), DENIED),
        ],
    );
}

#[test]
fn sources() {
    let from = |source: &str| format!("{{rules: [{{from: [{{source: {{{source}}}}}]}}]}}");
    let as_ = |principal| Asked { principal: Some(principal), ..tcp() };
    says(
        &from("principals: ['*']"),
        &[(tcp(), "yes"), (Asked { principal: None, ..tcp() }, "none"), (as_("spiffe://x/ns/a/sa/b"), "yes")],
    );
    says(&from("principals: ['*/sa/sleep']"), &[(tcp(), "yes"), (as_("spiffe://cluster.local/ns/a/sa/b"), "none")]);
    says(&from("principals: ['cluster.local/ns/default/*']"), &[(tcp(), "yes"), (as_("spiffe://x/ns/a/sa/b"), "none")]);
    says(&from("notPrincipals: [cluster.local/ns/default/sa/sleep]"), &[(tcp(), "none"), (as_("spiffe://x/a"), "yes")]);
    says(
        &from("serviceAccounts: [default/sleep, local]"),
        &[
            (tcp(), "yes"),
            (as_("spiffe://cluster.local/ns/foo/sa/local"), "yes"),
            (as_("spiffe://cluster.local/ns/default/sa/local"), "none"),
            (as_("spiffe://cluster.local/ns/default/sa/sleepy"), "none"),
        ],
    );
    says(
        &from("ipBlocks: [10.1.0.0/24, '2001:db8::1'], notIpBlocks: [10.1.0.9]"),
        &[
            (tcp(), "yes"),
            (Asked { source: "10.1.0.9", ..tcp() }, "none"),
            (Asked { source: "10.1.1.1", ..tcp() }, "none"),
            (Asked { source: "::ffff:10.1.0.7", ..tcp() }, "yes"),
            (Asked { source: "2001:db8::1", ..tcp() }, "yes"),
        ],
    );
    says(&from("remoteIpBlocks: [10.1.0.0/24]"), &[(tcp(), "yes"), (Asked { source: "10.2.0.1", ..tcp() }, "none")]);
    // No token is looked at: nobody is who one would say.
    says(&from("requestPrincipals: ['*']"), &[(get("/"), "none")]);
    says(&from("notRequestPrincipals: ['*']"), &[(get("/"), "yes"), (tcp(), "none")]);
}

#[test]
fn operations() {
    let to = |operation: &str| format!("{{rules: [{{to: [{{operation: {{{operation}}}}}]}}]}}");
    let host = |authority| Asked { authority, ..get("/") };
    says(
        &to("hosts: [Web.foo, '*.example.com', 'a.com:8443']"),
        &[
            (host("web.FOO"), "yes"),
            (host("web.foo:8080"), "yes"),
            (host("web.foo."), "yes"),
            (host("x.example.com:80"), "yes"),
            (host("example.com"), "none"),
            (host("a.com:8443"), "yes"),
            (host("a.com"), "none"),
            (host(""), "none"),
        ],
    );
    says(&to("notHosts: [web.foo]"), &[(host("web.foo:1"), "none"), (host("b"), "yes")]);
    says(&to("ports: [8080, '80']"), &[(tcp(), "yes"), (Asked { destination: "10.0.0.1:81", ..tcp() }, "none")]);
    says(&to("notPorts: [8080]"), &[(tcp(), "none"), (Asked { destination: "10.0.0.1:81", ..tcp() }, "yes")]);
    says(&to("methods: [get]"), &[(get("/"), "none")]);
    says(&to("methods: ['*']"), &[(get("/"), "yes")]);
    says(
        &to("paths: [/a, '/b*', '*.png', '/c/{*}/d']"),
        &[
            (get("/a"), "yes"),
            (get("/a/"), "none"),
            (get("/b/c"), "yes"),
            (get("/x.png"), "yes"),
            (get("/c/x/d"), "yes"),
            (get("/c/x/y/d"), "none"),
            (get("/A"), "none"),
        ],
    );
}

#[test]
fn no_spelling_of_a_path_helps() {
    let to = |action: &str, paths: &str| format!("{{action: {action}, rules: [{{to: [{{operation: {{{paths}}}}}]}}]}}");
    let odd =
        ["/admin/../public/x", "/public/../admin", "/%61dmin", "/public/%2e%2e/admin", "/admin%00", "/x\\..\\admin"];
    for path in odd {
        assert_ne!(get(path).of(&policies(&[("p", &to("ALLOW", "notPaths: ['/admin*']"))])), "yes", "{path}");
    }
    says(
        &to("DENY", "paths: ['/admin*']"),
        &[
            (get("/public/../admin"), DENIED),
            (get("/%61dmin"), DENIED),
            (get("/admin/../public"), DENIED),
            (get("/x%00"), DENIED),
            (get("/public"), "yes"),
        ],
    );
    says(
        &to("ALLOW", "paths: ['/public/*']"),
        &[(get("/public/../admin"), "none"), (get("/public/x"), "yes"), (get("/public/x%00"), "none")],
    );
    assert!(policies(&[("p", &to("ALLOW", "paths: [/a]"))]).deals_with_paths());
    assert!(!policies(&[("p", &to("ALLOW", "hosts: [a]"))]).deals_with_paths());
}

#[test]
fn conditions() {
    let when = |condition: &str| format!("{{rules: [{{when: [{{{condition}}}]}}]}}");
    says(&when("key: source.ip, values: [10.1.0.0/16]"), &[(tcp(), "yes")]);
    says(&when("key: source.ip, notValues: [10.1.0.0/16]"), &[(tcp(), "none")]);
    says(&when("key: remote.ip, values: [10.1.0.7]"), &[(tcp(), "yes")]);
    says(&when("key: source.namespace, values: [default]"), &[(tcp(), "yes")]);
    says(&when("key: source.principal, values: [cluster.local/ns/default/sa/sleep]"), &[(tcp(), "yes")]);
    says(&when("key: source.serviceAccount, values: [default/sleep]"), &[(tcp(), "yes")]);
    says(&when("key: destination.port, values: ['8080']"), &[(tcp(), "yes")]);
    let unknown = Asked { destination: "0.0.0.0:8080", ..tcp() };
    says(&when("key: destination.ip, values: [10.0.0.1]"), &[(tcp(), "yes"), (unknown.clone(), "none")]);
    says(&when("key: destination.ip, notValues: [10.0.0.1]"), &[(tcp(), "none"), (unknown.clone(), "none")]);
    let deny = "{action: DENY, rules: [{when: [{key: destination.ip, values: [10.9.9.9]}]}]}";
    says(deny, &[(tcp(), "yes"), (unknown, DENIED)]);
    let sni = |sni| Asked { sni: Some(sni), ..tcp() };
    says(
        &when("key: connection.sni, values: ['*.example.com']"),
        &[(sni("a.Example.com"), "yes"), (sni("example.com"), "none"), (tcp(), "none")],
    );
    let header = |lines: &[(&'static str, &'static str)]| Asked { headers: lines.to_vec(), ..get("/") };
    says(
        &when("key: 'request.headers[X-Team]', values: [a, 'b*']"),
        &[
            (header(&[("x-team", "a")]), "yes"),
            (header(&[("x-team", "bc")]), "yes"),
            (header(&[("x-team", "a"), ("x-team", "c")]), "none"),
            (get("/"), "none"),
            (tcp(), "none"),
        ],
    );
    says(&when("key: 'request.headers[x]', values: ['*']"), &[(header(&[("x", "")]), "yes"), (get("/"), "none")]);
    says(&when("key: 'request.headers[:authority]', values: [web.foo]"), &[(get("/"), "yes")]);
    says(&when("key: 'request.headers[host]', values: [web.foo]"), &[(get("/"), "yes")]);
    says(&when("key: 'request.headers[:method]', values: [GET]"), &[(get("/"), "yes")]);
    let deny = "{action: DENY, rules: [{when: [{key: 'request.headers[x]', values: [bad]}]}]}";
    says(deny, &[(header(&[("x", "good"), ("x", "bad")]), DENIED), (header(&[("x", "good")]), "yes")]);
    says(&when("key: 'request.auth.claims[iss]', values: [a]"), &[(get("/"), "none")]);
    says(&when("key: 'experimental.envoy.filters.a.b[c]', notValues: [a]"), &[(get("/"), "none")]);
    let deny = "{action: DENY, rules: [{when: [{key: 'experimental.envoy.filters.a.b[c]', values: [a]}]}]}";
    says(deny, &[(get("/"), DENIED)]);
}

/// Istio `pilot/pkg/security/authz/model`: an ALLOW rule goes, a DENY rule goes without the part.
#[test]
fn what_only_requests_have_on_other_connections() {
    let deny = |rule: &str| format!("{{action: DENY, rules: [{rule}]}}");
    let allow = |rule: &str| format!("{{rules: [{rule}]}}");
    let http = "{to: [{operation: {methods: [POST]}}]}";
    says(&deny(http), &[(tcp(), DENIED), (get("/"), "yes")]);
    says(&allow(http), &[(tcp(), "none")]);
    let both = "{to: [{operation: {methods: [POST], ports: ['81']}}]}";
    says(&deny(both), &[(tcp(), "yes"), (Asked { destination: "10.0.0.1:81", ..tcp() }, DENIED)]);
    let either = "{to: [{operation: {methods: [POST]}}, {operation: {ports: ['8080']}}]}";
    says(&allow(either), &[(tcp(), "none"), (get("/"), "yes")]);
    says(&allow("{to: [{operation: {notMethods: [POST]}}]}"), &[(tcp(), "none"), (get("/"), "yes")]);
}

#[test]
fn order_of_actions() {
    let allow = ("allow", "{rules: [{to: [{operation: {ports: ['8080']}}]}]}");
    let deny =
        ("deny", "{action: DENY, rules: [{to: [{operation: {paths: [/x]}}]}, {to: [{operation: {paths: [/y]}}]}]}");
    let ask = ("ask", "{action: CUSTOM, provider: {name: opa}, rules: [{to: [{operation: {paths: ['/*']}}]}]}");
    let both = policies(&[allow, deny]);
    assert_eq!(get("/").of(&both), "yes");
    assert_eq!(get("/y").of(&both), "ns[foo]-policy[deny]-rule[1]");
    assert_eq!(Asked { destination: "10.0.0.1:1", ..get("/") }.of(&both), "none");
    assert_eq!(get("/x").of(&policies(&[allow, deny, ask])), "ns[foo]-policy[ask]-rule[0]");
    // One that allows is enough.
    assert_eq!(get("/").of(&policies(&[allow, ("nothing", "{}")])), "yes");
}

#[test]
fn trust_domains_have_many_names() {
    let config = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    trustDomain: new.org
    trustDomainAliases: [old.org]
"#;
    let spec = |principal: &str| format!("{{rules: [{{from: [{{source: {{principals: ['{principal}']}}}}]}}]}}");
    for (principal, id, want) in [
        ("old.org/ns/a/sa/b", "spiffe://new.org/ns/a/sa/b", "yes"),
        ("new.org/ns/a/sa/b", "spiffe://old.org/ns/a/sa/b", "yes"),
        ("cluster.local/ns/a/sa/b", "spiffe://new.org/ns/a/sa/b", "yes"),
        ("other.org/ns/a/sa/b", "spiffe://new.org/ns/a/sa/b", "none"),
        ("other.org/ns/a/sa/b", "spiffe://other.org/ns/a/sa/b", "yes"),
        ("old.org/ns/a/*", "spiffe://new.org/ns/a/sa/b", "none"),
    ] {
        let text = config.to_owned() + &pod("foo", "web", "{}") + &policy("foo", "p", &spec(principal));
        let policies = inbound(&mesh(&text), "foo", "web");
        assert_eq!(Asked { principal: Some(id), ..tcp() }.of(&policies), want, "{principal} {id}");
    }
}
