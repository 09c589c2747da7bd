//! `apiVersion`, `kind` and `metadata`: who an object is.

use super::super::{
    decode::{Field, Fields},
    values,
};
use crate::api::ObjectMeta;

const READ: &[&str] = &["name", "namespace", "labels", "annotations", "creationTimestamp"];
const IGNORED: &[&str] = &[
    "uid",
    "resourceVersion",
    "generation",
    "generateName",
    "managedFields",
    "ownerReferences",
    "finalizers",
    "selfLink",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
];

/// Reads `metadata`. A namespaced object without namespace is in `default`, one of the cluster in none ("").
pub fn metadata(root: &Fields<'_>, namespaced: bool) -> Option<ObjectMeta> {
    let field = root.require("metadata")?;
    let fields = field.fields(READ, IGNORED, &[])?;
    let name_field = fields.require("name")?;
    let name = name_field.string()?;
    if !values::object_name(&name) {
        name_field.error(format!("\"{name}\" is not a name: lower-case letters, digits, `-` and `.`, 253 at most"));
        return None;
    }
    let namespace =
        if namespaced { fields.string("namespace").unwrap_or_else(|| "default".to_owned()) } else { String::new() };
    if namespaced && (!values::dns_label(&namespace) || !values::object_name(&namespace)) {
        report(&fields.get("namespace"), format!("\"{namespace}\" is not a name of a namespace"));
        return None;
    }
    Some(ObjectMeta {
        name: name.into(),
        namespace: namespace.into(),
        labels: fields.string_map("labels"),
        annotations: fields.string_map("annotations"),
        creation_timestamp: fields.string("creationTimestamp"),
    })
}

fn report(field: &Option<Field<'_>>, message: String) {
    if let Some(field) = field {
        field.error(message);
    }
}
