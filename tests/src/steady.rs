//! Clients that call without a pause while something changes, and of whose calls not one may fail.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::process::until;

/// Runs `change` while every one of `loads` calls without a pause; not one call of any of them may fail.
pub fn under_load(loads: &[&(dyn Fn(u32) -> Result<()> + Sync)], change: impl FnOnce() -> Result<()>) -> Result<()> {
    let stop = AtomicBool::new(false);
    let counts: Vec<_> = loads.iter().map(|_| AtomicU32::new(0)).collect();
    std::thread::scope(|scope| {
        let threads: Vec<_> = loads
            .iter()
            .zip(&counts)
            .map(|(load, calls)| {
                let stop = &stop;
                scope.spawn(move || call(stop, calls, load))
            })
            .collect();
        let begun = until("every client to be served", Duration::from_secs(10), || {
            counts.iter().all(|calls| calls.load(Ordering::Relaxed) > 1).then_some(())
        });
        let changed = begun.and_then(|()| change());
        // And a moment longer, on what is there then.
        let before: Vec<_> = counts.iter().map(|calls| calls.load(Ordering::Relaxed)).collect();
        let after = until("every client to be served afterwards", Duration::from_secs(10), || {
            let more = |(calls, before): (&AtomicU32, &u32)| calls.load(Ordering::Relaxed) > before + 1;
            counts.iter().zip(&before).all(more).then_some(())
        });
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        changed.and(after)
    })
}

/// Calls again and again until it is told to stop; the first call that fails ends it.
fn call(stop: &AtomicBool, calls: &AtomicU32, one: impl Fn(u32) -> Result<()>) -> Result<()> {
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        one(number).with_context(|| format!("call {number}"))?;
        calls.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
