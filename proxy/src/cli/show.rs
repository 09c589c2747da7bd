//! What a running agent answers, for people.

use std::io::Write;

use anyhow::Context as _;
use serde::de::DeserializeOwned;

use super::{
    args::{Output, What},
    client::Ask,
    cluster::Cluster,
    table,
};
use crate::admin::{
    encode,
    rows::{ClusterRow, ConditionRow, EndpointRow, Explanation, ListenerRow, RouteRow, SecretRow, Status},
};

pub fn proxy_config(
    agent: &dyn Ask,
    what: What,
    pod: Option<&str>,
    namespace: Option<&str>,
    output: Output,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let name = match what {
        What::Listener => "listener",
        What::Route => "route",
        What::Cluster => "cluster",
        What::Endpoint => "endpoint",
        What::Secret => "secret",
    };
    let answer = agent.get(&format!("/proxy-config/{name}?{}", query(pod, namespace)))?;
    if output == Output::Json {
        return Ok(out.write_all(answer.as_bytes())?);
    }
    let (head, rows): (&[&str], Vec<Vec<String>>) = match what {
        What::Listener => (&["ADDRESSES", "PORT", "MATCH", "DESTINATION"], rows(&answer, listener)?),
        What::Route => (&["NAME", "VHOST NAME", "DOMAINS", "MATCH", "VIRTUAL SERVICE"], rows(&answer, route)?),
        What::Cluster => {
            (&["SERVICE FQDN", "PORT", "SUBSET", "DIRECTION", "TYPE", "DESTINATION RULE"], rows(&answer, cluster)?)
        }
        What::Endpoint => (&["ENDPOINT", "STATUS", "OUTLIER CHECK", "CLUSTER"], rows(&answer, endpoint)?),
        What::Secret => (
            &["RESOURCE NAME", "TYPE", "STATUS", "VALID CERT", "SERIAL NUMBER", "NOT AFTER", "NOT BEFORE"],
            rows(&answer, secret)?,
        ),
    };
    Ok(table::write(out, head, &rows)?)
}

fn query(pod: Option<&str>, namespace: Option<&str>) -> String {
    format!("pod={}&namespace={}", encode(pod.unwrap_or_default()), encode(namespace.unwrap_or_default()))
}

fn rows<T: DeserializeOwned>(answer: &str, cells: fn(T) -> Vec<String>) -> anyhow::Result<Vec<Vec<String>>> {
    Ok(read::<Vec<T>>(answer)?.into_iter().map(cells).collect())
}

fn read<T: DeserializeOwned>(answer: &str) -> anyhow::Result<T> {
    serde_json::from_str(answer)
        .context("the agent's answer is not understood: is it another version than this command?")
}

fn listener(row: ListenerRow) -> Vec<String> {
    vec![row.addresses, row.port.to_string(), row.matches, row.destination]
}

fn route(row: RouteRow) -> Vec<String> {
    vec![row.name, row.virtual_host, row.domains, row.matches, row.virtual_service]
}

fn cluster(row: ClusterRow) -> Vec<String> {
    let port = row.port.map_or_else(|| "-".to_owned(), |port| port.to_string());
    vec![row.service, port, dash(row.subset), dash(row.direction), row.kind, row.destination_rule]
}

fn endpoint(row: EndpointRow) -> Vec<String> {
    vec![row.endpoint, row.status, row.outlier_check, row.cluster]
}

fn secret(row: SecretRow) -> Vec<String> {
    vec![row.name, row.kind, row.status, row.valid.to_string(), row.serial, row.not_after, row.not_before]
}

fn dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

pub fn status(agent: &dyn Ask, output: Output, out: &mut impl Write) -> anyhow::Result<()> {
    let answer = agent.get("/status")?;
    if output == Output::Json {
        return Ok(out.write_all(answer.as_bytes())?);
    }
    write_status(&read(&answer)?, out)
}

