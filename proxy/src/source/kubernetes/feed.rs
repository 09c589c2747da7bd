//! One watch: a list, then what changes, for as long as the agent runs.
//!
//! A list comes as a stream where the server has that (Kubernetes 1.32), else in pages. A version that is gone, a stream that
//! ends, a server that is away: each leads back to the list or to the watch, and what was told stays meanwhile.

use std::{sync::Arc, time::Duration};

use kube::Client;
use rand::RngExt as _;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::{
    discovery::Served,
    gathered::{FeedId, Gathered, Item},
    kinds::Kind,
    request::{Failure, Lines, get, url, whole},
    trim::{Event, Page, Versioned, document},
};
use crate::limits;

/// Ends a streamed list.
const LIST_ENDS: &str = "k8s.io/initial-events-end";

/// Which objects of a kind are watched.
pub enum Selector {
    Fields(String),
    Labels(String),
}

impl Selector {
    fn query(&self) -> (&'static str, &str) {
        match self {
            Self::Fields(text) => ("fieldSelector", text),
            Self::Labels(text) => ("labelSelector", text),
        }
    }
}

pub struct Feed {
    pub id: FeedId,
    pub client: Client,
    pub gathered: Arc<Gathered>,
    pub kind: &'static Kind,
    /// None: of all namespaces.
    pub namespace: Option<String>,
    /// Which objects; None: all.
    pub selector: Option<Selector>,
    pub served: watch::Receiver<Option<Served>>,
}

/// How far it is.
#[derive(Default)]
struct Progress {
    /// Which of the kind's versions is asked for.
    version: Option<&'static str>,
    /// Up to which state of the cluster everything was told.
    seen: Option<String>,
    /// The server does not know streamed lists.
    pages: bool,
    /// Failures in a row.
    failures: u32,
}

impl Feed {
    /// Never ends.
    pub async fn run(mut self) {
        let mut progress = Progress::default();
        loop {
            let (began, mut pause) = (Instant::now(), Duration::ZERO);
            match self.follow(&mut progress).await {
                // Servers end a watch now and then; one that does so at once is not well.
                Ok(()) if began.elapsed() > limits::API_RETRY_MOST => progress.failures = 0,
                Ok(()) => {}
                Err(failure) if failure.is(410) => progress.seen = None,
                // The server knows none of the kind's versions, or this one no more.
                Err(failure) if failure.is(404) => {
                    progress.seen = None;
                    if self.next_version(&mut progress) {
                        continue;
                    }
                    self.await_kind().await;
                    progress = Progress { pages: progress.pages, failures: progress.failures, ..Progress::default() };
                }
                // Rights are looked at first, also those to what is not there.
                Err(failure) if failure.is(403) && self.is_not_served() => self.await_kind().await,
                Err(failure) if progress.seen.is_none() && !progress.pages && (failure.is(400) || failure.is(422)) => {
                    progress.pages = true;
                    continue;
                }
                // A streamed list is a watch: a list of its own may be allowed.
                Err(failure) if progress.seen.is_none() && !progress.pages && failure.is(403) => {
                    progress.pages = true;
                    continue;
                }
                Err(failure) => {
                    pause = failure.pause();
                    let verb = if progress.seen.is_some() { "watch" } else { "list and watch" };
                    if matches!(failure, Failure::Unreadable(_)) {
                        progress.seen = None;
                    }
                    self.gathered.failed(self.id, verb, failure);
                }
            }
            sleep(backoff(progress.failures).max(pause)).await;
            progress.failures += 1;
        }
    }

    /// Lists, if need be, and watches until the watch ends.
    async fn follow(&mut self, progress: &mut Progress) -> Result<(), Failure> {
        let version = match progress.version {
            Some(version) => version,
            None => *progress.version.insert(self.first_version()),
        };
        if progress.seen.is_none() && progress.pages {
            let (items, seen) = self.list(version).await?;
            self.gathered.listed(self.id, items);
            progress.seen = Some(seen);
        }
        self.watch(version, progress).await
    }

