//! Conditions as they stand in a `status`.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use serde_json::{Value, json};

use super::{addresses::Addresses, live::text, unmet};
use crate::{
    api::{
        ObjectId,
        gateway_api::{GROUP, ObjectRef, ParentRef},
    },
    limits::CONDITION_MESSAGE,
    mesh::{About, Condition, ObjectStatus},
};

/// `status` of a GatewayClass.
pub fn class(class: &Value) -> Value {
    let accepted = match class["spec"]["parametersRef"].is_null() {
        true => Condition { kind: "Accepted", status: true, reason: "Accepted", message: "served by egret".to_owned() },
        false => unmet("Accepted", "InvalidParameters", "spec.parametersRef is not honoured"),
    };
    json!({"conditions": conditions(&[accepted], class, &class["status"]["conditions"], true)})
}

/// `status` of a Gateway, with what is known of it outside of the compiler.
pub fn gateway(gateway: &Value, said: &[&ObjectStatus], addresses: &Addresses, fault: Option<&str>) -> Value {
    let mut status = json!({"addresses": addresses.assigned, "listeners": []});
    for one in said {
        match &one.about {
            About::Itself => {
                let own: Vec<_> = one.conditions.iter().map(|own| programmed(own, addresses, fault)).collect();
                if own.iter().any(|own| own.reason == "AddressNotUsable") {
                    status["addresses"] = json!([]);
                }
                status["conditions"] = conditions(&own, gateway, &gateway["status"]["conditions"], true);
            }
            About::Listener { name, kinds, attached } => {
                let before = gateway["status"]["listeners"].as_array().into_iter().flatten();
                let before = before.into_iter().find(|before| before["name"] == **name);
                let before = before.map_or(&Value::Null, |before| &before["conditions"]);
                let kinds: Vec<_> = kinds.iter().map(|kind| json!({"group": GROUP, "kind": kind})).collect();
                if let Some(listeners) = status["listeners"].as_array_mut() {
                    listeners.push(json!({
                        "name": name, "supportedKinds": kinds, "attachedRoutes": attached,
                        "conditions": conditions(&one.conditions, gateway, before, false),
                    }));
                }
            }
            About::Parent { .. } | About::Target { .. } => {}
        }
    }
    status
}

fn programmed(own: &Condition, addresses: &Addresses, fault: Option<&str>) -> Condition {
    match (own.kind, own.reason, fault, &addresses.missing) {
        ("Programmed", "Pending", Some(fault), _) => unmet(own.kind, "Pending", format!("{}; {fault}", own.message)),
        ("Programmed", "Programmed", _, Some(missing)) => unmet(own.kind, "AddressNotAssigned", missing.as_str()),
        _ => own.clone(),
    }
}

/// `status.parents` or `status.ancestors`: entries of other controllers as they are, and our own as they should be.
pub fn entries(object: &Value, list: &str, reference: &str, said: &[&ObjectStatus], controllers: &[&str]) -> Value {
    let mut wanted: Vec<(Value, &ObjectStatus)> = Vec::new();
    for (place, controller, one) in said.iter().flat_map(|one| places(one)) {
        let entry = json!({reference: place, "controllerName": controller});
        match wanted.iter_mut().find(|(other, _)| *other == entry) {
            // Of several targets behind one Gateway the worst counts.
            Some((_, other)) if is_well(other) => *other = one,
            Some(_) => {}
            None => wanted.push((entry, one)),
        }
    }
    let filled = |entry: &Value, one: &ObjectStatus, before: &Value| {
        let mut entry = entry.clone();
        entry["conditions"] = conditions(&one.conditions, object, &before["conditions"], false);
        entry
    };
    let mut entries = Vec::new();
    for before in object["status"][list].as_array().into_iter().flatten() {
        if !controllers.contains(&text(&before["controllerName"])) {
            entries.push(before.clone());
            continue;
        }
        let same = |(entry, _): &(Value, &ObjectStatus)| {
            ["controllerName", reference].iter().all(|field| entry[field] == before[field])
        };
        if let Some(at) = wanted.iter().position(same) {
            let (entry, one) = wanted.remove(at);
            entries.push(filled(&entry, one, before));
        }
    }
    entries.extend(wanted.iter().map(|(entry, one)| filled(entry, one, &Value::Null)));
    entries.into()
}

fn is_well(status: &ObjectStatus) -> bool {
    status.conditions.iter().all(|condition| condition.status)
}

/// ParentReferences under which a status is written, and the `controllerName` of each. A policy is reported at the Gateways
/// that lead to its target; where none does, at the target itself, for which it counts in the mesh.
fn places(status: &ObjectStatus) -> Vec<(Value, &'static str, &ObjectStatus)> {
    let own = |place: Value| status.controller.map(|controller| (place, controller, status)).into_iter().collect();
    match &status.about {
        About::Parent { parent: ParentRef { object, section, port }, .. } => own(place(object, section, *port)),
        About::Target { object, section, gateways } if gateways.is_empty() => own(place(object, section, None)),
        About::Target { gateways, .. } => {
            let at = |(gateway, controller): &(ObjectId, &'static str)| {
                let namespace = &gateway.namespace;
                let place = json!({"group": GROUP, "kind": "Gateway", "namespace": namespace, "name": gateway.name});
                (place, *controller, status)
            };
            gateways.iter().map(at).collect()
        }
        About::Itself | About::Listener { .. } => Vec::new(),
    }
}

fn place(object: &ObjectRef, section: &Option<String>, port: Option<u16>) -> Value {
    let mut place = json!({"group": object.group, "kind": object.kind, "name": object.name});
    for (field, value) in [("namespace", object.namespace.as_deref()), ("sectionName", section.as_deref())] {
        if let Some(value) = value {
            place[field] = value.into();
        }
    }
    if let Some(port) = port {
        place["port"] = port.into();
    }
    place
}

/// A list of conditions in the place of `before`: a time tells when a status changed last. `shared`: others may write
/// conditions of their own there.
fn conditions(own: &[Condition], object: &Value, before: &Value, shared: bool) -> Value {
    let mut all: Vec<Value> = before.as_array().cloned().unwrap_or_default();
    if !shared {
        all.retain(|old| own.iter().any(|own| old["type"] == own.kind));
    }
    for own in own {
        let mut new = json!({
            "type": own.kind, "status": if own.status { "True" } else { "False" }, "reason": own.reason,
            "message": own.message.chars().take(CONDITION_MESSAGE).collect::<String>(),
        });
        // Where it is unknown, any is better than none.
        new["observedGeneration"] = object["metadata"]["generation"].as_u64().unwrap_or_default().into();
        match all.iter_mut().find(|old| old["type"] == own.kind) {
            Some(old) => {
                let same = old["status"] == new["status"] && old["lastTransitionTime"].is_string();
                new["lastTransitionTime"] = if same { old["lastTransitionTime"].clone() } else { now() };
                *old = new;
            }
            None => {
                new["lastTransitionTime"] = now();
                all.push(new);
            }
        }
    }
    all.into()
}

fn now() -> Value {
    serde_json::to_value(Time(Timestamp::now())).unwrap_or_default()
}
