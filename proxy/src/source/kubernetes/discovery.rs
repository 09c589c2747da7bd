//! Which kinds the server has: definitions of kinds come and go while the agent runs.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use http::header::{ACCEPT, ETAG, IF_NONE_MATCH};
use kube::Client;
use tokio::{sync::watch, time::sleep};

use super::{
    kinds::{Kind, WHOLE},
    request::{Failure, get, whole},
    trim::{Groups, ResourceList},
};
use crate::limits;

/// All groups with their resources in one answer (Kubernetes 1.26), or else their names.
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";

/// Resources by group and version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Served(Arc<HashMap<(String, String), BTreeSet<String>>>);

impl Served {
    #[must_use]
    pub fn has(&self, kind: &Kind, version: &str) -> bool {
        let at = (kind.group.to_owned(), version.to_owned());
        // Kubernetes' oldest groups have no dot in their names, and every server has them.
        !kind.group.contains('.') || self.0.get(&at).is_some_and(|resources| resources.contains(kind.plural))
    }

    /// In a version that our readers know.
    #[must_use]
    pub fn has_kind(&self, kind: &Kind) -> bool {
        kind.versions.iter().any(|version| self.has(kind, version))
    }
}

/// Asks again and again, and never ends. A server that does not answer changes nothing: watches say that it is away.
pub async fn follow(client: Client, served: watch::Sender<Option<Served>>) {
    let mut tag = None;
    loop {
        let mut pause = limits::API_DISCOVERY;
        match ask(&client, &mut tag).await {
            Ok(None) => {}
            Ok(Some(now)) => {
                served.send_if_modified(|before| before.replace(now.clone()).as_ref() != Some(&now));
            }
            Err(failure) => {
                log::debug!("discovery: {failure}");
                pause = pause.max(failure.pause());
            }
        }
        sleep(pause).await;
    }
}

/// None: nothing has changed since the answer with this tag.
async fn ask(client: &Client, tag: &mut Option<String>) -> Result<Option<Served>, Failure> {
    let mut headers = vec![(ACCEPT, AGGREGATED)];
    if let Some(tag) = tag {
        headers.push((IF_NONE_MATCH, tag));
    }
    let answer = get(client, "/apis", &headers).await?;
    if answer.status() == http::StatusCode::NOT_MODIFIED {
        return Ok(None);
    }
    let new = answer.headers().get(ETAG).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let groups: Groups = serde_json::from_slice(&whole(answer).await?)?;
    let mut served = HashMap::new();
    if groups.kind == "APIGroupDiscoveryList" {
        for group in groups.items {
            for version in group.versions {
                let resources = version.resources.into_iter().map(|resource| resource.resource).collect();
                served.insert((group.metadata.name.clone(), version.version), resources);
            }
        }
        *tag = new;
    } else {
        let wanted: BTreeSet<_> = WHOLE
            .iter()
            .filter(|kind| !kind.group.is_empty())
            .flat_map(|kind| kind.versions.iter().map(|version| (kind.group, *version)))
            .collect();
        for (group, version) in wanted {
            match get(client, &format!("/apis/{group}/{version}"), &[]).await {
                Ok(answer) => {
                    let list: ResourceList = serde_json::from_slice(&whole(answer).await?)?;
                    served.insert((group.to_owned(), version.to_owned()), list.names());
                }
                Err(failure) if failure.is(404) => {}
                Err(failure) => return Err(failure),
            }
        }
    }
    Ok(Some(Served(Arc::new(served))))
}
