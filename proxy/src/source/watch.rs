//! Tells that something may have changed at certain paths: inotify on folders, and looking again and again where that
//! cannot be had. It only gives hints; what changed is found by looking.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::OsString,
    fs, io,
    path::{Component, Path, PathBuf},
};

use futures_util::StreamExt;
use inotify::{EventMask, EventStream, Inotify, WatchDescriptor, WatchMask};
use tokio::time::{Instant, sleep_until};

use super::scan;
use crate::limits;

/// Symbolic links that one path may lead through, as in the kernel (path_resolution(7)).
const LINKS: usize = 40;
/// Bytes of events taken at once: some hundred of them.
const BUFFER: usize = 16 * 1024;

/// The folders to watch, and in each the names that matter; None: all.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Wanted(BTreeMap<PathBuf, Option<BTreeSet<OsString>>>);

impl Wanted {
    /// Everything directly inside a folder matters.
    pub fn folder(&mut self, path: &Path) {
        self.0.insert(path.to_owned(), None);
    }

    /// A path matters, and every link on the way to it: it may appear, vanish, be replaced, or lead elsewhere.
    pub fn path(&mut self, path: &Path) {
        let mut links = LINKS;
        self.follow(path, &mut links);
    }

    fn follow(&mut self, path: &Path, links: &mut usize) {
        let mut walked = PathBuf::new();
        for component in path.components() {
            let parent = walked.clone();
            walked.push(component);
            let Component::Normal(name) = component else { continue };
            let parent = if parent.as_os_str().is_empty() { PathBuf::from(".") } else { parent };
            match fs::symlink_metadata(&walked) {
                Ok(meta) if meta.is_symlink() => {
                    self.name(&parent, name);
                    if *links == 0 {
                        return;
                    }
                    *links -= 1;
                    if let Ok(target) = fs::read_link(&walked) {
                        self.follow(&parent.join(target), links);
                    }
                }
                Ok(_) if walked == path => self.name(&parent, name),
                Ok(_) => {}
                // What is not there can only appear in its parent.
                Err(_) => return self.name(&parent, name),
            }
        }
    }

    fn name(&mut self, folder: &Path, name: &std::ffi::OsStr) {
        if let Some(names) = self.0.entry(folder.to_owned()).or_insert_with(|| Some(BTreeSet::new())) {
            names.insert(name.to_owned());
        }
    }
}

/// Waits for changes in folders.
pub struct Watcher {
    events: Option<EventStream<Vec<u8>>>,
    watched: HashMap<WatchDescriptor, Option<BTreeSet<OsString>>>,
    /// Some where inotify does not see everything: when to look next.
    poll: Option<Instant>,
}

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watcher")
            .field("watched", &self.watched.len())
            .field("poll", &self.poll)
            .finish_non_exhaustive()
    }
}

impl Watcher {
    /// Wants a tokio runtime. Never fails: without inotify it polls, and says so.
    #[must_use]
    pub fn new() -> Self {
        let mut watcher = Self { events: None, watched: HashMap::new(), poll: None };
        match Inotify::init().and_then(|inotify| inotify.into_event_stream(vec![0; BUFFER])) {
            Ok(events) => watcher.events = Some(events),
            Err(error) => watcher.fall_back(&format!("inotify cannot be had ({error})")),
        }
        watcher
    }

    /// Watches these folders and no others. True where one was added that was not watched before.
    pub fn set(&mut self, wanted: &Wanted) -> bool {
        let Some(events) = &self.events else { return false };
        let mut watches = events.watches();
        let mask = WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVE
            | WatchMask::MODIFY
            | WatchMask::CLOSE_WRITE
            | WatchMask::ATTRIB
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        let mut watched: HashMap<WatchDescriptor, Option<BTreeSet<OsString>>> = HashMap::new();
        let mut failed = None;
        for (folder, names) in &wanted.0 {
            match watches.add(folder, mask) {
                // Two paths may lead to one folder: what matters in either matters.
                Ok(descriptor) => match watched.entry(descriptor).or_insert_with(|| Some(BTreeSet::new())) {
                    known @ Some(_) if names.is_none() => *known = None,
                    Some(known) => known.extend(names.iter().flatten().cloned()),
                    None => {}
                },
                Err(error) if scan::gone(&error) => {}
                Err(error) => failed = Some(format!("{} cannot be watched ({})", folder.display(), advice(&error))),
            }
        }
        let added = watched.keys().any(|descriptor| !self.watched.contains_key(descriptor));
        for (descriptor, _) in std::mem::replace(&mut self.watched, watched) {
            if !self.watched.contains_key(&descriptor) {
                // It fails where the folder is gone, and the watch with it.
                let _ = watches.remove(descriptor);
            }
        }
        match failed {
            Some(reason) => self.fall_back(&reason),
            // Every folder is watched again: no need to look.
            None => self.poll = None,
        }
        added
    }

    fn fall_back(&mut self, reason: &str) {
        if self.poll.is_none() {
            log::warn!("{reason}: looking at the files every {} s instead", limits::RELOAD_POLL.as_secs());
            self.poll = Some(Instant::now() + limits::RELOAD_POLL);
        }
    }

    /// Does as if inotify had failed.
    #[cfg(test)]
    pub fn lose(&mut self) {
        self.events = None;
        self.fall_back("a test took inotify away");
    }

    /// Returns when something may have changed. Safe to cancel.
    pub async fn hint(&mut self) {
        loop {
            let poll = self.poll;
            let looking = async move {
                match poll {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let Some(events) = &mut self.events else {
                looking.await;
                self.poll = Some(Instant::now() + limits::RELOAD_POLL);
                return;
            };
            let event = tokio::select! {
                event = events.next() => event,
                () = looking => {
                    self.poll = Some(Instant::now() + limits::RELOAD_POLL);
                    return;
                }
            };
            match event {
                Some(Ok(event)) if event.mask.contains(EventMask::Q_OVERFLOW) => {
                    log::warn!("changes of files came faster than inotify holds: looking at all of them");
                    return;
                }
                Some(Ok(event)) if event.mask.contains(EventMask::IGNORED) => {}
                Some(Ok(event)) => match (self.watched.get(&event.wd), event.name) {
                    (Some(Some(names)), Some(name)) if !names.contains(&name) => {}
                    (Some(_), _) => return,
                    // An event of a folder that is watched no longer.
                    (None, _) => {}
                },
                failed => {
                    let reason = match failed {
                        Some(Err(error)) => error.to_string(),
                        _ => "its stream ended".to_owned(),
                    };
                    self.events = None;
                    self.watched.clear();
                    self.fall_back(&format!("inotify failed ({reason})"));
                    return;
                }
            }
        }
    }
}

impl Default for Watcher {
    fn default() -> Self {
        Self::new()
    }
}

fn advice(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOSPC) => "no inotify watches left: raise the sysctl fs.inotify.max_user_watches".to_owned(),
        _ => error.to_string(),
    }
}
