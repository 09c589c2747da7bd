//! What the server itself adds to a new object of a kind, and demands of it beyond types.

use serde_json::{Value, json};

use super::{failure::Failure, kinds::Kind, store::Store, users::User};

/// Where cluster addresses of Services are taken from: a /16 that neither the lab nor the examples use.
const SERVICE_NETWORK: [u8; 2] = [10, 111];

/// Sets `object[field]` where it is absent.
fn default(object: &mut Value, field: &str, value: impl Into<Value>) {
    if object[field].is_null() {
        object[field] = value.into();
    }
}

pub fn complete(store: &mut Store, kind: &Kind, object: &mut Value, user: &User) -> Result<(), Failure> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let required = |field: &str| Failure::invalid(kind, &name, &[(field.to_owned(), "Required value".to_owned())]);
    match (kind.group.as_str(), kind.plural.as_str()) {
        ("", "namespaces") => {
            object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name.clone().into();
            default(object, "spec", json!({"finalizers": ["kubernetes"]}));
            object["status"] = json!({"phase": "Active"});
        }
        ("", "pods") => {
            if object["spec"]["containers"].as_array().is_none_or(Vec::is_empty) {
                return Err(required("spec.containers"));
            }
            for (field, value) in
                [("serviceAccountName", "default"), ("restartPolicy", "Always"), ("dnsPolicy", "ClusterFirst")]
            {
                default(&mut object["spec"], field, value);
            }
            default(&mut object["spec"], "terminationGracePeriodSeconds", 30);
            default(&mut object["status"], "phase", "Pending");
        }
        ("", "services") => service(store, kind, object, &name)?,
        ("", "secrets") => {
            default(object, "type", "Opaque");
            let texts = object.as_object_mut().and_then(|object| object.remove("stringData"));
            for (key, text) in texts.as_ref().and_then(Value::as_object).into_iter().flatten() {
                use base64::{Engine, prelude::BASE64_STANDARD};
                object["data"][key] = BASE64_STANDARD.encode(text.as_str().unwrap_or_default()).into();
            }
        }
        ("apps", "deployments") => {
            default(&mut object["spec"], "replicas", 1);
        }
        ("certificates.k8s.io", _) => {
            for field in ["request", "signerName", "usages"] {
                if object["spec"][field].is_null() {
                    return Err(required(&format!("spec.{field}")));
                }
            }
            if super::csr::pem(&object["spec"]["request"], "CERTIFICATE REQUEST").is_none() {
                let why = "Invalid value: PEM block type must be CERTIFICATE REQUEST".to_owned();
                return Err(Failure::invalid(kind, &name, &[("spec.request".to_owned(), why)]));
            }
            super::merge::merge(&mut object["spec"], &user.told());
            object["status"] = json!({});
        }
        _ => {}
    }
    Ok(())
}

fn service(store: &mut Store, kind: &Kind, object: &mut Value, name: &str) -> Result<(), Failure> {
    let spec = &mut object["spec"];
    default(spec, "type", "ClusterIP");
    default(spec, "sessionAffinity", "None");
    for port in spec["ports"].as_array_mut().into_iter().flatten() {
        default(port, "protocol", "TCP");
        let number = port["port"].clone();
        default(port, "targetPort", number);
    }
    if spec["type"] == "ExternalName" {
        return Ok(());
    }
    match spec["clusterIP"].as_str().unwrap_or_default() {
        "" => {
            store.addresses += 1;
            let [high, low] = store.addresses.to_be_bytes();
            let [one, two] = SERVICE_NETWORK;
            spec["clusterIP"] = format!("{one}.{two}.{high}.{low}").into();
        }
        "None" => {}
        taken => {
            if store.all("", "services").any(|(_, other)| other["spec"]["clusterIP"] == taken) {
                let why = format!(
                    "Invalid value: [\"{taken}\"]: failed to allocate IP {taken}: provided IP is already allocated"
                );
                return Err(Failure::invalid(kind, name, &[("spec.clusterIPs".to_owned(), why)]));
            }
        }
    }
    let address = spec["clusterIP"].clone();
    let family = if address.as_str().is_some_and(|address| address.contains(':')) { "IPv6" } else { "IPv4" };
    default(spec, "clusterIPs", json!([address]));
    default(spec, "ipFamilies", json!([family]));
    default(spec, "ipFamilyPolicy", "SingleStack");
    default(spec, "internalTrafficPolicy", "Cluster");
    default(object, "status", json!({"loadBalancer": {}}));
    Ok(())
}
