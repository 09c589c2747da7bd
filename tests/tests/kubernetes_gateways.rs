//! Gateways of the Gateway API in a cluster: what the controller makes of them, what their status says, and that the pods which a
//! kubelet runs then serve. The controller has the rights of the manifest: a request that they refuse fails each test.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use egret_tests::{
    Lab,
    kube::{
        ApiServer, Fault, Node, NodePod,
        controller::{self, Controller},
        crds,
    },
    objects::in_namespace,
    until,
};
use serde_json::{Value, json};

const GATEWAY: &str = "gateway.networking.k8s.io/v1/Gateway";
const CLASS: &str = "gateway.networking.k8s.io/v1/GatewayClass";
const HTTP_ROUTE: &str = "gateway.networking.k8s.io/v1/HTTPRoute";
const TLS_ROUTE: &str = "gateway.networking.k8s.io/v1/TLSRoute";
const POLICY: &str = "gateway.networking.k8s.io/v1/BackendTLSPolicy";
const DEPLOYMENT: &str = "apps/v1/Deployment";
const OURS: &str = "egret.dev/gateway-controller";
const LIMIT: Duration = Duration::from_secs(20);

/// With the namespaces `shop` and `other`.
fn cluster() -> Result<ApiServer> {
    let server = ApiServer::start()?;
    server.install_crds(&crds::all())?;
    server.apply_yaml(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: other}\n",
    )?;
    Ok(server)
}

/// An object of the Gateway API in `shop`.
fn object(kind: &str, name: &str, spec: Value) -> Value {
    let (api_version, kind) = kind.rsplit_once('/').expect("a group");
    json!({"apiVersion": api_version, "kind": kind, "metadata": {"namespace": "shop", "name": name}, "spec": spec})
}

fn gateway(name: &str, listeners: Value) -> Value {
    object(GATEWAY, name, json!({"gatewayClassName": "egret", "listeners": listeners}))
}

fn http() -> Value {
    json!([{"name": "http", "port": 80, "protocol": "HTTP"}])
}

/// An HTTPRoute at a Gateway, to a Service.
fn route(name: &str, parent: Value, backend: Value) -> Value {
    object(HTTP_ROUTE, name, json!({"parentRefs": [parent], "rules": [{"backendRefs": [backend]}]}))
}

fn service(name: &str, port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": name},
        "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": port, "targetPort": 8080}]},
    })
}

/// `Type=Reason` of each condition, with a `!` where it is not true.
fn conditions(list: &Value) -> Vec<String> {
    let shown = |one: &Value| {
        let text = |field: &str| one[field].as_str().unwrap_or_default().to_owned();
        let not = if text("status") == "True" { "" } else { "!" };
        format!("{not}{}={}", text("type"), text("reason"))
    };
    list.as_array().into_iter().flatten().map(shown).collect()
}

