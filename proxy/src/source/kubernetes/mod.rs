//! Objects from the API server of a cluster, watched, and told in batches as those of files are.
//!
//! Each object is to the store what a file with one document is: `kubernetes/DestinationRule/shop/db`. So what is refused keeps
//! its last good version, and all else is as with files. [`feed`] follows one kind, [`gathered`] holds what all of them saw
//! until it is told, [`discovery`] says which kinds there are.

pub mod client;
mod discovery;
mod feed;
mod gathered;
mod kinds;
mod request;
mod trim;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kube::Client;
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::{Duration, Instant, sleep_until, timeout},
};

pub use self::gathered::Gathered;
use self::{
    feed::Feed,
    gathered::FeedId,
    kinds::{CONFIG_MAPS, Kind, OTHER_PODS, OWN_PODS, SECRETS, WHOLE},
};
use super::store::FileChange;
use crate::{api::CredentialRef, limits};

/// What holds mesh settings.
pub const MESH_CONFIG: &str = "istio";

/// The objects that matter to one node of a cluster.
pub struct Kubernetes {
    client: Client,
    gathered: Arc<Gathered>,
    served: watch::Receiver<Option<discovery::Served>>,
    /// Ended with this.
    tasks: JoinSet<()>,
    feeds: usize,
    /// Secrets and ConfigMaps that rules name, each with its watch.
    credentials: BTreeMap<CredentialRef, (FeedId, AbortHandle)>,
    /// The first batch was told.
    begun: bool,
    /// When a batch was told last, and how long it took until the next one was asked for.
    told: Instant,
    took: Option<Duration>,
}

impl Kubernetes {
    /// Begins to watch all that matters to `node`. Wants a tokio runtime.
    #[must_use]
    pub fn start(client: Client, node: &str, root_namespace: &str) -> Self {
        let (sender, served) = watch::channel(None);
        let mut tasks = JoinSet::new();
        tasks.spawn(discovery::follow(client.clone(), sender));
        let mut this = Self {
            client,
            gathered: Arc::default(),
            served,
            tasks,
            feeds: 0,
            credentials: BTreeMap::new(),
            begun: false,
            told: Instant::now(),
            took: None,
        };
        this.follow(&OWN_PODS, None, format!("spec.nodeName={node}"));
        this.follow(&OTHER_PODS, None, format!("spec.nodeName!={node}"));
        this.follow(&CONFIG_MAPS, Some(root_namespace), format!("metadata.name={MESH_CONFIG}"));
        for kind in &WHOLE {
            this.follow(kind, None, String::new());
        }
        this
    }

    fn follow(&mut self, kind: &'static Kind, namespace: Option<&str>, fields: String) -> (FeedId, AbortHandle) {
        let id = FeedId(self.feeds);
        self.feeds += 1;
        let name = fields.strip_prefix("metadata.name=").and_then(|name| Some(format!(" {}/{name}", namespace?)));
        self.gathered.add(id, format!("{}{}", kind.resource(), name.unwrap_or_default()));
        let feed = Feed {
            id,
            client: self.client.clone(),
            gathered: self.gathered.clone(),
            kind,
            namespace: namespace.map(str::to_owned),
            fields,
            served: self.served.clone(),
        };
        (id, self.tasks.spawn(feed.run()))
    }

    /// The connection that all watches are on, for more requests.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// What is wrong with the connection to the API server, to be shown.
    #[must_use]
    pub fn health(&self) -> Arc<Gathered> {
        self.gathered.clone()
    }

    /// The next changes. The first ones are told once every kind was listed, all others once they rest for
    /// [`limits::API_QUIET`], or after [`limits::API_LONGEST`] all the same; but not sooner after the last ones than the
    /// caller took for those. The first ones may be none. Safe to cancel: nothing is lost.
    pub async fn next(&mut self) -> Vec<FileChange> {
        let took = *self.took.get_or_insert_with(|| self.told.elapsed().min(limits::API_PAUSE));
        while !self.begun {
            let credentials: BTreeSet<_> = self.credentials.values().map(|(id, _)| *id).collect();
            if self.gathered.settled(true, |id| !credentials.contains(&id)) {
                self.begun = true;
                return self.tell();
            }
            self.gathered.change().await;
        }
        let pause = self.told + took * 2;
        loop {
            let Some((first, last)) = self.gathered.came() else {
                self.gathered.change().await;
                continue;
            };
            let rested = (last + limits::API_QUIET).min(first + limits::API_LONGEST);
            let due = rested.max(pause);
            if Instant::now() >= due {
                return self.tell();
            }
            sleep_until(due).await;
        }
    }

    fn tell(&mut self) -> Vec<FileChange> {
        let changes = self.gathered.take();
        self.told = Instant::now();
        self.took = None;
        changes
    }

    /// Watches these Secrets and ConfigMaps by name, instead of those of the call before, and tells the changes that came with
    /// them: what names them is to be in force together with them. New ones are waited for, for [`limits::API_CREDENTIALS`]
    /// at most.
    pub async fn credentials(&mut self, wanted: BTreeSet<CredentialRef>) -> Vec<FileChange> {
        let gone: Vec<_> = self.credentials.keys().filter(|known| !wanted.contains(*known)).cloned().collect();
        for (id, task) in gone.iter().filter_map(|gone| self.credentials.remove(gone)) {
            task.abort();
            self.gathered.drop_feed(id);
        }
        let mut new = BTreeSet::new();
        for credential in wanted {
            if self.credentials.contains_key(&credential) {
                continue;
            }
            let kind = if credential.is_secret { &SECRETS } else { &CONFIG_MAPS };
            let name = format!("metadata.name={}", credential.name);
            let feed = self.follow(kind, Some(&credential.namespace), name);
            new.insert(feed.0);
            self.credentials.insert(credential, feed);
        }
        if new.is_empty() {
            return Vec::new();
        }
        let gathered = self.gathered.clone();
        let listed = async {
            while !gathered.settled(false, |id| new.contains(&id)) {
                gathered.change().await;
            }
        };
        if timeout(limits::API_CREDENTIALS, listed).await.is_err() {
            log::warn!("the API server is slow with Secrets: rules that name them are refused until they are there");
        }
        self.tell()
    }
}
