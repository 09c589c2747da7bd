//! Routes and policies of the mesh that tell callers, ports, names and places apart.

use std::{collections::BTreeMap, io::Read, time::Duration};

use anyhow::Result;
use egret_tests::{
    Agent, Backends, Lab, Pod, Reply, names,
    objects::{documents, entry, entry_with, in_namespace, mesh, object, port_rule, through_the_gateway},
};

const HOST: &str = "reviews.lab.test";
const ONE: (&str, &str) = ("one", "198.51.100.40:9101");
const TWO: (&str, &str) = ("two", "198.51.100.40:9102");
/// Nothing answers here: who gets an answer was led by the name.
const ELSEWHERE: &str = "192.0.2.80";

/// Two pods, one in `default` and one in `shop`, and two instances of a service.
struct Stage {
    agent: Agent,
    _backends: Backends,
    client: Pod,
    shopper: Pod,
    lab: Lab,
}

impl Stage {
    fn new(objects: &[String]) -> Result<Self> {
        let lab = Lab::new()?;
        let (client, shopper) = (lab.pod("client")?, lab.pod("shopper")?);
        let backends = lab.backends(&[ONE, TWO])?;
        lab.write(
            "pods.yaml",
            &documents(&[client.document("istio-locality: us.a"), in_namespace(&shopper.document(""), "shop")]),
        )?;
        lab.write("mesh.yaml", &documents(&[&[service()], objects].concat()))?;
        let agent = Agent::start(&lab)?;
        Ok(Self { agent, _backends: backends, client, shopper, lab })
    }

    fn get(&self, pod: &Pod, path: &str) -> Result<Reply> {
        pod.call(ELSEWHERE, &format!("http://{HOST}{path}"), &["-i"])
    }

    fn said(&self) -> String {
        format!("{}\n{}", self.agent.stdout(), self.agent.stderr())
    }
}

/// `one` is near the client, `two` is not.
fn service() -> String {
    let endpoint = |name: &str, address: &str, locality: &str| {
        let (ip, port) = address.split_once(':').unwrap_or((address, "80"));
        format!("{{address: {ip}, ports: {{http-80: {port}}}, labels: {{version: {name}}}, locality: {locality}}}")
    };
    let rest = format!(
        "  location: MESH_INTERNAL\n  resolution: STATIC\n  endpoints: [{}, {}]\n",
        endpoint(ONE.0, ONE.1, "us/a"),
        endpoint(TWO.0, TWO.1, "eu/b")
    );
    entry_with(HOST, &["80 HTTP"], &rest)
}

const SUBSETS: &str = "subsets: [{name: one, labels: {version: one}}, {name: two, labels: {version: two}}]";

fn to(subset: &str) -> String {
    format!("route: [{{destination: {{host: {HOST}, subset: {subset}}}}}]")
}

/// A route may leave its details to another namespace, belong to some callers only, and be kept from others.
#[test]
fn callers_get_the_routes_meant_for_them() -> Result<()> {
    let root = object(
        "VirtualService",
        "reviews",
        &format!(
            "{{hosts: [{HOST}], http: [{{match: [{{uri: {{prefix: /cart}}}}], delegate: {{name: cart, namespace: shop}}}}, \
             {{match: [{{sourceNamespace: shop}}], headers: {{request: {{set: {{x-from: shop}}}}}}, {}}}, {{{}}}]}}",
            to("two"),
            to("one")
        ),
    );
    let cart = in_namespace(
        &object(
            "VirtualService",
            "cart",
            &format!("{{http: [{{match: [{{uri: {{prefix: /cart/two}}}}], {}}}, {{{}}}]}}", to("two"), to("one")),
        ),
        "shop",
    );
    let hidden = in_namespace(
        &object(
            "VirtualService",
            "hidden",
            "{hosts: [hidden.lab.test], exportTo: ['.'], http: [{directResponse: {status: 418}}]}",
        ),
        "shop",
    );
    let rule = object("DestinationRule", "reviews", &format!("{{host: {HOST}, {SUBSETS}}}"));
    let stage = Stage::new(&[root, cart, hidden, rule])?;
    for (pod, path, instance) in [
        (&stage.client, "/", "one"),
        (&stage.shopper, "/", "two"),
        (&stage.client, "/cart/two", "two"),
        (&stage.shopper, "/cart/one", "one"),
    ] {
        let reply = stage.get(pod, path)?;
        assert_eq!(
            (reply.status, reply.header("x-instance")),
            (200, Some(instance)),
            "{path}: {reply:?}\n{}",
            stage.said()
        );
    }
    assert!(stage.get(&stage.shopper, "/")?.body.contains("\"x-from\": \"shop\""));
    let hidden =
        |pod: &Pod| pod.call(names::ODD, "http://hidden.lab.test/", &["--max-time", "3"]).map(|reply| reply.status);
    assert_eq!(hidden(&stage.shopper)?, 418);
    assert_eq!(hidden(&stage.client)?, 301, "whoever was dialled answers: {}", stage.said());
    Ok(())
}

