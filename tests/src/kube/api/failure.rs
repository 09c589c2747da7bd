//! Refusals, as `Status` objects.

use serde_json::{Value, json};

use super::kinds::Kind;

/// An answer other than success.
#[derive(Clone, Debug)]
pub struct Failure {
    pub code: u16,
    pub reason: &'static str,
    pub message: String,
    pub details: Value,
    /// Seconds for the header `Retry-After`.
    pub retry_after: Option<u64>,
}

impl Failure {
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: Value::Null, retry_after: None }
    }

    fn of(mut self, kind: &Kind, name: &str) -> Self {
        self.details = json!({"name": name, "group": kind.group, "kind": kind.plural});
        self
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    pub fn not_found(kind: &Kind, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{} \"{name}\" not found", kind.qualified())).of(kind, name)
    }

    pub fn exists(kind: &Kind, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{} \"{name}\" already exists", kind.qualified())).of(kind, name)
    }

    pub fn conflict(kind: &Kind, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", kind.qualified());
        Self::new(409, "Conflict", message).of(kind, name)
    }

    /// `causes` are paths of fields and what is wrong with each.
    pub fn invalid(kind: &Kind, name: &str, causes: &[(String, String)]) -> Self {
        let told: Vec<_> = causes.iter().map(|(field, why)| format!("{field}: {why}")).collect();
        let subject = if kind.group.is_empty() { kind.kind.clone() } else { format!("{}.{}", kind.kind, kind.group) };
        let mut failure =
            Self::new(422, "Invalid", format!("{subject} \"{name}\" is invalid: {}", told.join(", "))).of(kind, name);
        failure.details["kind"] = kind.kind.clone().into();
        failure.details["causes"] = causes
            .iter()
            .map(|(field, why)| json!({"reason": "FieldValueInvalid", "field": field, "message": why}))
            .collect();
        failure
    }

    /// A resource version that the log no longer reaches.
    pub fn gone(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    #[must_use]
    pub fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if !self.details.is_null() {
            status["details"] = self.details.clone();
        }
        if let Some(seconds) = self.retry_after {
            status["details"]["retryAfterSeconds"] = seconds.into();
        }
        status
    }
}
