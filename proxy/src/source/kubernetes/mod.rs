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

use self::{
    feed::{Feed, Selector},
    gathered::FeedId,
    kinds::{CONFIG_MAPS, Kind, MADE, OTHER_PODS, OWN_PODS, REPORTED, SECRETS, WHOLE},
};
pub use self::{gathered::Gathered, kinds::object_path};
use super::store::FileChange;
use crate::{
    api::{CredentialRef, gateway_api},
    limits,
};

/// A field selector that names one object.
const NAMED: &str = "metadata.name=";

fn named(name: &str) -> Selector {
    Selector::Fields(format!("{NAMED}{name}"))
}

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
        let mut this = Self::new(client);
        this.follow(&OWN_PODS, None, Some(Selector::Fields(format!("spec.nodeName={node}"))));
        this.follow(&OTHER_PODS, None, Some(Selector::Fields(format!("spec.nodeName!={node}"))));
        this.follow(&CONFIG_MAPS, Some(root_namespace), Some(named(MESH_CONFIG)));
        for kind in &WHOLE {
            this.follow(kind, None, None);
        }
        this
    }

    /// The same of all that matters to the controller of Gateways: the objects whole, and those of the kinds that it makes
    /// which bear this label.
    #[must_use]
    pub fn start_controller(client: Client, made: &str) -> Self {
        let mut this = Self::new(client);
        this.follow(&OTHER_PODS, None, None);
        for kind in &REPORTED {
            this.follow(kind, None, None);
        }
        for kind in &MADE {
            this.follow(kind, None, Some(Selector::Labels(made.to_owned())));
        }
        this
    }

    fn new(client: Client) -> Self {
        let (sender, served) = watch::channel(None);
        let mut tasks = JoinSet::new();
        tasks.spawn(discovery::follow(client.clone(), sender));
        Self {
            client,
            gathered: Arc::default(),
            served,
            tasks,
            feeds: 0,
            credentials: BTreeMap::new(),
            begun: false,
            told: Instant::now(),
            took: None,
        }
    }

    fn follow(
        &mut self,
        kind: &'static Kind,
        namespace: Option<&str>,
        selector: Option<Selector>,
    ) -> (FeedId, AbortHandle) {
        let id = FeedId(self.feeds);
        self.feeds += 1;
        let name = match &selector {
            Some(Selector::Fields(fields)) => fields.strip_prefix(NAMED),
            _ => None,
        };
        let name = name.and_then(|name| Some(format!(" {}/{name}", namespace?)));
        self.gathered.add(id, format!("{}{}", kind.resource(), name.unwrap_or_default()));
        let feed = Feed {
            id,
            client: self.client.clone(),
            gathered: self.gathered.clone(),
            kind,
            namespace: namespace.map(str::to_owned),
            selector,
            served: self.served.clone(),
        };
        (id, self.tasks.spawn(feed.run()))
    }

    /// Whether the API server has this kind, as far as is known: one of those whose status a controller writes.
    #[must_use]
    pub fn serves(&self, kind: &str) -> bool {
        let served = self.served.borrow();
        let known = REPORTED.iter().find(|known| known.kind == kind && known.group == gateway_api::GROUP);
        known.is_some_and(|kind| served.as_ref().is_some_and(|served| served.has_kind(kind)))
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
            let feed = self.follow(kind, Some(&credential.namespace), Some(named(&credential.name)));
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