/// A host that no registry knows is served on port 80, and on no other port.
#[test]
fn a_host_without_a_service_is_served_on_port_80() -> Result<()> {
    let route = object(
        "VirtualService",
        "virtual",
        &format!(
            "{{hosts: [virtual.lab.test], http: [{{rewrite: {{authority: {HOST}}}, route: [{{destination: {{host: {HOST}, port: {{number: 80}}}}}}]}}]}}"
        ),
    );
    let stage = Stage::new(&[route])?;
    let reply = stage.client.call(ELSEWHERE, "http://virtual.lab.test/v", &["-i"])?;
    assert_eq!(reply.status, 200, "{reply:?}\n{}", stage.said());
    assert!(reply.body.contains(HOST), "{reply:?}");
    let reply = stage.client.call(names::ODD, "http://virtual.lab.test:8088/v", &[])?;
    assert_eq!(reply.status, 503, "{reply:?}");
    assert!(stage.agent.log_line("virtual.lab.test:8088")?.contains("PassthroughCluster"), "{}", stage.said());
    Ok(())
}

/// How many access-log lines name each cluster, once there are `lines`.
fn clusters(agent: &Agent, lines: usize) -> Result<BTreeMap<String, usize>> {
    egret_tests::until("the lines", Duration::from_secs(5), || {
        let mut found = BTreeMap::new();
        for line in agent.stdout().lines() {
            if let Some(cluster) = line.split_whitespace().find(|word| word.starts_with("outbound|")) {
                *found.entry(cluster.to_owned()).or_insert(0) += 1;
            }
        }
        (found.values().sum::<usize>() == lines).then_some(found)
    })
    .map_err(|error| error.context(agent.stdout()))
}

fn at(host: &str, port: &str, address: &str) -> String {
    entry_with(host, &[port], &format!("  resolution: STATIC\n  endpoints: [{{address: {address}}}]\n"))
}

/// The application's own TLS goes by its server name, to two clusters by weight.
#[test]
fn tls_is_routed_by_server_name() -> Result<()> {
    let route = object(
        "VirtualService",
        "www",
        "{hosts: [www.lab.test, web.lab.test], tls: [{match: [{port: 443, sniHosts: [www.lab.test]}], route: [\
         {destination: {host: one.lab.test, port: {number: 443}}, weight: 50}, {destination: {host: two.lab.test, port: {number: 443}}, weight: 50}]}, \
         {match: [{port: 443, sniHosts: [web.lab.test]}], route: [{destination: {host: three.lab.test, port: {number: 443}}}]}]}",
    );
    let all = ["one", "two", "three"].map(|name| at(&format!("{name}.lab.test"), "443 TLS", names::WEB));
    let stage = Stage::new(
        &[&[route, entry("www.lab.test", &["443 TLS"]), entry("web.lab.test", &["443 TLS"])], &all[..]].concat(),
    )?;
    let ca = stage.lab.pki.crt("system").to_string_lossy().into_owned();
    for turn in 0..31 {
        let host = if turn == 0 { "web.lab.test" } else { "www.lab.test" };
        let reply = stage.client.call(ELSEWHERE, &format!("https://{host}/politics"), &["--cacert", &ca])?;
        assert_eq!((reply.status, reply.body.as_str()), (200, "politics page\n"), "{reply:?}\n{}", stage.said());
    }
    let found = clusters(&stage.agent, 31)?;
    let count = |host: &str| found.get(&format!("outbound|443||{host}.lab.test")).copied().unwrap_or(0);
    assert_eq!((count("three"), count("one") + count("two")), (1, 30), "{found:?}");
    assert!(count("one") > 3 && count("two") > 3, "{found:?}");
    Ok(())
}

