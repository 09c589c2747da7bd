//! `/config_dump`: everything that is in force, as JSON. The table holds names of Secrets and files and no key material.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Value, json};

use super::AdminState;
use crate::mesh::Outbound;

/// The dump. Workloads that share a table refer to it by its number.
pub fn config(state: &dyn AdminState) -> Result<Value, serde_json::Error> {
    let snapshot = state.snapshot();
    let mut tables = Tables::default();
    let mut workloads = serde_json::Map::new();
    for (id, workload) in &snapshot.mesh.workloads {
        let table = tables.number(&workload.outbound)?;
        workloads.insert(
            id.to_string(),
            json!({
                "serviceAccount": workload.service_account,
                "labels": workload.labels,
                "netns": workload.netns,
                "identity": workload.identity,
                "locality": workload.locality,
                "inbound": workload.inbound,
                "gateway": workload.gateway,
                "table": table,
            }),
        );
    }
    let origins: BTreeMap<_, _> =
        snapshot.mesh.origins.iter().map(|(id, location)| (id.to_string(), location.to_string())).collect();
    let failures: Vec<_> = snapshot.tls.failures().map(|(_, error)| error.to_string()).collect();
    Ok(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "generation": snapshot.generation,
        "settings": snapshot.mesh.settings,
        "workloads": workloads,
        "tables": tables.dumped,
        "origins": origins,
        "tlsFailures": failures,
        "diagnostics": state.diagnostics().iter().map(ToString::to_string).collect::<Vec<_>>(),
    }))
}

#[derive(Default)]
struct Tables {
    numbers: BTreeMap<usize, usize>,
    dumped: Vec<Value>,
}

impl Tables {
    fn number(&mut self, table: &Arc<Outbound>) -> Result<usize, serde_json::Error> {
        let key = Arc::as_ptr(table) as usize;
        if let Some(number) = self.numbers.get(&key) {
            return Ok(*number);
        }
        let base = table.base.as_ref().map(|base| self.number(base)).transpose()?;
        let mut value = serde_json::to_value(&**table)?;
        if let (Value::Object(members), Some(base)) = (&mut value, base) {
            members.insert("baseTable".to_owned(), base.into());
        }
        let number = self.dumped.len();
        self.dumped.push(value);
        self.numbers.insert(key, number);
        Ok(number)
    }
}
