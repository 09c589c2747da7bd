//! Objects that the API server has taken and egret's readers have not: what is wrong stands in their status. Their last good
//! version stays in force, where there was one.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use serde::Deserialize;
use serde_json::Value;

use super::{
    Report,
    live::{self, Live, text},
    unmet,
};
use crate::{
    api::{
        Objects,
        gateway_api::{GATEWAY, GROUP, ObjectRef, ParentRef},
    },
    mesh::{
        About, ObjectStatus,
        gateway_api::{CONTROLLER, controller},
    },
};

/// Enters what is wrong into what the compiler says.
pub fn add(report: &mut Report, refused: &BTreeMap<PathBuf, String>, live: &Live, objects: &Objects) {
    for (path, why) in refused {
        let Some(object) = live.at(path) else { continue };
        match text(&object["kind"]) {
            "Gateway" => gateway(report, object, why, objects),
            "HTTPRoute" => route(report, "HTTPRoute", object, why),
            "TLSRoute" => route(report, "TLSRoute", object, why),
            "BackendTLSPolicy" => policy(report, object, why),
            _ => {}
        }
    }
}

fn gateway(report: &mut Report, object: &Value, why: &str, objects: &Objects) {
    let Ok(controller) = controller(objects, text(&object["spec"]["gatewayClassName"])) else { return };
    let id = live::id(GATEWAY, object);
    let accepted = unmet("Accepted", "Invalid", why);
    let own = report.statuses.iter_mut().find(|status| status.object == id && status.about == About::Itself);
    if let Some(accepted_before) =
        own.and_then(|own| own.conditions.iter_mut().find(|condition| condition.kind == "Accepted"))
    {
        *accepted_before = accepted;
        return;
    }
    let conditions = vec![accepted, unmet("Programmed", "Invalid", why)];
    report.statuses.push(ObjectStatus { object: id, controller: Some(controller), about: About::Itself, conditions });
}

/// As the API has it, with its defaults.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Reference {
    group: Option<String>,
    kind: Option<String>,
    namespace: Option<String>,
    name: String,
    section_name: Option<String>,
    port: Option<u16>,
}

fn references(list: &Value, group: &str, kind: &str) -> Vec<ParentRef> {
    let given = list.as_array().into_iter().flatten().filter_map(|given| Reference::deserialize(given).ok());
    let made = given.map(|given| {
        let group = given.group.unwrap_or_else(|| group.to_owned());
        let kind = given.kind.unwrap_or_else(|| kind.to_owned());
        let object = ObjectRef { group, kind, namespace: given.namespace.map(Into::into), name: given.name.into() };
        ParentRef { object, section: given.section_name, port: given.port }
    });
    made.collect()
}

fn route(report: &mut Report, kind: &'static str, object: &Value, why: &str) {
    let id = live::id(kind, object);
    report.statuses.retain(|status| status.object != id);
    for parent in references(&object["spec"]["parentRefs"], GROUP, "Gateway") {
        let namespace = parent.object.namespace.as_ref().unwrap_or(&id.namespace).clone();
        let controller = match (parent.object.group.as_str(), parent.object.kind.as_str()) {
            (GROUP, "Gateway") => {
                let named =
                    |at: &&super::Implied| at.gateway.namespace == namespace && at.gateway.name == parent.object.name;
                report.gateways.iter().find(named).map(|gateway| gateway.controller)
            }
            _ => Some(CONTROLLER),
        };
        let conditions = vec![unmet("Accepted", "UnsupportedValue", why)];
        let about = About::Parent { parent, namespace };
        report.statuses.push(ObjectStatus { object: id.clone(), controller, about, conditions });
    }
}

fn policy(report: &mut Report, object: &Value, why: &str) {
    let id = live::id("BackendTLSPolicy", object);
    report.statuses.retain(|status| status.object != id);
    for ParentRef { object, section, .. } in references(&object["spec"]["targetRefs"], "", "Service") {
        let conditions = vec![unmet("Accepted", "Invalid", why)];
        let about = About::Target { object, section, gateways: BTreeSet::new() };
        report.statuses.push(ObjectStatus { object: id.clone(), controller: Some(CONTROLLER), about, conditions });
    }
}