/// One service with two addresses: its TCP routes tell by the address that was dialled.
#[test]
fn tcp_is_routed_by_the_address_dialled() -> Result<()> {
    let route = object(
        "VirtualService",
        "odd",
        "{hosts: [mail.lab.test], tcp: [{match: [{destinationSubnets: [10.98.1.0/24]}], route: [{destination: {host: one.lab.test, port: {number: 9001}}}]}, \
         {route: [{destination: {host: two.lab.test, port: {number: 9001}}}]}]}",
    );
    let mail = entry_with(
        "mail.lab.test",
        &["2525 TCP"],
        "  addresses: [10.98.1.5, 10.98.2.5]\n  resolution: STATIC\n  endpoints: [{address: 192.0.2.1}]\n",
    );
    let stage = Stage::new(&[
        route,
        mail,
        at("one.lab.test", "9001 TCP", names::ODD),
        at("two.lab.test", "9001 TCP", names::ODD),
    ])?;
    for (address, cluster) in
        [("10.98.1.5", "outbound|9001||one.lab.test"), ("10.98.2.5", "outbound|9001||two.lab.test")]
    {
        let mut stream = stage.client.connect(&format!("{address}:2525"))?;
        let mut banner = [0; 9];
        stream.read_exact(&mut banner).map_err(|error| anyhow::anyhow!("{error}: {}", stage.said()))?;
        assert_eq!(&banner, b"220 ready");
        drop(stream);
        let line = stage.agent.log_line(cluster)?;
        assert!(line.contains(&format!(" {address}:2525 ")), "{line}");
    }
    Ok(())
}

/// What a subset says for itself counts for it alone.
#[test]
fn subsets_have_policies_of_their_own() -> Result<()> {
    let rule = object(
        "DestinationRule",
        "reviews",
        &format!(
            "{{host: {HOST}, trafficPolicy: {{tls: {{mode: DISABLE}}}}, subsets: [{{name: one, labels: {{version: one}}, trafficPolicy: {{tls: {{mode: SIMPLE}}, connectionPool: {{tcp: {{connectTimeout: 300ms}}}}}}}}, {{name: two, labels: {{version: two}}}}]}}"
        ),
    );
    let routes = object(
        "VirtualService",
        "reviews",
        &format!(
            "{{hosts: [{HOST}], http: [{{match: [{{uri: {{prefix: /one}}}}], {}}}, {{{}}}]}}",
            to("one"),
            to("two")
        ),
    );
    let stage = Stage::new(&[rule, routes])?;
    assert_eq!(stage.get(&stage.client, "/two")?.header("x-instance"), Some("two"), "{}", stage.said());
    let reply = stage.get(&stage.client, "/one")?;
    assert_eq!(reply.status, 503, "a server of plain text says nothing to a ClientHello: {reply:?}");
    let line = stage.agent.log_line("GET /one")?;
    assert!(line.contains("outbound|80|one|reviews.lab.test") && line.contains(" UF"), "{line}");
    Ok(())
}

