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

/// The folders to watch, and what matters in each.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Wanted(BTreeMap<PathBuf, Matters>);

#[derive(Debug, Default, PartialEq, Eq)]
struct Matters {
    /// None: all.
    names: Option<BTreeSet<OsString>>,
    /// Some of them may be files that are written to. Where they are folders and links, a log beside them that grows with
    /// each request must not wake us.
    contents: bool,
}

impl Wanted {
    /// Everything directly inside a folder matters.
    pub fn folder(&mut self, path: &Path) {
        self.0.insert(path.to_owned(), Matters { names: None, contents: true });
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
                    self.name(&parent, name, false);
                    if *links == 0 {
                        return;
                    }
                    *links -= 1;
                    if let Ok(target) = fs::read_link(&walked) {
                        self.follow(&parent.join(target), links);
                    }
                }
                Ok(meta) if walked == path => self.name(&parent, name, !meta.is_dir()),
                Ok(_) => {}
                // What is not there can only appear in its parent.
                Err(_) => return self.name(&parent, name, true),
            }
        }
    }

    fn name(&mut self, folder: &Path, name: &std::ffi::OsStr, contents: bool) {
        let new = || Matters { names: Some(BTreeSet::new()), contents: false };
        let matters = self.0.entry(folder.to_owned()).or_insert_with(new);
        matters.contents |= contents;
        if let Some(names) = &mut matters.names {
            names.insert(name.to_owned());
        }
    }
}

/// What may have changed.
#[derive(Debug, PartialEq, Eq)]
pub enum Hint {
    /// What is at this path, and is no folder. `asked`: the path is one of [`Wanted::path`].
    File { path: PathBuf, step: Step, asked: bool },
    /// Anything: look at everything, once it rests.
    Any,
}

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It has begun to change: it is being written, most likely.
    Begun,
    /// It was written and closed, or another one took its place: it is whole.
    Whole,
    /// Who may read it was changed, or when it was used.
    Touched,
    Gone,
}

/// A folder that is watched.
#[derive(Debug)]
struct Watched {
    /// Empty where several paths lead to it.
    path: PathBuf,
    matters: Matters,
}

/// Waits for changes in folders.
pub struct Watcher {
    events: Option<EventStream<Vec<u8>>>,
    watched: HashMap<WatchDescriptor, Watched>,
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

    /// Watches these folders and no others. True where one was added that was not watched before, or not as closely.
    pub fn set(&mut self, wanted: &Wanted) -> bool {
        let Some(events) = &self.events else { return false };
        let mut watches = events.watches();
        let mut watched: HashMap<WatchDescriptor, Watched> = HashMap::new();
        let mut failed = None;
        for (folder, matters) in &wanted.0 {
            match watches.add(folder, mask(matters.contents)) {
                // Two paths may lead to one folder: what matters in either matters.
                Ok(descriptor) => {
                    let matter = Matters { names: Some(BTreeSet::new()), contents: false };
                    let new = || Watched { path: folder.clone(), matters: matter };
                    let known = watched.entry(descriptor).or_insert_with(new);
                    if known.path != *folder {
                        known.path = PathBuf::new();
                    }
                    let known = &mut known.matters;
                    known.contents |= matters.contents;
                    match (&mut known.names, &matters.names) {
                        (Some(known), Some(names)) => known.extend(names.iter().cloned()),
                        (known, None) => *known = None,
                        (None, Some(_)) => {}
                    }
                }
                Err(error) if scan::gone(&error) => {}
                Err(error) => failed = Some(format!("{} cannot be watched ({})", folder.display(), advice(&error))),
            }
        }
        let closer = |descriptor: &WatchDescriptor, now: &Watched| {
            self.watched.get(descriptor).is_none_or(|before| now.matters.contents && !before.matters.contents)
        };
        let added = watched.iter().any(|(descriptor, now)| closer(descriptor, now));
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
    pub async fn hint(&mut self) -> Hint {
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
                return Hint::Any;
            };
            let event = tokio::select! {
                event = events.next() => event,
                () = looking => {
                    self.poll = Some(Instant::now() + limits::RELOAD_POLL);
                    return Hint::Any;
                }
            };
            match event {
                Some(Ok(event)) if event.mask.contains(EventMask::Q_OVERFLOW) => {
                    log::warn!("changes of files came faster than inotify holds: looking at all of them");
                    return Hint::Any;
                }
                Some(Ok(event)) if event.mask.contains(EventMask::IGNORED) => {}
                // A folder that is watched no longer may still have events.
                Some(Ok(event)) => {
                    if let Some(watched) = self.watched.get(&event.wd) {
                        match (&watched.matters.names, event.name) {
                            (Some(names), Some(name)) if !names.contains(&name) => {}
                            (_, name) => return watched.hint(event.mask, name),
                        }
                    }
                }
                failed => {
                    let reason = match failed {
                        Some(Err(error)) => error.to_string(),
                        _ => "its stream ended".to_owned(),
                    };
                    self.events = None;
                    self.watched.clear();
                    self.fall_back(&format!("inotify failed ({reason})"));
                    return Hint::Any;
                }
            }
        }
    }
}

/// What the kernel is to tell of a folder. It adds to what it tells already: an event that is missed is worse than one too
/// many.
fn mask(contents: bool) -> WatchMask {
    let of_names = WatchMask::CREATE
        | WatchMask::DELETE
        | WatchMask::MOVE
        | WatchMask::ATTRIB
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF
        | WatchMask::ONLYDIR
        | WatchMask::MASK_ADD;
    if contents { of_names | WatchMask::MODIFY | WatchMask::CLOSE_WRITE } else { of_names }
}

impl Watched {
    fn hint(&self, event: EventMask, name: Option<OsString>) -> Hint {
        let step = if event.intersects(EventMask::CLOSE_WRITE | EventMask::MOVED_TO) {
            Step::Whole
        } else if event.intersects(EventMask::MODIFY | EventMask::CREATE) {
            Step::Begun
        } else if event.contains(EventMask::ATTRIB) {
            Step::Touched
        } else {
            Step::Gone
        };
        match name {
            Some(name) if !event.contains(EventMask::ISDIR) && !self.path.as_os_str().is_empty() => {
                Hint::File { path: self.path.join(name), step, asked: self.matters.names.is_some() }
            }
            _ => Hint::Any,
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The folder of the configuration may lie beside a log that grows with each request.
    #[tokio::test]
    async fn what_is_written_beside_a_folder_wakes_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, file, beside) = (dir.path().join("config"), dir.path().join("one.yaml"), dir.path().join("log"));
        fs::create_dir(&folder).unwrap();
        fs::write(&beside, "").unwrap();
        async fn told(watcher: &mut Watcher) -> bool {
            let event = watcher.events.as_mut().map(|events| events.next()).expect("inotify");
            tokio::time::timeout(std::time::Duration::from_millis(100), event).await.is_ok()
        }
        let mut watcher = Watcher::new();
        let mut wanted = Wanted::default();
        wanted.path(&folder);
        assert!(watcher.set(&wanted));
        fs::write(&beside, "a line").unwrap();
        assert!(!told(&mut watcher).await);
        fs::rename(&folder, dir.path().join("gone")).unwrap();
        assert!(told(&mut watcher).await);

        // A file there is written to, and does matter: the folder is watched more closely.
        fs::write(&file, "").unwrap();
        wanted.path(&file);
        assert!(watcher.set(&wanted) && !watcher.set(&wanted));
        while told(&mut watcher).await {}
        fs::write(&file, "changed").unwrap();
        assert!(told(&mut watcher).await);
    }
}
