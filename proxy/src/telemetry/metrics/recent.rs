//! The series that a thread has counted under lately: found again without making their labels.
//!
//! What an entry was made from is held (weakly, where it is large), so that no other thing can bear its address.

use std::{
    cell::RefCell,
    sync::{Arc, Weak},
};

use super::istio::Http;
use crate::{
    limits::METRIC_SERIES_AT_HAND,
    mesh::{Cluster, WorkloadId},
    telemetry::record::{Flag, Record, Reporter},
};

thread_local! {
    static RECENT: RefCell<Vec<Option<Entry>>> = const { RefCell::new(Vec::new()) };
}

struct Entry {
    stamp: Stamp,
    what: What,
    workload: Arc<WorkloadId>,
    cluster: Option<Weak<Cluster>>,
    principal: Option<Arc<str>>,
    series: Arc<Http>,
}

/// Which [`super::Metrics`], and in which state: series are found anew once pods have changed, or series have gone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    pub owner: u64,
    pub generation: u64,
}

/// What tells series of one workload and cluster apart.
#[derive(Clone, Copy, PartialEq, Eq)]
struct What {
    reporter: Reporter,
    /// Of requests to no service.
    unnamed: Option<&'static str>,
    grpc: bool,
    code: u16,
    grpc_status: Option<u32>,
    /// One bit each.
    flags: u32,
}

impl What {
    fn of(record: &Record) -> Self {
        let unnamed = || super::labels::unnamed(record.cluster_name().unwrap_or_default());
        Self {
            reporter: record.reporter,
            unnamed: record.cluster.is_none().then(unnamed),
            grpc: record.grpc,
            code: record.response_code,
            grpc_status: record.grpc_status,
            flags: record.flags.iter().fold(0, |all, flag: &Flag| all | 1 << *flag as u32),
        }
    }
}

/// The series of this record's request, where this thread has met it lately.
pub fn with(record: &Record, stamp: Stamp, count: impl FnOnce(&Http)) -> bool {
    let what = What::of(record);
    RECENT.with_borrow(|recent| match recent.get(slot(record, &what)) {
        Some(Some(entry)) if entry.is_of(record, &what, stamp) => {
            count(&entry.series);
            true
        }
        _ => false,
    })
}

/// Takes note of a record's series.
pub fn put(record: &Record, stamp: Stamp, series: &Arc<Http>) {
    let what = What::of(record);
    let entry = Entry {
        stamp,
        what,
        workload: record.workload.clone(),
        cluster: record.cluster.as_ref().map(Arc::downgrade),
        principal: record.source_identity.clone(),
        series: series.clone(),
    };
    RECENT.with_borrow_mut(|recent| {
        if recent.is_empty() {
            recent.resize_with(METRIC_SERIES_AT_HAND, || None);
        }
        recent[slot(record, &what)] = Some(entry);
    });
}

impl Entry {
    fn is_of(&self, record: &Record, what: &What, stamp: Stamp) -> bool {
        self.stamp == stamp
            && self.what == *what
            && Arc::ptr_eq(&self.workload, &record.workload)
            && self.cluster.as_ref().map(Weak::as_ptr) == record.cluster.as_ref().map(Arc::as_ptr)
            && self.principal == record.source_identity
    }
}

fn slot(record: &Record, what: &What) -> usize {
    let cluster = record.cluster.as_ref().map_or(0, |cluster| Arc::as_ptr(cluster).addr());
    let mixed = Arc::as_ptr(&record.workload).addr().rotate_left(17) ^ cluster ^ usize::from(what.code);
    // Fibonacci hashing: the upper bits of the product depend on all of them.
    (mixed as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(16) as usize % METRIC_SERIES_AT_HAND
}
