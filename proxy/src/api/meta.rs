//! What every object bears, and how messages name it.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    path::Path,
    sync::Arc,
};

/// `kind namespace/name`, the identity of an object; API versions of one kind are the same object. The namespace of what
/// belongs to the whole cluster (a Namespace) is empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub struct ObjectId {
    pub kind: &'static str,
    pub namespace: String,
    pub name: String,
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Where two groups have the kind, it bears its own; authors write it without.
        let kind = self.kind.split('.').next().unwrap_or(self.kind);
        if self.namespace.is_empty() {
            return write!(f, "{kind} {}", self.name);
        }
        write!(f, "{kind} {}/{}", self.namespace, self.name)
    }
}

/// `metadata` of an object. A document without namespace is in `default`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectMeta {
    pub name: String,
    pub namespace: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// RFC 3339, as Kubernetes writes it: compares as text. Files have none.
    pub creation_timestamp: Option<String>,
}

/// Where an object was read, so that a message about one of its fields can say line and column.
#[derive(Clone, Debug)]
pub struct Origin {
    pub file: Arc<Path>,
    /// Line and column (from 1) where the document starts.
    pub start: (u32, u32),
    /// Field path (`spec.ports[0].number`) to line and column, both from 1.
    pub positions: Arc<HashMap<String, (u32, u32)>>,
    /// Of an object that was made from others (the Gateway API's): which field of it is which of theirs.
    pub made_from: Arc<BTreeMap<String, Written>>,
}

/// A field as its author wrote it, from which another one was made.
#[derive(Clone, Debug)]
pub struct Written {
    pub object: ObjectId,
    pub origin: Origin,
    pub field: String,
}

impl Origin {
    /// Line and column of `field`, or of the nearest enclosing field that the document has.
    #[must_use]
    pub fn locate(&self, field: &str) -> (u32, u32) {
        enclosing(field).find_map(|path| self.positions.get(path)).copied().unwrap_or(self.start)
    }

    /// What `field`, or the nearest field around it, was made from, with the path of `field` there. None: written as it is.
    #[must_use]
    pub fn written(&self, field: &str) -> Option<(&Written, String)> {
        let (path, written) = enclosing(field).find_map(|path| Some((path, self.made_from.get(path)?)))?;
        Some((written, format!("{}{}", written.field, field.get(path.len()..).unwrap_or_default())))
    }
}

/// A field path and those around it, from the inside out: `a.b[0]`, `a.b`, `a`.
fn enclosing(field: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(field), |path| path.rfind(['.', '[']).and_then(|cut| path.get(..cut)))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    Error,
    Warning,
    Info,
}

/// One finding about one place in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    pub severity: Severity,
    /// None where what was read is not an object (text that is no YAML).
    pub object: Option<ObjectId>,
    pub file: Arc<Path>,
    pub line: u32,
    pub column: u32,
    /// The field path, empty for the whole document.
    pub field: String,
    pub message: String,
}

impl fmt::Display for Diagnostic {
    /// `file:line:column: error: object: field: message`, as compilers print it; `{:#}` without the severity, for a log
    /// whose lines tell it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file.display(), self.line, self.column)?;
        if !f.alternate() {
            let severity = match self.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
                Severity::Info => "info",
            };
            write!(f, "{severity}: ")?;
        }
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Object;

    #[test]
    fn a_finding_about_what_was_made_is_one_about_what_was_written() {
        let origin = |file: &str, fields: &[(&str, (u32, u32))], made_from| Origin {
            file: Arc::from(Path::new(file)),
            start: (1, 1),
            positions: Arc::new(fields.iter().map(|(field, at)| ((*field).to_owned(), *at)).collect()),
            made_from: Arc::new(made_from),
        };
        let id = |name: &str| ObjectId { kind: "HTTPRoute", namespace: "default".into(), name: name.into() };
        let places = [("spec.rules[4]", (7, 3)), ("spec.rules[4].backendRefs[0].name", (9, 9))];
        let written = Written {
            object: id("b"),
            origin: origin("b.yaml", &places, BTreeMap::new()),
            field: "spec.rules[4]".into(),
        };
        let made_from = BTreeMap::from([("spec.http[0]".to_owned(), written)]);
        let origin = origin("a.yaml", &[("spec", (3, 1))], made_from);
        let made = Object { id: id("a"), meta: ObjectMeta::default(), spec: (), origin };
        for (field, want) in [
            ("spec.http[0]", "b.yaml:7:3: warning: HTTPRoute default/b: spec.rules[4]: x"),
            (
                "spec.http[0].backendRefs[0].name",
                "b.yaml:9:9: warning: HTTPRoute default/b: spec.rules[4].backendRefs[0].name: x",
            ),
            ("spec.http[0].timeout", "b.yaml:7:3: warning: HTTPRoute default/b: spec.rules[4].timeout: x"),
            ("spec.http[01]", "a.yaml:3:1: warning: HTTPRoute default/a: spec.http[01]: x"),
            ("", "a.yaml:1:1: warning: HTTPRoute default/a: x"),
        ] {
            assert_eq!(made.diagnostic(Severity::Warning, field, "x").to_string(), want);
        }
    }
}
