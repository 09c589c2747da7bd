//! Gateways of the Gateway API: for each one of egret's classes the pods that its listeners live in, a Service, and what is
//! said of it and of its routes in their `status`.
//!
//! Which Gateways those are and what is said of them is the compiler's, the same that agents have ([`mesh::gateway_api`]): here
//! its findings become objects and conditions. What is seen is compared with what should be, after each change: nothing is
//! remembered that a next leader would miss, and nothing is written that is there already.

mod addresses;
mod conditions;
mod live;
mod pods;
mod refused;
#[cfg(test)]
mod tests;
mod write;

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    time::Instant,
};

use futures_util::{StreamExt as _, stream};
use kube::Client;
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};

use self::{live::Live, write::Writer};
use super::{
    error::ControllerError,
    metrics::{self, Metrics},
};
use crate::{
    api::{ObjectId, Severity, gateway_api},
    limits::{GATEWAY_CHECK, GATEWAY_REQUESTS},
    mesh::{
        Condition,
        gateway_api::{CLASSES, CONTROLLER, ISTIO_CONTROLLER, Implied, Report, report},
    },
    source::{FileChange, Store, kubernetes::Kubernetes, store::Content},
};

/// Of what the controller makes: who manages it (Kubernetes' recommended label).
const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "egret-controller");
/// The kinds with a `status` for each parent or ancestor, and where it lies.
const LISTED: [(&str, &str, &str); 3] = [
    ("HTTPRoute", "parents", "parentRef"),
    ("TLSRoute", "parents", "parentRef"),
    ("BackendTLSPolicy", "ancestors", "ancestorRef"),
];

/// How Gateways are run.
#[derive(Clone, Debug)]
pub struct Options {
    /// What their pods run: nothing, for their listeners live in the agents.
    pub pause_image: String,
    /// Whether Gateways of Istio's controllerName are run, too. A running Istio would write the same objects.
    pub istio_class: bool,
}

/// Never returns.
pub async fn run(client: Client, options: &Options, metrics: &Metrics) {
    let mut keeper = Keeper::new(client, options);
    let mut check = interval(GATEWAY_CHECK);
    check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            changes = keeper.cluster.next() => {
                keeper.read(changes);
                keeper.begun = true;
            }
            _ = check.tick() => {
                if !keeper.begun || keeper.is_settled() {
                    continue;
                }
            }
        }
        keeper.bring_about().await;
        metrics.reconciled_all(metrics::GATEWAYS, !keeper.failed);
    }
}

struct Keeper<'a> {
    options: &'a Options,
    controllers: &'static [&'static str],
    cluster: Kubernetes,
    store: Store,
    live: Live,
    /// Objects that are refused as they are now, and why.
    refused: BTreeMap<PathBuf, String>,
    writer: Writer,
    /// The names of objects that are somebody else's, and when that was seen.
    taken: HashMap<PathBuf, Instant>,
    /// Everything was listed once.
    begun: bool,
    /// Something could not be written.
    failed: bool,
}

