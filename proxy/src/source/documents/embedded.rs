//! YAML inside a text value of YAML: the ConfigMap `istio` holds mesh settings so.

use crate::source::yaml::{self, Fault, Node, Position, Value};

/// The YAML inside a text value, its places shifted to where the text lies.
pub(super) fn inner(holder: &Node) -> Result<Node, Vec<Fault>> {
    let Some(text) = holder.text() else {
        return Err(vec![Fault { at: holder.at, message: "must be text that holds YAML (`mesh: |`)".to_owned() }]);
    };
    let block = match &holder.value {
        Value::Text { block, .. } => *block,
        _ => None,
    };
    let shift = |at: Position| match block {
        Some(block) => (at.0.saturating_add(block.line).saturating_sub(1), at.1.saturating_add(block.indent)),
        None => holder.at,
    };
    let mut documents = yaml::documents(text);
    if documents.len() > 1 {
        return Err(vec![Fault { at: holder.at, message: "must hold one document".to_owned() }]);
    }
    let moved = |fault: Fault| Fault { at: shift(fault.at), ..fault };
    match documents.pop() {
        None => Ok(Node { at: holder.at, value: Value::Plain(String::new()) }),
        Some(Err(fault)) => Err(vec![moved(fault)]),
        Some(Ok(document)) if !document.faults.is_empty() => Err(document.faults.into_iter().map(moved).collect()),
        Some(Ok(document)) => {
            let mut root = document.root;
            root.relocate(&shift);
            root.at = holder.at;
            Ok(root)
        }
    }
}

/// Puts `tree` in the place of the entry `outer.key`.
pub(super) fn replace(root: &mut Node, outer: &str, key: &str, tree: Node) {
    let Value::Map(entries) = &mut root.value else { return };
    for entry in entries.iter_mut().filter(|entry| entry.key == outer) {
        let Value::Map(entries) = &mut entry.node.value else { return };
        for entry in entries.iter_mut().filter(|entry| entry.key == key) {
            entry.node = tree.clone();
        }
    }
}
