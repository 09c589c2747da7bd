//! Where the agent's objects come from: files, or a cluster.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use anyhow::Context as _;

use crate::{
    api::CredentialRef,
    mesh::table::Settings,
    node,
    source::{
        FileChange, Files,
        kubernetes::{Gathered, Kubernetes, client},
    },
};

/// What `egret run` reads.
#[derive(Clone, Debug)]
pub enum Input {
    /// Files and folders, watched.
    Files(Vec<PathBuf>),
    /// The cluster that this node belongs to.
    Kubernetes(node::Options),
}

pub enum Source {
    Files(Box<Files>),
    Kubernetes(Box<Kubernetes>),
}

impl Source {
    /// Files are read at once; what is in a cluster is waited for with [`Self::next`].
    pub async fn open(input: &Input) -> anyhow::Result<(Self, Option<Vec<FileChange>>)> {
        match input {
            Input::Files(paths) => {
                let (files, first) = Files::open(paths.clone())?;
                Ok((Self::Files(Box::new(files)), Some(first)))
            }
            Input::Kubernetes(node) => {
                let client = client::connect().await.context("cannot watch the cluster")?;
                let root = Settings::default().root_namespace;
                Ok((Self::Kubernetes(Box::new(Kubernetes::start(client, &node.name, &root))), None))
            }
        }
    }

    /// The next batch of changes; an empty one means that files besides the configuration have changed, or that a cluster is
    /// empty. Safe to cancel.
    pub async fn next(&mut self) -> Vec<FileChange> {
        match self {
            Self::Files(files) => files.next().await.files,
            Self::Kubernetes(kubernetes) => kubernetes.next().await,
        }
    }

    /// Follows these files too: certificates that rules name. In a cluster there are none but the kubelet's and the system's.
    pub fn watch_files(&mut self, paths: Vec<PathBuf>) {
        if let Self::Files(files) = self {
            files.watch_extra(paths.into_iter().collect());
        }
    }

    /// Follows these Secrets and ConfigMaps, and tells what changed with those that are new. Files hold theirs already.
    pub async fn credentials(&mut self, wanted: impl FnOnce() -> BTreeSet<CredentialRef>) -> Vec<FileChange> {
        match self {
            Self::Files(_) => Vec::new(),
            Self::Kubernetes(kubernetes) => kubernetes.credentials(wanted()).await,
        }
    }

    /// The way to the cluster's API server, where there is one.
    pub fn client(&self) -> Option<kube::Client> {
        match self {
            Self::Files(_) => None,
            Self::Kubernetes(kubernetes) => Some(kubernetes.client()),
        }
    }

    /// How the connection to a cluster is.
    pub fn health(&self) -> Option<Arc<Gathered>> {
        match self {
            Self::Files(_) => None,
            Self::Kubernetes(kubernetes) => Some(kubernetes.health()),
        }
    }
}
