//! Answers CertificateSigningRequests for [`SIGNER`]: approved and signed, or denied, and removed some time after.
//!
//! Every step starts from the object as it is, so that a next leader goes on where the last one stopped.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, pin_mut, stream::FuturesUnordered};
use k8s_openapi::{
    ByteString,
    api::{
        certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition},
        core::v1::Pod,
    },
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, PostParams, Preconditions},
    runtime::{WatchStreamExt as _, watcher},
};
use rustls_pki_types::UnixTime;
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

use super::{
    authority::Issuing,
    error::{ControllerError, asked},
    judge::{self, Asked, Denial, Place, condition},
    metrics::{self, Metrics},
};
use crate::{
    identity::SIGNER,
    limits::{SIGNED_KEPT, SIGNER_CHECK, SIGNER_REQUESTS},
    tls::inspect,
};

/// The reason of the condition Approved.
const POD_ON_NODE: &str = "PodOnNode";

type Request = CertificateSigningRequest;
type Issues = watch::Receiver<Option<Arc<Issuing>>>;

/// Never returns.
pub async fn run(client: Client, namespace: &str, metrics: &Metrics, mut issues: Issues) {
    let signer = Signer { client, namespace: namespace.to_owned(), issues: issues.clone(), metrics };
    let config = watcher::Config::default().fields(&format!("spec.signerName={SIGNER}"));
    let events = watcher(Api::<Request>::all(signer.client.clone()), config).default_backoff();
    pin_mut!(events);
    let mut check = interval(SIGNER_CHECK);
    check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known: HashMap<String, Arc<Request>> = HashMap::new();
    let mut listed: BTreeSet<String> = BTreeSet::new();
    let mut due: BTreeSet<String> = BTreeSet::new();
    let mut busy: BTreeSet<String> = BTreeSet::new();
    let mut steps = FuturesUnordered::new();
    loop {
        while let Some(name) =
            due.iter().find(|name| !busy.contains(*name)).cloned().filter(|_| busy.len() < SIGNER_REQUESTS)
        {
            due.remove(&name);
            if let Some(request) = known.get(&name).cloned() {
                busy.insert(name.clone());
                let signer = &signer;
                steps.push(async move { (name, signer.step(&request).await) });
            }
        }
        tokio::select! {
            Some(event) = events.next() => match event {
                Ok(watcher::Event::Init) => listed.clear(),
                Ok(watcher::Event::InitApply(request)) => {
                    let name = name(&request).to_owned();
                    listed.insert(name.clone());
                    due.insert(name.clone());
                    known.insert(name, Arc::new(request));
                }
                Ok(watcher::Event::InitDone) => known.retain(|name, _| listed.contains(name)),
                Ok(watcher::Event::Apply(request)) => {
                    let name = name(&request).to_owned();
                    due.insert(name.clone());
                    known.insert(name, Arc::new(request));
                }
                Ok(watcher::Event::Delete(request)) => {
                    known.remove(name(&request));
                }
                Err(error) => log::warn!("certificate requests: {error}"),
            },
            Some((name, result)) = steps.next() => {
                busy.remove(&name);
                metrics.reconciled(metrics::SIGNER, &result);
                match result {
                    // After a conflict the change is on the way to us.
                    Ok(()) | Err(ControllerError::Conflict { .. }) => {}
                    Err(error) => log::warn!("certificate request {name}: {error}"),
                }
            },
            // A CA came, or another one.
            Ok(()) = issues.changed() => due.extend(known.iter().filter(|(_, r)| is_open(r)).map(|(name, _)| name.clone())),
            _ = check.tick() => due.extend(known.keys().cloned()),
        }
    }
}

struct Signer<'a> {
    client: Client,
    namespace: String,
    issues: Issues,
    metrics: &'a Metrics,
}

