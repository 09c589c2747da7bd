//! A pod whose application calls somebody all the time.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Node, NodePod};
use crate::process::until;

/// How long the first answer may take, and the end.
const LIMIT: Duration = Duration::from_secs(30);

/// See `load.py`.
pub struct Load<'n> {
    pod: NodePod<'n>,
}

impl<'n> Load<'n> {
    /// Runs the pod, in the namespace `default`, and waits for its first answer. `rest` is as for [`Node::pod`]; the request's
    /// target bears `mark` and the pod's name.
    pub fn start(node: &'n Node<'_>, name: &str, rest: &str, to: &str, host: &str, mark: &str) -> Result<Self> {
        let mut object: Value = serde_saphyr::from_str(rest)?;
        let command = ["/usr/bin/python3", "-c", include_str!("load.py"), to, host, &format!("{mark}-{name}")];
        object["spec"]["containers"] = json!([{"name": "app", "image": "load", "command": command}]);
        let pod = node.pod("default", name, &object.to_string())?;
        until(&format!("the first answer to {name}"), LIMIT, || pod.log().contains("begun").then_some(()))
            .with_context(|| pod.log())?;
        Ok(Self { pod })
    }

    #[must_use]
    pub fn pod(&self) -> &NodePod<'n> {
        &self.pod
    }

    /// Ends it: how many requests there were, and what those that failed came to. The pod goes on without an application.
    pub fn end(mut self) -> Result<(NodePod<'n>, u64, Vec<String>)> {
        let pid = *self.pod.pids().last().context("the load does not run")?;
        self.pod.run("kill", &["-TERM", &pid.to_string()], b"")?;
        self.pod.wait(LIMIT)?;
        let log = self.pod.log();
        let requests = log.lines().find_map(|line| line.strip_prefix("requests: ")?.parse().ok());
        let failed = log.lines().filter(|line| line.starts_with("failed: ")).map(str::to_owned).collect();
        Ok((self.pod, requests.with_context(|| log.clone())?, failed))
    }
}
