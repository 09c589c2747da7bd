//! HTTPRoutes of the Gateway API over the real agent: a Service as parent, filters, timeouts, grants, and what `egret status` says.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use egret_tests::{
    Agent, Backends, Lab, Pod, Reply,
    objects::{documents, in_namespace, object},
};
use serde_json::Value;

const ADDRESS: &str = "10.97.0.50";

/// A client, the Service `web` with its route's parents, and the pods `one` and `two` behind Services of their names.
struct Stage {
    agent: Agent,
    one: Backends,
    two: Backends,
    pods: [Pod; 3],
    lab: Lab,
}

fn service(name: &str, address: &str) -> String {
    let spec = format!(
        "{{clusterIP: {address}, selector: {{app: {name}}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}"
    );
    object("Service", name, &spec)
}

impl Stage {
    /// `two` and its Service are in the namespace `shop`.
    fn new(objects: &[String]) -> Result<Self> {
        let lab = Lab::new()?;
        let pods = [lab.pod("client")?, lab.pod("one")?, lab.pod("two")?];
        let (one, two) = (
            lab.backends_in(&pods[1].netns, &[("one", "0.0.0.0:8080")])?,
            lab.backends_in(&pods[2].netns, &[("two", "0.0.0.0:8080")])?,
        );
        let fixed = [
            pods[0].document("app: client"),
            pods[1].document("app: one"),
            in_namespace(&pods[2].document("app: two"), "shop"),
            service("web", ADDRESS),
            service("one", "10.97.0.51"),
            in_namespace(&service("two", "10.97.0.52"), "shop"),
        ];
        lab.write("mesh.yaml", &documents(&fixed))?;
        lab.write("routes.yaml", &documents(objects))?;
        let agent = Agent::start(&lab)?;
        Ok(Self { agent, one, two, pods, lab })
    }

    fn get(&self, path: &str, more: &[&str]) -> Result<Reply> {
        self.pods[0].call(ADDRESS, &format!("http://web{path}"), &[&["-i"], more].concat())
    }

    /// The pod of [`GATEWAY`], from now on.
    fn enter(&self) -> Result<Pod> {
        let pod = self.lab.pod("entry")?;
        let document = pod.document("gateway.networking.k8s.io/gateway-name: entry");
        self.agent.reload(|| self.lab.write("entry.yaml", &document))?;
        Ok(pod)
    }

    fn said(&self) -> String {
        format!("{}\n{}", self.agent.stdout(), self.agent.stderr())
    }

    /// Of an object: each condition's status and reason.
    fn conditions(&self, name: &str) -> Result<BTreeMap<String, (String, String)>> {
        let (code, text, _) = self.agent.egret(&["status", "-o", "json"])?;
        assert_eq!(code, 0);
        let status: Value = serde_json::from_str(&text)?;
        let rows = status["gatewayApi"].as_array().context(text.clone())?;
        let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
        Ok(rows
            .iter()
            .filter(|row| text(row, "object").ends_with(name))
            .map(|row| (text(row, "condition"), (text(row, "status"), text(row, "reason"))))
            .collect())
    }
}

fn route(name: &str, rules: &str) -> String {
    object(
        "HTTPRoute",
        name,
        &format!("{{parentRefs: [{{group: '', kind: Service, name: web, port: 80}}], rules: [{rules}]}}"),
    )
}

fn matching(prefix: &str, rest: &str) -> String {
    format!("{{matches: [{{path: {{type: PathPrefix, value: {prefix}}}}}], {rest}}}")
}

const GATEWAY: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: entry}
spec:
  gatewayClassName: istio
  listeners:
  - {name: http, port: 8080, protocol: HTTP, allowedRoutes: {namespaces: {from: Same}}}
";

const ONE: &str = "backendRefs: [{name: one, port: 80}]";

fn grant() -> String {
    let spec = "{from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: default}], to: [{group: '', kind: Service, name: two}]}";
    in_namespace(&object("ReferenceGrant", "grant", spec), "shop")
}

