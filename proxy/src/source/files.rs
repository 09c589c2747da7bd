//! Watches configuration files and folders, and files besides them (certificates that rules name), and tells changes in
//! batches that rest: an editor's rename-and-replace or a Kubernetes mount's symlink swap is some events and one change.

use std::{
    collections::{BTreeMap, BTreeSet, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
    path::PathBuf,
    time::Duration,
};

use tokio::time::{Instant, timeout_at};

pub use super::scan::FilesError;
use super::{
    scan::{self, Listing, Stamp},
    store::FileChange,
    watch::{Wanted, Watcher},
};
use crate::limits;

/// A file that changed less than this before it was looked at is read again next time: clocks of file systems tick some
/// 4 ms apart, so a second write may leave every stamp as it was.
const FRESH: Duration = Duration::from_millis(50);
/// A certificate file that changed within this time may have changed since its reader read it.
const EXTRA_FRESH: Duration = Duration::from_secs(2);
/// How often new folders are looked into for folders newer still, in one go.
const ROUNDS: u32 = 16;

/// What changed.
#[derive(Debug, Default)]
pub struct Changes {
    /// Configuration; empty where only certificates changed.
    pub files: Vec<FileChange>,
    /// Of the paths given to [`Files::watch_extra`].
    pub extra: Vec<PathBuf>,
}

#[derive(Debug)]
struct Known {
    /// None: look again in any case.
    stamp: Option<Stamp>,
    /// Of the content; None where it could not be read.
    digest: Option<u64>,
}

/// Configuration files and folders, watched.
#[derive(Debug)]
pub struct Files {
    roots: Vec<PathBuf>,
    known: BTreeMap<PathBuf, Known>,
    extra: BTreeMap<PathBuf, Option<Stamp>>,
    watcher: Watcher,
    /// First and last hint that has not been looked into.
    pending: Option<(Instant, Instant)>,
    /// Folders whose failure was told.
    complained: BTreeSet<PathBuf>,
}

impl Files {
    /// Reads all files of `roots` for the first time and begins to watch them. Wants a tokio runtime.
    ///
    /// # Errors
    /// A root that is missing or cannot be looked at. A file that cannot be read is a [`FileChange`] with that error.
    pub fn open(roots: Vec<PathBuf>) -> Result<(Self, Vec<FileChange>), FilesError> {
        scan::start(&roots)?;
        let mut files = Self {
            roots,
            known: BTreeMap::new(),
            extra: BTreeMap::new(),
            watcher: Watcher::new(),
            pending: None,
            complained: BTreeSet::new(),
        };
        let changes = files.look();
        Ok((files, changes.files))
    }

    /// Watches these files too, instead of those of the call before. They need not exist yet.
    pub fn watch_extra(&mut self, paths: BTreeSet<PathBuf>) {
        let mut before = std::mem::take(&mut self.extra);
        for path in paths {
            let stamp = match before.remove(&path) {
                Some(stamp) => stamp,
                None => {
                    let stamp = Stamp::of(&path);
                    // Who named the path has read it already: a change between the two must not be lost.
                    if stamp.is_some_and(|stamp| stamp.younger(EXTRA_FRESH)) {
                        let now = Instant::now();
                        self.pending.get_or_insert((now, now));
                        None
                    } else {
                        stamp
                    }
                }
            };
            self.extra.insert(path, stamp);
        }
        self.install();
    }

    /// The next changes, once they rest for [`limits::RELOAD_QUIET`], or after [`limits::RELOAD_LONGEST`] all the same.
    /// Never empty. Safe to cancel: nothing is lost.
    pub async fn next(&mut self) -> Changes {
        loop {
            if self.pending.is_none() {
                self.watcher.hint().await;
                let now = Instant::now();
                self.pending = Some((now, now));
            }
            while let Some((first, last)) = self.pending {
                let longest = first + limits::RELOAD_LONGEST;
                let until = longest.min(last + limits::RELOAD_QUIET);
                // Hints that never cease would win against the clock.
                if Instant::now() >= longest || timeout_at(until, self.watcher.hint()).await.is_err() {
                    break;
                }
                self.pending = Some((first, Instant::now()));
            }
            self.pending = None;
            let changes = self.look();
            if !changes.files.is_empty() || !changes.extra.is_empty() {
                return changes;
            }
        }
    }

    /// Finds what changed since it looked last.
    fn look(&mut self) -> Changes {
        // Watches first: what changes while this looks gives a hint for the next time.
        let listing = self.install();
        for (path, error) in &listing.unreadable {
            if self.complained.insert(path.clone()) {
                log::warn!("{}: {error}; what it held stays in force", path.display());
            }
        }
        self.complained.retain(|path| listing.unreadable.iter().any(|(now, _)| now == path));
        let mut changes = Changes::default();
        let mut known = std::mem::take(&mut self.known);
        for path in listing.files {
            let before = known.remove(&path);
            // Before reading: what is written meanwhile makes the stamp differ next time.
            let stamp = Stamp::of(&path);
            if let Some(before) = before.as_ref().filter(|before| before.stamp.is_some() && before.stamp == stamp) {
                self.known.insert(path, Known { stamp, digest: before.digest });
                continue;
            }
            let content = scan::read(&path);
            if content.as_ref().is_err_and(scan::gone) {
                if before.is_some() {
                    changes.files.push(FileChange { path, content: None });
                }
                continue;
            }
            let digest = content.as_ref().ok().map(digest);
            let stamp = stamp.filter(|stamp| !stamp.younger(FRESH));
            if before.is_none_or(|before| before.digest != digest) {
                changes.files.push(FileChange { path: path.clone(), content: Some(content) });
            }
            self.known.insert(path, Known { stamp, digest });
        }
        for (path, before) in known {
            if listing.unreadable.iter().any(|(folder, _)| path.starts_with(folder)) {
                self.known.insert(path, before);
            } else {
                changes.files.push(FileChange { path, content: None });
            }
        }
        for (path, stamp) in &mut self.extra {
            let now = Stamp::of(path);
            if now != *stamp {
                changes.extra.push(path.clone());
            }
            *stamp = now;
        }
        changes
    }

    /// Brings the watches up to what is there now: folders come and go, links lead elsewhere.
    fn install(&mut self) -> Listing {
        let mut rounds = 0;
        loop {
            rounds += 1;
            let listing = scan::list(&self.roots);
            let mut wanted = Wanted::default();
            for path in self.roots.iter().chain(self.extra.keys()) {
                wanted.path(path);
            }
            for path in listing.files.iter().filter(|path| path.is_symlink()).chain(&listing.dangling) {
                wanted.path(path);
            }
            for folder in &listing.folders {
                wanted.folder(folder);
            }
            // A folder that is new may have got its files before it was watched. Who makes folders faster than this gives
            // hints all the while.
            if !self.watcher.set(&wanted) || rounds == ROUNDS {
                return listing;
            }
        }
    }
}

fn digest(content: &Vec<u8>) -> u64 {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests;
