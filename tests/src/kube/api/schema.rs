//! Whether an object's fields are of the types and among the words that its kind allows.

use serde_json::Value;

use super::{
    failure::Failure,
    kinds::{Check, Kind},
};

pub fn check(kind: &Kind, version: &str, object: &Value) -> Result<(), Failure> {
    match &kind.check {
        Check::Type(typed) => {
            let mut whole = object.clone();
            // The types have times in them, which the server writes as the real one does.
            whole["apiVersion"] = kind.api_version(version).into();
            whole["kind"] = kind.kind.clone().into();
            typed(&whole).map_err(|error| {
                let message =
                    format!("{} in version \"{version}\" cannot be handled as a {}: {error}", kind.kind, kind.kind);
                Failure::bad_request(message)
            })
        }
        Check::Schemas(schemas) => {
            let Some((_, schema)) = schemas.iter().find(|(name, _)| name == version) else { return Ok(()) };
            let mut causes = Vec::new();
            for part in ["spec", "status"] {
                if let (Some(value), Some(schema)) = (object.get(part), schema["properties"].get(part)) {
                    visit(part, value, schema, &mut causes);
                }
            }
            for field in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                if object.get(field).is_none() {
                    causes.push((field.to_owned(), "Required value".to_owned()));
                }
            }
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            if causes.is_empty() { Ok(()) } else { Err(Failure::invalid(kind, name, &causes)) }
        }
    }
}

/// The part of JSON Schema that CustomResourceDefinitions use for types, words, bounds and fields.
fn visit(path: &str, value: &Value, schema: &Value, causes: &mut Vec<(String, String)>) {
    if schema["nullable"] == true && value.is_null() {
        return;
    }
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let either = schema["x-kubernetes-int-or-string"] == true;
    if let Some(wanted) = schema["type"].as_str()
        && wanted != found
        && (wanted, found) != ("number", "integer")
    {
        let why = format!("Invalid value: \"{found}\": {path} in body must be of type {wanted}: \"{found}\"");
        return causes.push((path.to_owned(), why));
    }
    if either && !matches!(found, "integer" | "string") {
        let why = format!("Invalid value: \"{found}\": {path} in body must be of type integer,string: \"{found}\"");
        return causes.push((path.to_owned(), why));
    }
    if let Some(words) = schema["enum"].as_array()
        && !words.contains(value)
    {
        let told: Vec<_> = words.iter().map(ToString::to_string).collect();
        return causes
            .push((path.to_owned(), format!("Unsupported value: {value}: supported values: {}", told.join(", "))));
    }
    if let Some(number) = value.as_f64() {
        if schema["minimum"].as_f64().is_some_and(|least| number < least) {
            causes.push((
                path.to_owned(),
                format!("Invalid value: {value}: should be greater than or equal to {}", schema["minimum"]),
            ));
        }
        if schema["maximum"].as_f64().is_some_and(|most| number > most) {
            causes.push((
                path.to_owned(),
                format!("Invalid value: {value}: should be less than or equal to {}", schema["maximum"]),
            ));
        }
    }
    for (number, item) in value.as_array().into_iter().flatten().enumerate() {
        visit(&format!("{path}[{number}]"), item, &schema["items"], causes);
    }
    let Some(fields) = value.as_object() else { return };
    for field in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !fields.contains_key(field) {
            causes.push((format!("{path}.{field}"), "Required value".to_owned()));
        }
    }
    for (name, value) in fields {
        let below = schema["properties"].get(name).unwrap_or(&schema["additionalProperties"]);
        visit(&format!("{path}.{name}"), value, below, causes);
    }
}
