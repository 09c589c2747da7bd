//! Where the caller is and where the endpoints are: `localityLbSetting`.
//!
//! `distribute` gives each locality a share of the requests. `failover` and `failoverPriority` rank the endpoints: the
//! nearest are used while enough of them are healthy, and the next ones bit by bit once they are not (Envoy's priority
//! levels, with its overprovisioning factor of 1.4).

use std::collections::BTreeMap;

use rand::RngExt as _;
use twox_hash::XxHash64;

use crate::mesh::{Endpoint, LocalitySetting};

/// Envoy's overprovisioning factor, in percent: a level is fully used while 1/1.4 = 71 % of it are healthy.
const OVERPROVISIONING: u64 = 140;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct From<'a> {
    /// `region/zone/subzone`; empty where nothing says.
    pub locality: &'a str,
    pub labels: &'a BTreeMap<String, String>,
}

/// What a setting makes of the candidates.
#[derive(Debug, PartialEq, Eq)]
pub enum Plan {
    /// All alike.
    Flat,
    /// The level of each candidate: 0 is the nearest, none is skipped.
    Levels(Vec<usize>),
    /// Groups of candidates and their shares of the requests.
    Shares(Vec<(Vec<usize>, u64)>),
}

/// What the setting says about these candidates, for this caller. Without outlier detection nothing would ever be found
/// unhealthy, so that Istio gives failover no effect then.
pub fn plan(setting: &LocalitySetting, outliers: bool, from: &From<'_>, candidates: &[Endpoint]) -> Plan {
    if setting.enabled == Some(false) {
        return Plan::Flat;
    }
    if !setting.distribute.is_empty() {
        let shares =
            setting.distribute.iter().find(|(rule, _)| !from.locality.is_empty() && matches(from.locality, rule));
        return shares.map_or(Plan::Flat, |(_, to)| distribute(to, candidates));
    }
    if !outliers {
        return Plan::Flat;
    }
    let ranks: Vec<usize> = if !setting.failover_priority.is_empty() {
        candidates.iter().map(|candidate| label_rank(&setting.failover_priority, from, candidate)).collect()
    } else if from.locality.is_empty() {
        return Plan::Flat;
    } else {
        candidates.iter().map(|candidate| distance(setting, from.locality, &candidate.locality)).collect()
    };
    levels(&ranks)
}

/// Region, zone and subzone; what is missing is empty.
fn parts(locality: &str) -> [&str; 3] {
    let mut parts = locality.splitn(3, '/');
    std::array::from_fn(|_| parts.next().unwrap_or_default())
}

/// A rule's locality holds for one: `*` for anything, a part left out for anything, too, but for the region.
fn matches(locality: &str, rule: &str) -> bool {
    let ([region, zone, subzone], [for_region, for_zone, for_subzone]) = (parts(locality), parts(rule));
    (for_region == "*" || for_region == region)
        && (matches!(for_zone, "" | "*") || for_zone == zone)
        && (matches!(for_subzone, "" | "*") || for_subzone == subzone)
}

/// Each endpoint belongs to the first entry that holds for it; an entry that holds for several localities is shared out
/// by their endpoints' weights. What no entry names gets nothing.
fn distribute(to: &[(String, u32)], candidates: &[Endpoint]) -> Plan {
    let mut groups: Vec<(Vec<usize>, u64)> = to.iter().map(|(_, weight)| (Vec::new(), u64::from(*weight))).collect();
    for (index, candidate) in candidates.iter().enumerate() {
        let entry = to.iter().position(|(rule, _)| matches(&candidate.locality, rule));
        if let Some((members, _)) = entry.and_then(|entry| groups.get_mut(entry)) {
            members.push(index);
        }
    }
    groups.retain(|(members, weight)| !members.is_empty() && *weight > 0);
    Plan::Shares(groups)
}

/// How far an endpoint is: 0 the same subzone, 1 the zone, 2 the region, 3 elsewhere (with a `failover` rule for the
/// caller's region: the region it names), 4 elsewhere against such a rule.
fn distance(setting: &LocalitySetting, from: &str, to: &str) -> usize {
    if from == to {
        return 0;
    }
    let ([region, zone, subzone], [to_region, to_zone, to_subzone]) = (parts(from), parts(to));
    match (region == to_region, zone == to_zone, subzone == to_subzone) {
        (true, true, true) => 0,
        (true, true, false) => 1,
        (true, false, _) => 2,
        (false, ..) => {
            let rule = setting.failover.iter().find(|(from, _)| from == region);
            if rule.is_some_and(|(_, to)| to != to_region) { 4 } else { 3 }
        }
    }
}

