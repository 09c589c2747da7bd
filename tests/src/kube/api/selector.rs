//! Label and field selectors.

use serde_json::Value;

use super::failure::Failure;

/// Both selectors of a list or watch, and its namespace.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    labels: Vec<(String, Demand)>,
    fields: Vec<(String, bool, String)>,
}

#[derive(Clone, Debug)]
enum Demand {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
}

/// The fields that a selector may name, of any kind; the real server has them for each.
const FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "spec.nodeName",
    "spec.serviceAccountName",
    "spec.signerName",
    "spec.restartPolicy",
    "status.phase",
    "status.podIP",
    "type",
    "involvedObject.name",
    "involvedObject.namespace",
    "involvedObject.kind",
];

impl Selector {
    pub fn parse(labels: &str, fields: &str) -> Result<Self, Failure> {
        let bad = |text: &str| Failure::bad_request(format!("unable to parse requirement: {text:?}"));
        let mut parsed = Self::default();
        for part in split(labels) {
            let part = part.trim();
            let values = |text: &str| -> Option<Vec<String>> {
                let inner = text.trim().strip_prefix('(')?.strip_suffix(')')?;
                Some(inner.split(',').map(|value| value.trim().to_owned()).collect())
            };
            let (key, demand) = if let Some((key, set)) = part.split_once(" notin ") {
                (key, Demand::NotIn(values(set).ok_or_else(|| bad(part))?))
            } else if let Some((key, set)) = part.split_once(" in ") {
                (key, Demand::In(values(set).ok_or_else(|| bad(part))?))
            } else if let Some((key, value)) = part.split_once("!=") {
                (key, Demand::NotIn(vec![value.trim().to_owned()]))
            } else if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
                (key, Demand::In(vec![value.trim().to_owned()]))
            } else if let Some(key) = part.strip_prefix('!') {
                (key, Demand::Absent)
            } else {
                (part, Demand::Exists)
            };
            if key.trim().is_empty() || key.trim().contains([' ', '(', ')']) {
                return Err(bad(part));
            }
            parsed.labels.push((key.trim().to_owned(), demand));
        }
        for part in fields.split(',').filter(|part| !part.is_empty()) {
            let (key, equal, value) = if let Some((key, value)) = part.split_once("!=") {
                (key, false, value)
            } else if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
                (key, true, value)
            } else {
                return Err(Failure::bad_request(format!("invalid selector: '{part}'; can't understand '{part}'")));
            };
            if !FIELDS.contains(&key) {
                return Err(Failure::bad_request(format!("field label not supported: {key}")));
            }
            parsed.fields.push((key.to_owned(), equal, value.to_owned()));
        }
        Ok(parsed)
    }

    #[must_use]
    pub fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        let labels_match = self.labels.iter().all(|(key, demand)| {
            let value = labels.get(key).and_then(Value::as_str);
            match demand {
                Demand::In(values) => value.is_some_and(|value| values.iter().any(|wanted| wanted == value)),
                Demand::NotIn(values) => value.is_none_or(|value| values.iter().all(|other| other != value)),
                Demand::Exists => value.is_some(),
                Demand::Absent => value.is_none(),
            }
        });
        labels_match
            && self.fields.iter().all(|(path, equal, value)| {
                let found = path.split('.').try_fold(object, |at, step| at.get(step));
                (found.and_then(Value::as_str).unwrap_or_default() == value) == *equal
            })
    }
}

/// Parts between commas that are not inside parentheses.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, letter) in text.char_indices() {
        match letter {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts.retain(|part| !part.trim().is_empty());
    parts
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_hold_what_they_say() {
        let pod =
            json!({"metadata": {"name": "a", "labels": {"app": "web", "tier": "front"}}, "spec": {"nodeName": "n1"}});
        let matches = |labels: &str, fields: &str| Selector::parse(labels, fields).unwrap().matches(&pod);
        assert!(matches("", ""));
        assert!(matches("app=web,tier in (front, back),!old", "spec.nodeName=n1"));
        assert!(matches("app==web,other notin (x,y),tier", "metadata.name!=b,status.phase="));
        assert!(!matches("app!=web", ""));
        assert!(!matches("app notin (web)", ""));
        assert!(!matches("old", ""));
        assert!(!matches("!app", ""));
        assert!(!matches("", "spec.nodeName=n2"));
        assert_eq!(Selector::parse("", "spec.colour=red").unwrap_err().code, 400);
        assert_eq!(Selector::parse("a in b", "").unwrap_err().code, 400);
    }
}
