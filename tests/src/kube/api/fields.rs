//! Field managers and server-side apply: who owns which field, what an applied configuration changes, and conflicts.
//!
//! Fields are paths as `FieldsV1` writes them: `f:NAME` for a field, `k:{…}` for an item of a list with keys; every other
//! list is one value.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{
    failure::Failure,
    kinds::Kind,
    merge::{key_of, keys, same_item},
};

type Path = Vec<String>;

/// Fields of the metadata that the server keeps, and that nobody owns.
const NOBODYS: &[&str] = &[
    "name",
    "namespace",
    "generateName",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "managedFields",
];

/// Who writes, and how.
pub struct Manager {
    pub name: String,
    pub apply: bool,
    pub subresource: String,
    pub api_version: String,
}

/// Every leaf of an object that can be owned.
fn leaves(object: &Value) -> BTreeMap<Path, &Value> {
    let mut found = BTreeMap::new();
    for (name, value) in object.as_object().into_iter().flatten() {
        if name == "metadata" {
            for (field, value) in value.as_object().into_iter().flatten() {
                if !NOBODYS.contains(&field.as_str()) {
                    collect(vec!["f:metadata".into(), format!("f:{field}")], field, value, &mut found);
                }
            }
        } else if !matches!(name.as_str(), "apiVersion" | "kind") {
            collect(vec![format!("f:{name}")], name, value, &mut found);
        }
    }
    found
}

fn collect<'a>(path: Path, field: &str, value: &'a Value, found: &mut BTreeMap<Path, &'a Value>) {
    let below = |step: String| [&path[..], &[step]].concat();
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (name, value) in map {
                collect(below(format!("f:{name}")), name, value, found);
            }
        }
        Value::Array(items) => match keys(field, items) {
            Some(keys) => {
                for item in items {
                    collect(below(item_step(item, keys)), "", item, found);
                }
            }
            None => drop(found.insert(path, value)),
        },
        _ => drop(found.insert(path, value)),
    }
}

fn item_step(item: &Value, keys: &[&str]) -> String {
    let named: Map<_, _> = keys.iter().map(|key| ((*key).to_owned(), key_of(item, key))).collect();
    format!("k:{}", Value::Object(named))
}

/// The item of a list that a step such as `k:{"name":"a"}` names.
fn item_at(list: &[Value], step: &str) -> Option<usize> {
    let wanted: Value = serde_json::from_str(step.strip_prefix("k:")?).ok()?;
    let keys: Vec<&str> = wanted.as_object()?.keys().map(String::as_str).collect();
    list.iter().position(|item| same_item(item, &wanted, &keys))
}

fn at<'a>(object: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(object, |at, step| match step.strip_prefix("f:") {
        Some(name) => at.get(name),
        None => {
            let list = at.as_array()?;
            list.get(item_at(list, step)?)
        }
    })
}

/// Removes a field, and what is empty above it then.
fn remove(object: &mut Value, path: &[String]) {
    let Some((step, rest)) = path.split_first() else { return };
    if let Some(name) = step.strip_prefix("f:") {
        let Some(map) = object.as_object_mut() else { return };
        if let (false, Some(below)) = (rest.is_empty(), map.get_mut(name)) {
            remove(below, rest);
            if !is_empty(below) {
                return;
            }
        }
        map.remove(name);
    } else if let Some(list) = object.as_array_mut()
        && let Some(at) = item_at(list, step)
    {
        remove(&mut list[at], rest);
        // With its keys gone, an item is gone.
        if is_empty(&list[at]) {
            list.remove(at);
        }
    }
}

fn is_empty(value: &Value) -> bool {
    value.as_object().is_some_and(Map::is_empty) || value.as_array().is_some_and(Vec::is_empty)
}

/// Puts an applied configuration on top of the live object.
fn overlay(live: &mut Value, applied: &Value, field: &str) {
    match (applied, &mut *live) {
        (Value::Object(fields), Value::Object(map)) => {
            for (name, value) in fields {
                match map.get_mut(name) {
                    Some(old) => overlay(old, value, name),
                    None => drop(map.insert(name.clone(), value.clone())),
                }
            }
        }
        (Value::Array(items), Value::Array(list)) if keys(field, items).is_some() => {
            let Some(keys) = keys(field, items) else { return };
            for item in items {
                match list.iter().position(|old| same_item(old, item, keys)) {
                    Some(at) => overlay(&mut list[at], item, ""),
                    None => list.push(item.clone()),
                }
            }
        }
        _ => *live = applied.clone(),
    }
}

fn encode<'a>(paths: impl Iterator<Item = &'a Path>) -> Value {
    let mut tree = json!({});
    for path in paths {
        let mut at = &mut tree;
        for step in path {
            at = &mut at[step];
            if at.is_null() {
                *at = json!({});
            }
        }
    }
    tree
}

fn decode(tree: &Value) -> Vec<Path> {
    let mut found = Vec::new();
    for (step, below) in tree.as_object().into_iter().flatten() {
        if below.as_object().is_none_or(Map::is_empty) {
            found.push(vec![step.clone()]);
        }
        found.extend(decode(below).into_iter().map(|path| [vec![step.clone()], path].concat()));
    }
    found
}

/// The entries of `managedFields`, with their paths.
struct Owners(Vec<(Value, Vec<Path>)>);

