//! EndpointSlices: there may be tens of thousands of endpoints, and each change of one brings the whole slice again.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::super::kinds::Kind;
use crate::api::discovery::SERVICE_NAME;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Object<'a> {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    address_type: String,
    /// Null where Go's slice is nil.
    #[serde(borrow, default)]
    endpoints: Option<Vec<Endpoint<'a>>>,
    #[serde(borrow, default)]
    ports: Option<&'a RawValue>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
struct Metadata {
    #[serde(default)]
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    /// Those of the Service are here once more.
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint<'a> {
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    addresses: Option<&'a RawValue>,
    #[serde(default)]
    conditions: Conditions,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target_ref: Option<Target>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct Conditions {
    #[serde(skip_serializing_if = "Option::is_none")]
    ready: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    serving: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    terminating: Option<bool>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct Target {
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    name: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    api_version: String,
    kind: &'static str,
    metadata: Metadata,
    address_type: String,
    endpoints: Vec<Endpoint<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ports: Option<&'a RawValue>,
}

/// The slice as a document; none where it is nobody's.
///
/// # Errors
/// It is no EndpointSlice.
pub fn document(kind: &Kind, version: &str, text: &RawValue) -> Result<(PathBuf, Option<Vec<u8>>), serde_json::Error> {
    let Object { mut metadata, address_type, endpoints, ports } = serde_json::from_str(text.get())?;
    let path = kind.path(metadata.namespace.as_deref(), &metadata.name);
    metadata.labels.retain(|label, _| label == SERVICE_NAME);
    if metadata.labels.is_empty() {
        return Ok((path, None));
    }
    let (api_version, endpoints) = (kind.api_version(version), endpoints.unwrap_or_default());
    let document = Document { api_version, kind: kind.kind, metadata, address_type, endpoints, ports };
    Ok((path, Some(serde_json::to_vec(&document)?)))
}

#[cfg(test)]
mod tests {
    use super::super::super::kinds::WHOLE;
    use super::*;

    #[test]
    fn what_changes_and_is_not_read_is_left_out() {
        let kind = WHOLE.iter().find(|kind| kind.kind == "EndpointSlice").expect("it is watched");
        let text = |trigger: &str| {
            let annotations = format!(r#"{{"endpoints.kubernetes.io/last-change-trigger-time":"{trigger}"}}"#);
            format!(
                r#"{{"metadata":{{"name":"web-x","namespace":"shop","uid":"u","resourceVersion":"7","generation":3,
                "labels":{{"kubernetes.io/service-name":"web","app":"web"}},"annotations":{annotations}}},"addressType":"IPv4",
                "ports":[{{"name":"http","port":80,"protocol":"TCP"}}],"endpoints":[{{"addresses":["10.1.0.1"],"nodeName":"b",
                "zone":"z","conditions":{{"ready":true,"serving":true,"terminating":false}},"targetRef":{{"kind":"Pod","namespace":
                "shop","name":"web-1","uid":"u-1"}},"hints":{{"forZones":[{{"name":"z"}}]}}}}]}}"#
            )
        };
        let trimmed = |text: &str| {
            let raw: Box<RawValue> = serde_json::from_str(text).expect("JSON");
            let (path, json) = document(kind, "v1", &raw).expect("a slice");
            assert_eq!(path, PathBuf::from("kubernetes/EndpointSlice/shop/web-x"));
            json.map(|json| String::from_utf8(json).expect("text"))
        };
        let one = trimmed(&text("2026-01-01T00:00:00Z")).expect("it is a Service's");
        assert_eq!(trimmed(&text("2026-01-02T00:00:00Z")).as_ref(), Some(&one));
        assert_eq!(
            one,
            r#"{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{"name":"web-x","namespace":"shop","labels":{"kubernetes.io/service-name":"web"}},"addressType":"IPv4","endpoints":[{"addresses":["10.1.0.1"],"conditions":{"ready":true,"serving":true,"terminating":false},"targetRef":{"kind":"Pod","namespace":"shop","name":"web-1"}}],"ports":[{"name":"http","port":80,"protocol":"TCP"}]}"#
        );
        assert_eq!(trimmed(&text("").replace("kubernetes.io/service-name", "other")), None, "nobody's");
        assert!(trimmed(&text("").replace(r#""endpoints":["#, r#""endpoints":null,"x":["#)).is_some(), "a nil slice");
    }
}