/// All conditions of an object by what they are about, and its last message.
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
fn await_said(server: &ApiServer, kind: &str, name: &str, about: &str, wanted: &[&str]) -> Result<Value> {
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

fn await_object(server: &ApiServer, kind: &str, namespace: &str, name: &str) -> Result<Value> {
    until(&format!("{kind} {name}"), LIMIT, || server.get(kind, namespace, name).ok()?)
}

fn await_gone(server: &ApiServer, kind: &str, namespace: &str, name: &str) -> Result<()> {
    let gone = || matches!(server.get(kind, namespace, name), Ok(None)).then_some(());
    until(&format!("the end of {kind} {name}"), LIMIT, gone)
}

/// Nothing that the controller or an agent asked for was refused.
fn check_rights(server: &ApiServer) -> Result<()> {
    let refused: Vec<_> = server.requests().into_iter().filter(|seen| seen.code == 403).collect();
    ensure!(refused.is_empty(), "{refused:#?}");
    Ok(())
}

/// A pod of a Deployment, as its controllers and the kubelet would run it.
fn run<'n>(node: &'n Node<'_>, deployment: &Value) -> Result<NodePod<'n>> {
    let template = deployment["spec"]["template"].to_string();
    let metadata = &deployment["metadata"];
    let text = |field: &str| metadata[field].as_str().unwrap_or_default();
    node.pod(text("namespace"), &format!("{}-1", text("name")), &template)
}

#[test]
fn a_gateway_is_run_and_serves_until_it_is_deleted() -> Result<()> {
    let (lab, server) = (Lab::new()?, cluster()?);
    let node = Node::new(&lab, &server, "one")?;
    let (_controller, _agent) = controller::start_on(&lab, &server, &node, &[])?;
    let class = await_said(&server, CLASS, "egret", "", &["Accepted=Accepted"])?;
    assert_eq!(class["spec"]["controllerName"], OURS);
    ensure!(server.get(CLASS, "", "istio")?.is_none(), "that one is Istio's");

    let web = node.pod("shop", "web", "metadata: {labels: {app: web}}")?;
    let _web = lab.backends_in(&web.net()?.netns, &[("web", "0.0.0.0:8080")])?;
    server.apply(service("web", 80))?;
    let mut entry = gateway("entry", http());
    entry["metadata"]["annotations"] = json!({"networking.istio.io/service-type": "ClusterIP"});
    entry["spec"]["infrastructure"] = json!({"labels": {"team": "a"}, "annotations": {"note": "b"}});
    let entry = server.apply(entry)?;
    server.apply(route("web", json!({"name": "entry"}), json!({"name": "web", "port": 80})))?;

    let deployment = await_object(&server, DEPLOYMENT, "shop", "entry-egret")?;
    for kind in [DEPLOYMENT, "Service", "ServiceAccount"] {
        let made = await_object(&server, kind, "shop", "entry-egret")?;
        let owner = &made["metadata"]["ownerReferences"][0];
        assert_eq!((&owner["kind"], &owner["uid"]), (&json!("Gateway"), &entry["metadata"]["uid"]), "{made:#}");
        assert_eq!(
            (&made["metadata"]["labels"]["team"], &made["metadata"]["annotations"]["note"]),
            (&json!("a"), &json!("b"))
        );
    }
    let made = await_object(&server, "Service", "shop", "entry-egret")?;
    assert_eq!((&made["spec"]["type"], &made["spec"]["ports"][0]["port"]), (&json!("ClusterIP"), &json!(80)));
    let said = await_said(&server, GATEWAY, "entry", "", &["Accepted=Accepted", "!Programmed=Pending"])?;
    let listener = &said["status"]["listeners"][0];
    assert_eq!((&listener["name"], &listener["attachedRoutes"]), (&json!("http"), &json!(1)));
    assert_eq!(listener["supportedKinds"], json!([{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute"}]));

    let pod = run(&node, &deployment)?;
    let said = await_said(&server, GATEWAY, "entry", "", &["Accepted=Accepted", "Programmed=Programmed"])?;
    let host = json!({"type": "Hostname", "value": "entry-egret.shop.svc.cluster.local"});
    assert_eq!(said["status"]["addresses"], json!([host]));
    let listener =
        ["Accepted=Accepted", "Programmed=Programmed", "ResolvedRefs=ResolvedRefs", "!Conflicted=NoConflicts"];
    await_said(&server, GATEWAY, "entry", "http", &listener)?;
    let said = await_said(&server, HTTP_ROUTE, "web", "entry", &["Accepted=Accepted", "ResolvedRefs=ResolvedRefs"])?;
    assert_eq!(said["status"]["parents"][0]["controllerName"], OURS);

    let client = lab.pod("client")?;
    let address = pod.net()?.v4.to_string();
    until("an answer through the gateway", LIMIT, || {
        client.call(&address, "http://web.example.com/hello", &[]).ok().filter(|reply| reply.status == 200)
    })?;

    // A route's entry of another controller stays what it is, and ours goes with what it was about.
    let theirs = json!({"parentRef": {"name": "x"}, "controllerName": "example.com/other", "conditions": []});
    let ours = said["status"]["parents"][0].clone();
    server.patch_status(HTTP_ROUTE, "shop", "web", &json!({"parents": [theirs, ours]}))?;
    server.patch(HTTP_ROUTE, "shop", "web", &json!({"spec": {"parentRefs": [{"name": "x"}]}}))?;
    until("our entry to go", LIMIT, || {
        let route = server.get(HTTP_ROUTE, "shop", "web").ok()??;
        (route["status"]["parents"] == json!([theirs])).then_some(())
    })?;
    let attached = || server.get(GATEWAY, "shop", "entry").ok()??["status"]["listeners"][0]["attachedRoutes"].as_u64();
    until("no route to be attached", LIMIT, || attached().filter(|attached| *attached == 0))?;

    server.remove(GATEWAY, "shop", "entry")?;
    for kind in [DEPLOYMENT, "Service", "ServiceAccount"] {
        await_gone(&server, kind, "shop", "entry-egret")?;
    }
    check_rights(&server)
}

/// What the specification wants to be said of what is wrong, with an API server that does not always answer well.
#[test]
fn reasons_are_those_of_the_specification() -> Result<()> {
    let (lab, server) = (Lab::new()?, cluster()?);
    let _controller = Controller::start(&server, lab.dir())?;
    server.fault(Fault::status(500).on("gateways/status").verbs(&["patch"]).times(2));
    server.apply(service("web", 80))?;
    let elsewhere = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "other", "name": "far"}, "spec": {"ports": [{"port": 80}]}});
    server.apply(elsewhere)?;
    let tls = |secret: &str| json!({"certificateRefs": [{"name": secret}]});
    server.apply(gateway(
        "gw",
        json!([
            {"name": "http", "port": 80, "protocol": "HTTP", "hostname": "a.example.com"},
            {"name": "twice", "port": 80, "protocol": "HTTP", "hostname": "a.example.com"},
            {"name": "other", "port": 80, "protocol": "HTTPS", "tls": tls("web")},
            {"name": "https", "port": 443, "protocol": "HTTPS", "tls": tls("web")},
            {"name": "far", "port": 8443, "protocol": "HTTPS", "tls": {"certificateRefs": [{"name": "web", "namespace": "other"}]}},
            {"name": "tcp", "port": 9000, "protocol": "TCP"},
            {"name": "kinds", "port": 9001, "protocol": "HTTP", "allowedRoutes": {"kinds": [{"kind": "GRPCRoute"}]}},
            {"name": "tls", "port": 9443, "protocol": "TLS", "tls": {"mode": "Passthrough"}},
        ]),
    ))?;
    for (listener, wanted) in [
        ("http", &["Accepted=Accepted", "ResolvedRefs=ResolvedRefs", "!Conflicted=NoConflicts"][..]),
        ("twice", &["!Accepted=HostnameConflict", "Conflicted=HostnameConflict", "!Programmed=Invalid"]),
        ("other", &["!Accepted=ProtocolConflict", "Conflicted=ProtocolConflict"]),
        ("https", &["Accepted=Accepted", "!ResolvedRefs=InvalidCertificateRef", "!Programmed=Invalid"]),
        ("far", &["!ResolvedRefs=RefNotPermitted"]),
        ("tcp", &["!Accepted=UnsupportedProtocol"]),
        ("kinds", &["!ResolvedRefs=InvalidRouteKinds"]),
    ] {
        await_said(&server, GATEWAY, "gw", listener, wanted)?;
    }
    let said = await_said(&server, GATEWAY, "gw", "", &["Accepted=ListenersNotValid", "!Programmed=Pending"])?;
    assert_eq!(said["status"]["listeners"][6]["supportedKinds"], json!([]));
    // The Secret is read once something names it, and that it comes is seen.
    let secret = lab.pki.secret("web", &[("tls.crt", lab.pki.crt("web")), ("tls.key", lab.pki.key("web"))])?;
    server.apply_yaml(&in_namespace(&secret, "shop"))?;
    await_said(&server, GATEWAY, "gw", "https", &["ResolvedRefs=ResolvedRefs"])?;

    let (good, http) = (json!({"name": "web", "port": 80}), json!({"name": "gw", "sectionName": "http"}));
    let section = |name: &str| json!({"name": "gw", "sectionName": name});
    let mut misses = route("misses", http.clone(), good.clone());
    misses["spec"]["hostnames"] = json!(["b.example.com"]);
    server.apply(misses)?;
    let mut foreign = route("foreign", json!({"name": "gw", "namespace": "shop"}), good.clone());
    foreign["metadata"]["namespace"] = "other".into();
    server.apply(foreign)?;
    // Our reader wants one or the other.
    let mut refused = route("refused", http.clone(), good.clone());
    refused["spec"]["rules"][0]["filters"] =
        json!([{"type": "RequestRedirect", "requestRedirect": {"statusCode": 302}}]);
    server.apply(refused)?;
    let accepted = "Accepted=Accepted";
    for (name, parent, backend, wanted) in [
        ("good", http.clone(), good.clone(), [accepted, "ResolvedRefs=ResolvedRefs"]),
        ("missing", http.clone(), json!({"name": "nobody", "port": 80}), [accepted, "!ResolvedRefs=BackendNotFound"]),
        (
            "far",
            http.clone(),
            json!({"name": "far", "namespace": "other", "port": 80}),
            [accepted, "!ResolvedRefs=RefNotPermitted"],
        ),
        (
            "kind",
            http.clone(),
            json!({"group": "example.com", "kind": "Bucket", "name": "b"}),
            [accepted, "!ResolvedRefs=InvalidKind"],
        ),
        ("section", section("nobody"), good.clone(), ["!Accepted=NoMatchingParent"; 2]),
        ("tls", section("tls"), good.clone(), ["!Accepted=NotAllowedByListeners"; 2]),
    ] {
        server.apply(route(name, parent, backend))?;
        await_said(&server, HTTP_ROUTE, name, "gw", &wanted)?;
    }
    await_said(&server, HTTP_ROUTE, "misses", "gw", &["!Accepted=NoMatchingListenerHostname"])?;
    let said = await_said(&server, HTTP_ROUTE, "refused", "gw", &["!Accepted=UnsupportedValue"])?;
    ensure!(said["status"].to_string().contains("backendRefs"), "{:#}", said["status"]);
    until("a route of another namespace", LIMIT, || {
        let route = server.get(HTTP_ROUTE, "other", "foreign").ok()??;
        (conditions(&route["status"]["parents"][0]["conditions"]).first()? == "!Accepted=NotAllowedByListeners")
            .then_some(())
    })?;
    let grant = json!({
        "apiVersion": "gateway.networking.k8s.io/v1beta1", "kind": "ReferenceGrant", "metadata": {"namespace": "other", "name": "g"},
        "spec": {"from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "shop"}], "to": [{"group": "", "kind": "Service"}]},
    });
    server.apply(grant)?;
    await_said(&server, HTTP_ROUTE, "far", "gw", &["ResolvedRefs=ResolvedRefs"])?;

    let passed = json!({"parentRefs": [section("tls")], "hostnames": ["a.example.com"], "rules": [{"backendRefs": [{"name": "nobody", "port": 443}]}]});
    server.apply(object(TLS_ROUTE, "passed", passed))?;
    await_said(&server, TLS_ROUTE, "passed", "gw", &[accepted, "!ResolvedRefs=BackendNotFound"])?;

    let validation = json!({"hostname": "web.example.com", "wellKnownCACertificates": "System"});
    let missing = json!({"hostname": "web.example.com", "caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": "nobody"}]});
    let policy = |name: &str, target: &str, validation: &Value| {
        object(
            POLICY,
            name,
            json!({"targetRefs": [{"group": "", "kind": "Service", "name": target}], "validation": validation}),
        )
    };
    for (name, target, validation, wanted) in [
        ("a-good", "web", &validation, &[accepted, "ResolvedRefs=ResolvedRefs"][..]),
        ("b-second", "web", &validation, &["!Accepted=Conflicted"]),
        ("c-nobody", "nobody", &validation, &["!Accepted=TargetNotFound"]),
    ] {
        server.apply(policy(name, target, validation))?;
        await_said(&server, POLICY, name, target, wanted)?;
    }
    server.apply(service("more", 80))?;
    server.apply(policy("d-ca", "more", &missing))?;
    let wanted = ["!Accepted=NoValidCACertificate", "!ResolvedRefs=InvalidCACertificateRef"];
    await_said(&server, POLICY, "d-ca", "more", &wanted)?;

    let parameters = json!({"controllerName": OURS, "parametersRef": {"group": "", "kind": "ConfigMap", "name": "x"}});
    server.apply(json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": {"name": "more"}, "spec": parameters}))?;
    await_said(&server, CLASS, "more", "", &["!Accepted=InvalidParameters"])?;
    check_rights(&server)
}

/// Whose Gateways they are, where their pods are run by hand, and what somebody else has made under their names.
#[test]
fn what_is_not_ours_is_left_alone() -> Result<()> {
    let (lab, server) = (Lab::new()?, cluster()?);
    let theirs = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"namespace": "shop", "name": "taken-egret"},
        "spec": {
            "selector": {"matchLabels": {"app": "x"}},
            "template": {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "x", "image": "x"}]}},
        },
    });
    let theirs = server.apply(theirs)?;
    for class in ["nginx", "istio"] {
        let mut foreign = gateway(&format!("of-{class}"), http());
        foreign["spec"]["gatewayClassName"] = class.into();
        server.apply(foreign)?;
        let parent = json!({"name": format!("of-{class}")});
        server.apply(route(&format!("of-{class}"), parent, json!({"name": "web", "port": 80})))?;
    }
    server.apply(gateway("taken", http()))?;
    let mut by_hand = gateway("by-hand", http());
    by_hand["spec"]["addresses"] = json!([{"type": "Hostname", "value": "own"}]);
    server.apply(by_hand)?;
    let _controller = Controller::start(&server, lab.dir())?;
    await_said(&server, GATEWAY, "by-hand", "", &["Accepted=Accepted", "!Programmed=AddressNotUsable"])?;
    server.apply(service("own", 80))?;
    await_said(&server, GATEWAY, "by-hand", "", &["!Programmed=Pending"])?;
    let said = await_said(&server, GATEWAY, "taken", "", &["Accepted=Accepted", "!Programmed=Pending"])?;
    ensure!(said["status"].to_string().contains("Deployment shop/taken-egret is there already"), "{said:#}");
    assert_eq!(server.get(DEPLOYMENT, "shop", "taken-egret")?, Some(theirs));
    server.remove(DEPLOYMENT, "shop", "taken-egret")?;
    await_object(&server, DEPLOYMENT, "shop", "taken-egret")?;

    for name in ["of-nginx", "of-istio"] {
        for kind in [GATEWAY, HTTP_ROUTE] {
            let object = server.get(kind, "shop", name)?.context("it is there")?;
            ensure!(object["status"].is_null(), "{object:#}");
        }
    }
    let made = server.list(DEPLOYMENT, "", "")?;
    assert_eq!(made.iter().filter(|one| one["metadata"]["namespace"] == "shop").count(), 1, "{made:#?}");
    check_rights(&server)
}

