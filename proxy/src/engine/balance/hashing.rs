//! `consistentHash`: a request goes to the endpoint that its hash falls to, and an endpoint that comes or goes moves
//! little more than its own share of the requests.
//!
//! Both tables are built as Envoy builds them, from the endpoints' addresses and weights with XXH64: every pod has the
//! same ones, before and after a restart.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use parking_lot::Mutex;
use twox_hash::XxHash64;

use super::policy::Share;
use crate::{
    engine::dial::address_text,
    limits,
    mesh::{Cluster, Discovery, Endpoint, EndpointAddress, HashRing},
};

/// The table last used. It is built anew only where the endpoints or the setting changed.
#[derive(Debug, Default)]
pub struct Tables(Mutex<Option<Built>>);

#[derive(Debug)]
struct Built {
    /// The table was found fit for this one; kept so that the comparison by address means something.
    cluster: Arc<Cluster>,
    ring: HashRing,
    fingerprint: u64,
    table: Arc<Table>,
}

impl Tables {
    /// The index of the endpoint, one of `open`, to which `hash` leads.
    pub fn pick(
        &self,
        cluster: &Arc<Cluster>,
        ring: HashRing,
        candidates: &[Endpoint],
        open: &[Share],
        hash: u64,
    ) -> Option<usize> {
        if let [only] = open {
            return Some(only.index);
        }
        let table = self.table(cluster, ring, candidates);
        if open.len() == candidates.len() {
            return table.find(candidates, hash, |_| true);
        }
        let mut may = vec![false; candidates.len()];
        for share in open {
            may[share.index] = true;
        }
        table.find(candidates, hash, |index| may[index]).or_else(|| open.first().map(|share| share.index))
    }

    pub(super) fn table(&self, cluster: &Arc<Cluster>, ring: HashRing, candidates: &[Endpoint]) -> Arc<Table> {
        let mut built = self.0.lock();
        let listed = matches!(&cluster.discovery, Discovery::Static(_));
        if let Some(built) = &*built
            && listed
            && Arc::ptr_eq(&built.cluster, cluster)
        {
            return built.table.clone();
        }
        let fingerprint = fingerprint(candidates);
        if let Some(built) = &mut *built
            && (built.ring, built.fingerprint) == (ring, fingerprint)
        {
            built.cluster = cluster.clone();
            return built.table.clone();
        }
        let table = Arc::new(Table::new(ring, candidates));
        *built = Some(Built { cluster: cluster.clone(), ring, fingerprint, table: table.clone() });
        table
    }
}

/// The hash of what `consistentHash` takes from a request, as Envoy computes it.
pub fn hash_of(key: &[u8]) -> u64 {
    XxHash64::oneshot(0, key)
}

/// The same for the same endpoints in whatever order. Only compared within this process.
fn fingerprint(candidates: &[Endpoint]) -> u64 {
    candidates.iter().fold(candidates.len() as u64, |sum, candidate| {
        let mut hasher = DefaultHasher::new();
        (&candidate.address, candidate.weight).hash(&mut hasher);
        sum.wrapping_add(hasher.finish())
    })
}

const MOST: u64 = limits::HASH_TABLE_MOST as u64;

#[derive(Debug)]
struct Member {
    address: EndpointAddress,
    /// Where it was among the candidates when the table was built; it mostly still is.
    hint: usize,
}

#[derive(Debug)]
pub struct Table {
    members: Vec<Member>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// Points in order, each with its member.
    Ring(Vec<(u64, u32)>),
    /// A member for each place.
    Maglev(Vec<u32>),
}

impl Table {
    pub fn new(ring: HashRing, candidates: &[Endpoint]) -> Self {
        let mut members: Vec<_> = candidates
            .iter()
            .enumerate()
            .map(|(hint, candidate)| {
                (
                    address_text(&candidate.address),
                    u64::from(candidate.weight.max(1)),
                    Member { address: candidate.address.clone(), hint },
                )
            })
            .collect();
        // The order in which names resolve must not matter.
        members.sort_by(|a, b| a.0.cmp(&b.0));
        members.dedup_by(|a, b| a.0 == b.0);
        let weighted: Vec<(&str, u64)> = members.iter().map(|(text, weight, _)| (text.as_str(), *weight)).collect();
        let kind = match ring {
            HashRing::Ring { minimum } => Kind::Ring(ring_points(&weighted, minimum)),
            HashRing::Maglev { table } => Kind::Maglev(maglev(&weighted, table)),
        };
        Self { members: members.into_iter().map(|(_, _, member)| member).collect(), kind }
    }

