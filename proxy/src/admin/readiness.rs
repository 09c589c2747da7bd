//! Readiness as guards: whoever is not done yet holds one, and it says what is awaited.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;

/// All guards that are held. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    next: AtomicU64,
    held: Mutex<BTreeMap<u64, String>>,
}

impl Readiness {
    /// Nothing is ready while the guard lives. `what` is a sentence: `pod default/sleep: listener not bound yet`.
    #[must_use = "dropping the guard says that what it awaits has come"]
    pub fn wait_for(&self, what: impl Into<String>) -> Awaited {
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        self.shared.held.lock().insert(id, what.into());
        Awaited { shared: self.shared.clone(), id }
    }

    /// What is awaited, in the order it was asked for. Empty: ready.
    pub fn awaited(&self) -> Vec<String> {
        self.shared.held.lock().values().cloned().collect()
    }
}

/// Something that is awaited; dropped once it has come.
#[derive(Debug)]
pub struct Awaited {
    shared: Arc<Shared>,
    id: u64,
}

impl Awaited {
    /// Changes the sentence, e.g. to the error that holds it up.
    pub fn say(&self, what: impl Into<String>) {
        self.shared.held.lock().insert(self.id, what.into());
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        self.shared.held.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_awaited_is_named_until_it_comes() {
        let readiness = Readiness::default();
        let capture = readiness.wait_for("capture: not attached yet");
        let pod = readiness.clone().wait_for("pod default/a: listener not bound yet");
        pod.say("pod default/a: port 15001 is taken");
        assert_eq!(readiness.awaited(), ["capture: not attached yet", "pod default/a: port 15001 is taken"]);
        drop(capture);
        assert_eq!(readiness.awaited(), ["pod default/a: port 15001 is taken"]);
        drop(pod);
        assert!(readiness.awaited().is_empty());
    }
}
