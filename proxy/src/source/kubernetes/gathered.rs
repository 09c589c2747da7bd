//! What all watches together have seen, and what of it is to be told.
//!
//! A list counts once it is whole, and as a difference to what was known: between a relist's beginning and its end the objects
//! of before stay. Before each kind was listed once nothing is told at all.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::{Path, PathBuf},
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};
use twox_hash::XxHash64;

use super::request::Failure;
use crate::source::store::{Content, FileChange};

/// One watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FeedId(pub usize);

#[derive(Debug, Default)]
pub struct Gathered {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    feeds: BTreeMap<FeedId, Feed>,
    /// What is to be told: the object as it is now, or that it is gone.
    pending: BTreeMap<PathBuf, Option<Vec<u8>>>,
    /// When the first and the last of it came.
    came: Option<(Instant, Instant)>,
}

#[derive(Debug)]
struct Feed {
    /// `pods`, `secrets shop/db`
    resource: String,
    /// Digests of what was seen.
    known: HashMap<PathBuf, u64>,
    /// Was listed, or does not exist.
    settled: bool,
    trouble: Option<Trouble>,
}

#[derive(Debug)]
struct Trouble {
    /// What was tried, as RBAC names it.
    verb: &'static str,
    failure: Failure,
    since: Instant,
}

impl Inner {
    fn put(&mut self, id: FeedId, path: PathBuf, json: Vec<u8>) {
        let Some(feed) = self.feeds.get_mut(&id) else { return };
        let digest = XxHash64::oneshot(0, &json);
        if feed.known.insert(path.clone(), digest) != Some(digest) {
            self.tell(path, Some(json));
        }
    }

    fn remove(&mut self, id: FeedId, path: &Path) {
        let Some(feed) = self.feeds.get_mut(&id) else { return };
        // A pod that was bound to this node leaves one watch and enters the other, in any order.
        if feed.known.remove(path).is_some() && !self.feeds.values().any(|feed| feed.known.contains_key(path)) {
            self.tell(path.to_owned(), None);
        }
    }

    fn tell(&mut self, path: PathBuf, json: Option<Vec<u8>>) {
        let now = Instant::now();
        self.came = Some((self.came.map_or(now, |(first, _)| first), now));
        self.pending.insert(path, json);
    }
}

/// An object of a list: without a document it does not count.
pub type Item = (PathBuf, Option<Vec<u8>>);

impl Gathered {
    pub fn add(&self, id: FeedId, resource: String) {
        let feed = Feed { resource, known: HashMap::new(), settled: false, trouble: None };
        self.inner.lock().feeds.insert(id, feed);
    }

    /// A watch ends: what it saw is gone.
    pub fn drop_feed(&self, id: FeedId) {
        self.listed(id, Vec::new());
        self.inner.lock().feeds.remove(&id);
        self.changed.notify_one();
    }

    /// A whole list.
    pub fn listed(&self, id: FeedId, items: Vec<Item>) {
        let mut inner = self.inner.lock();
        let Some(feed) = inner.feeds.get_mut(&id) else { return };
        feed.settled = true;
        let there: HashSet<&Path> =
            items.iter().filter(|(_, json)| json.is_some()).map(|(path, _)| path.as_path()).collect();
        let gone: Vec<_> = feed.known.keys().filter(|path| !there.contains(path.as_path())).cloned().collect();
        for path in gone {
            inner.remove(id, &path);
        }
        for (path, json) in items {
            if let Some(json) = json {
                inner.put(id, path, json);
            }
        }
        drop(inner);
        self.well(id);
        self.changed.notify_one();
    }

    pub fn changed(&self, id: FeedId, (path, json): Item) {
        let mut inner = self.inner.lock();
        match json {
            Some(json) => inner.put(id, path, json),
            None => inner.remove(id, &path),
        }
        drop(inner);
        self.changed.notify_one();
    }

