//! What runs a Gateway: a ServiceAccount, a Deployment of pods that do nothing, and a Service (Istio's `kube-gateway` template).
//! They are the Gateway's: the garbage collector takes them with it.

use serde_json::{Map, Value, json};
use twox_hash::XxHash64;

use super::{Implied, MANAGED_BY};
use crate::mesh::gateway_api::{GATEWAY_CLASS_NAME, GATEWAY_NAME};

/// Annotation, on a Gateway or in its `infrastructure`: the type of its Service, LoadBalancer unless it says so.
const SERVICE_TYPE: &str = "networking.istio.io/service-type";
/// Annotation: a digest of what was applied, by which a field that is wanted no more is noticed.
const APPLIED: &str = "egret.dev/applied";
/// Longest name of a Service's port (RFC 6335 in Kubernetes' words: DNS label).
const PORT_NAME: usize = 63;

/// The objects that a Gateway wants; none where its author runs its pods.
pub fn wanted(implied: &Implied, gateway: &Value, pause_image: &str) -> Vec<Value> {
    let Some(service) = &implied.service else { return Vec::new() };
    let infrastructure = &gateway["spec"]["infrastructure"];
    let own = json!({
        GATEWAY_NAME: implied.gateway.name, GATEWAY_CLASS_NAME: implied.class, MANAGED_BY.0: MANAGED_BY.1,
    });
    let labels = merged(&infrastructure["labels"], &own);
    let metadata = json!({
        "name": service.meta.name, "namespace": implied.gateway.namespace, "labels": labels,
        "annotations": merged(&infrastructure["annotations"], &json!({})),
        "ownerReferences": [{
            "apiVersion": gateway["apiVersion"], "kind": "Gateway", "name": implied.gateway.name,
            "uid": gateway["metadata"]["uid"], "controller": true,
        }],
    });
    let selector = json!({GATEWAY_NAME: implied.gateway.name});
    // Enrolled whatever its namespace says: the agent is what serves it.
    let template = json!({
        "metadata": {
            "labels": merged(&labels, &json!({"egret.dev/enroll": "true"})),
            "annotations": merged(&infrastructure["annotations"], &json!({})),
        },
        "spec": pod(&service.meta.name, pause_image),
    });
    let given = [&gateway["metadata"]["annotations"], &infrastructure["annotations"]];
    let kind = given.iter().find_map(|annotations| annotations[SERVICE_TYPE].as_str()).unwrap_or("LoadBalancer");
    let objects = [
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata,
            "spec": {"selector": {"matchLabels": selector}, "template": template},
        }),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": metadata,
            "spec": {"type": kind, "selector": selector, "ports": ports(implied)},
        }),
    ];
    objects.into_iter().map(marked).collect()
}

/// With a digest of itself.
fn marked(mut object: Value) -> Value {
    let digest = XxHash64::oneshot(0, object.to_string().as_bytes());
    object["metadata"]["annotations"][APPLIED] = format!("{digest:016x}").into();
    object
}

/// `own` wins.
fn merged(given: &Value, own: &Value) -> Value {
    let maps = [given, own].into_iter().filter_map(Value::as_object);
    maps.flat_map(|map| map.iter().map(|(key, value)| (key.clone(), value.clone()))).collect::<Map<_, _>>().into()
}

fn pod(account: &str, image: &str) -> Value {
    json!({
        "serviceAccountName": account,
        "automountServiceAccountToken": false,
        "securityContext": {"runAsNonRoot": true, "runAsUser": 65535, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{
            "name": "pause", "image": image,
            "resources": {"requests": {"cpu": "1m", "memory": "4Mi"}, "limits": {"memory": "16Mi"}},
            "securityContext": {
                "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
            },
        }],
    })
}

/// The listeners' ports, as the compiler has them: where they lead within the pods is the same number.
fn ports(implied: &Implied) -> Vec<Value> {
    let mut made: Vec<Value> = Vec::new();
    for port in implied.service.iter().flat_map(|service| &service.spec.ports) {
        // A listener's name may be longer than that of a port, and have dots.
        let label = |name: &&String| name.len() <= PORT_NAME && !name.contains('.');
        let name = port.name.as_ref().filter(label).cloned().unwrap_or_else(|| format!("port-{}", port.port));
        made.push(json!({"name": name, "port": port.port, "protocol": "TCP", "appProtocol": port.app_protocol}));
    }
    made
}

/// Whether an object of the cluster has all that is wanted: the API server and others add to it.
pub fn is_as_wanted(live: &Value, wanted: &Value) -> bool {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => wanted
            .iter()
            .all(|(field, value)| live.get(field).is_some_and(|live| is_as_wanted(live, value)) || is_nothing(value)),
        // Server-side apply leaves items that others have added.
        (Value::Array(live), Value::Array(wanted)) => {
            wanted.iter().all(|wanted| live.iter().any(|live| is_as_wanted(live, wanted)))
        }
        _ => live == wanted,
    }
}

/// The API server leaves empty maps out.
fn is_nothing(value: &Value) -> bool {
    value.as_object().is_some_and(Map::is_empty)
}
