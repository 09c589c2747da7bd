//! What is written, from what is there and what is said.

use serde_json::{Value, json};

use super::{
    addresses::{self, Addresses},
    conditions, live,
    live::Live,
    pods, unmet,
};
use crate::{
    api::gateway_api::{GATEWAY, GROUP, ObjectRef, ParentRef},
    mesh::{
        About, Condition, ObjectStatus,
        gateway_api::{CONTROLLER, ISTIO_CONTROLLER, Implied, report},
    },
    source::{FileChange, Store, kubernetes::object_path, store::Content},
};

const PAUSE: &str = "pause:1";

fn met(kind: &'static str) -> Condition {
    Condition { kind, status: true, reason: kind, message: String::new() }
}

fn gateway(spec: &Value) -> Value {
    json!({
        "apiVersion": format!("{GROUP}/v1"), "kind": "Gateway", "spec": spec,
        "metadata": {"name": "gw", "namespace": "shop", "uid": "u-1", "generation": 3},
    })
}

/// What the compiler implies of a Gateway of class egret.
fn implied(spec: &Value) -> Implied {
    let mut store = Store::of_cluster(&[CONTROLLER]);
    let json = serde_json::to_vec(&gateway(spec)).expect("JSON");
    store.apply(vec![FileChange { path: object_path(GATEWAY, "shop", "gw"), content: Some(Content::Object(json)) }]);
    report(store.objects()).gateways.pop().expect("a Gateway")
}

fn listeners() -> Value {
    json!([
        {"name": "web", "port": 80, "protocol": "HTTP"},
        {"name": "a.b", "port": 8080, "protocol": "HTTP"},
        {"name": "again", "port": 80, "protocol": "HTTP", "hostname": "a.example.com"},
    ])
}

fn parent(name: &str, controller: &'static str, conditions: Vec<Condition>) -> ObjectStatus {
    let object = ObjectRef { group: GROUP.into(), kind: "Gateway".into(), namespace: None, name: name.into() };
    let parent = ParentRef { object, section: None, port: None };
    let about = About::Parent { parent, namespace: "shop".into() };
    let id = crate::api::ObjectId::new("HTTPRoute", "shop", "r");
    ObjectStatus { object: id, controller: Some(controller), about, conditions }
}

/// The entries for `said`, as they are written over `route`.
fn written(route: &mut Value, said: &[&ObjectStatus]) -> Value {
    let entries = conditions::entries(route, "parents", "parentRef", said, &[CONTROLLER]);
    route["status"]["parents"] = entries.clone();
    entries
}

#[test]
fn entries_of_others_stay_and_times_tell_changes() {
    let foreign = json!({"parentRef": {"name": "gw"}, "controllerName": ISTIO_CONTROLLER, "conditions": []});
    let mut route = json!({"metadata": {"generation": 7}, "status": {"parents": [foreign]}});
    let good = parent("gw", CONTROLLER, vec![met("Accepted")]);
    let first = written(&mut route, &[&good, &good]);
    assert_eq!(first.as_array().map(Vec::len), Some(2), "one entry for one parent: {first}");
    assert_eq!(first[0], foreign);
    let condition = &first[1]["conditions"][0];
    assert_eq!((&condition["status"], &condition["observedGeneration"]), (&json!("True"), &json!(7)));
    assert_eq!(first[1]["parentRef"], json!({"group": GROUP, "kind": "Gateway", "name": "gw"}));

    // Long ago: only a new status makes a new time.
    route["status"]["parents"][1]["conditions"][0]["lastTransitionTime"] = "2020-01-01T00:00:00Z".into();
    let same = written(&mut route, &[&good]);
    assert_eq!(same[1]["conditions"][0]["lastTransitionTime"], "2020-01-01T00:00:00Z");
    let bad = parent("gw", CONTROLLER, vec![unmet("Accepted", "NoMatchingParent", "why")]);
    let changed = written(&mut route, &[&bad]);
    assert_ne!(changed[1]["conditions"][0]["lastTransitionTime"], "2020-01-01T00:00:00Z");
    assert_eq!(changed[1]["conditions"][0]["reason"], "NoMatchingParent");

    // What nobody says any more goes, and what another controller may say is not said here.
    let other = ObjectStatus { controller: None, ..parent("elsewhere", CONTROLLER, vec![met("Accepted")]) };
    assert_eq!(written(&mut route, &[&other]), json!([foreign]));
}

