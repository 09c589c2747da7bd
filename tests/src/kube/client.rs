//! What a person does with kubectl, against any server: apply, delete, get.

use std::{collections::HashMap, path::Path, sync::Mutex, time::Duration};

use anyhow::{Context, Result, bail};
use kube::{
    Api,
    api::{DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::ApiResource,
    discovery::{self, ApiCapabilities, Scope},
};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::process::until;

/// As long as kubectl would be watched by a patient person.
const DELETE_TIME: Duration = Duration::from_secs(60);
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// A user of a cluster.
pub struct Client {
    // Before the runtime that its connections live in.
    client: kube::Client,
    runtime: Runtime,
    known: Mutex<HashMap<GroupVersionKind, (ApiResource, ApiCapabilities)>>,
}

impl Client {
    /// The user of a kubeconfig file.
    pub fn new(kubeconfig: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("kube-client")
            .enable_all()
            .build()?;
        let client = runtime.block_on(async {
            let file = Kubeconfig::read_from(kubeconfig)?;
            let mut config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
            // What the server says is what a test wants to see, a 503 at once and not after minutes.
            config.default_retry = false;
            anyhow::Ok(kube::Client::try_from(config)?)
        })?;
        Ok(Self { client, runtime, known: Mutex::default() })
    }

    /// For tests that need more; it works inside [`Client::block_on`] only.
    #[must_use]
    pub fn kube(&self) -> kube::Client {
        self.client.clone()
    }

    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// `kubectl apply -f`: every document is created, or patched where it is there already.
    pub fn apply_yaml(&self, text: &str) -> Result<()> {
        documents(text)?.into_iter().try_for_each(|document| self.apply(document).map(drop))
    }

    /// `kubectl delete -f`, which waits until the objects are gone; those that are not there are passed over.
    pub fn delete_yaml(&self, text: &str) -> Result<()> {
        let documents = documents(text)?;
        for document in &documents {
            let (kind, namespace, name) = identity(document);
            let api = self.api(&gvk(document)?, &namespace)?;
            match self.block_on(api.delete(&name, &DeleteParams::default())) {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                Err(error) => return Err(error).with_context(|| format!("cannot delete {kind} {name}")),
            }
        }
        for document in &documents {
            let (kind, namespace, name) = identity(document);
            let api = self.api(&gvk(document)?, &namespace)?;
            until(&format!("the end of {kind} {name}"), DELETE_TIME, || {
                matches!(self.block_on(api.get_opt(&name)), Ok(None)).then_some(())
            })?;
        }
        Ok(())
    }

    /// One document of `kubectl apply`: what the last one had and this one has not, goes.
    pub fn apply(&self, mut document: Value) -> Result<Value> {
        let (kind, namespace, name) = identity(&document);
        let api = self.api(&gvk(&document)?, &namespace)?;
        let configuration = document.to_string();
        document["metadata"]["annotations"][LAST_APPLIED] = configuration.into();
        let shown = || format!("cannot apply {kind} {name}");
        let Some(live) = self.block_on(api.get_opt(&name)).with_context(shown)? else {
            let object: DynamicObject = serde_json::from_value(document)?;
            let made = self.block_on(api.create(&post("kubectl-client-side-apply"), &object)).with_context(shown)?;
            return Ok(serde_json::to_value(made)?);
        };
        let last = live.metadata.annotations.as_ref().and_then(|all| all.get(LAST_APPLIED));
        let last = last.and_then(|text| serde_json::from_str(text).ok()).unwrap_or(Value::Null);
        let mut patch = document;
        nulls(&last, &mut patch);
        let params = PatchParams { field_manager: Some("kubectl-client-side-apply".into()), ..PatchParams::default() };
        let made = self.block_on(api.patch(&name, &params, &Patch::Merge(patch))).with_context(shown)?;
        Ok(serde_json::to_value(made)?)
    }

    /// `kubectl create`.
    pub fn create(&self, object: &Value) -> Result<Value> {
        let (kind, namespace, name) = identity(object);
        let api = self.api(&gvk(object)?, &namespace)?;
        let object: DynamicObject = serde_json::from_value(object.clone())?;
        let made = self.block_on(api.create(&post("kubectl-create"), &object));
        Ok(serde_json::to_value(made.with_context(|| format!("cannot create {kind} {name}"))?)?)
    }

    /// An object by kind (`Pod`, or `apps/v1/Deployment`), namespace (empty for cluster-scoped ones) and name.
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Result<Option<Value>> {
        let api = self.api(&kind_named(kind)?, namespace)?;
        Ok(self.block_on(api.get_opt(name))?.map(serde_json::to_value).transpose()?)
    }

    /// All objects of a kind that a label selector meets, of all namespaces where none is given.
    pub fn list(&self, kind: &str, namespace: &str, labels: &str) -> Result<Vec<Value>> {
        let gvk = kind_named(kind)?;
        let (resource, _) = self.resource(&gvk)?;
        let api: Api<DynamicObject> = if namespace.is_empty() {
            Api::all_with(self.kube(), &resource)
        } else {
            Api::namespaced_with(self.kube(), namespace, &resource)
        };
        let list = self.block_on(api.list(&ListParams::default().labels(labels)))?;
        list.items.into_iter().map(|object| Ok(serde_json::to_value(object)?)).collect()
    }

    /// A JSON merge patch (RFC 7396).
    pub fn patch(&self, kind: &str, namespace: &str, name: &str, patch: &Value) -> Result<Value> {
        let api = self.api(&kind_named(kind)?, namespace)?;
        let made = self.block_on(api.patch(name, &PatchParams::default(), &Patch::Merge(patch)))?;
        Ok(serde_json::to_value(made)?)
    }

    /// The same on the status.
    pub fn patch_status(&self, kind: &str, namespace: &str, name: &str, status: &Value) -> Result<Value> {
        let api = self.api(&kind_named(kind)?, namespace)?;
        let patch = Patch::Merge(json!({"status": status}));
        let made = self.block_on(api.patch_status(name, &PatchParams::default(), &patch))?;
        Ok(serde_json::to_value(made)?)
    }

    /// Removes an object at once, without grace, where it is there.
    pub fn remove(&self, kind: &str, namespace: &str, name: &str) -> Result<()> {
        let api = self.api(&kind_named(kind)?, namespace)?;
        match self.block_on(api.delete(name, &DeleteParams::default().grace_period(0))) {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Asks for an object's deletion and waits for nothing: a running pod has its grace then.
    pub fn mark_deleted(&self, kind: &str, namespace: &str, name: &str) -> Result<()> {
        let api = self.api(&kind_named(kind)?, namespace)?;
        Ok(self.block_on(api.delete(name, &DeleteParams::default())).map(drop)?)
    }

    /// Installs CustomResourceDefinitions of [`super::crds`], and waits until they are served.
    pub fn install_crds(&self, which: &[super::crds::Crd]) -> Result<()> {
        for crd in which {
            self.apply(crd.definition())?;
        }
        for crd in which {
            until(&format!("{} to be established", crd.name()), DELETE_TIME, || {
                let found = self.get("apiextensions.k8s.io/v1/CustomResourceDefinition", "", &crd.name()).ok()??;
                let conditions = found["status"]["conditions"].as_array()?;
                conditions.iter().any(|one| one["type"] == "Established" && one["status"] == "True").then_some(())
            })?;
        }
        Ok(())
    }

    /// Removes them, with all objects of these kinds.
    pub fn remove_crds(&self, which: &[super::crds::Crd]) -> Result<()> {
        for crd in which {
            self.remove("apiextensions.k8s.io/v1/CustomResourceDefinition", "", &crd.name())?;
        }
        self.known.lock().map(|mut known| known.clear()).ok().context("another thread of this test has failed")
    }

    fn api(&self, gvk: &GroupVersionKind, namespace: &str) -> Result<Api<DynamicObject>> {
        let (resource, capabilities) = self.resource(gvk)?;
        Ok(match capabilities.scope {
            Scope::Cluster => Api::all_with(self.kube(), &resource),
            Scope::Namespaced if namespace.is_empty() => Api::namespaced_with(self.kube(), "default", &resource),
            Scope::Namespaced => Api::namespaced_with(self.kube(), namespace, &resource),
        })
    }

    /// Discovery, remembered.
    fn resource(&self, gvk: &GroupVersionKind) -> Result<(ApiResource, ApiCapabilities)> {
        let Ok(mut known) = self.known.lock() else { bail!("another thread of this test has failed") };
        if let Some(found) = known.get(gvk) {
            return Ok(found.clone());
        }
        let found = self
            .block_on(discovery::pinned_kind(&self.client, gvk))
            .with_context(|| format!("no resource of kind {} in {}", gvk.kind, gvk.api_version()))?;
        known.insert(gvk.clone(), found.clone());
        Ok(found)
    }
}

fn post(manager: &str) -> PostParams {
    PostParams { field_manager: Some(manager.to_owned()), ..PostParams::default() }
}

/// The documents of a YAML text; items of a `List` one by one.
pub fn documents(text: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)?;
    let mut all = Vec::new();
    for document in documents.into_iter().filter(|document| !document.is_null()) {
        match document["items"].as_array() {
            Some(items) if document["kind"] == "List" => all.extend(items.iter().cloned()),
            _ => all.push(document),
        }
    }
    Ok(all)
}

fn identity(document: &Value) -> (String, String, String) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&document["kind"]), text(&document["metadata"]["namespace"]), text(&document["metadata"]["name"]))
}

fn gvk(document: &Value) -> Result<GroupVersionKind> {
    let (Some(api), Some(kind)) = (document["apiVersion"].as_str(), document["kind"].as_str()) else {
        bail!("a document without apiVersion and kind: {document}")
    };
    kind_named(&format!("{api}/{kind}"))
}

/// `Pod`, `v1/Pod`, `apps/v1/Deployment`.
fn kind_named(text: &str) -> Result<GroupVersionKind> {
    match text.split('/').collect::<Vec<_>>()[..] {
        [kind] | ["v1", kind] => Ok(GroupVersionKind::gvk("", "v1", kind)),
        [group, version, kind] => Ok(GroupVersionKind::gvk(group, version, kind)),
        _ => bail!("{text} names no kind"),
    }
}

/// Sets to null what the last configuration had and this one has not.
fn nulls(last: &Value, now: &mut Value) {
    let (Some(last), Some(now)) = (last.as_object(), now.as_object_mut()) else { return };
    for (field, value) in last {
        match now.get_mut(field) {
            Some(below) => nulls(value, below),
            None => drop(now.insert(field.clone(), Value::Null)),
        }
    }
}
