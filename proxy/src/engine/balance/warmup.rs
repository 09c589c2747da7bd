//! `warmup`: an endpoint that is new gets its share of the load bit by bit (Envoy's slow start).

use std::collections::{HashMap, HashSet};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::policy::Share;
use crate::mesh::{Endpoint, EndpointAddress, Warmup};

/// Weights are multiplied by this, so that a part of weight 1 is a number.
const SCALE: f64 = 1000.0;

/// Since when each endpoint of a cluster is known. None: it was there when the cluster was first looked at.
#[derive(Debug, Default)]
pub struct Newcomers(Mutex<HashMap<EndpointAddress, Option<Instant>>>);

impl Newcomers {
    /// Gives the open endpoints the weights of their age. `candidates` are all that the cluster has.
    pub fn weigh(&self, settings: &Warmup, candidates: &[Endpoint], open: &mut [Share], now: Instant) {
        let mut known = self.0.lock();
        let since = (!known.is_empty()).then_some(now);
        for candidate in candidates {
            if !known.contains_key(&candidate.address) {
                known.insert(candidate.address.clone(), since);
            }
        }
        if known.len() > candidates.len() {
            // Who comes back is new again.
            let here: HashSet<_> = candidates.iter().map(|candidate| &candidate.address).collect();
            known.retain(|address, _| here.contains(address));
        }
        for share in open {
            let since =
                candidates.get(share.index).and_then(|candidate| known.get(&candidate.address).copied().flatten());
            let part = since.map_or(1.0, |since| part(settings, now.saturating_duration_since(since).as_secs_f64()));
            share.weight = ((share.weight as f64 * part * SCALE) as u64).max(1);
        }
    }
}

/// The part of its weight that an endpoint of this age (in seconds) gets.
fn part(settings: &Warmup, age: f64) -> f64 {
    let duration = settings.duration.as_secs_f64();
    if age >= duration {
        return 1.0;
    }
    let least = f64::from(settings.minimum_percent.min(100)) / 100.0;
    let aggression = f64::from(settings.aggression_thousandths.max(1)) / 1000.0;
    // As Envoy has it: the first second counts as one second.
    let part = (age.max(1.0) / duration).powf(1.0 / aggression);
    part.clamp(least, 1.0)
}