impl Owners {
    fn of(object: &Value) -> Self {
        let entries = object["metadata"]["managedFields"].as_array().into_iter().flatten();
        Self(entries.map(|entry| (entry.clone(), decode(&entry["fieldsV1"]))).collect())
    }

    fn is(entry: &Value, manager: &Manager) -> bool {
        entry["manager"] == *manager.name
            && entry["operation"] == if manager.apply { "Apply" } else { "Update" }
            && entry["subresource"].as_str().unwrap_or_default() == manager.subresource
    }

    fn own(&mut self, manager: &Manager, paths: Vec<Path>) {
        let mut entry = json!({
            "manager": manager.name, "operation": if manager.apply { "Apply" } else { "Update" },
            "apiVersion": manager.api_version, "time": super::now(), "fieldsType": "FieldsV1",
        });
        if !manager.subresource.is_empty() {
            entry["subresource"] = manager.subresource.clone().into();
        }
        self.0.retain(|(other, _)| !Self::is(other, manager));
        self.0.push((entry, paths));
    }

    fn write(self, object: &mut Value) {
        let entries = self.0.into_iter().filter(|(_, paths)| !paths.is_empty()).map(|(mut entry, paths)| {
            entry["fieldsV1"] = encode(paths.iter());
            entry
        });
        object["metadata"]["managedFields"] = entries.collect();
    }
}

/// Notes that a manager wrote what differs between the two.
pub fn track(old: Option<&Value>, new: &mut Value, manager: &Manager) {
    let mut owners = Owners::of(old.unwrap_or(new));
    let now = leaves(new);
    let before = old.map(leaves).unwrap_or_default();
    let changed: Vec<Path> =
        now.iter().filter(|(path, value)| before.get(*path) != Some(value)).map(|(path, _)| path.clone()).collect();
    let mut own = Vec::new();
    for (entry, paths) in &mut owners.0 {
        paths.retain(|path| now.contains_key(path) && !changed.contains(path));
        if Owners::is(entry, manager) {
            own.clone_from(paths);
        }
    }
    let touched = !changed.is_empty();
    own.extend(changed);
    if touched {
        owners.own(manager, own);
    }
    owners.write(new);
}

/// The live object (or nothing yet) after server-side apply of a configuration.
pub fn apply(
    live: Option<&Value>,
    applied: &Value,
    manager: &Manager,
    force: bool,
    kind: &Kind,
) -> Result<Value, Failure> {
    let mut object = live.cloned().unwrap_or_else(|| json!({"metadata": {}}));
    let mut owners = Owners::of(&object);
    let wanted = leaves(applied);
    let mut conflicts = Vec::new();
    for (entry, paths) in owners.0.iter_mut().filter(|(entry, _)| !Owners::is(entry, manager)) {
        let differs = |path: &Path| wanted.get(path).is_some_and(|value| at(&object, path) != Some(*value));
        let lost: Vec<_> = paths.iter().filter(|path| differs(path)).cloned().collect();
        if !force {
            let name = entry["manager"].as_str().unwrap_or_default();
            conflicts.extend(lost.iter().map(|path| (name.to_owned(), shown(path))));
        }
        paths.retain(|path| !lost.contains(path));
    }
    if !conflicts.is_empty() {
        let told: Vec<_> = conflicts.iter().map(|(name, field)| format!("conflict with \"{name}\": {field}")).collect();
        let count = if told.len() == 1 { "1 conflict".to_owned() } else { format!("{} conflicts", told.len()) };
        let mut failure = Failure::new(409, "Conflict", format!("Apply failed with {count}: {}", told.join(", ")));
        let cause = |(name, field): &(String, String)| json!({"reason": "FieldManagerConflict", "field": field, "message": format!("conflict with \"{name}\"")});
        failure.details = json!({"kind": kind.plural, "causes": conflicts.iter().map(cause).collect::<Vec<_>>()});
        return Err(failure);
    }
    // What this manager applied before and does not any more goes, unless somebody else wants it, too.
    let before = owners.0.iter().find(|(entry, _)| Owners::is(entry, manager)).map(|(_, paths)| paths.clone());
    for path in before.unwrap_or_default() {
        let shared = owners.0.iter().any(|(entry, paths)| !Owners::is(entry, manager) && paths.contains(&path));
        if !shared && !wanted.contains_key(&path) {
            remove(&mut object, &path);
        }
    }
    let mut applied_only = applied.clone();
    if let Some(metadata) = applied_only["metadata"].as_object_mut() {
        metadata.retain(|field, _| !NOBODYS.contains(&field.as_str()) || live.is_none());
        metadata.remove("managedFields");
    }
    overlay(&mut object, &applied_only, "");
    owners.own(manager, wanted.into_keys().collect());
    owners.write(&mut object);
    Ok(object)
}

/// `.spec.containers[name="a"].image`
fn shown(path: &[String]) -> String {
    path.iter()
        .map(|step| match step.strip_prefix("f:") {
            Some(name) => format!(".{name}"),
            None => {
                let item: Value = serde_json::from_str(&step[2..]).unwrap_or_default();
                let parts: Vec<_> =
                    item.as_object().into_iter().flatten().map(|(key, value)| format!("{key}={value}")).collect();
                format!("[{}]", parts.join(","))
            }
        })
        .collect()
}
