//! ReferenceGrant.

use super::{super::super::decode::Fields, namespace};
use crate::api::gateway_api::{GrantFrom, GrantTo, ReferenceGrant};

/// Reads a ReferenceGrant.
pub fn reference_grant(root: &Fields<'_>) -> Option<ReferenceGrant> {
    let fields = root.require("spec")?.fields(&["from", "to"], &[], &[])?;
    let mut grant = ReferenceGrant::default();
    for field in fields.require("from")?.items() {
        let Some(given) = field.fields(&["group", "kind", "namespace"], &[], &[]) else { continue };
        let (group, kind) = (given.require("group"), given.require("kind"));
        let place = given.require("namespace").and_then(|field| namespace(&field));
        let text = |field: Option<_>| field.and_then(|field: super::Field<'_>| field.string());
        if let (Some(group), Some(kind), Some(namespace)) = (text(group), text(kind), place) {
            grant.from.push(GrantFrom { group, kind, namespace });
        }
    }
    for field in fields.require("to")?.items() {
        let Some(given) = field.fields(&["group", "kind", "name"], &[], &[]) else { continue };
        let group = given.require("group").and_then(|field| field.string());
        let kind = given.require("kind").and_then(|field| field.string());
        if let (Some(group), Some(kind)) = (group, kind) {
            grant.to.push(GrantTo { group, kind, name: given.string("name") });
        }
    }
    for (name, empty) in [("from", grant.from.is_empty()), ("to", grant.to.is_empty())] {
        if let (Some(field), true) = (fields.get(name), empty) {
            field.error("must have at least one entry");
        }
    }
    Some(grant)
}