    /// The candidate to which `hash` leads, or the next one that `may` be taken.
    pub fn find(&self, candidates: &[Endpoint], hash: u64, may: impl Fn(usize) -> bool) -> Option<usize> {
        let member = |number: u32| -> Option<usize> {
            let member = self.members.get(number as usize)?;
            let index = match candidates.get(member.hint) {
                Some(candidate) if candidate.address == member.address => member.hint,
                _ => candidates.iter().position(|candidate| candidate.address == member.address)?,
            };
            may(index).then_some(index)
        };
        match &self.kind {
            Kind::Ring(points) => {
                let start = points.partition_point(|(point, _)| *point < hash);
                let (before, after) = points.split_at_checked(start)?;
                let mut last = None;
                after.iter().chain(before).find_map(|(_, number)| {
                    // Neighbours of one member are common; what was refused once is not looked up again.
                    if last == Some(*number) {
                        return None;
                    }
                    last = Some(*number);
                    member(*number)
                })
            }
            Kind::Maglev(places) => {
                let size = places.len() as u64;
                let mut hash = hash;
                for _ in 0..self.members.len().saturating_mul(4) {
                    let place = places.get(usize::try_from(hash.checked_rem(size)?).ok()?)?;
                    if let Some(found) = member(*place) {
                        return Some(found);
                    }
                    // Whoever is moved away is spread over all others, and always to the same one.
                    hash = XxHash64::oneshot(size, &hash.to_le_bytes());
                }
                (0..self.members.len() as u32).find_map(member)
            }
        }
    }
}

/// Envoy's ring hash: `<address>_<n>` hashed, as many points for each as its weight says, so many that the lightest has a
/// whole number of them.
fn ring_points(members: &[(&str, u64)], minimum: u64) -> Vec<(u64, u32)> {
    let total: u64 = members.iter().map(|(_, weight)| weight).sum();
    let Some(lightest) = members.iter().map(|(_, weight)| *weight).min() else { return Vec::new() };
    let lightest = lightest as f64 / total as f64;
    let minimum = minimum.clamp(1, MOST) as f64;
    let scale = ((lightest * minimum).ceil() / lightest).min(MOST as f64);
    let mut points = Vec::with_capacity(scale.ceil() as usize);
    let (mut current, mut target) = (0.0_f64, 0.0_f64);
    for (number, (address, weight)) in members.iter().enumerate() {
        target += scale * (*weight as f64 / total as f64);
        let mut count = 0_u64;
        while current < target {
            points.push((XxHash64::oneshot(0, format!("{address}_{count}").as_bytes()), number as u32));
            count += 1;
            current += 1.0;
        }
    }
    points.sort_unstable();
    points
}

/// Maglev (Eisenbud et al., NSDI 2016, section 3.4) with weights, as Envoy fills it: every member walks its own
/// permutation of the places and takes the next free one when it is its turn.
fn maglev(members: &[(&str, u64)], size: u64) -> Vec<u32> {
    struct Walker {
        offset: u64,
        skip: u64,
        next: u64,
        weight: u64,
        target: u64,
    }
    // The walk reaches every place only where the size is a prime.
    let size = prime_from(size.clamp(2, MOST));
    let Some(heaviest) = members.iter().map(|(_, weight)| *weight).max() else { return Vec::new() };
    let mut walkers: Vec<_> = members
        .iter()
        .map(|(address, weight)| Walker {
            offset: XxHash64::oneshot(0, address.as_bytes()) % size,
            skip: XxHash64::oneshot(1, address.as_bytes()) % (size - 1) + 1,
            next: 0,
            weight: *weight,
            target: 0,
        })
        .collect();
    const FREE: u32 = u32::MAX;
    let mut places = vec![FREE; size as usize];
    let mut filled = 0;
    for round in 1_u64.. {
        for (number, walker) in walkers.iter_mut().enumerate() {
            if filled == size {
                return places;
            }
            // The heaviest takes a place in every round, one of a third of its weight in every third.
            if round * walker.weight < walker.target {
                continue;
            }
            walker.target += heaviest;
            loop {
                let place = (walker.offset + walker.skip * walker.next) % size;
                walker.next += 1;
                if let Some(free @ &mut FREE) = places.get_mut(place as usize) {
                    *free = number as u32;
                    break;
                }
            }
            filled += 1;
        }
    }
    places
}

fn prime_from(least: u64) -> u64 {
    let prime = |n: u64| n >= 2 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d));
    (least..).find(|n| prime(*n)).unwrap_or(65_537)
}