/// A route whose parent is a Service counts for whoever calls the Service.
#[test]
fn filters_of_a_services_route() -> Result<()> {
    let rules = [
        matching(
            "/headers",
            &format!(
                "filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: x-set, value: v}}], add: [{{name: x-add, value: w}}], remove: [x-gone]}}}}, \
             {{type: ResponseHeaderModifier, responseHeaderModifier: {{add: [{{name: x-back, value: b}}], remove: [server]}}}}], {ONE}"
            ),
        ),
        matching(
            "/old",
            "filters: [{type: RequestRedirect, requestRedirect: {scheme: https, hostname: new.lab.test, statusCode: 302, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}}]",
        ),
        matching(
            "/rewrite",
            &format!(
                "filters: [{{type: URLRewrite, urlRewrite: {{hostname: inner.lab.test, path: {{type: ReplacePrefixMatch, replacePrefixMatch: /}}}}}}], {ONE}"
            ),
        ),
        matching(
            "/mirror",
            &format!(
                "filters: [{{type: RequestMirror, requestMirror: {{backendRef: {{name: two, namespace: shop, port: 80}}}}}}], {ONE}"
            ),
        ),
        matching("/delay", &format!("timeouts: {{request: 200ms}}, {ONE}")),
    ];
    let stage = Stage::new(&[route("filters", &rules.join(", ")), grant()])?;
    let reply = stage.get("/headers/x", &["-H", "x-gone: 1"])?;
    assert_eq!(
        (reply.status, reply.header("x-back"), reply.header("server")),
        (200, Some("b"), None),
        "{reply:?}\n{}",
        stage.said()
    );
    assert!(stage.agent.log_line(" default.filters.0 ")?.contains("/headers/x"), "{}", stage.said());
    let seen = stage.one.with_path("/headers/x");
    let headers = &seen.first().context("nothing came")?["headers"];
    assert_eq!((&headers["x-set"], &headers["x-add"], &headers["x-gone"]), (&"v".into(), &"w".into(), &Value::Null));
    let reply = stage.get("/old/a?b=c", &[])?;
    assert_eq!((reply.status, reply.header("location")), (302, Some("https://new.lab.test/new/a?b=c")), "{reply:?}");
    // By elements: `/older` is no `/old`.
    assert_eq!(stage.get("/older", &[])?.status, 404);
    let reply = stage.get("/rewrite/a", &[])?;
    assert!(
        reply.status == 200 && reply.body.contains("\"path\": \"/a\"") && reply.body.contains("inner.lab.test"),
        "{reply:?}"
    );
    assert_eq!(stage.get("/mirror/m", &[])?.header("x-instance"), Some("one"), "{}", stage.said());
    egret_tests::until("the copy", std::time::Duration::from_secs(3), || stage.two.with_path("/mirror/m").pop())
        .map_err(|error| error.context(stage.said()))?;
    let reply = stage.get("/delay/2000", &[])?;
    assert_eq!(reply.status, 504, "{reply:?}");
    // The route's own line: the pod that was called has one, too, of the caller that has left.
    assert!(stage.agent.log_line(" default.filters.4 ")?.contains(" 504 UT "), "{}", stage.said());
    let conditions = stage.conditions("filters")?;
    assert_eq!(conditions.get("Accepted").map(|found| found.0.as_str()), Some("True"), "{conditions:?}");
    Ok(())
}

