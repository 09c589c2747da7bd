//! What the controller waits for and what it counts, as its probes and metrics tell it.

use std::{collections::BTreeMap, fmt};

use parking_lot::Mutex;

use super::metrics::Metrics;
use crate::admin::HealthState;

/// What may be awaited.
pub type Part = &'static str;

pub const LEASE: Part = "lease";
pub const AUTHORITY: Part = "authority";

/// A controller that stands by is ready; a leader that cannot work is not.
#[derive(Debug, Default)]
pub struct Health {
    pub metrics: Metrics,
    awaited: Mutex<BTreeMap<Part, String>>,
}

impl Health {
    /// None: nothing any more. Says it in the log where it is new.
    pub fn awaits(&self, part: Part, what: Option<String>) {
        let mut awaited = self.awaited.lock();
        match what {
            Some(what) => {
                if awaited.get(part) != Some(&what) {
                    log::warn!("{what}");
                    awaited.insert(part, what);
                }
            }
            None => {
                awaited.remove(part);
            }
        }
    }

    /// What a leader waits for counts no more.
    pub fn follows(&self) {
        self.awaited.lock().retain(|part, _| *part == LEASE);
    }
}

impl HealthState for Health {
    fn readiness(&self) -> Vec<String> {
        self.awaited.lock().values().cloned().collect()
    }

    fn metrics(&self) -> Result<String, fmt::Error> {
        self.metrics.encode()
    }
}
