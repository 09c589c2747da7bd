//! What the controller counts, in the format and in the style of the agents' metrics.

use std::fmt;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::error::ControllerError;
use crate::telemetry::metrics::Running;

/// One of the controller's tasks, by its label.
pub type Task = &'static str;

pub const AUTHORITY: Task = "authority";
pub const SIGNER: Task = "signer";
pub const GATEWAYS: Task = "gateways";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    result: &'static str,
    /// That of the condition that was written: a handful.
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reconciled {
    task: Task,
    result: &'static str,
}

/// All metrics of one controller.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    leads: Gauge,
    answered: Family<Answered, Counter>,
    reconciled: Family<Reconciled, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let (leads, answered, reconciled) = (Gauge::default(), Family::default(), Family::default());
        let mut registry = Registry::default();
        registry.register("egret_controller_leads", "1 while this one of the controllers works", leads.clone());
        let help = "Requests for mesh certificates that were answered, by the reason of the condition";
        registry.register("egret_controller_certificate_requests", help, answered.clone());
        let help = "How often a task brought the cluster to what it should be, or could not";
        registry.register("egret_controller_reconciles", help, reconciled.clone());
        registry.register_collector(Box::new(Running::default()));
        Self { registry, leads, answered, reconciled }
    }
}

impl Metrics {
    /// Whether this controller is the one that works.
    pub fn leads(&self, leads: bool) {
        self.leads.set(leads.into());
    }

    pub fn signed(&self, reason: &'static str) {
        self.answered.get_or_create(&Answered { result: "signed", reason }).inc();
    }

    pub fn refused(&self, reason: &'static str) {
        self.answered.get_or_create(&Answered { result: "refused", reason }).inc();
    }

    /// What became of one attempt. A conflict is no error: the change that was in the way is on its way.
    pub fn reconciled<T>(&self, task: Task, result: &Result<T, ControllerError>) {
        let result = match result {
            Ok(_) => "success",
            Err(ControllerError::Conflict { .. }) => "conflict",
            Err(_) => "error",
        };
        self.counted(task, result);
    }

    /// The same of an attempt at many objects, of which all were written, or not.
    pub fn reconciled_all(&self, task: Task, whole: bool) {
        self.counted(task, if whole { "success" } else { "error" });
    }

    fn counted(&self, task: Task, result: &'static str) {
        self.reconciled.get_or_create(&Reconciled { task, result }).inc();
    }

    /// As text, see [`crate::telemetry::metrics::CONTENT_TYPE`].
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
