//! Questions to the server about users and tokens, and the other subresources that are no part of an object.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    Shared,
    body::{self, Answer},
    failure::Failure,
    rbac::{self, Question},
    request::{Asked, Target},
    store::Store,
    users::User,
};

/// Open to every user who has a name: who am I, and what may I.
pub fn is_review(target: &Target) -> bool {
    matches!(target.plural.as_str(), "selfsubjectaccessreviews" | "selfsubjectreviews")
}

fn told(store: &Store, asked: &Asked, target: &Target) -> Result<Value, Failure> {
    let mut review: Value =
        serde_json::from_slice(&asked.body).map_err(|error| Failure::bad_request(error.to_string()))?;
    if target.plural == "selfsubjectreviews" {
        review["status"] = json!({"userInfo": asked.user.told()});
        return Ok(review);
    }
    let attributes = review["spec"]["resourceAttributes"].clone();
    let text = |field: &str| attributes[field].as_str().unwrap_or_default();
    let resource = match text("subresource") {
        "" => text("resource").to_owned(),
        sub => format!("{}/{sub}", text("resource")),
    };
    let question = Question {
        verb: text("verb"),
        group: text("group"),
        resource,
        namespace: text("namespace"),
        name: text("name"),
    };
    review["status"] = json!({"allowed": rbac::allowed(store, &asked.user, &question)});
    Ok(review)
}

pub fn answer(store: &Store, asked: &Asked, target: &Target) -> Result<Answer, Failure> {
    Ok(body::json(201, &told(store, asked, target)?))
}

/// TokenRequest: a token of a service account, bound to a pod where the request says so.
pub fn token(store: &Store, shared: &Arc<Shared>, asked: &Asked, target: &Target) -> Result<Answer, Failure> {
    let (namespace, name) = (target.namespace.clone().unwrap_or_default(), target.name.clone().unwrap_or_default());
    let missing = |plural: &str, name: &str| Failure::new(404, "NotFound", format!("{plural} \"{name}\" not found"));
    let account = store.core("serviceaccounts", &namespace, &name).ok_or_else(|| missing("serviceaccounts", &name))?;
    let mut request: Value =
        serde_json::from_slice(&asked.body).map_err(|error| Failure::bad_request(error.to_string()))?;
    let mut user = User::service_account(&namespace, &name, account["metadata"]["uid"].as_str().unwrap_or_default());
    let bound = &request["spec"]["boundObjectRef"];
    if bound["kind"] == "Pod" {
        let pod = bound["name"].as_str().unwrap_or_default();
        let object = store.core("pods", &namespace, pod).ok_or_else(|| missing("pods", pod))?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        user = user.bound(pod, &text(&object["metadata"]["uid"]), &text(&object["spec"]["nodeName"]));
    }
    let seconds = request["spec"]["expirationSeconds"].as_u64().unwrap_or(3600);
    request["status"] = json!({"token": shared.tokens().mint(user), "expirationTimestamp": super::later(seconds)});
    Ok(body::json(201, &request))
}

/// A scheduler's word: the pod runs on this node.
pub fn bind(store: &mut Store, asked: &Asked, target: &Target) -> Result<Answer, Failure> {
    let binding: Value =
        serde_json::from_slice(&asked.body).map_err(|error| Failure::bad_request(error.to_string()))?;
    let key = (target.namespace.clone().unwrap_or_default(), target.name.clone().unwrap_or_default());
    let id = (String::new(), "pods".to_owned());
    let Some(pod) = store.get(&id, &key) else {
        return Err(Failure::new(404, "NotFound", format!("pods \"{}\" not found", key.1)));
    };
    if pod["spec"]["nodeName"].is_string() {
        return Err(Failure::new(
            409,
            "Conflict",
            format!("pod {} is already assigned to node {}", key.1, pod["spec"]["nodeName"]),
        ));
    }
    let mut pod = (**pod).clone();
    pod["spec"]["nodeName"] = binding["target"]["name"].clone();
    store.put(&id, key, pod);
    Ok(body::json(
        201,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
    ))
}