/// Who is near serves; when it fails, who is far.
#[test]
fn requests_go_far_when_those_near_fail() -> Result<()> {
    let rule = object(
        "DestinationRule",
        "reviews",
        &format!(
            "{{host: {HOST}, trafficPolicy: {{outlierDetection: {{consecutive5xxErrors: 3, interval: 100ms, baseEjectionTime: 30s, maxEjectionPercent: 100}}}}}}"
        ),
    );
    let stage = Stage::new(&[rule])?;
    for _ in 0..12 {
        assert_eq!(stage.get(&stage.client, "/near")?.header("x-instance"), Some("one"), "{}", stage.said());
    }
    egret_tests::until("the failing one to be left", Duration::from_secs(5), || {
        let reply = stage.get(&stage.client, "/sick/one").ok()?;
        (reply.status == 200 && reply.header("x-instance") == Some("two")).then_some(())
    })?;
    for _ in 0..8 {
        assert_eq!(stage.get(&stage.client, "/far")?.header("x-instance"), Some("two"), "{}", stage.said());
    }
    Ok(())
}

/// Two switches for plain text between enrolled pods: the mesh's, and a rule's for one service.
#[test]
fn mesh_mtls_can_be_switched_off() -> Result<()> {
    let lab = Lab::new()?;
    let (client, app) = (lab.pod("client")?, lab.pod("app")?);
    let _backends = lab.backends_in(&app.netns, &[("app", "0.0.0.0:8080")])?;
    let service = object(
        "Service",
        "web",
        "{clusterIP: 10.97.0.40, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}",
    );
    let fixed = [client.document(""), app.document("app: web"), service];
    lab.write("mesh.yaml", &documents(&fixed))?;
    let agent = Agent::start(&lab)?;
    let mut wire = lab.tap()?;
    let mut readable = |mark: &str| -> Result<bool> {
        let reply = client.call("10.97.0.40", &format!("http://web/{mark}"), &[])?;
        assert_eq!(reply.status, 200, "{mark}: {reply:?}\n{}\n{}", agent.stdout(), agent.stderr());
        wire.saw(&client.netns, names::ROUTER.parse()?, mark)
    };
    assert!(!readable("mark-auto")?);
    let off = object("DestinationRule", "web", "{host: web, trafficPolicy: {tls: {mode: DISABLE}}}");
    agent.reload(|| lab.write("off.yaml", &off))?;
    assert!(readable("mark-rule")?);
    agent.reload(|| lab.remove("off.yaml"))?;
    assert!(!readable("mark-again")?);
    agent.reload(|| lab.write("off.yaml", &mesh(&["enableAutoMtls: false"])))?;
    assert!(readable("mark-mesh")?);
    let on = object("DestinationRule", "web", "{host: web, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}");
    agent.reload(|| lab.write("on.yaml", &on))?;
    assert!(!readable("mark-told")?);
    Ok(())
}

/// REGISTRY_ONLY: what the registry has leaves through the gateway, and nothing else leaves, from neither pod.
#[test]
fn the_registry_alone_is_reached_through_gateways() -> Result<()> {
    let lab = Lab::new()?;
    let (client, gateway) = (lab.pod("client")?, lab.pod("gateway")?);
    lab.write(
        "mesh.yaml",
        &documents(&[
            client.document(""),
            gateway.document("istio: egress"),
            through_the_gateway("www.lab.test", 443),
            entry("www.lab.test", &["80 HTTP", "443 HTTPS"]),
            port_rule("www.lab.test", 443, "mode: SIMPLE"),
            mesh(&["outboundTrafficPolicy: {mode: REGISTRY_ONLY}"]),
        ]),
    )?;
    let agent = Agent::start(&lab)?;
    let reply = client.curl(&["http://www.lab.test/politics?through"])?;
    assert_eq!(reply.status, 200, "{reply:?}\n{}\n{}", agent.stdout(), agent.stderr());
    assert_eq!(lab.hit("?through")?.from, gateway.v4.to_string());
    for pod in [&client, &gateway] {
        assert_eq!(pod.curl(&["http://web.lab.test:8080/none"])?.status, 502, "{}: {}", pod.name, agent.stderr());
        assert_eq!(pod.curl(&["-k", "https://web.lab.test/none"])?.exit, 35, "{}: {}", pod.name, agent.stderr());
    }
    assert!(lab.hits().iter().all(|hit| !hit.request.contains("/none")));
    Ok(())
}
