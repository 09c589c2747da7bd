//! What the command line takes, and its help.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

use crate::admin;

const EXAMPLES: &str = "\
Examples:
  egret check config/                      find mistakes before they count
  egret run --config config/               run the agent in the foreground
  egret status                             what the running agent does
  egret explain sleep http://example.com/  what a request of pod `sleep` would get, and why
  egret proxy-config secret sleep          certificates and CAs that pod `sleep` uses
  egret -n istio-system pc listener istio-egressgateway
                                           ports that the gateway's pod serves

The agent reads Kubernetes, Istio and Gateway API objects as they are, from files or, with
--kubernetes, from the API server. Pods on a single host are Pod documents with the annotation egret.dev/netns: NAME (a name under /run/netns).";

/// Encrypts what pods send, by Istio's rules: TLS and mutual TLS to the world, straight or through egress gateways, and
/// mesh mTLS between pods. No sidecar, no iptables, no change to the application.
#[derive(Debug, Parser)]
#[command(name = "egret", version, after_help = EXAMPLES, subcommand_required = true, arg_required_else_help = true)]
#[command(max_term_width = 110)]
pub struct Args {
    /// Address of the agent's admin endpoints: where `run` serves them and the other commands ask.
    #[arg(long, global = true, value_name = "ADDRESS", default_value_t = admin::ADDRESS)]
    pub admin: SocketAddr,
    /// Namespace of the pod; `default` where none is given.
    #[arg(short, long, global = true, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent in the foreground.
    Run(Run),
    /// Run what a cluster needs once: the mesh's certificate authority, and the Gateway API's Gateways.
    Controller(Controller),
    /// Validate configuration without an agent: one line for each finding, exit status 1 where one is an error.
    #[command(
        after_help = "Example:\n  egret check config/ extra.yaml\n\nEach line is `file:line:column: error|warning: object: field: message`."
    )]
    Check {
        /// Files and folders (`*.yaml`, `*.yml`, `*.json`), as for `run --config`.
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
    },
    /// Show what a running agent made of the configuration for a pod, in istioctl's tables.
    #[command(name = "proxy-config", visible_alias = "pc")]
    ProxyConfig(ProxyConfig),
    /// Show the running agent and its pods at a glance, and the conditions of Gateway API objects.
    Status {
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: Output,
        /// Ask through the API server that KUBECONFIG names: every agent of the cluster.
        #[arg(long)]
        kubernetes: bool,
    },
    /// Explain what a GET of a pod would get: listener, route, cluster, TLS settings and endpoint of each hop, and why.
    #[command(
        after_help = "Examples:\n  egret explain sleep http://edition.cnn.com/politics\n  egret explain -n shop cart https://api.example.com\n  egret explain sleep tcp://10.0.0.5:3306\n\nWhere the way leads through a gateway of this node, its own routes are followed too. Routes passed over because\nthey want a method or headers are listed as `not`."
    )]
    Explain {
        /// NAME (see -n), NAME.NAMESPACE or NAMESPACE/NAME.
        #[arg(value_name = "POD")]
        pod: String,
        /// http://, https:// or tcp://HOST:PORT.
        #[arg(value_name = "URL")]
        url: String,
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: Output,
        /// Ask through the API server that KUBECONFIG names: the agent of the pod's node.
        #[arg(long)]
        kubernetes: bool,
    },
    /// Detach and remove everything that outlives the agent: pinned eBPF links and maps, and its cgroup.
    ///
    /// While they are there and no agent runs, captured pods are refused rather than let out in plain text; after this
    /// their connections go out as they are.
    Uninstall {
        /// The folder that the agent was run with.
        #[arg(long, value_name = "FOLDER", default_value = crate::agent::DEFAULT_STATE_DIR)]
        state_dir: PathBuf,
    },
    /// Write a shell completion script to standard output.
    #[command(after_help = "Example:\n  egret completion bash > /etc/bash_completion.d/egret")]
    Completion { shell: Shell },
}

