//! A histogram that any thread adds to without waiting: two atomic additions for each value.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use prometheus_client::encoding::{MetricEncoder, NoLabelSet};

/// Envoy's default bounds: milliseconds, and bytes alike.
const BOUNDS: [f64; 19] =
    [0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1e3, 2.5e3, 5e3, 1e4, 3e4, 6e4, 3e5, 6e5, 1.8e6, 3.6e6];

/// Of whole numbers, of which `UNIT` make one of what is shown.
#[derive(Debug, Default)]
pub struct Histogram<const UNIT: u64> {
    /// Values up to each bound and above the one before it, and above the last.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum: AtomicU64,
}

impl<const UNIT: u64> Histogram<UNIT> {
    /// The bounds, rounded down: a whole number is above `0.5` from 1 on.
    const WHOLE: [u64; BOUNDS.len()] = {
        let mut whole = [0; BOUNDS.len()];
        let mut at = 0;
        while at < BOUNDS.len() {
            whole[at] = (BOUNDS[at] * UNIT as f64) as u64;
            at += 1;
        }
        whole
    };

    pub fn observe(&self, value: u64) {
        // Most values are small.
        let bucket = Self::WHOLE.iter().position(|bound| value <= *bound).unwrap_or(BOUNDS.len());
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum.fetch_add(value, Relaxed);
    }

    /// How many values there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Relaxed)).sum()
    }

    #[expect(clippy::cast_precision_loss, reason = "a sum beyond 2^53 may be off by some")]
    pub fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let bounds = BOUNDS.into_iter().chain([f64::MAX]);
        let buckets: Vec<(f64, u64)> = bounds.zip(self.buckets.iter().map(|bucket| bucket.load(Relaxed))).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = self.sum.load(Relaxed) as f64 / UNIT as f64;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }
}