    /// There is no such kind. What was seen of it stays: see [`Self::listed`] for when it goes.
    pub fn absent(&self, id: FeedId) {
        if let Some(feed) = self.inner.lock().feeds.get_mut(&id) {
            feed.settled = true;
        }
        self.well(id);
        self.changed.notify_one();
    }

    /// The server answers as it should.
    pub fn well(&self, id: FeedId) {
        let mut inner = self.inner.lock();
        let Some(feed) = inner.feeds.get_mut(&id) else { return };
        let Some(trouble) = feed.trouble.take() else { return };
        let seconds = trouble.since.elapsed().as_secs();
        match trouble.failure {
            failure if failure.is_unreachable() => {
                if !inner.feeds.values().any(Feed::is_unreachable) {
                    log::info!("the API server answers again, after {seconds} s");
                }
            }
            _ => log::info!("{} can be read again, after {seconds} s", feed.resource),
        }
    }

    /// A request failed, with which the watch would `list and watch`, or only `watch`. Said once.
    pub fn failed(&self, id: FeedId, verb: &'static str, failure: Failure) {
        let mut inner = self.inner.lock();
        let alone = !inner.feeds.values().any(Feed::is_unreachable);
        let Some(feed) = inner.feeds.get_mut(&id) else { return };
        let stays =
            if feed.settled { "what was read stays in force" } else { "nothing is enrolled before it was read" };
        let same = |a: &Failure, b: &Failure| std::mem::discriminant(a) == std::mem::discriminant(b);
        match &mut feed.trouble {
            Some(trouble) if trouble.verb == verb && same(&trouble.failure, &failure) => trouble.failure = failure,
            _ => {
                if !failure.is_unreachable() {
                    log::warn!("{}; {stays}", explain(&feed.resource, verb, &failure));
                } else if alone {
                    log::warn!("the API server cannot be reached: {failure}; {stays}");
                }
                feed.trouble = Some(Trouble { verb, failure, since: Instant::now() });
            }
        }
        drop(inner);
        self.changed.notify_one();
    }

    /// Returns after something has changed since it returned last.
    pub async fn change(&self) {
        self.changed.notified().await;
    }

    /// Every one of these watches has had its first answer, be it that it may not be read: `patient` waits for that too.
    pub fn settled(&self, patient: bool, mut ids: impl FnMut(FeedId) -> bool) -> bool {
        let inner = self.inner.lock();
        inner
            .feeds
            .iter()
            .filter(|(id, _)| ids(**id))
            .all(|(_, feed)| feed.settled || (!patient && feed.trouble.is_some()))
    }

    /// When the first and the last of what is to be told came.
    pub fn came(&self) -> Option<(Instant, Instant)> {
        self.inner.lock().came
    }

    /// All that is to be told.
    pub fn take(&self) -> Vec<FileChange> {
        let mut inner = self.inner.lock();
        inner.came = None;
        let pending = std::mem::take(&mut inner.pending);
        pending.into_iter().map(|(path, json)| FileChange { path, content: json.map(Content::Object) }).collect()
    }

    /// What cannot be read now, since when and why: a line each, one for all that an unreachable server cannot tell.
    #[must_use]
    pub fn troubles(&self) -> Vec<String> {
        let inner = self.inner.lock();
        let mut lines = Vec::new();
        let unreachable = inner.feeds.values().filter(|feed| feed.is_unreachable());
        let longest = unreachable.filter_map(|feed| feed.trouble.as_ref()).min_by_key(|trouble| trouble.since);
        if let Some(Trouble { failure, since, .. }) = longest {
            lines.push(format!("the API server cannot be reached since {} s: {failure}", since.elapsed().as_secs()));
        }
        for feed in inner.feeds.values().filter(|feed| !feed.is_unreachable()) {
            if let Some(Trouble { verb, failure, since }) = &feed.trouble {
                lines.push(format!(
                    "{} (since {} s)",
                    explain(&feed.resource, verb, failure),
                    since.elapsed().as_secs()
                ));
            }
        }
        lines
    }
}

