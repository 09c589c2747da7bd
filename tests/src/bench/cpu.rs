//! CPU time that processes used between two moments.

use std::{collections::HashMap, fs, time::Duration};

use anyhow::{Context, Result};

/// A process and all that descend from it: nginx is a master and its workers.
#[must_use]
pub fn family(root: u32) -> Vec<u32> {
    let mut found = vec![root];
    let mut next = 0;
    while let Some(pid) = found.get(next).copied() {
        next += 1;
        for task in tasks(pid) {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{task}/children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    found
}

/// CPU time of each thread of some processes at one moment, in nanoseconds.
#[derive(Clone, Debug, Default)]
pub struct Snapshot(HashMap<u32, u64>);

impl Snapshot {
    /// Of processes and their descendants, from `schedstat`: exact, where utime and stime count hundredths of a second.
    #[must_use]
    pub fn of(roots: &[u32]) -> Self {
        let mut threads = HashMap::new();
        for pid in roots.iter().flat_map(|root| family(*root)) {
            for task in tasks(pid) {
                let text = fs::read_to_string(format!("/proc/{pid}/task/{task}/schedstat")).unwrap_or_default();
                if let Some(spent) = text.split_whitespace().next().and_then(|first| first.parse().ok()) {
                    threads.insert(task, spent);
                }
            }
        }
        Self(threads)
    }

    /// What was used since `before`. A thread that has ended in between counts for nothing.
    #[must_use]
    pub fn since(&self, before: &Self) -> Duration {
        let used = |(task, now): (&u32, &u64)| now.saturating_sub(before.0.get(task).copied().unwrap_or(0));
        Duration::from_nanos(self.0.iter().map(used).sum())
    }
}

/// utime + stime of a whole process from its start, also of one that has ended and is not yet waited for. To 20 ms.
pub fn of_process(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    ticks(&stat).map(|ticks| Duration::from_millis(ticks * 10)).with_context(|| format!("unreadable: {stat}"))
}

/// utime + stime in hundredths of a second; Linux' USER_HZ is 100 wherever this runs.
fn ticks(stat: &str) -> Option<u64> {
    // The name stands in parentheses, and may hold any character.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

fn tasks(pid: u32) -> Vec<u32> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_stat_with_any_name() {
        let stat = "17 (a ) b) S 1 17 17 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 1 0 100 0 0";
        assert_eq!(ticks(stat), Some(300));
    }

    #[test]
    fn work_shows() {
        let me = [std::process::id()];
        let before = Snapshot::of(&me);
        let start = std::time::Instant::now();
        while start.elapsed() < Duration::from_millis(50) {}
        let used = Snapshot::of(&me).since(&before);
        // Other threads of this process work beside this one; another process may have the CPU for a while.
        assert!(used > Duration::from_millis(5), "{used:?}");
    }

    #[test]
    fn threads_that_ended_count_for_nothing() {
        let (before, after) = (Snapshot(HashMap::from([(1, 5), (2, 100)])), Snapshot(HashMap::from([(1, 9), (3, 2)])));
        assert_eq!(after.since(&before), Duration::from_nanos(6));
    }
}