/// The number of labels that are left from the first one that differs.
fn label_rank(labels: &[String], from: &From<'_>, candidate: &Endpoint) -> usize {
    let differs = labels.iter().position(|label| {
        let (name, wanted) = match label.split_once('=') {
            Some((name, value)) => (name, value),
            None => (label.as_str(), from.labels.get(label).map_or("", String::as_str)),
        };
        candidate.labels.get(name).map_or("", String::as_str) != wanted
    });
    differs.map_or(0, |at| labels.len() - at)
}

/// Ranks without gaps.
fn levels(ranks: &[usize]) -> Plan {
    let mut used = ranks.to_vec();
    used.sort_unstable();
    used.dedup();
    if used.len() < 2 {
        return Plan::Flat;
    }
    Plan::Levels(ranks.iter().map(|rank| used.partition_point(|used| used < rank)).collect())
}

/// The candidates among which the policy chooses now. None: all of them.
///
/// `ejected` marks the unhealthy ones; `panic` is the percentage of healthy ones below which health is not looked at
/// (Envoy's panic threshold; 0: never). Requests of one hash are treated alike.
pub fn select(
    plan: &Plan,
    ejected: Option<&[bool]>,
    count: usize,
    panic: u32,
    hash: Option<u64>,
) -> Option<Vec<usize>> {
    let healthy = |index: &usize| ejected.is_none_or(|ejected| !ejected.get(*index).copied().unwrap_or_default());
    match plan {
        Plan::Flat => {
            ejected?;
            let all: Vec<usize> = (0..count).collect();
            Some(group(&all, healthy, panic))
        }
        Plan::Shares(groups) => {
            let members: Vec<usize> = groups.iter().flat_map(|(members, _)| members).copied().collect();
            if panics(&members, healthy, panic) {
                return Some(members);
            }
            let weights = groups.iter().map(|(members, weight)| weight * available(members, healthy));
            let chosen = drawn(&weights.collect::<Vec<_>>(), hash);
            let members = chosen.and_then(|chosen| groups.get(chosen)).map(|(members, _)| members.as_slice());
            Some(members.unwrap_or_default().iter().copied().filter(healthy).collect())
        }
        Plan::Levels(of) => {
            let mut levels: Vec<Vec<usize>> = vec![Vec::new(); of.iter().max().map_or(0, |last| last + 1)];
            for (index, level) in of.iter().enumerate() {
                levels[*level].push(index);
            }
            let available: Vec<u64> = levels.iter().map(|level| available(level, healthy)).collect();
            let total: u64 = available.iter().sum::<u64>().min(100);
            let enough = total == 100;
            if !enough && levels.iter().all(|level| panics(level, healthy, panic)) {
                return None;
            }
            let mut left = 100;
            let loads: Vec<u64> = available
                .iter()
                .map(|available| {
                    let load = (available * 100).checked_div(total).unwrap_or_default().min(left);
                    left -= load;
                    load
                })
                .collect();
            let chosen = drawn(&loads, hash).and_then(|chosen| levels.get(chosen));
            let chosen = chosen.map(Vec::as_slice).unwrap_or_default();
            Some(group(chosen, healthy, if enough { 0 } else { panic }))
        }
    }
}

/// Percent of a group that may be used, 100 at most.
fn available(members: &[usize], healthy: impl Fn(&usize) -> bool) -> u64 {
    let count = members.iter().filter(|index| healthy(index)).count() as u64;
    (count * OVERPROVISIONING).checked_div(members.len() as u64).unwrap_or_default().min(100)
}

fn panics(members: &[usize], healthy: impl Fn(&usize) -> bool, threshold: u32) -> bool {
    let count = members.iter().filter(|index| healthy(index)).count() as u64;
    count * 100 < u64::from(threshold) * members.len() as u64
}

fn group(members: &[usize], healthy: impl Fn(&usize) -> bool + Copy, threshold: u32) -> Vec<usize> {
    if panics(members, healthy, threshold) {
        return members.to_vec();
    }
    members.iter().copied().filter(healthy).collect()
}

/// One of these by weight: by hash where there is one. None: all weights are 0.
fn drawn(weights: &[u64], hash: Option<u64>) -> Option<usize> {
    let total: u64 = weights.iter().sum();
    if total == 0 {
        return None;
    }
    let mut point = match hash {
        // Not the bits that choose the endpoint afterwards.
        Some(hash) => XxHash64::oneshot(LEVEL_SEED, &hash.to_le_bytes()) % total,
        None => rand::rng().random_range(0..total),
    };
    weights.iter().position(|weight| {
        let here = point < *weight;
        point = point.saturating_sub(*weight);
        here
    })
}

/// Any number but the ones that the tables use.
const LEVEL_SEED: u64 = 0x10ca1;
