//! Which of several controllers works: a Lease (coordination.k8s.io/v1), held as client-go's leader election holds it.

use std::{sync::Arc, time::Instant};

use k8s_openapi::{
    api::coordination::v1::{Lease as Object, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use tokio::time::sleep;

use super::{
    error::{ControllerError, asked},
    health::{Health, LEASE},
};
use crate::limits::{LEASE_RENEWAL, LEASE_RETRY, LEASE_TIME};

const NAME: &str = "egret-controller";

pub struct Lease {
    api: Api<Object>,
    own: String,
    health: Arc<Health>,
    /// What another one wrote, and when we first saw it: their clock may differ from ours, so only that it changes counts.
    seen: Option<(LeaseSpec, Instant)>,
    held: bool,
}

/// What an attempt came to.
enum Attempt {
    Ours,
    /// Somebody else's, for the time being.
    Theirs(String),
}

impl Lease {
    pub fn new(client: Client, namespace: &str, own: String, health: Arc<Health>) -> Self {
        Self { api: Api::namespaced(client, namespace), own, health, seen: None, held: false }
    }

    pub fn own(&self) -> &str {
        &self.own
    }

    /// Returns once it is ours.
    pub async fn acquire(&mut self) {
        loop {
            match self.attempt().await {
                Ok(Attempt::Ours) => {
                    self.health.awaits(LEASE, None);
                    return;
                }
                Ok(Attempt::Theirs(holder)) => {
                    log::debug!("the lease is held by {holder}");
                    self.health.awaits(LEASE, None);
                }
                // Two tried at the same time: the next look tells who won.
                Err(ControllerError::Conflict { .. }) => {}
                Err(error) => self.health.awaits(LEASE, Some(error.to_string())),
            }
            // Not all at the same moment.
            sleep(LEASE_RETRY.mul_f64(rand::random_range(1.0..1.2))).await;
        }
    }

    /// Renews it; returns once it is lost, and why.
    pub async fn hold(&mut self) -> String {
        let mut renewed = Instant::now();
        loop {
            sleep(LEASE_RETRY).await;
            let left = LEASE_RENEWAL.saturating_sub(renewed.elapsed());
            let lost = match tokio::time::timeout(left, self.attempt()).await {
                Ok(Ok(Attempt::Ours)) => {
                    renewed = Instant::now();
                    continue;
                }
                Ok(Ok(Attempt::Theirs(holder))) => format!("{holder} has the lease"),
                Ok(Err(ControllerError::Conflict { .. })) => continue,
                Ok(Err(error)) if renewed.elapsed() < LEASE_RENEWAL => {
                    log::warn!("the lease was not renewed: {error}");
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => "the API server did not answer in time".to_owned(),
            };
            self.held = false;
            return lost;
        }
    }

    /// Lets another one take it at once.
    pub async fn release(&mut self) {
        if !std::mem::take(&mut self.held) {
            return;
        }
        let release = async {
            let Some(mut object) = self.api.get_opt(NAME).await? else { return Ok(()) };
            let spec = object.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() == Some(&self.own) {
                spec.holder_identity = Some(String::new());
                spec.lease_duration_seconds = Some(1);
                self.api.replace(NAME, &PostParams::default(), &object).await?;
            }
            Ok(())
        };
        if let Err(error) = asked("release the lease", release).await {
            log::warn!("{error}");
        }
    }

    async fn attempt(&mut self) -> Result<Attempt, ControllerError> {
        let params = PostParams::default();
        let Some(mut object) = asked("read the lease", self.api.get_opt(NAME)).await? else {
            let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
            let new = Object { metadata, spec: Some(self.ours(&LeaseSpec::default())) };
            asked("take the lease", self.api.create(&params, &new)).await?;
            self.held = true;
            return Ok(Attempt::Ours);
        };
        let spec = object.spec.take().unwrap_or_default();
        if let Some(holder) = self.other(&spec) {
            return Ok(Attempt::Theirs(holder));
        }
        object.spec = Some(self.ours(&spec));
        asked("take the lease", self.api.replace(NAME, &params, &object)).await?;
        self.held = true;
        Ok(Attempt::Ours)
    }

    /// Who else holds it now.
    fn other(&mut self, spec: &LeaseSpec) -> Option<String> {
        let holder = spec.holder_identity.as_ref().filter(|holder| !holder.is_empty() && **holder != self.own)?;
        match &self.seen {
            Some((seen, since)) if seen == spec => (since.elapsed() < LEASE_TIME).then(|| holder.clone()),
            _ => {
                self.seen = Some((spec.clone(), Instant::now()));
                Some(holder.clone())
            }
        }
    }

    fn ours(&self, before: &LeaseSpec) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let renewal = before.holder_identity.as_deref() == Some(&self.own);
        LeaseSpec {
            holder_identity: Some(self.own.clone()),
            lease_duration_seconds: i32::try_from(LEASE_TIME.as_secs()).ok(),
            acquire_time: before.acquire_time.clone().filter(|_| renewal).or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(before.lease_transitions.unwrap_or(0) + i32::from(!renewal)),
            ..before.clone()
        }
    }
}
