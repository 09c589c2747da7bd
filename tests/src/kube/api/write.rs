//! Create, update, patch and delete.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    crds, csr, defaults,
    failure::Failure,
    fields::{self, Manager},
    kinds::{Id, Kind},
    merge,
    read::key,
    request::{Asked, Target},
    schema,
    store::{Key, Object, Store},
};

/// A write to one resource, and what it needs to know.
pub struct Write<'a> {
    pub store: &'a mut Store,
    pub kind: Arc<Kind>,
    pub asked: &'a Asked,
    pub target: &'a Target,
}

impl Write<'_> {
    pub fn create(&mut self) -> Result<Object, Failure> {
        let object = self.body()?;
        self.create_object(object, self.manager(false))
    }

    fn create_object(&mut self, mut object: Value, manager: Manager) -> Result<Object, Failure> {
        let metadata = &mut object["metadata"];
        if let (None, Some(prefix)) =
            (metadata["name"].as_str().filter(|name| !name.is_empty()), metadata["generateName"].as_str())
        {
            metadata["name"] = format!("{prefix}{}", &super::random_hex(4)[..5]).into();
        }
        let name = metadata["name"].as_str().unwrap_or_default().to_owned();
        self.check_name(&name)?;
        self.check_namespace(&mut object)?;
        let key = self.key(&name);
        if self.store.get(&self.kind.id(), &key).is_some() {
            return Err(Failure::exists(&self.kind, &name));
        }
        for field in ["resourceVersion", "uid", "deletionTimestamp", "selfLink"] {
            object["metadata"].as_object_mut().map(|map| map.remove(field));
        }
        if self.kind.has_status() && self.kind.custom() {
            object.as_object_mut().map(|map| map.remove("status"));
        }
        defaults::complete(self.store, &self.kind.clone(), &mut object, &self.asked.user)?;
        schema::check(&self.kind, &self.target.version, &object)?;
        object["metadata"]["uid"] = super::uid().into();
        object["metadata"]["creationTimestamp"] = super::now().into();
        if self.kind.counts_generations() {
            object["metadata"]["generation"] = 1.into();
        }
        if !manager.apply {
            fields::track(None, &mut object, &manager);
        }
        if self.dry() {
            return Ok(Arc::new(object));
        }
        let made = self.store.put(&self.kind.id(), key, object);
        crds::created(self.store, &self.kind, &made);
        Ok(made)
    }

    pub fn update(&mut self) -> Result<Object, Failure> {
        let sent = self.body()?;
        let (name, old) = self.existing()?;
        if sent["metadata"]["name"] != *name {
            let message = format!(
                "the name of the object ({}) does not match the name on the URL ({name})",
                sent["metadata"]["name"]
            );
            return Err(Failure::bad_request(message));
        }
        if self.kind.custom() && sent["metadata"]["resourceVersion"].as_str().is_none_or(str::is_empty) {
            let why = "Invalid value: 0: must be specified for an update".to_owned();
            return Err(Failure::invalid(&self.kind, &name, &[("metadata.resourceVersion".to_owned(), why)]));
        }
        self.replace(&name, &old, sent, &self.manager(false))
    }

    pub fn patch(&mut self) -> Result<Object, Failure> {
        if self.asked.is_apply() {
            return self.apply();
        }
        let content = self.asked.content_type().to_owned();
        let patch = parse(&self.asked.body)?;
        let (name, old) = self.existing()?;
        let mut object = (*old).clone();
        match content.as_str() {
            "application/merge-patch+json" => merge::merge(&mut object, &patch),
            "application/strategic-merge-patch+json" if !self.kind.custom() => {
                merge::strategic(&mut object, &patch, "")
            }
            "application/json-patch+json" => merge::json_patch(&mut object, &patch).map_err(|why| {
                Failure::new(
                    422,
                    "Invalid",
                    format!("the server rejected our request due to an error in our request: {why}"),
                )
            })?,
            other => {
                let message = format!(
                    "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml: {other}"
                );
                return Err(Failure::new(415, "UnsupportedMediaType", message));
            }
        }
        self.strip(&mut object)?;
        self.replace(&name, &old, object, &self.manager(false))
    }

    /// Server-side apply.
    fn apply(&mut self) -> Result<Object, Failure> {
        let mut applied = parse(&self.asked.body)?;
        self.strip(&mut applied)?;
        let manager = self.manager(true);
        if self.asked.option("fieldManager").is_empty() {
            let message =
                "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch";
            return Err(Failure::new(422, "Invalid", message));
        }
        if !applied["metadata"]["managedFields"].is_null() {
            return Err(Failure::bad_request("metadata.managedFields must be nil"));
        }
        let name = self.target.name.clone().unwrap_or_default();
        let id = self.kind.id();
        let force = self.asked.flag("force");
        match self.store.get(&id, &self.key(&name)).cloned() {
            Some(old) => {
                if let Some(sub) = &self.target.subresource {
                    applied = only(&applied, sub);
                }
                let object = fields::apply(Some(&old), &applied, &manager, force, &self.kind)?;
                self.replace(&name, &old, object, &manager)
            }
            None if self.target.subresource.is_some() => Err(Failure::not_found(&self.kind, &name)),
            None => {
                applied["metadata"]["name"] = name.into();
                let object = fields::apply(None, &applied, &manager, force, &self.kind)?;
                self.create_object(object, manager)
            }
        }
    }

    /// Puts a new state in the place of the old one, as far as this resource or subresource may change it.
    fn replace(&mut self, name: &str, old: &Object, sent: Value, manager: &Manager) -> Result<Object, Failure> {
        self.check_versions(name, old, &sent["metadata"])?;
        let mut new = match self.target.subresource.as_deref() {
            Some(sub) if self.kind.plural == "certificatesigningrequests" => {
                csr::change(self.store, &self.kind, &self.asked.user, old, &sent, sub)?
            }
            Some("status") => {
                let mut new = (**old).clone();
                new["status"] = sent["status"].clone();
                if new["status"].is_null() {
                    new.as_object_mut().map(|map| map.remove("status"));
                }
                new["metadata"]["managedFields"] = sent["metadata"]["managedFields"].clone();
                new
            }
            _ => {
                let mut new = sent;
                if self.kind.has_status() {
                    new["status"] = old["status"].clone();
                    if new["status"].is_null() {
                        new.as_object_mut().map(|map| map.remove("status"));
                    }
                }
                if self.kind.plural == "certificatesigningrequests" {
                    new["spec"] = old["spec"].clone();
                }
                new
            }
        };
        // What only the server may change.
        for field in [
            "uid",
            "creationTimestamp",
            "generation",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "name",
            "namespace",
            "resourceVersion",
        ] {
            match &old["metadata"][field] {
                Value::Null => drop(new["metadata"].as_object_mut().map(|map| map.remove(field))),
                value => new["metadata"][field] = value.clone(),
            }
        }
        schema::check(&self.kind, &self.target.version, &new)?;
        self.check_unchanging(name, old, &new)?;
        if self.kind.counts_generations() && new["spec"] != old["spec"] {
            new["metadata"]["generation"] = (old["metadata"]["generation"].as_u64().unwrap_or(1) + 1).into();
        }
        if !manager.apply {
            new["metadata"]["managedFields"] = old["metadata"]["managedFields"].clone();
            fields::track(Some(old), &mut new, manager);
        }
        if same(old, &new) {
            // Nothing has changed: no new version, no event.
            return Ok(old.clone());
        }
        if self.dry() {
            return Ok(Arc::new(new));
        }
        let (id, key) = (self.kind.id(), self.key(name));
        if !new["metadata"]["deletionTimestamp"].is_null() && finalizers(&new).is_empty() && !finalizers(old).is_empty()
        {
            self.store.put(&id, key.clone(), new);
            return Ok(self.gone(&id, &key).unwrap_or_else(|| old.clone()));
        }
        let made = self.store.put(&id, key, new);
        crds::created(self.store, &self.kind, &made);
        Ok(made)
    }

    /// Removes an object, or notes that it is to go. True where it is gone.
    pub fn delete(&mut self) -> Result<(Object, bool), Failure> {
        let options = if self.asked.body.is_empty() { Value::Null } else { parse(&self.asked.body)? };
        let (name, old) = self.existing()?;
        self.check_versions(&name, &old, &options["preconditions"])?;
        let grace =
            options["gracePeriodSeconds"].as_u64().or_else(|| self.asked.option("gracePeriodSeconds").parse().ok());
        if self.dry() {
            return Ok((old, true));
        }
        let (id, key) = (self.kind.id(), self.key(&name));
        // The node's kubelet ends a pod that runs, and removes the object then with no grace.
        let running = self.kind.plural == "pods" && self.kind.group.is_empty() && old["spec"]["nodeName"].is_string();
        let grace = grace.unwrap_or_else(|| old["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap_or(0));
        let ended = matches!(old["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        if !finalizers(&old).is_empty() || (running && grace > 0 && !ended) {
            if !old["metadata"]["deletionTimestamp"].is_null() {
                return Ok((old, false));
            }
            let mut going = (*old).clone();
            going["metadata"]["deletionTimestamp"] = super::later(if running { grace } else { 0 }).into();
            going["metadata"]["deletionGracePeriodSeconds"] = if running { grace } else { 0 }.into();
            return Ok((self.store.put(&id, key, going), false));
        }
        self.gone(&id, &key).map(|last| (last, true)).ok_or_else(|| Failure::not_found(&self.kind, &name))
    }

    fn gone(&mut self, id: &Id, key: &Key) -> Option<Object> {
        let last = self.store.remove(id, key)?;
        crds::removed(self.store, &self.kind, &last);
        Some(last)
    }

    fn dry(&self) -> bool {
        self.asked.option("dryRun") == "All"
    }

    fn key(&self, name: &str) -> Key {
        key(&self.kind, self.target.namespace.as_deref(), name)
    }

    fn manager(&self, apply: bool) -> Manager {
        Manager {
            name: self.asked.manager(),
            apply,
            subresource: self.target.subresource.clone().unwrap_or_default(),
            api_version: self.kind.api_version(&self.target.version),
        }
    }

    fn body(&self) -> Result<Value, Failure> {
        let mut object = parse(&self.asked.body)?;
        self.strip(&mut object)?;
        Ok(object)
    }

    /// Checks that the object says to be of this kind, and takes that away.
    fn strip(&self, object: &mut Value) -> Result<(), Failure> {
        let Some(map) = object.as_object_mut() else { return Err(Failure::bad_request("an object is expected")) };
        let (api, kind) = (map.remove("apiVersion"), map.remove("kind"));
        let expected = self.kind.api_version(&self.target.version);
        if api.as_ref().is_some_and(|api| *api != *expected)
            || kind.as_ref().is_some_and(|kind| *kind != *self.kind.kind)
        {
            return Err(Failure::bad_request(format!(
                "the API version in the data ({}, {}) does not match the expected API version ({expected}, {})",
                api.unwrap_or_default(),
                kind.unwrap_or_default(),
                self.kind.kind
            )));
        }
        if !map.get("metadata").is_some_and(Value::is_object) {
            map.insert("metadata".into(), json!({}));
        }
        Ok(())
    }

    fn existing(&self) -> Result<(String, Object), Failure> {
        let name = self.target.name.clone().unwrap_or_default();
        let found = self.store.get(&self.kind.id(), &self.key(&name)).cloned();
        found.map(|object| (name.clone(), object)).ok_or_else(|| Failure::not_found(&self.kind, &name))
    }
}

fn finalizers(object: &Value) -> &[Value] {
    object["metadata"]["finalizers"].as_array().map_or(&[], Vec::as_slice)
}

/// Only one part of an object, with its metadata's name.
fn only(object: &Value, part: &str) -> Value {
    let mut kept = json!({"metadata": {}});
    if let Some(value) = object.get(part) {
        kept[part] = value.clone();
    }
    kept
}

fn same(old: &Value, new: &Value) -> bool {
    let bare = |object: &Value| {
        let mut object = object.clone();
        for entry in object["metadata"]["managedFields"].as_array_mut().into_iter().flatten() {
            entry.as_object_mut().map(|entry| entry.remove("time"));
        }
        object
    };
    bare(old) == bare(new)
}

/// JSON, or YAML, which includes it.
fn parse(body: &[u8]) -> Result<Value, Failure> {
    let bad = |error: String| Failure::bad_request(format!("the object provided is unrecognized: {error}"));
    if let Ok(value) = serde_json::from_slice(body) {
        return Ok(value);
    }
    let text = std::str::from_utf8(body).map_err(|error| bad(error.to_string()))?;
    serde_saphyr::from_str(text).map_err(|error| bad(error.to_string()))
}