/// Runs the agent in the foreground: its own messages go to standard error, access logs to standard output (mesh config
/// accessLogFile). SIGTERM drains and ends it, a second one ends it at once, SIGUSR1 reopens the access log.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:\n  egret run --config /etc/egret --config mesh.yaml")]
pub struct Run {
    /// Files and folders to read objects from (`*.yaml`, `*.yml`, `*.json`). They are watched: changes count at once.
    #[arg(long, value_name = "PATH", num_args = 1.., required_unless_present = "kubernetes", conflicts_with = "kubernetes")]
    pub config: Vec<PathBuf>,
    /// Read objects from the cluster that this node belongs to, and enrol its pods by their labels. The API server is found as
    /// kubectl finds it (KUBECONFIG), or else by the pod's service account; the node's name is NODE_NAME, or else this machine's.
    #[arg(long)]
    pub kubernetes: bool,
    /// The kubelet's own --cgroup-root, where pods are not found by looking.
    #[arg(long, value_name = "CGROUP", default_value = "", requires = "kubernetes")]
    pub cgroup_root: String,
    /// Folder for what outlives the agent.
    #[arg(long, value_name = "FOLDER", default_value = crate::agent::DEFAULT_STATE_DIR)]
    pub state_dir: PathBuf,
    /// Where an agent runs on this state folder already, take its place instead of refusing to start: it serves until this one is
    /// ready to, hands its listening sockets over, drains and ends. No connection is refused meanwhile.
    #[arg(long)]
    pub take_over: bool,
    /// How long requests in flight have after SIGTERM, e.g. 30s, 500ms, 2m.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub drain_timeout: Duration,
    /// Level of the agent's own messages: off, error, warn, info, debug or trace. `POST /logging?level=` changes it later.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: String,
}

/// Runs what a cluster needs once, in the foreground: keeps the mesh's CA (Secret cacerts of the root namespace, else one that
/// is made and kept in the Secret egret-ca), publishes its roots (ConfigMap egret-ca-root) and signs the requests of agents
/// (signer egret.dev/workload) for the identities of pods that run on their nodes. For each Gateway of class egret it runs a
/// Deployment whose pods do nothing (the agents listen in them) and a Service, and it writes the status of Gateways, of their
/// classes and routes, and of BackendTLSPolicies. Several may run: the Lease egret-controller says which one works. The
/// namespace is that of -n, POD_NAMESPACE or the service account.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:\n  egret controller --admin 0.0.0.0:15000 -n egret-system")]
pub struct Controller {
    /// Level of its messages on standard error: off, error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: String,
    /// What the pods of Gateways run: any image that waits.
    #[arg(long, value_name = "IMAGE", default_value = "registry.k8s.io/pause:3.10")]
    pub pause_image: String,
    /// Run Gateways of class istio too (controllerName istio.io/gateway-controller). Not beside a running Istio, which
    /// writes the same objects.
    #[arg(long)]
    pub istio_class: bool,
}

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  egret proxy-config secret sleep\n  egret -n shop pc cluster cart -o json\n  egret pc endpoint sleep.shop\n\nWithout POD: what all pods have, each row once."
)]
pub struct ProxyConfig {
    pub what: What,
    /// NAME (see -n), NAME.NAMESPACE or NAMESPACE/NAME.
    #[arg(value_name = "POD")]
    pub pod: Option<String>,
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: Output,
    /// Ask through the API server that KUBECONFIG names: the agent of the pod's node.
    #[arg(long)]
    pub kubernetes: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// Ports and names that are matched, and where they lead.
    #[value(alias = "listeners")]
    Listener,
    /// Virtual hosts of the HTTP ports.
    #[value(alias = "routes")]
    Route,
    /// Upstream services and the DestinationRules that apply.
    #[value(alias = "clusters")]
    Cluster,
    /// Addresses of upstream services.
    #[value(alias = "endpoints")]
    Endpoint,
    /// Certificates and CAs in use.
    #[value(alias = "secrets")]
    Secret,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    #[value(alias = "short")]
    Table,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

fn duration(text: &str) -> Result<Duration, String> {
    crate::source::values::duration(text).ok_or_else(|| "write a number and a unit, as in 30s, 500ms or 2m".to_owned())
}
