//! Patches: JSON merge patch (RFC 7396), JSON patch (RFC 6902), strategic merge patch.

use serde_json::{Map, Value};

/// RFC 7396.
pub fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().map(|map| map.remove(key));
        } else {
            merge(&mut target[key], value);
        }
    }
}

/// As [`merge`], but lists whose items have keys are merged item by item, with `$patch: delete` and `$patch: replace`.
pub fn strategic(target: &mut Value, patch: &Value, field: &str) {
    match patch {
        Value::Object(patch) => {
            if patch.get("$patch").is_some_and(|what| what == "replace") || !target.is_object() {
                *target = Value::Object(Map::new());
            }
            for (key, value) in patch.iter().filter(|(key, _)| !key.starts_with('$')) {
                if value.is_null() {
                    target.as_object_mut().map(|map| map.remove(key));
                } else {
                    strategic(&mut target[key], value, key);
                }
            }
        }
        Value::Array(items) => match keys(field, items) {
            Some(keys) => strategic_list(target, items, keys, field),
            None => *target = patch.clone(),
        },
        _ => *target = patch.clone(),
    }
}

fn strategic_list(target: &mut Value, items: &[Value], keys: &[&str], field: &str) {
    if !target.is_array() || items.iter().any(|item| item.get("$patch").is_some_and(|what| what == "replace")) {
        *target = Value::Array(Vec::new());
    }
    let Some(list) = target.as_array_mut() else { return };
    for item in items {
        let at = list.iter().position(|old| same_item(old, item, keys));
        match (at, item.get("$patch").and_then(Value::as_str)) {
            (Some(at), Some("delete")) => drop(list.remove(at)),
            (_, Some(_)) => {}
            (Some(at), None) => strategic(&mut list[at], item, field),
            (None, None) => {
                let mut fresh = Value::Null;
                strategic(&mut fresh, item, field);
                list.push(fresh);
            }
        }
    }
}

/// The fields that tell items of a list apart (`x-kubernetes-list-map-keys`), for the lists of the kinds known here. None for a
/// list that is replaced as a whole.
pub fn keys(field: &str, items: &[Value]) -> Option<&'static [&'static str]> {
    let first = items.first()?;
    let found: &[&str] = match field {
        "conditions" => &["type"],
        "containers" | "initContainers" | "env" | "volumes" | "listeners" | "imagePullSecrets" | "secrets" => &["name"],
        "volumeMounts" => &["mountPath"],
        "ownerReferences" => &["uid"],
        "ports" if first.get("containerPort").is_some() => &["containerPort", "protocol"],
        "ports" if first.get("port").is_some() => &["port", "protocol"],
        _ => return None,
    };
    items.iter().all(|item| item.get(found[0]).is_some()).then_some(found)
}

/// Whether two items of such a list are the same one.
pub fn same_item(one: &Value, other: &Value, keys: &[&str]) -> bool {
    keys.iter().all(|key| key_of(one, key) == key_of(other, key))
}

pub fn key_of(item: &Value, key: &str) -> Value {
    match item.get(key) {
        Some(value) => value.clone(),
        None if key == "protocol" => "TCP".into(),
        None => Value::Null,
    }
}

/// RFC 6902. The error is what the client is told.
pub fn json_patch(target: &mut Value, operations: &Value) -> Result<(), String> {
    for operation in operations.as_array().ok_or("a JSON patch is a list")? {
        let text = |field: &str| operation[field].as_str().unwrap_or_default();
        let path = text("path");
        match text("op") {
            "add" => insert(target, path, operation["value"].clone())?,
            "replace" => {
                let place = target.pointer_mut(path).ok_or_else(|| missing(path))?;
                *place = operation["value"].clone();
            }
            "remove" => drop(take(target, path)?),
            "move" => {
                let value = take(target, text("from"))?;
                insert(target, path, value)?;
            }
            "copy" => {
                let value = target.pointer(text("from")).ok_or_else(|| missing(text("from")))?.clone();
                insert(target, path, value)?;
            }
            "test" if target.pointer(path) == Some(&operation["value"]) => {}
            "test" => return Err(format!("testing path {path} failed: test failed")),
            other => return Err(format!("unexpected kind: {other}")),
        }
    }
    Ok(())
}

fn missing(path: &str) -> String {
    format!("doc is missing path: {path}: missing value")
}

fn split(path: &str) -> Result<(&str, String), String> {
    let (parent, last) = path.rsplit_once('/').ok_or_else(|| missing(path))?;
    Ok((parent, last.replace("~1", "/").replace("~0", "~")))
}

fn insert(target: &mut Value, path: &str, value: Value) -> Result<(), String> {
    if path.is_empty() {
        *target = value;
        return Ok(());
    }
    let (parent, last) = split(path)?;
    match target.pointer_mut(parent) {
        Some(Value::Object(map)) => drop(map.insert(last, value)),
        Some(Value::Array(list)) if last == "-" => list.push(value),
        Some(Value::Array(list)) => {
            let at = last.parse().ok().filter(|at| *at <= list.len()).ok_or_else(|| missing(path))?;
            list.insert(at, value);
        }
        _ => return Err(missing(path)),
    }
    Ok(())
}

fn take(target: &mut Value, path: &str) -> Result<Value, String> {
    let (parent, last) = split(path)?;
    match target.pointer_mut(parent) {
        Some(Value::Object(map)) => map.remove(&last).ok_or_else(|| missing(path)),
        Some(Value::Array(list)) => {
            let at = last.parse().ok().filter(|at| *at < list.len()).ok_or_else(|| missing(path))?;
            Ok(list.remove(at))
        }
        _ => Err(missing(path)),
    }
}