impl Signer<'_> {
    /// Does for a request what is to be done now.
    async fn step(&self, request: &Request) -> Result<(), ControllerError> {
        if !is_open(request) {
            return self.remove_old(request).await;
        }
        let issuing = self.issues.borrow().clone();
        let Some(issuing) = issuing.filter(|issuing| issuing.from <= Instant::now()) else { return Ok(()) };
        let asked = match judge::read(&request.spec, &self.namespace, &issuing.trust_domain) {
            Ok(asked) => self.check_place(&asked).await?.map(|()| asked),
            Err(denial) => Err(denial),
        };
        match asked {
            Ok(asked) => self.grant(request, &asked, &issuing).await,
            Err(denial) => self.deny(request, &denial).await,
        }
    }

    /// Whether a pod with the identity is where the request came from, as the API server knows it at this moment.
    async fn check_place(&self, asked_for: &Asked) -> Result<Result<(), Denial>, ControllerError> {
        let node = match &asked_for.place {
            Place::Node(node) => node.clone(),
            Place::AgentPod { name, uid } => {
                let api: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
                let pod = asked("read the agent's pod", api.get_opt(name)).await?;
                match judge::node_of(pod.as_ref(), name, uid.as_deref()) {
                    Ok(node) => node,
                    Err(denial) => return Ok(Err(denial)),
                }
            }
        };
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &asked_for.namespace);
        let pods = ListParams::default().fields(&format!("spec.nodeName={node}"));
        let pods = asked("list the node's pods", api.list(&pods)).await?;
        Ok(judge::check_pods(&pods.items, asked_for, &node))
    }

    async fn grant(&self, request: &Request, asked_for: &Asked, issuing: &Issuing) -> Result<(), ControllerError> {
        let now = UnixTime::now();
        let chain = issuing.authority.certify(&asked_for.identity, &asked_for.key, asked_for.lifetime, now)?;
        let mut approved = request.clone();
        if !has(request, "Approved") {
            let reason = condition("Approved", POD_ON_NODE, "a pod with this identity runs on the agent's node");
            conditions(&mut approved).push(reason);
            approved = self.write("approval", &approved).await?;
        }
        approved.status.get_or_insert_default().certificate = Some(ByteString(inspect::to_pem(&chain).into_bytes()));
        self.write("status", &approved).await?;
        self.metrics.signed(POD_ON_NODE);
        log::info!("signed {} for {}, asked for from {}", name(request), asked_for.identity, asked_for.place);
        Ok(())
    }

    /// Somebody may have approved it by hand: then it failed, which says the same.
    async fn deny(&self, request: &Request, denial: &Denial) -> Result<(), ControllerError> {
        let (subresource, kind) = if has(request, "Approved") { ("status", "Failed") } else { ("approval", "Denied") };
        let mut denied = request.clone();
        conditions(&mut denied).push(condition(kind, denial.reason, &denial.message));
        self.write(subresource, &denied).await?;
        self.metrics.refused(denial.reason);
        let who = request.spec.username.as_deref().unwrap_or_default();
        log::warn!("denied {} of {}: {}: {}", name(request), who.escape_default(), denial.reason, denial.message);
        Ok(())
    }

    /// Fails where the object is another one by now.
    async fn write(&self, subresource: &str, request: &Request) -> Result<Request, ControllerError> {
        let (api, params) = (Api::<Request>::all(self.client.clone()), PostParams::default());
        let write = api.replace_subresource(subresource, name(request), &params, request);
        asked(&format!("write the {subresource} of a certificate request"), write).await
    }

    /// Agents may not remove requests, for they could remove those of others: the signer does, once there was time to read.
    async fn remove_old(&self, request: &Request) -> Result<(), ControllerError> {
        let finished = request.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let finished = finished.filter_map(|condition| condition.last_update_time.as_ref()).map(|time| time.0).max();
        let since = finished.or_else(|| request.metadata.creation_timestamp.as_ref().map(|time| time.0));
        let age = since.map(|since| Timestamp::now().duration_since(since)).unwrap_or_default();
        if Duration::try_from(age).unwrap_or_default() < SIGNED_KEPT {
            return Ok(());
        }
        let api: Api<Request> = Api::all(self.client.clone());
        let this = Preconditions { uid: request.metadata.uid.clone(), resource_version: None };
        let params = DeleteParams { preconditions: Some(this), ..DeleteParams::default() };
        match asked("remove a certificate request", api.delete(name(request), &params)).await {
            Err(ControllerError::Api { why, .. }) if matches!(&*why, kube::Error::Api(status) if status.code == 404) => {
            }
            other => drop(other?),
        }
        Ok(())
    }
}

/// Neither signed nor refused.
fn is_open(request: &Request) -> bool {
    let certificate = request.status.as_ref().and_then(|status| status.certificate.as_ref());
    certificate.is_none_or(|bytes| bytes.0.is_empty()) && !has(request, "Denied") && !has(request, "Failed")
}

fn name(request: &Request) -> &str {
    request.metadata.name.as_deref().unwrap_or_default()
}

fn has(request: &Request, kind: &str) -> bool {
    let conditions = request.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == kind && condition.status != "False")
}

fn conditions(request: &mut Request) -> &mut Vec<CertificateSigningRequestCondition> {
    request.status.get_or_insert_default().conditions.get_or_insert_default()
}
