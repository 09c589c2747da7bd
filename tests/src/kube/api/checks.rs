//! What a write may not do: names, namespaces, versions that are past, fields that never change.

use serde_json::Value;

use super::{failure::Failure, write::Write};

impl Write<'_> {
    /// A lowercase DNS subdomain (RFC 1123); RBAC names may hold colons.
    pub(super) fn check_name(&self, name: &str) -> Result<(), Failure> {
        let legal =
            |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || matches!(letter, '-' | '.');
        let path_like = self.kind.group == "rbac.authorization.k8s.io";
        let good = !name.is_empty()
            && name.len() <= 253
            && (path_like && !name.contains(['/', '%'])
                || name.chars().all(legal)
                    && name.split('.').all(|part| !part.is_empty() && !part.starts_with('-') && !part.ends_with('-')));
        let why = if name.is_empty() {
            "Required value: name or generateName is required".to_owned()
        } else {
            format!(
                "Invalid value: \"{name}\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character"
            )
        };
        if good { Ok(()) } else { Err(Failure::invalid(&self.kind, name, &[("metadata.name".to_owned(), why)])) }
    }

    pub(super) fn check_namespace(&self, object: &mut Value) -> Result<(), Failure> {
        if !self.kind.namespaced {
            object["metadata"].as_object_mut().map(|map| map.remove("namespace"));
            return Ok(());
        }
        let Some(namespace) = &self.target.namespace else {
            return Err(Failure::bad_request("an empty namespace may not be set during creation"));
        };
        if object["metadata"]["namespace"].as_str().is_some_and(|said| !said.is_empty() && said != namespace) {
            return Err(Failure::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        object["metadata"]["namespace"] = namespace.clone().into();
        match self.store.core("namespaces", "", namespace) {
            Some(_) => Ok(()),
            None => Err(Failure::new(404, "NotFound", format!("namespaces \"{namespace}\" not found"))),
        }
    }

    /// The `resourceVersion` and `uid` that a writer says to know.
    pub(super) fn check_versions(&self, name: &str, old: &Value, said: &Value) -> Result<(), Failure> {
        let differs = |field: &str| {
            said[field].as_str().is_some_and(|wanted| !wanted.is_empty() && old["metadata"][field] != *wanted)
        };
        if differs("uid") {
            let why = format!(
                "Precondition failed: UID in precondition: {}, UID in object meta: {}",
                said["uid"], old["metadata"]["uid"]
            );
            return Err(Failure::conflict(&self.kind, name, &why));
        }
        if differs("resourceVersion") {
            let why = "the object has been modified; please apply your changes to the latest version and try again";
            return Err(Failure::conflict(&self.kind, name, why));
        }
        Ok(())
    }

    /// Fields that no update may change.
    pub(super) fn check_unchanging(&self, name: &str, old: &Value, new: &Value) -> Result<(), Failure> {
        let fixed: &[&str] = match self.kind.plural.as_str() {
            "rolebindings" | "clusterrolebindings" => &["roleRef"],
            "secrets" => &["type"],
            "endpointslices" => &["addressType"],
            "deployments" | "daemonsets" if new["spec"]["selector"] != old["spec"]["selector"] => {
                let why = "Invalid value: field is immutable".to_owned();
                return Err(Failure::invalid(&self.kind, name, &[("spec.selector".to_owned(), why)]));
            }
            "pods" if self.target.subresource.is_none() && pod_spec(new) != pod_spec(old) => {
                let why =
                    "Forbidden: pod updates may not change fields other than `spec.containers[*].image`".to_owned();
                return Err(Failure::invalid(&self.kind, name, &[("spec".to_owned(), why)]));
            }
            _ => &[],
        };
        match fixed.iter().find(|field| old[**field] != new[**field]) {
            Some(field) => {
                let why = "Invalid value: field is immutable".to_owned();
                Err(Failure::invalid(&self.kind, name, &[((*field).to_owned(), why)]))
            }
            None => Ok(()),
        }
    }
}

/// A pod's spec without what may change.
fn pod_spec(pod: &Value) -> Value {
    let mut spec = pod["spec"].clone();
    for field in
        ["containers", "initContainers", "tolerations", "activeDeadlineSeconds", "terminationGracePeriodSeconds"]
    {
        spec.as_object_mut().map(|map| map.remove(field));
    }
    spec
}
