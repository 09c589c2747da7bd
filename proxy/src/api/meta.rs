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
        if self.namespace.is_empty() {
            return write!(f, "{} {}", self.kind, self.name);
        }
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
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
}

impl Origin {
    /// Line and column of `field`, or of the nearest enclosing field that the document has.
    #[must_use]
    pub fn locate(&self, field: &str) -> (u32, u32) {
        let mut path = field;
        loop {
            if let Some(position) = self.positions.get(path) {
                return *position;
            }
            match path.rfind(['.', '[']) {
                Some(cut) => path = &path[..cut],
                None => return self.start,
            }
        }
    }
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
    /// `file:line:column: error: object: field: message`, as compilers print it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Info => "info",
        };
        write!(f, "{}:{}:{}: {severity}: ", self.file.display(), self.line, self.column)?;
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}