    /// The best version that the server is known to have.
    fn first_version(&mut self) -> &'static str {
        let served = self.served.borrow_and_update();
        let known = served.as_ref();
        let mut versions = self.kind.versions.iter();
        versions
            .find(|version| known.is_some_and(|served| served.has(self.kind, version)))
            .unwrap_or(&self.kind.versions[0])
    }

    fn is_not_served(&self) -> bool {
        self.served.borrow().as_ref().is_some_and(|served| !served.has_kind(self.kind))
    }

    /// Whether there is one more version to ask for. What discovery says may be behind, so all are asked for.
    fn next_version(&mut self, progress: &mut Progress) -> bool {
        let asked = self.kind.versions.iter().position(|version| Some(*version) == progress.version);
        let next = self.kind.versions.get(asked.map_or(0, |at| at + 1)).copied();
        progress.version = next.or(progress.version);
        next.is_some()
    }

    /// The kind does not exist. Objects of a kind that was there are let go after a while: an API server that has only just
    /// started may know a kind late.
    async fn await_kind(&mut self) {
        self.gathered.absent(self.id);
        let there = self.served.wait_for(|served| served.as_ref().is_some_and(|served| served.has_kind(self.kind)));
        if timeout(limits::API_KIND_GONE, there).await.is_err() {
            self.gathered.listed(self.id, Vec::new());
            let appears =
                self.served.wait_for(|served| served.as_ref().is_some_and(|served| served.has_kind(self.kind)));
            if appears.await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The whole list, page by page, and the state of the cluster that it shows.
    async fn list(&self, version: &str) -> Result<(Vec<Item>, String), Failure> {
        let path = self.kind.url(version, self.namespace.as_deref());
        let (mut items, mut continued) = (Vec::new(), String::new());
        loop {
            let mut query = vec![("limit", "500")];
            query.extend(self.selector.as_ref().map(Selector::query));
            if !continued.is_empty() {
                query.push(("continue", &continued));
            }
            let body = whole(get(&self.client, &url(&path, &query), &[]).await?).await?;
            let page: Page<'_> = serde_json::from_slice(&body)?;
            for item in page.items.unwrap_or_default() {
                items.push(document(self.kind, version, item)?);
            }
            if page.metadata.continued.is_empty() {
                return Ok((items, page.metadata.resource_version));
            }
            continued = page.metadata.continued;
        }
    }

    /// Tells what changes after what was seen; where nothing was, a streamed list comes first.
    async fn watch(&self, version: &str, progress: &mut Progress) -> Result<(), Failure> {
        let path = self.kind.url(version, self.namespace.as_deref());
        // Not all watches of all nodes at once, and none for ever: client-go's figures.
        let lasts = rand::rng().random_range(300..600_u64);
        let (seconds, from) = (lasts.to_string(), progress.seen.clone());
        let mut query = vec![("watch", "true"), ("allowWatchBookmarks", "true"), ("timeoutSeconds", &seconds)];
        match &from {
            Some(seen) => query.push(("resourceVersion", seen)),
            None => query.extend([("sendInitialEvents", "true"), ("resourceVersionMatch", "NotOlderThan")]),
        }
        query.extend(self.selector.as_ref().map(Selector::query));
        let mut lines = Lines::new(get(&self.client, &url(&path, &query), &[]).await?);
        let mut list = match from {
            Some(_) => None,
            None => Some(Vec::new()),
        };
        if list.is_none() {
            self.gathered.well(self.id);
        }
        loop {
            let silence = match list {
                // A server that knows nothing of streamed lists sends objects and never says that these were all.
                Some(_) => limits::API_SILENCE,
                None => Duration::from_secs(lasts) + limits::API_SILENCE,
            };
            let line = match lines.next(silence).await {
                Ok(Some(line)) => line,
                Ok(None) => return Ok(()),
                // Broken off is as good as ended: whether the server is away, the next request tells.
                Err(failure) if list.is_none() => {
                    log::debug!("watch of {}: {failure}", self.kind.resource());
                    return Ok(());
                }
                Err(failure) => {
                    progress.pages |= matches!(failure, Failure::Silent(_));
                    return Err(failure);
                }
            };
            let event: Event<'_> = serde_json::from_slice(&line)?;
            if event.kind == "ERROR" {
                return Err(Failure::in_watch(event.object.get()));
            }
            let Versioned { metadata } = serde_json::from_str(event.object.get())?;
            match (event.kind.as_str(), &mut list) {
                ("BOOKMARK", list) => {
                    if metadata.annotations.contains_key(LIST_ENDS)
                        && let Some(items) = list.take()
                    {
                        self.gathered.listed(self.id, items);
                    }
                }
                ("DELETED", None) => {
                    let (path, _) = document(self.kind, version, event.object)?;
                    self.gathered.changed(self.id, (path, None));
                }
                ("ADDED" | "MODIFIED", Some(items)) => items.push(document(self.kind, version, event.object)?),
                ("ADDED" | "MODIFIED", None) => {
                    self.gathered.changed(self.id, document(self.kind, version, event.object)?);
                }
                (other, _) => return Err(Failure::Unreadable(format!("a watch event of type {other}"))),
            }
            if list.is_none() {
                progress.failures = 0;
                progress.seen = Some(metadata.resource_version).filter(|seen| !seen.is_empty());
            }
        }
    }
}

/// Doubles, and is never the same on two nodes.
fn backoff(failures: u32) -> Duration {
    let longest = limits::API_RETRY_MOST.min(limits::API_RETRY.saturating_mul(1 << failures.min(16)));
    longest.mul_f64(rand::rng().random_range(0.5..1.0))
}
