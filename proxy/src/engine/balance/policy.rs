//! `loadBalancer.simple`: one of several endpoints by turn, by chance or by load, each according to its weight.

use rand::RngExt as _;

/// An endpoint that may be chosen, by its index among the candidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    pub index: usize,
    /// At least 1, in whatever unit all of them have.
    pub weight: u64,
}

pub fn random(open: &[Share]) -> usize {
    at_weight(open.iter(), random_below(total(open)))
}

/// The power of two choices: two different endpoints drawn by weight, and the one with less to do for its weight.
pub fn least_request(open: &[Share], active: impl Fn(usize) -> u32) -> usize {
    let first = random(open);
    let Some(drawn) = open.get(first) else { return first };
    let others = || open.iter().enumerate().filter(|(at, _)| *at != first).map(|(_, share)| share);
    let mut second = at_weight(others(), random_below(total(open) - drawn.weight));
    if second >= first {
        second += 1;
    }
    let Some(other) = open.get(second) else { return first };
    let load = |share: &Share| u128::from(active(share.index)) + 1;
    // Fractions compared crosswise: load by weight.
    if load(other) * u128::from(drawn.weight) < load(drawn) * u128::from(other.weight) { second } else { first }
}

/// Every candidate as often as its weight says in each round of `total` turns. With different weights the turns stride
/// through the round by about its golden section, so that a heavy endpoint is not hit in one long run.
pub fn round_robin(turn: usize, open: &[Share]) -> usize {
    let turn = turn as u64;
    if open.windows(2).all(|pair| pair[0].weight == pair[1].weight) {
        return (turn % (open.len() as u64).max(1)) as usize;
    }
    let total = total(open);
    let mut stride = ((total as f64) * 0.618_033_988_75) as u64;
    while stride < 1 || gcd(stride, total) != 1 {
        stride += 1;
    }
    let point = u128::from(turn % total) * u128::from(stride) % u128::from(total);
    at_weight(open.iter(), point as u64)
}

fn total(open: &[Share]) -> u64 {
    open.iter().map(|share| share.weight).sum::<u64>().max(1)
}

fn random_below(total: u64) -> u64 {
    rand::rng().random_range(0..total.max(1))
}

/// The position of the one in whose share of the weights `point` falls.
fn at_weight<'s>(open: impl Iterator<Item = &'s Share>, mut point: u64) -> usize {
    let mut last = 0;
    for (position, share) in open.enumerate() {
        if point < share.weight {
            return position;
        }
        point -= share.weight;
        last = position;
    }
    last
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