impl<'a> Keeper<'a> {
    fn new(client: Client, options: &'a Options) -> Self {
        let controllers: &'static [&'static str] =
            if options.istio_class { &[CONTROLLER, ISTIO_CONTROLLER] } else { &[CONTROLLER] };
        Self {
            options,
            controllers,
            cluster: Kubernetes::start_controller(client.clone(), &format!("{}={}", MANAGED_BY.0, MANAGED_BY.1)),
            store: Store::of_cluster(controllers),
            live: Live::default(),
            refused: BTreeMap::new(),
            writer: Writer::new(client),
            taken: HashMap::new(),
            begun: false,
            failed: false,
        }
    }

    fn read(&mut self, changes: Vec<FileChange>) {
        let changes = self.live.read(changes);
        for change in &changes {
            self.refused.remove(&change.path);
        }
        let batch = self.store.apply(changes);
        for found in batch.diagnostics.into_iter().filter(|found| found.severity == Severity::Error) {
            let field = if found.field.is_empty() { String::new() } else { format!("{}: ", found.field) };
            let why = self.refused.entry(found.file.to_path_buf()).or_default();
            if !why.is_empty() {
                why.push_str("; ");
            }
            why.push_str(&format!("{field}{}", found.message));
        }
    }

    /// There is nothing to try again.
    fn is_settled(&self) -> bool {
        !self.failed && self.missing_classes().is_empty()
    }

    /// Makes the cluster as it should be, as far as that can be done now.
    async fn bring_about(&mut self) {
        let mut report = self.report().await;
        self.failed = !self.make_classes().await;
        let made = self.make(&report).await;
        refused::add(&mut report, &self.refused, &self.live, self.store.objects());
        self.write_statuses(&report, &made).await;
    }

    /// What the compiler says, once the credentials that it asks for are there.
    async fn report(&mut self) -> Report {
        loop {
            self.store.objects().asked.take();
            let report = report(self.store.objects());
            let asked = self.store.objects().asked.take();
            let more = self.cluster.credentials(asked).await;
            if more.is_empty() {
                return report;
            }
            self.read(more);
        }
    }

    /// egret's own classes that should be there and are not.
    fn missing_classes(&self) -> Vec<(&'static str, &'static str)> {
        if !self.cluster.serves("GatewayClass") {
            return Vec::new();
        }
        let ours = CLASSES.into_iter().filter(|(_, controller)| self.controllers.contains(controller));
        ours.filter(|(name, _)| self.live.get("GatewayClass", "", name).is_none()).collect()
    }

    async fn make_classes(&self) -> bool {
        let mut done = true;
        for (name, controller) in self.missing_classes() {
            let class = json!({
                "apiVersion": format!("{}/v1", gateway_api::GROUP), "kind": "GatewayClass", "metadata": {"name": name},
                "spec": {"controllerName": controller, "description": "Gateways whose listeners live in egret's agents"},
            });
            done &= told(self.writer.create(&class).await).is_ok();
        }
        done
    }

    /// Runs the Gateways' pods; by Gateway, what could not be made and why.
    async fn make(&mut self, report: &Report) -> HashMap<ObjectId, String> {
        let mut faults = HashMap::new();
        let mut wanted = BTreeMap::new();
        for gateway in &report.gateways {
            let live = self.live.find(&gateway.gateway);
            // One that is being deleted has what it still has.
            let Some(live) = live.filter(|live| live["metadata"]["deletionTimestamp"].is_null()) else { continue };
            for object in pods::wanted(gateway, live, &self.options.pause_image) {
                wanted.insert(live::path(&object), (gateway.gateway.clone(), object));
            }
        }
        for (path, (gateway, object)) in &wanted {
            if let Err(why) = self.make_one(path, object).await {
                self.failed = true;
                faults.entry(gateway.clone()).or_insert(why);
            }
        }
        let surplus = self.live.made().filter(|object| !wanted.contains_key(&live::path(object)));
        for object in surplus.filter(|object| self.live.owner_lives(object)) {
            log::info!("{} is wanted no more", live::shown(object));
            self.failed |= told(self.writer.delete(object).await).is_err();
        }
        faults
    }

    async fn make_one(&mut self, path: &PathBuf, object: &Value) -> Result<(), String> {
        let exists =
            || format!("{} is there already, and it is not this Gateway's: it is left alone", live::shown(object));
        match self.live.at(path) {
            Some(live) if !live::same_owner(live, object) => Err(exists()),
            Some(live) if !live["metadata"]["deletionTimestamp"].is_null() => Ok(()),
            Some(live) if pods::is_as_wanted(live, object) => Ok(()),
            Some(_) => told(self.writer.apply(object).await),
            None => {
                if self.taken.get(path).is_some_and(|since| since.elapsed() < GATEWAY_CHECK) {
                    return Err(exists());
                }
                // Those of other people bear other labels, so that they are not seen.
                if told(self.writer.is_there(object).await)? {
                    self.taken.insert(path.clone(), Instant::now());
                    return Err(exists());
                }
                self.taken.remove(path);
                log::info!("makes {}", live::shown(object));
                told(self.writer.apply(object).await)
            }
        }
    }

    async fn write_statuses(&mut self, report: &Report, faults: &HashMap<ObjectId, String>) {
        let mut said: HashMap<&ObjectId, Vec<_>> = HashMap::new();
        for status in &report.statuses {
            said.entry(&status.object).or_default().push(status);
        }
        let implied: HashMap<&ObjectId, &Implied> = report.gateways.iter().map(|one| (&one.gateway, one)).collect();
        let mut writes = Vec::new();
        for class in self.live.of_kind("GatewayClass") {
            if self.controllers.iter().any(|own| class["spec"]["controllerName"] == *own) {
                writes.extend(changed(class, conditions::class(class)));
            }
        }
        for gateway in self.live.of_kind(gateway_api::GATEWAY) {
            let id = live::id(gateway_api::GATEWAY, gateway);
            let Some(said) = said.get(&id) else { continue };
            let addresses = implied.get(&id).map(|implied| addresses::of(implied, &self.live)).unwrap_or_default();
            let fault = faults.get(&id).map(String::as_str);
            writes.extend(changed(gateway, conditions::gateway(gateway, said, &addresses, fault)));
        }
        for (kind, list, reference) in LISTED {
            for object in self.live.of_kind(kind) {
                let said = said.get(&live::id(kind, object)).map_or(&[][..], Vec::as_slice);
                let entries = conditions::entries(object, list, reference, said, self.controllers);
                writes.extend(changed(object, json!({list: entries})));
            }
        }
        let writer = &self.writer;
        let writes = writes.into_iter().map(|(object, status)| writer.status(object, status));
        let mut results = stream::iter(writes).buffer_unordered(GATEWAY_REQUESTS);
        let mut failed = false;
        while let Some(result) = results.next().await {
            match result {
                // What has changed is on its way to us.
                Ok(()) | Err(ControllerError::Conflict { .. }) => {}
                Err(error) => failed |= told(Err::<(), _>(error)).is_err(),
            }
        }
        drop(results);
        self.failed |= failed;
    }
}

/// The fields of a status, where they are not so already.
fn changed(object: &Value, status: Value) -> Option<(&Value, Value)> {
    let empty = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
    let same = |field: &str, new: &Value| {
        let old = &object["status"][field];
        old == new || empty(old) && empty(new)
    };
    let fields = status.as_object()?;
    fields.iter().any(|(field, new)| !same(field, new)).then_some((object, status))
}

/// Says in the log what failed.
fn told<T>(result: Result<T, ControllerError>) -> Result<T, String> {
    result.map_err(|error| {
        let error = error.to_string();
        log::warn!("{error}");
        error
    })
}

/// A condition that is not so, for this reason.
fn unmet(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Condition {
    Condition { kind, status: false, reason, message: message.into() }
}
