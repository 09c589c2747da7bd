//! The command line.

mod args;
mod check;
mod client;
mod cluster;
mod show;
mod table;

#[cfg(test)]
mod tests;

use std::{
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser as _};

use self::{
    args::{Args, Command, ProxyConfig, Run, Shell},
    client::Ask,
    cluster::Cluster,
};
use crate::{agent, capture, controller, node, telemetry::logging};

/// Runs the command that the process was started with. 0: done; 1: it failed, and one sentence on standard error says
/// why; 2: the command line itself is wrong.
pub fn main() -> ExitCode {
    let args = Args::parse();
    match act(args) {
        Ok(code) => code,
        Err(error) => {
            // A reader that went away (`| head`) is no failure to speak of.
            if is_broken_pipe(&error) {
                return ExitCode::SUCCESS;
            }
            let _ = writeln!(io::stderr(), "egret: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn act(args: Args) -> anyhow::Result<ExitCode> {
    let agent = client::Agent { address: args.admin };
    let namespace = args.namespace.as_deref();
    let mut out = io::stdout().lock();
    match args.command {
        Command::Run(run) => {
            drop(out);
            start(run, &agent)?;
        }
        Command::Controller(args::Controller { log_level, pause_image, istio_class }) => {
            drop(out);
            logging::start(logging::parse_level(&log_level)?);
            let gateways = controller::gateways::Options { pause_image, istio_class };
            controller::run(controller::Options { admin: agent.address, namespace: args.namespace, gateways })?;
        }
        Command::Check { paths } => return check::run(&paths, &mut out),
        Command::ProxyConfig(ProxyConfig { what, pod, output, kubernetes }) => {
            let pod = pod.as_deref();
            asked(&agent, kubernetes, pod, namespace, |agent| {
                show::proxy_config(agent, what, pod, namespace, output, &mut out)
            })?;
        }
        Command::Status { output, kubernetes: true } => show::cluster_status(&Cluster::connect()?, output, &mut out)?,
        Command::Status { output, kubernetes: false } => show::status(&agent, output, &mut out)?,
        Command::Explain { pod, url, output, kubernetes } => {
            asked(&agent, kubernetes, Some(&pod), namespace, |agent| {
                show::explain(agent, &pod, namespace, &url, output, &mut out)
            })?;
        }
        Command::Uninstall { state_dir } => uninstall(&state_dir, &mut out)?,
        Command::Completion { shell } => {
            let shell = match shell {
                Shell::Bash => clap_complete::Shell::Bash,
                Shell::Zsh => clap_complete::Shell::Zsh,
                Shell::Fish => clap_complete::Shell::Fish,
            };
            // Into memory first: the generator panics where its writer fails.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "egret", &mut script);
            out.write_all(&script)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks the agent of this machine, or the one of the cluster's node that the pod runs on.
fn asked(
    agent: &client::Agent,
    kubernetes: bool,
    pod: Option<&str>,
    namespace: Option<&str>,
    question: impl FnOnce(&dyn Ask) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    if !kubernetes {
        return question(agent);
    }
    let pod = pod.context("name a pod: with --kubernetes it is the agent of its node that is asked")?;
    question(&Cluster::connect()?.agent_of(pod, namespace)?)
}

fn start(run: Run, agent: &client::Agent) -> anyhow::Result<()> {
    let input = match run.kubernetes {
        true => agent::Input::Kubernetes(node::Options { name: node_name()?, cgroup_root: run.cgroup_root }),
        false => agent::Input::Files(run.config),
    };
    logging::start(logging::parse_level(&run.log_level)?);
    agent::run(agent::Options {
        input,
        admin: agent.address,
        state_dir: run.state_dir,
        take_over: run.take_over,
        drain_timeout: run.drain_timeout,
    })
}

/// What Kubernetes calls this machine: `NODE_NAME`, which the downward API fills, or else its own name in lower case, as the
/// kubelet has it.
fn node_name() -> anyhow::Result<String> {
    match std::env::var("NODE_NAME") {
        Ok(name) if !name.is_empty() => Ok(name),
        _ => {
            let name =
                std::fs::read_to_string("/proc/sys/kernel/hostname").context("cannot read this machine's name")?;
            Ok(name.trim().to_lowercase())
        }
    }
}

fn uninstall(state_dir: &Path, out: &mut impl io::Write) -> anyhow::Result<()> {
    let removed = agent::uninstall(state_dir)?;
    if removed == capture::Removed::default() {
        writeln!(out, "nothing of egret is left on this machine")?;
        return Ok(());
    }
    let cgroup = if removed.cgroup { " and the agent's cgroup" } else { "" };
    writeln!(out, "removed {} links, {} maps{cgroup}: pods are captured no more", removed.links, removed.maps)?;
    Ok(())
}
