//! What the controller says of Gateways, their routes and BackendTLSPolicies, and of whom it says nothing. It has the rights of the
//! manifest: a request that they refuse fails each test.

use anyhow::{Context as _, Result, ensure};
use egret_tests::{
    Lab,
    kube::{Fault, controller::Controller, gateways::*},
    objects::in_namespace,
    until,
};
use serde_json::{Value, json};

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
    server.apply(service("more", 80))?;
    // Said at the Gateway whose route leads to the target, else at the target: there it counts in the mesh.
    for (name, target, at, wanted) in [
        ("a-good", "web", "gw", &[accepted, "ResolvedRefs=ResolvedRefs"][..]),
        ("a-mesh", "more", "more", &[accepted, "ResolvedRefs=ResolvedRefs"]),
        ("b-second", "web", "gw", &["!Accepted=Conflicted"]),
        ("c-nobody", "nobody", "nobody", &["!Accepted=TargetNotFound"]),
    ] {
        server.apply(policy(name, target, &validation))?;
        let said = await_said(&server, POLICY, name, at, wanted)?;
        let kind = if at == "gw" { "Gateway" } else { "Service" };
        assert_eq!(said["status"]["ancestors"][0]["ancestorRef"]["kind"], kind);
    }
    server.remove(POLICY, "shop", "a-mesh")?;
    server.apply(policy("d-ca", "more", &missing))?;
    let wanted = ["!Accepted=NoValidCACertificate", "!ResolvedRefs=InvalidCACertificateRef"];
    await_said(&server, POLICY, "d-ca", "more", &wanted)?;

    let parameters = json!({"controllerName": OURS, "parametersRef": {"group": "", "kind": "ConfigMap", "name": "x"}});
    server.apply(json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": {"name": "more"}, "spec": parameters}))?;
    await_said(&server, CLASS, "more", "", &["!Accepted=InvalidParameters"])?;

    // Of a protocol that our reader does not know.
    server.apply(gateway("refused", json!([{"name": "udp", "port": 53, "protocol": "UDP"}])))?;
    let said = await_said(&server, GATEWAY, "refused", "", &["!Accepted=Invalid", "!Programmed=Invalid"])?;
    ensure!(said["status"].to_string().contains("spec.listeners[0].protocol"), "{:#}", said["status"]);
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
