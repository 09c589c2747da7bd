//! security.istio.io: who may call a workload, and how.

mod authorization_policy;
mod peer_authentication;

use std::collections::BTreeMap;

pub use authorization_policy::authorization_policy;
pub use peer_authentication::peer_authentication;

use super::super::decode::{Field, Fields};

/// `selector.matchLabels`; empty where no workload is singled out.
fn selector(fields: &Fields<'_>) -> BTreeMap<String, String> {
    let given = fields.get("selector").and_then(|f| f.fields(&["matchLabels"], &[], &[]));
    given.and_then(|given| given.get("matchLabels")).map(|field| labels(&field)).unwrap_or_default()
}

/// Labels that a workload must bear. A `*` in them is compared as it is, which nobody means.
pub fn labels(field: &Field<'_>) -> BTreeMap<String, String> {
    for (key, value) in field.entries() {
        if key.is_empty() || key.contains('*') || value.node.text().is_some_and(|text| text.contains('*')) {
            value.error("labels are compared as they are: neither an empty key nor `*` selects anything");
        }
    }
    field.string_map()
}