/// What is made follows its Gateway, and comes back where somebody removes or changes it.
#[test]
fn what_is_made_follows_its_gateway() -> Result<()> {
    let (lab, server) = (Lab::new()?, cluster()?);
    let _controller = Controller::start(&server, lab.dir())?;
    let mut entry = gateway("entry", http());
    entry["spec"]["infrastructure"] = json!({"labels": {"team": "a"}});
    server.apply(entry.clone())?;
    let deployment = await_object(&server, DEPLOYMENT, "shop", "entry-egret")?;
    // As the kubelet has it: nobody runs it here.
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": "entry-1", "labels": labels},
        "spec": deployment["spec"]["template"]["spec"],
    });
    server.create(&pod)?;
    await_said(&server, GATEWAY, "entry", "", &["!Programmed=Pending"])?;
    server.patch_status("Pod", "shop", "entry-1", &json!({"phase": "Running", "podIP": "10.9.0.1"}))?;
    await_said(&server, GATEWAY, "entry", "", &["!Programmed=AddressNotAssigned"])?;
    let ingress = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}]}});
    server.patch_status("Service", "shop", "entry-egret", &ingress)?;
    let said = await_said(&server, GATEWAY, "entry", "", &["Programmed=Programmed"])?;
    assert_eq!(said["status"]["addresses"], json!([{"type": "IPAddress", "value": "192.0.2.7"}]));

    // Scaled by somebody, it stays so; changed, it is as it was again.
    server.patch(DEPLOYMENT, "shop", "entry-egret", &json!({"spec": {"replicas": 3}}))?;
    server.patch("Service", "shop", "entry-egret", &json!({"spec": {"selector": {"app": "x"}}}))?;
    server.patch(
        GATEWAY,
        "shop",
        "entry",
        &json!({"spec": {"infrastructure": null, "listeners": [
            {"name": "http", "port": 80, "protocol": "HTTP"}, {"name": "more", "port": 81, "protocol": "HTTP"},
        ]}}),
    )?;
    until("the Service as the Gateway has it", LIMIT, || {
        let service = server.get("Service", "shop", "entry-egret").ok()??;
        let ports: Vec<_> = service["spec"]["ports"].as_array()?.iter().map(|port| port["port"].clone()).collect();
        let label = &service["metadata"]["labels"]["team"];
        let own = service["spec"]["selector"]["gateway.networking.k8s.io/gateway-name"] == "entry";
        (ports == [80, 81] && own && label.is_null()).then_some(())
    })?;
    let deployment = until("the Deployment without the label", LIMIT, || {
        let deployment = server.get(DEPLOYMENT, "shop", "entry-egret").ok()??;
        deployment["spec"]["template"]["metadata"]["labels"]["team"].is_null().then_some(deployment)
    })?;
    assert_eq!(deployment["spec"]["replicas"], 3);
    server.remove("Service", "shop", "entry-egret")?;
    await_object(&server, "Service", "shop", "entry-egret")?;

    // Nothing changes any more: nothing is written.
    await_said(&server, GATEWAY, "entry", "", &["!Programmed=AddressNotAssigned"])?;
    let writes =
        || server.requests().iter().filter(|seen| seen.verb == "patch" && seen.user.contains("controller")).count();
    let rested = until("writes to end", LIMIT, || {
        let before = writes();
        std::thread::sleep(Duration::from_secs(1));
        (writes() == before).then_some(before)
    })?;
    server.apply(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "other", "name": "x"}, "spec": {"ports": [{"port": 1}]}}))?;
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(writes(), rested);

    // Of another class now, under another name.
    server.apply(json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": {"name": "own"}, "spec": {"controllerName": OURS},
    }))?;
    server.patch(GATEWAY, "shop", "entry", &json!({"spec": {"gatewayClassName": "own"}}))?;
    await_object(&server, DEPLOYMENT, "shop", "entry-own")?;
    for kind in [DEPLOYMENT, "Service", "ServiceAccount"] {
        await_gone(&server, kind, "shop", "entry-egret")?;
    }
    check_rights(&server)
}

