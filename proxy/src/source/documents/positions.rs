//! Where in the text the fields of a document are.

use std::collections::HashMap;

use crate::{
    api::Positions,
    source::{
        decode::{Dialect, camel, join},
        yaml::{Node, Position, Value},
    },
};

/// Every field path of a document with its place, whose lines count from the document's first. Mesh settings are found by their own paths too (`trustDomain`),
/// whatever holds them.
pub(super) fn positions(root: &Node, dialect: Dialect) -> Positions {
    let mut map = HashMap::new();
    walk(root, "", dialect, &mut map);
    for holder in [root.get("data").and_then(|d| d.get("mesh")), root.get("spec").and_then(|s| s.get("meshConfig"))] {
        if let Some(Node { value: Value::Map(entries), .. }) = holder {
            for entry in entries {
                map.insert(camel(&entry.key), entry.node.at);
                walk(&entry.node, &camel(&entry.key), Dialect::Istio, &mut map);
            }
        }
    }
    let before = root.at.0.saturating_sub(1);
    map.into_iter().map(|(path, (line, column))| (path, (line.saturating_sub(before), column))).collect()
}

fn walk(node: &Node, path: &str, dialect: Dialect, map: &mut HashMap<String, Position>) {
    match &node.value {
        Value::Map(entries) => {
            for entry in entries {
                let child = join(path, &entry.key);
                map.insert(child.clone(), entry.node.at);
                let name = if dialect == Dialect::Istio { camel(&entry.key) } else { entry.key.clone() };
                let canonical = if name == entry.key { child } else { join(path, &name) };
                walk(&entry.node, &canonical, dialect, map);
                map.entry(canonical).or_insert(entry.node.at);
            }
        }
        Value::List(items) => {
            for (i, item) in items.iter().enumerate() {
                let child = format!("{path}[{i}]");
                walk(item, &child, dialect, map);
                map.insert(child, item.at);
            }
        }
        Value::Plain(_) | Value::Text { .. } => {}
    }
}
