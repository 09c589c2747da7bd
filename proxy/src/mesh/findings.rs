//! Findings of one compilation, each told once however many workloads it concerns.

use std::collections::HashSet;

use crate::api::{Diagnostic, Object, ObjectId, Severity};

#[derive(Debug, Default)]
pub struct Findings {
    found: Vec<Diagnostic>,
    seen: HashSet<(ObjectId, String, String)>,
}

impl Findings {
    pub fn add<S>(&mut self, object: &Object<S>, severity: Severity, field: &str, message: impl Into<String>) {
        let message = message.into();
        if self.seen.insert((object.id.clone(), field.to_owned(), message.clone())) {
            self.found.push(object.diagnostic(severity, field, message));
        }
    }

    pub fn error<S>(&mut self, object: &Object<S>, field: &str, message: impl Into<String>) {
        self.add(object, Severity::Error, field, message);
    }

    pub fn warn<S>(&mut self, object: &Object<S>, field: &str, message: impl Into<String>) {
        self.add(object, Severity::Warning, field, message);
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