impl Feed {
    fn is_unreachable(&self) -> bool {
        self.trouble.as_ref().is_some_and(|trouble| trouble.failure.is_unreachable())
    }
}

fn explain(resource: &str, verb: &str, failure: &Failure) -> String {
    match failure {
        Failure::Refused { code: 403, message, .. } => format!("RBAC does not allow to {verb} {resource}: {message}"),
        other => format!("{resource} cannot be read: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(path: &str, json: &str) -> Item {
        (PathBuf::from(path), Some(json.as_bytes().to_vec()))
    }

    fn told(gathered: &Gathered) -> Vec<String> {
        let told = gathered.take().into_iter().map(|change| match change.content {
            Some(Content::Object(json)) => format!("{}={}", change.path.display(), String::from_utf8_lossy(&json)),
            Some(Content::Text(_)) => unreachable!("nothing here is text"),
            None => format!("{} gone", change.path.display()),
        });
        told.collect()
    }

    #[tokio::test]
    async fn a_relist_is_the_difference_to_what_was_known() {
        let (gathered, id) = (Gathered::default(), FeedId(0));
        gathered.add(id, "services".to_owned());
        assert!(!gathered.settled(true, |_| true));
        gathered.listed(id, vec![item("a", "1"), item("b", "1"), item("c", "1"), ("ended".into(), None)]);
        assert!(gathered.settled(true, |_| true));
        assert_eq!(told(&gathered), ["a=1", "b=1", "c=1"]);
        gathered.listed(id, vec![item("a", "1"), item("b", "2"), item("d", "1")]);
        assert_eq!(told(&gathered), ["b=2", "c gone", "d=1"]);
        gathered.changed(id, item("b", "2"));
        assert!(gathered.came().is_none(), "only its status has changed");
        gathered.drop_feed(id);
        assert_eq!(told(&gathered), ["a gone", "b gone", "d gone"]);
    }

    #[tokio::test]
    async fn a_pod_that_is_bound_moves_from_watch_to_watch_in_any_order() {
        let gathered = Gathered::default();
        let (own, others) = (FeedId(0), FeedId(1));
        gathered.add(own, "pods".to_owned());
        gathered.add(others, "pods".to_owned());
        for own_first in [true, false] {
            gathered.listed(others, vec![item("p", "unbound")]);
            gathered.take();
            let leave = || gathered.changed(others, ("p".into(), None));
            let enter = || gathered.changed(own, item("p", "bound"));
            if own_first {
                enter();
                leave();
            } else {
                leave();
                enter();
            }
            assert_eq!(told(&gathered), ["p=bound"]);
            gathered.changed(own, ("p".into(), None));
            assert_eq!(told(&gathered), ["p gone"]);
        }
    }

    #[tokio::test]
    async fn a_dead_server_is_one_line_and_a_lacking_right_names_itself() {
        let gathered = Gathered::default();
        let dead = || Failure::Unreachable("connection refused".to_owned());
        for (at, name) in ["services", "pods", "destinationrules.networking.istio.io"].into_iter().enumerate() {
            gathered.add(FeedId(at), name.to_owned());
        }
        gathered.failed(FeedId(0), "watch", dead());
        gathered.failed(FeedId(1), "watch", dead());
        let forbidden = Failure::Refused { code: 403, message: "no".to_owned(), retry_after: None };
        gathered.failed(FeedId(2), "list and watch", forbidden);
        let lines = gathered.troubles();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].starts_with("the API server cannot be reached since 0 s: connection refused"), "{lines:?}");
        assert!(lines[1].contains("list and watch destinationrules.networking.istio.io"), "{lines:?}");
        assert!(!gathered.settled(true, |_| true) && gathered.settled(false, |_| true));
        (0..3).for_each(|at| gathered.listed(FeedId(at), Vec::new()));
        assert!(gathered.troubles().is_empty());
    }
}
