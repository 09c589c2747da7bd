//! `egret explain POD URL`: the data path's own lookups, with what decided at each step, through every gateway on the way.

mod choice;
mod policies;
mod receiver;
mod target;
mod tls;
mod way;

pub use target::{Kind, Target};

use super::{
    AdminState,
    rows::{Explanation, Step},
};
use crate::{engine::Snapshot, mesh::Workload};

struct Steps(Vec<Step>);

impl Steps {
    fn add(&mut self, what: &str, value: impl Into<String>, why: impl Into<String>) {
        self.0.push(Step { what: what.to_owned(), value: value.into(), why: why.into() });
    }
}

/// Follows one request (a GET without headers of its own) or connection of `workload`; where the port is that of a listener
/// of the gateway which it is, one that comes to it there.
pub async fn explain(state: &dyn AdminState, snapshot: &Snapshot, workload: &Workload, target: &Target) -> Explanation {
    let mut way = way::Way { state, snapshot, target: target.clone(), taken_off: false, steps: Steps(Vec::new()) };
    let verdict = way.walk(workload).await;
    Explanation { pod: workload.id.to_string(), url: target.url(), steps: way.steps.0, verdict }
}
