//! What every object bears, and how messages name it.

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    fmt,
    ops::Deref,
    path::Path,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use smol_str::SmolStr;

/// `kind namespace/name`, the identity of an object; API versions of one kind are the same object. The namespace of what
/// belongs to the whole cluster (a Namespace) is empty.
///
/// Shared: for each of 10,000 objects there are some ten mentions of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(transparent)]
pub struct ObjectId(Arc<Identity>);

/// What [`ObjectId`] tells.
#[derive(Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub struct Identity {
    pub kind: &'static str,
    pub namespace: SmolStr,
    pub name: SmolStr,
}

impl ObjectId {
    #[must_use]
    pub fn new(kind: &'static str, namespace: impl Into<SmolStr>, name: impl Into<SmolStr>) -> Self {
        Self(Arc::new(Identity { kind, namespace: namespace.into(), name: name.into() }))
    }
}

impl Deref for ObjectId {
    type Target = Identity;

    fn deref(&self) -> &Identity {
        &self.0
    }
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
    pub name: SmolStr,
    pub namespace: SmolStr,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// RFC 3339, as Kubernetes writes it: compares as text. Files have none.
    pub creation_timestamp: Option<String>,
}

/// Where an object was read, so that a message about one of its fields can say line and column.
#[derive(Clone, Debug)]
pub struct Origin {
    pub file: Arc<Path>,
    /// Where the document starts.
    pub start: Start,
    /// Shared by documents of one shape: lines count from the document's first.
    pub positions: Arc<Positions>,
    /// Of an object that was made from others (the Gateway API's): which field of it is which of theirs.
    pub made_from: Arc<BTreeMap<String, Written>>,
}

/// Line and column where a document starts, both from 1. What is written above it moves it, and nothing else of it changes: so
/// the line may be set anew while the object is in use.
#[derive(Debug)]
pub struct Start {
    line: AtomicU32,
    column: u32,
}

impl Start {
    #[must_use]
    pub fn new((line, column): (u32, u32)) -> Self {
        Self { line: AtomicU32::new(line), column }
    }

    #[must_use]
    pub fn get(&self) -> (u32, u32) {
        (self.line.load(Relaxed), self.column)
    }

    pub fn set_line(&self, line: u32) {
        self.line.store(line, Relaxed);
    }
}

impl Clone for Start {
    fn clone(&self) -> Self {
        Self::new(self.get())
    }
}

/// A field as its author wrote it, from which another one was made.
#[derive(Clone, Debug)]
pub struct Written {
    pub object: ObjectId,
    pub origin: Origin,
    pub field: String,
}

/// Field path (`spec.ports[0].number`) to line (from 1, which is the document's first) and column. There are tens of fields to
/// an object and tens of thousands of objects, so they lie close together: two allocations, not one a field.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Positions {
    /// All paths, one after the other, sorted.
    paths: Box<str>,
    fields: Box<[FieldPosition]>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct FieldPosition {
    /// Where its path ends in `paths`; it begins where the one before ends.
    end: u32,
    line: u32,
    column: u32,
}

impl Positions {
    #[must_use]
    pub fn get(&self, path: &str) -> Option<(u32, u32)> {
        let (mut from, mut to) = (0, self.fields.len());
        while from < to {
            let middle = usize::midpoint(from, to);
            match self.path(middle)?.cmp(path) {
                Ordering::Less => from = middle + 1,
                Ordering::Greater => to = middle,
                Ordering::Equal => return self.fields.get(middle).map(|field| (field.line, field.column)),
            }
        }
        None
    }

    fn path(&self, at: usize) -> Option<&str> {
        let start = match at.checked_sub(1) {
            Some(before) => self.fields.get(before)?.end as usize,
            None => 0,
        };
        self.paths.get(start..self.fields.get(at)?.end as usize)
    }
}

impl FromIterator<(String, (u32, u32))> for Positions {
    /// Of equal paths the last counts. What lies beyond 4 GiB of paths is left out, and found at what encloses it.
    fn from_iter<I: IntoIterator<Item = (String, (u32, u32))>>(places: I) -> Self {
        let sorted: BTreeMap<String, (u32, u32)> = places.into_iter().collect();
        let mut paths = String::with_capacity(sorted.keys().map(String::len).sum());
        let mut fields = Vec::with_capacity(sorted.len());
        for (path, (line, column)) in &sorted {
            let Ok(end) = u32::try_from(paths.len() + path.len()) else { break };
            paths.push_str(path);
            fields.push(FieldPosition { end, line: *line, column: *column });
        }
        Self { paths: paths.into(), fields: fields.into() }
    }
}

impl fmt::Debug for Positions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = self.fields.iter().enumerate();
        f.debug_map().entries(fields.map(|(at, field)| (self.path(at), (field.line, field.column)))).finish()
    }
}

impl Origin {
    /// Of an object that is written as it is.
    #[must_use]
    pub fn not_made() -> Arc<BTreeMap<String, Written>> {
        static NOT_MADE: LazyLock<Arc<BTreeMap<String, Written>>> = LazyLock::new(Arc::default);
        NOT_MADE.clone()
    }

    /// Line and column of `field`, or of the nearest enclosing field that the document has.
    #[must_use]
    pub fn locate(&self, field: &str) -> (u32, u32) {
        let (first, column) = self.start.get();
        let found = enclosing(field).find_map(|path| self.positions.get(path));
        found.map_or((first, column), |(line, column)| (first.saturating_add(line).saturating_sub(1), column))
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
    /// From 1; 0: of an object that has no lines (an API server's).
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
        // What an API server holds has no lines, and the path says which object it is.
        let has_lines = self.line > 0;
        write!(f, "{}", self.file.display())?;
        if has_lines {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        f.write_str(": ")?;
        if !f.alternate() {
            let severity = match self.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
                Severity::Info => "info",
            };
            write!(f, "{severity}: ")?;
        }
        if let Some(object) = self.object.as_ref().filter(|_| has_lines) {
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
    fn positions_are_found_by_their_whole_path() {
        let fields = ["spec", "spec.a", "spec.a[0]", "spec.a[10].b", "metadata.labels[a.b/c]", "spec.\u{e9}", "s"];
        let places = || fields.iter().zip(1..).map(|(field, line)| ((*field).to_owned(), (line, line + 1)));
        let positions: Positions = places().chain([("spec".to_owned(), (9, 9))]).collect();
        for (field, at) in places().skip(1) {
            assert_eq!(positions.get(&field), Some(at), "{field}");
        }
        assert_eq!(positions.get("spec"), Some((9, 9)), "the last one counts");
        for absent in ["", "sp", "spec.", "spec.a[1]", "spec.a[0]s", "zzz"] {
            assert_eq!(positions.get(absent), None, "{absent}");
        }
        assert_eq!(Positions::default().get("spec"), None);
    }

    #[test]
    fn a_finding_about_what_was_made_is_one_about_what_was_written() {
        let origin = |file: &str, fields: &[(&str, (u32, u32))], made_from| Origin {
            file: Arc::from(Path::new(file)),
            start: Start::new((1, 1)),
            positions: Arc::new(fields.iter().map(|(field, at)| ((*field).to_owned(), *at)).collect()),
            made_from: Arc::new(made_from),
        };
        let id = |name: &str| ObjectId::new("HTTPRoute", "default", name);
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
