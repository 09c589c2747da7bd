//! Requests that change objects of the cluster.

use kube::{
    Api, Client,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};

use super::{
    ControllerError,
    live::{shown, text},
};
use crate::controller::error::asked;

/// Who owns the fields that are written.
const MANAGER: &str = "egret-controller";

pub struct Writer {
    client: Client,
}

impl Writer {
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    fn api(&self, object: &Value) -> Api<DynamicObject> {
        let (group, version) = text(&object["apiVersion"]).split_once('/').unwrap_or(("", text(&object["apiVersion"])));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, text(&object["kind"])));
        match text(&object["metadata"]["namespace"]) {
            "" => Api::all_with(self.client.clone(), &resource),
            namespace => Api::namespaced_with(self.client.clone(), namespace, &resource),
        }
    }

    /// Makes an object. That somebody else was faster is as good.
    pub async fn create(&self, object: &Value) -> Result<(), ControllerError> {
        let what = format!("make {}", shown(object));
        let new: DynamicObject = serde_json::from_value(object.clone()).map_err(|error| ControllerError::Api {
            what: what.clone(),
            why: Box::new(kube::Error::SerdeError(error)),
        })?;
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        match asked(&what, self.api(object).create(&params, &new)).await {
            Ok(_) | Err(ControllerError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub async fn is_there(&self, object: &Value) -> Result<bool, ControllerError> {
        let api = self.api(object);
        let found = asked(&format!("look for {}", shown(object)), api.get_opt(name(object))).await?;
        Ok(found.is_some())
    }

    /// Server-side apply: what is not said stays as others want it, what is not said any more goes.
    pub async fn apply(&self, object: &Value) -> Result<(), ControllerError> {
        let params = PatchParams::apply(MANAGER).force();
        let api = self.api(object);
        asked(&format!("apply {}", shown(object)), api.patch(name(object), &params, &Patch::Apply(object)))
            .await
            .map(drop)
    }

    /// Removes this very object.
    pub async fn delete(&self, object: &Value) -> Result<(), ControllerError> {
        let this = Preconditions { uid: object["metadata"]["uid"].as_str().map(str::to_owned), resource_version: None };
        let params = DeleteParams { preconditions: Some(this), ..DeleteParams::default() };
        match asked(&format!("remove {}", shown(object)), self.api(object).delete(name(object), &params)).await {
            Err(ControllerError::Api { why, .. }) if is_gone(&why) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Sets fields of the status, if the object is as it was seen. Lists are written whole: the API's definitions let one
    /// controller own all entries of `parents`, so that server-side apply cannot share them.
    pub async fn status(&self, object: &Value, status: Value) -> Result<(), ControllerError> {
        let seen = &object["metadata"]["resourceVersion"];
        let patch = Patch::Merge(json!({"metadata": {"resourceVersion": seen}, "status": status}));
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let what = format!("write the status of {}", shown(object));
        match asked(&what, self.api(object).patch_status(name(object), &params, &patch)).await {
            Err(ControllerError::Api { why, .. }) if is_gone(&why) => Ok(()),
            other => other.map(drop),
        }
    }
}

fn name(object: &Value) -> &str {
    text(&object["metadata"]["name"])
}

fn is_gone(why: &kube::Error) -> bool {
    matches!(why, kube::Error::Api(status) if status.code == 404)
}
