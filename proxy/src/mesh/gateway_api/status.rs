//! Conditions, in the words of the specification.

use super::super::table::Condition;

/// Why something is not as its author wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub reason: &'static str,
    pub message: String,
}

impl Fault {
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// A condition that is true where all is well, and has its own name as the reason then.
pub fn condition(kind: &'static str, well: impl Into<String>, fault: Option<&Fault>) -> Condition {
    match fault {
        None => Condition { kind, status: true, reason: kind, message: well.into() },
        Some(fault) => Condition { kind, status: false, reason: fault.reason, message: fault.message.clone() },
    }
}

/// `Conflicted`, which is true where something is wrong.
pub fn conflicted(fault: Option<&Fault>) -> Condition {
    let kind = "Conflicted";
    match fault {
        None => Condition { kind, status: false, reason: "NoConflicts", message: "no conflicts".to_owned() },
        Some(fault) => Condition { kind, status: true, reason: fault.reason, message: fault.message.clone() },
    }
}

/// Several faults of one condition: the first reason, all messages.
pub fn joined<'a>(faults: impl IntoIterator<Item = &'a Fault>) -> Option<Fault> {
    let mut faults = faults.into_iter();
    let mut all = faults.next()?.clone();
    for fault in faults {
        if !all.message.contains(&fault.message) {
            all.message.push_str("; ");
            all.message.push_str(&fault.message);
        }
    }
    Some(all)
}
