//! Watches configuration files and folders, and files besides them (certificates that rules name), and tells changes in
//! batches that rest: an editor's rename-and-replace or a Kubernetes mount's symlink swap is some events and one change.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use tokio::time::{Instant, timeout_at};
use twox_hash::XxHash64;

pub use super::scan::FilesError;
use super::{
    scan::{self, Listing, Stamp},
    store::{Content, FileChange},
    watch::{Hint, Step, Wanted, Watcher},
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

/// Hints that have not been looked into.
#[derive(Debug)]
struct Pending {
    first: Instant,
    last: Instant,
    /// When the reload before has been made up for.
    paused: Instant,
    /// As long as nothing but these files has changed, which were there before: they are whole, or (false) being written.
    only: Option<BTreeMap<PathBuf, bool>>,
}

impl Pending {
    fn any() -> Self {
        let now = Instant::now();
        Self { first: now, last: now, paused: now, only: None }
    }

    /// When it has rested.
    fn until(&self) -> Instant {
        let rest = match &self.only {
            Some(files) if files.values().all(|whole| *whole) => limits::RELOAD_WRITTEN,
            _ => limits::RELOAD_QUIET,
        };
        (self.last + rest).max(self.paused).min(self.first + limits::RELOAD_LONGEST)
    }
}

/// The changes that were told last.
#[derive(Debug)]
struct Told {
    at: Instant,
    /// When the next were asked for: by then these were in force.
    done: Option<Instant>,
    files: BTreeSet<PathBuf>,
}

impl Told {
    /// Until when nothing more is told: reloading takes half of the time at most, however often a file is written.
    fn pause(&self, now: Instant) -> Instant {
        let done = self.done.unwrap_or(now);
        done + (done - self.at).clamp(limits::RELOAD_PAUSE, limits::RELOAD_QUIET)
    }

    /// What changes now may belong to it: one program changes several files, one after the other.
    fn is_recent(&self, now: Instant) -> bool {
        now - self.done.unwrap_or(now) < limits::RELOAD_QUIET
    }
}

/// Configuration files and folders, watched.
#[derive(Debug)]
pub struct Files {
    roots: Vec<PathBuf>,
    known: BTreeMap<PathBuf, Known>,
    extra: BTreeMap<PathBuf, Option<Stamp>>,
    watcher: Watcher,
    /// Some of what is there are symbolic links.
    linked: bool,
    pending: Option<Pending>,
    told: Option<Told>,
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
            linked: false,
            pending: None,
            told: None,
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
                        self.pending.get_or_insert_with(Pending::any).only = None;
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

    /// The next changes, once they rest for [`limits::RELOAD_QUIET`], or after [`limits::RELOAD_LONGEST`] all the same. Files
    /// that were there before and are whole now need only [`limits::RELOAD_WRITTEN`], unless others changed just before; and
    /// as long again as the changes before took to be put in force. Never empty. Safe to cancel: nothing is lost.
    ///
    /// To be asked again when what it told is in force.
    pub async fn next(&mut self) -> Changes {
        if let Some(told) = &mut self.told {
            told.done.get_or_insert_with(Instant::now);
        }
        loop {
            if self.pending.is_none() {
                let hint = self.watcher.hint().await;
                let now = Instant::now();
                let paused = self.told.as_ref().map_or(now, |told| told.pause(now));
                self.pending = Some(Pending { first: now, last: now, paused, only: Some(BTreeMap::new()) });
                self.note(hint);
            }
            while let Some(pending) = &self.pending {
                let longest = pending.first + limits::RELOAD_LONGEST;
                let until = pending.until();
                // Hints that never cease would win against the clock.
                if Instant::now() >= longest {
                    break;
                }
                let Ok(hint) = timeout_at(until, self.watcher.hint()).await else { break };
                self.note(hint);
            }
            let only = self.pending.take().and_then(|pending| pending.only);
            let changes = match only {
                Some(files) => self.look_at(files.into_keys()),
                None => self.look(),
            };
            if !changes.files.is_empty() || !changes.extra.is_empty() {
                let files = changes.files.iter().map(|change| change.path.clone()).collect();
                self.told = Some(Told { at: Instant::now(), done: None, files });
                return changes;
            }
        }
    }

    fn note(&mut self, hint: Hint) {
        let Some(pending) = &mut self.pending else { return };
        let now = Instant::now();
        pending.last = now;
        let recent = self.told.as_ref().filter(|told| told.is_recent(now));
        let Some(only) = &mut pending.only else { return };
        match hint {
            // Where links lead is looked up anew.
            _ if self.linked => {}
            Hint::File { path, step, .. }
                if self.known.contains_key(&path) && recent.is_none_or(|told| told.files.contains(&path)) =>
            {
                match step {
                    Step::Begun => only.insert(path, false),
                    Step::Whole => only.insert(path, true),
                    Step::Touched => Some(*only.entry(path).or_insert(true)),
                    Step::Gone => return pending.only = None,
                };
                return;
            }
            // What an editor or `sed -i` writes before it takes the file's place.
            Hint::File { path, asked: false, .. }
                if !self.extra.contains_key(&path) && !scan::is_configuration(&path) =>
            {
                return;
            }
            Hint::File { .. } | Hint::Any => {}
        }
        pending.only = None;
    }

    /// Reads these files, of which it is known that nothing else has changed.
    fn look_at(&mut self, paths: impl Iterator<Item = PathBuf>) -> Changes {
        let mut changes = Changes::default();
        for path in paths {
            let before = self.known.remove(&path);
            self.read(path, before, &mut changes);
        }
        changes
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
            if let Some(same) =
                before.as_ref().filter(|before| before.stamp.is_some() && before.stamp == Stamp::of(&path))
            {
                self.known.insert(path, Known { ..*same });
                continue;
            }
            self.read(path, before, &mut changes);
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

    /// Reads a file; a change where its content is another one than before.
    fn read(&mut self, path: PathBuf, before: Option<Known>, changes: &mut Changes) {
        // Before reading: what is written meanwhile makes the stamp differ next time.
        let stamp = Stamp::of(&path);
        let content = scan::read(&path);
        if content.as_ref().is_err_and(scan::gone) {
            if before.is_some() {
                changes.files.push(FileChange { path, content: None });
            }
            return;
        }
        let digest = content.as_ref().ok().map(|content| XxHash64::oneshot(0, content));
        let stamp = stamp.filter(|stamp| !stamp.younger(FRESH));
        if before.is_none_or(|before| before.digest != digest) {
            changes.files.push(FileChange { path: path.clone(), content: Some(Content::Text(content)) });
        }
        self.known.insert(path, Known { stamp, digest });
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
            self.linked = false;
            for path in listing.files.iter().filter(|path| path.is_symlink()).chain(&listing.dangling) {
                wanted.path(path);
                self.linked = true;
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

#[cfg(test)]
mod tests;