#[test]
fn a_gateways_conditions_know_of_addresses_and_faults() {
    let status = |before: Value, programmed: Condition, addresses: &Addresses, fault: Option<&str>| {
        let mut object = gateway(&json!({}));
        object["status"] = json!({"conditions": before});
        let id = live::id(GATEWAY, &object);
        let (about, conditions) = (About::Itself, vec![met("Accepted"), programmed]);
        let said = ObjectStatus { object: id, controller: Some(CONTROLLER), about, conditions };
        conditions::gateway(&object, &[&said], addresses, fault)
    };
    let host = json!({"type": "Hostname", "value": "gw-egret.shop.svc.cluster.local"});
    let assigned = Addresses { assigned: vec![host.clone()], missing: None };
    let theirs = json!({"type": "example.com/Checked", "status": "True"});
    let made = status(json!([theirs]), met("Programmed"), &assigned, None);
    assert_eq!((&made["addresses"][0], &made["conditions"][0]), (&host, &theirs));
    assert_eq!(made["conditions"][2]["status"], "True");

    let missing = Addresses { missing: Some("none yet".to_owned()), ..Addresses::default() };
    let made = status(json!([]), met("Programmed"), &missing, None);
    assert_eq!(made["conditions"][1]["reason"], "AddressNotAssigned");
    let made = status(json!([]), unmet("Programmed", "Pending", "no pod"), &missing, Some("forbidden"));
    assert_eq!(
        (&made["conditions"][1]["reason"], &made["conditions"][1]["message"]),
        (&json!("Pending"), &json!("no pod; forbidden"))
    );
    let made = status(json!([]), unmet("Programmed", "AddressNotUsable", "no Service"), &assigned, None);
    assert_eq!(made["addresses"], json!([]));
}

#[test]
fn what_runs_a_gateway() {
    let spec = json!({
        "gatewayClassName": "egret", "listeners": listeners(),
        "infrastructure": {
            "labels": {"team": "a", "egret.dev/enroll": "false"}, "annotations": {"networking.istio.io/service-type": "NodePort"},
        },
    });
    let objects = pods::wanted(&implied(&spec), &gateway(&spec), PAUSE);
    let [account, deployment, service] = &objects[..] else { panic!("{objects:?}") };
    for object in [account, deployment, service] {
        assert_eq!(object["metadata"]["name"], "gw-egret");
        assert_eq!(object["metadata"]["labels"]["team"], "a");
        assert_eq!(object["metadata"]["ownerReferences"][0]["uid"], "u-1");
        assert!(object["metadata"]["annotations"]["egret.dev/applied"].is_string());
    }
    let template = &deployment["spec"]["template"];
    assert_eq!(template["metadata"]["labels"]["gateway.networking.k8s.io/gateway-name"], "gw");
    assert_eq!(template["metadata"]["labels"]["egret.dev/enroll"], "true", "the agent is what serves it");
    assert_eq!(
        (&template["spec"]["serviceAccountName"], &template["spec"]["containers"][0]["image"]),
        (&json!("gw-egret"), &json!(PAUSE))
    );
    assert_eq!(service["spec"]["type"], "NodePort");
    let ports = json!([
        {"name": "web", "port": 80, "protocol": "TCP", "appProtocol": "http"},
        {"name": "port-8080", "port": 8080, "protocol": "TCP", "appProtocol": "http"},
    ]);
    assert_eq!(service["spec"]["ports"], ports);

    // With what the API server adds it is as it should be; with a field of another value it is not.
    let mut live = service.clone();
    live["spec"]["ports"][0]["targetPort"] = 80.into();
    live["spec"]["clusterIP"] = "10.0.0.1".into();
    assert!(pods::is_as_wanted(&live, service));
    live["spec"]["ports"][1]["port"] = 81.into();
    assert!(!pods::is_as_wanted(&live, service));

    let mut by_hand = spec.clone();
    by_hand["addresses"] = json!([{"type": "Hostname", "value": "own"}]);
    assert!(pods::wanted(&implied(&by_hand), &gateway(&by_hand), PAUSE).is_empty(), "its author runs it");
}

#[test]
fn addresses_of_services() {
    let implied = implied(&json!({"gatewayClassName": "egret", "listeners": listeners()}));
    let of = |service: Option<Value>| {
        let mut live = Live::default();
        let path = object_path("Service", "shop", "gw-egret");
        let content = service.map(|service| Content::Object(serde_json::to_vec(&service).expect("JSON")));
        live.read(vec![FileChange { path, content }]);
        let Addresses { assigned, missing } = addresses::of(&implied, &live);
        let values: Vec<_> =
            assigned.iter().map(|one| format!("{} {}", live::text(&one["type"]), live::text(&one["value"]))).collect();
        (values.join(", "), missing.is_some())
    };
    let service = |kind: &str, status: Value| {
        let metadata = json!({"namespace": "shop", "name": "gw-egret"});
        Some(json!({"metadata": metadata, "spec": {"type": kind}, "status": {"loadBalancer": status}}))
    };
    assert_eq!(of(None), (String::new(), true));
    let within = "Hostname gw-egret.shop.svc.cluster.local".to_owned();
    assert_eq!(of(service("ClusterIP", json!({}))), (within, false));
    assert_eq!(of(service("LoadBalancer", json!({}))), (String::new(), true));
    let ingress = json!({"ingress": [{"ip": "192.0.2.1"}, {"hostname": "lb.example.com"}]});
    let both = "IPAddress 192.0.2.1, Hostname lb.example.com".to_owned();
    assert_eq!(of(service("LoadBalancer", ingress)), (both, false));
}
