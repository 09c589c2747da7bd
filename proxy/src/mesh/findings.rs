//! Findings of one compilation, each told once however many workloads it concerns.

use std::collections::HashSet;

use crate::api::{Diagnostic, Object, ObjectId, Severity};

#[derive(Debug, Default)]
pub struct Findings {
    found: Vec<Diagnostic>,
    seen: HashSet<(ObjectId, String, String)>,
    /// Which of `found` say that a rule cannot be honoured for some workloads.
    refusals: Vec<usize>,
}

impl Findings {
    pub fn add<S>(&mut self, object: &Object<S>, severity: Severity, field: &str, message: impl Into<String>) {
        let found = object.diagnostic(severity, field, message);
        let about = found.object.clone().unwrap_or_else(|| object.id.clone());
        if self.seen.insert((about, found.field.clone(), found.message.clone())) {
            self.found.push(found);
        }
    }

    pub fn error<S>(&mut self, object: &Object<S>, field: &str, message: impl Into<String>) {
        self.add(object, Severity::Error, field, message);
    }

    pub fn warn<S>(&mut self, object: &Object<S>, field: &str, message: impl Into<String>) {
        self.add(object, Severity::Warning, field, message);
    }

    /// The rule cannot be honoured for some workloads, whose traffic under it is refused.
    pub fn refused<S>(&mut self, object: &Object<S>, field: &str, message: impl Into<String>) {
        let before = self.found.len();
        self.error(object, field, message);
        self.refusals.extend(before..self.found.len());
    }

    /// A rule that gateways honour is there for them: that others cannot is no mistake of its author.
    pub fn excuse(&mut self, honoured: &HashSet<&ObjectId>) {
        for at in &self.refusals {
            if let Some(found) = self.found.get_mut(*at)
                && found.object.as_ref().is_some_and(|object| honoured.contains(object))
            {
                found.severity = Severity::Info;
            }
        }
    }

    /// In the order of files and lines.
    pub fn into_sorted(self) -> Vec<Diagnostic> {
        let mut found = self.found;
        found.sort_by(|a, b| {
            (&a.file, a.line, a.column, a.severity, &a.message)
                .cmp(&(&b.file, b.line, b.column, b.severity, &b.message))
        });
        found
    }
}