/// At a gateway, a backend in another namespace wants a grant of that namespace; until it is there, its share is answered
/// 500. In the mesh it wants none, as with Istio.
#[test]
fn a_backend_elsewhere_wants_a_grant() -> Result<()> {
    let backends =
        "backendRefs: [{name: one, port: 80, weight: 70}, {name: two, namespace: shop, port: 80, weight: 30}]";
    let split = object("HTTPRoute", "split", &format!("{{parentRefs: [{{name: entry}}], rules: [{{{backends}}}]}}"));
    let inside = route("inside", "{backendRefs: [{name: two, namespace: shop, port: 80}]}");
    let stage = Stage::new(&[GATEWAY.to_owned(), split.clone(), inside.clone()])?;
    let pod = stage.enter()?;
    let client = stage.lab.pod("outsider")?;
    let statuses = |path: &str| -> Result<BTreeMap<u16, u32>> {
        let mut counts = BTreeMap::new();
        for turn in 0..60 {
            let url = format!("http://any.lab.test:8080/{path}-{turn}");
            *counts.entry(client.call(&pod.v4.to_string(), &url, &[])?.status).or_insert(0) += 1;
        }
        Ok(counts)
    };
    let counts = statuses("without")?;
    assert!(counts.keys().eq([&200, &500]) && counts[&200] > counts[&500] / 2, "{counts:?}\n{}", stage.said());
    assert!(stage.two.seen().is_empty());
    let conditions = stage.conditions("split")?;
    let refused = ("False".to_owned(), "RefNotPermitted".to_owned());
    assert_eq!(conditions.get("ResolvedRefs"), Some(&refused), "{conditions:?}");
    assert_eq!(stage.get("/inside", &[])?.header("x-instance"), Some("two"), "{}", stage.said());
    let granted = [GATEWAY.to_owned(), split, inside, grant()];
    stage.agent.reload(|| stage.lab.write("routes.yaml", &documents(&granted)))?;
    assert_eq!(statuses("with")?, [(200, 60)].into(), "{}", stage.said());
    let share = stage.two.with_path("/with-").len();
    // Five standard deviations of a binomial of 60 with 3/10.
    assert!((1..=35).contains(&share), "{share}");
    let conditions = stage.conditions("split")?;
    assert_eq!(conditions.get("ResolvedRefs").map(|found| found.0.as_str()), Some("True"), "{conditions:?}");
    Ok(())
}

/// A backend that is not there, and one that nobody knows how to call: 500, and the reason.
#[test]
fn a_backend_that_is_not_there() -> Result<()> {
    let rules = [
        matching("/gone", "backendRefs: [{name: nobody, port: 80}]"),
        matching("/odd", "backendRefs: [{group: example.com, kind: Thing, name: one, port: 80}]"),
        matching("/none", "filters: []"),
    ];
    let stage = Stage::new(&[route("lost", &rules.join(", "))])?;
    for path in ["/gone", "/odd", "/none"] {
        assert_eq!(stage.get(path, &[])?.status, 500, "{path}: {}", stage.said());
    }
    let conditions = stage.conditions("lost")?;
    assert_eq!(conditions.get("ResolvedRefs").map(|found| found.0.as_str()), Some("False"), "{conditions:?}");
    let (code, found, _) = egret_tests::egret(&["check", &stage.lab.config_dir().to_string_lossy()])?;
    assert!(found.contains("routes.yaml:") && found.contains("nobody"), "{code}: {found}");
    Ok(())
}

/// A listener takes routes of its own namespace only: the other one is told so, and its host is not served.
#[test]
fn a_listener_says_whose_routes_it_takes() -> Result<()> {
    let at = |name: &str, host: &str| {
        object(
            "HTTPRoute",
            name,
            &format!("{{parentRefs: [{{name: entry, namespace: default}}], hostnames: [{host}], rules: [{{{ONE}}}]}}"),
        )
    };
    let stage = Stage::new(&[
        GATEWAY.to_owned(),
        at("near", "near.lab.test"),
        in_namespace(&at("far", "far.lab.test"), "shop"),
    ])?;
    let pod = stage.enter()?;
    let client = stage.lab.pod("outsider")?;
    let status =
        |host: &str| client.call(&pod.v4.to_string(), &format!("http://{host}:8080/"), &[]).map(|reply| reply.status);
    assert_eq!(status("near.lab.test")?, 200, "{}", stage.said());
    assert_eq!(status("far.lab.test")?, 404, "{}", stage.said());
    let conditions = stage.conditions("far")?;
    assert_eq!(
        conditions.get("Accepted"),
        Some(&("False".to_owned(), "NotAllowedByListeners".to_owned())),
        "{conditions:?}"
    );
    assert_eq!(stage.conditions("near")?.get("Accepted").map(|found| found.0.as_str()), Some("True"));
    let conditions = stage.conditions("entry")?;
    assert_eq!(conditions.get("Programmed").map(|found| found.0.as_str()), Some("True"), "{conditions:?}");
    Ok(())
}