/// All agents of a cluster, each under its node. One that does not answer is told, and the others are shown all the same.
pub fn cluster_status(cluster: &Cluster, output: Output, out: &mut impl Write) -> anyhow::Result<()> {
    let mut silent = 0;
    let mut answers = serde_json::Map::new();
    for agent in cluster.agents(None)? {
        let answer = agent.get("/status").and_then(|answer| read::<serde_json::Value>(&answer));
        let answer = answer.unwrap_or_else(|error| {
            silent += 1;
            serde_json::json!({ "error": format!("{error:#}") })
        });
        if output == Output::Json {
            answers.insert(agent.node, answer);
            continue;
        }
        writeln!(out, "NODE {} ({})", agent.node, agent.pod)?;
        match answer.get("error").and_then(|error| error.as_str()) {
            Some(error) => writeln!(out, "no answer: {error}")?,
            None => write_status(&serde_json::from_value(answer)?, out)?,
        }
        writeln!(out)?;
    }
    if output == Output::Json {
        writeln!(out, "{}", serde_json::to_string_pretty(&answers)?)?;
    }
    anyhow::ensure!(silent == 0, "{silent} agents do not answer");
    Ok(())
}

pub(super) fn write_status(status: &Status, out: &mut impl Write) -> anyhow::Result<()> {
    let Status { version, pid, state, .. } = status;
    writeln!(out, "egret {version}, process {pid}: {state}, up {}", up(status.uptime_seconds))?;
    for what in &status.awaited {
        writeln!(out, "  awaited: {what}")?;
    }
    writeln!(out, "capture: {}", status.capture)?;
    writeln!(out, "connections: {}", status.connections)?;
    let refused = match status.rejected.len() {
        0 => "nothing refused".to_owned(),
        1 => "1 document refused".to_owned(),
        count => format!("{count} documents refused"),
    };
    writeln!(out, "configuration: generation {}, {refused}", status.generation)?;
    for finding in &status.rejected {
        writeln!(out, "  {finding}")?;
    }
    for why in &status.stale {
        writeln!(out, "  may be behind the cluster: {why}")?;
    }
    writeln!(out)?;
    let rows: Vec<_> = status
        .pods
        .iter()
        .map(|pod| {
            let (addresses, inbound) = (dash(pod.addresses.join(",")), dash(pod.inbound.clone()));
            vec![pod.pod.clone(), pod.netns.clone(), addresses, inbound, pod.state.clone()]
        })
        .collect();
    table::write(out, &["POD", "NETNS", "ADDRESSES", "INBOUND", "STATE"], &rows)?;
    if status.gateway_api.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nGATEWAY API")?;
    let rows: Vec<_> = status.gateway_api.iter().cloned().map(condition).collect();
    Ok(table::write(out, &["OBJECT", "ABOUT", "CONDITION", "STATUS", "REASON", "MESSAGE"], &rows)?)
}

fn condition(row: ConditionRow) -> Vec<String> {
    vec![row.object, dash(row.about), row.condition, row.status, row.reason, row.message]
}

/// `59s`, `3m7s`, `5h2m`, `3d4h`.
fn up(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{}s", seconds % 60),
        3600..86400 => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

pub fn explain(
    agent: &dyn Ask,
    pod: &str,
    namespace: Option<&str>,
    url: &str,
    output: Output,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let answer = agent.get(&format!("/explain?{}&url={}", query(Some(pod), namespace), encode(url)))?;
    if output == Output::Json {
        return Ok(out.write_all(answer.as_bytes())?);
    }
    write_explanation(&read(&answer)?, out)
}

pub(super) fn write_explanation(explanation: &Explanation, out: &mut impl Write) -> anyhow::Result<()> {
    writeln!(out, "{} from pod {}", explanation.url, explanation.pod)?;
    let width = explanation.steps.iter().map(|step| step.what.chars().count()).max().unwrap_or(0);
    for step in &explanation.steps {
        write!(out, "  {:width$}  {}", step.what, step.value)?;
        if !step.why.is_empty() {
            write!(out, "  ({})", step.why)?;
        }
        writeln!(out)?;
    }
    Ok(writeln!(out, "{}", explanation.verdict)?)
}
