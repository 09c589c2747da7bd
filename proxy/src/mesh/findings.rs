//! Findings of one compilation, each told once however many workloads it concerns.

use std::{collections::HashSet, sync::Arc};

use crate::api::{Diagnostic, Object, ObjectId, Severity};

#[derive(Debug, Default)]
pub struct Findings {
    found: Vec<Diagnostic>,
    seen: HashSet<(ObjectId, String, String)>,
    /// Which of `found` say that a rule cannot be honoured for some workloads, and the reason these are told.
    refusals: Vec<(usize, Arc<str>)>,
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

    /// The rule cannot be honoured for some workloads, whose traffic under it is refused for `reason`.
    pub fn refused<S>(&mut self, object: &Object<S>, field: &str, message: impl Into<String>, reason: Arc<str>) {
        let before = self.found.len();
        self.error(object, field, message);
        self.refusals.extend((before..self.found.len()).map(|at| (at, reason.clone())));
    }

    /// A rule that gateways' routes lead to is there for the gateways: that others cannot honour it is no mistake of its
    /// author. `at_gateways`: what the gateways themselves refuse for.
    pub fn excuse(&mut self, for_gateways: &HashSet<&ObjectId>, at_gateways: &HashSet<&str>) {
        for (at, reason) in &self.refusals {
            if let Some(found) = self.found.get_mut(*at)
                && found.object.as_ref().is_some_and(|object| for_gateways.contains(object))
                && !at_gateways.contains(&**reason)
            {
                found.severity = Severity::Info;
            }
        }
    }

    /// In the order of files and lines.
    pub fn into_sorted(self) -> Vec<Diagnostic> {
        let mut found = self.found;
        sort(&mut found);
        found
    }
}

/// In the order of files and lines.
pub fn sort(found: &mut [Diagnostic]) {
    found.sort_by(|a, b| {
        (&a.file, a.line, a.column, a.severity, &a.message).cmp(&(&b.file, b.line, b.column, b.severity, &b.message))
    });
}
