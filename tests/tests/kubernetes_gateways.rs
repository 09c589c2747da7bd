//! Gateways of the Gateway API in a cluster: what the controller makes of them, and that the pods which a kubelet runs then serve.
//! The controller has the rights of the manifest: a request that they refuse fails each test.

use std::{fs, path::Path, time::Duration};

use anyhow::{Result, ensure};
use egret_tests::{
    Lab,
    kube::{
        Node, NodePod,
        controller::{self, Controller},
        gateways::*,
    },
    until,
};
use serde_json::{Value, json};

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