/// The shipped example of an egress gateway, of class istio: with its flag the controller runs it.
#[test]
fn an_egress_gateway_of_class_istio() -> Result<()> {
    const CNN: &str = "edition.cnn.com";
    let (lab, server) = (Lab::new()?, cluster()?);
    server.apply_yaml(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: default, labels: {istio-injection: enabled}}\n",
    )?;
    let node = Node::new(&lab, &server, "one")?;
    let (_controller, _agent) = controller::start_on(&lab, &server, &node, &["--istio-class"])?;
    let sleep = node.pod("default", "sleep", "metadata: {labels: {app: sleep}}\nspec: {serviceAccountName: sleep}")?;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/examples/egress-gateway-gateway-api/simple.yaml");
    let example = fs::read_to_string(path)?;
    server.apply_yaml(&example)?;
    let deployment = await_object(&server, DEPLOYMENT, "default", "cnn-egress-gateway-istio")?;
    assert_eq!(await_object(&server, "Service", "default", "cnn-egress-gateway-istio")?["spec"]["type"], "ClusterIP");
    let gateway = run(&node, &deployment)?;
    let mut count = 0;
    let mark = until("200 through the gateway", LIMIT, || {
        count += 1;
        let mark = format!("through-{count}");
        let reply = sleep.curl(&["-o", "/dev/null", &format!("http://{CNN}/politics?{mark}")]).ok()?;
        (reply.status == 200).then_some(mark)
    })?;
    let hit = lab.hit(&mark)?;
    assert_eq!((hit.tls.as_str(), hit.sni.as_str(), hit.host.as_str()), ("TLSv1.3", CNN, CNN));
    assert_eq!(hit.from, gateway.net()?.v4.to_string(), "the gateway's own address");
    let controller_name = "istio.io/gateway-controller";
    until("the conditions of Istio's class", LIMIT, || {
        let own = server.get(GATEWAY, "default", "cnn-egress-gateway").ok()??;
        let at_gateway = server.get(HTTP_ROUTE, "default", "forward-cnn-from-egress-gateway").ok()??;
        let in_mesh = server.get(HTTP_ROUTE, "default", "direct-cnn-to-egress-gateway").ok()??;
        let programmed = conditions(&own["status"]["conditions"]).contains(&"Programmed=Programmed".to_owned());
        let names = [&at_gateway, &in_mesh].map(|route| route["status"]["parents"][0]["controllerName"].clone());
        (programmed && names == [json!(controller_name), json!(OURS)]).then_some(())
    })?;
    server.delete_yaml(&example)?;
    for kind in [DEPLOYMENT, "Service", "ServiceAccount"] {
        await_gone(&server, kind, "default", "cnn-egress-gateway-istio")?;
    }
    drop(gateway);
    check_rights(&server)
}
