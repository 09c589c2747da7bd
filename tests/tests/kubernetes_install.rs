//! What is installed in a cluster: the manifest is the chart, and its rights are enough.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use egret_tests::{
    Agent, Lab,
    kube::{
        ApiServer,
        controller::{Controller, NAMESPACE, agent_of},
        crds,
    },
    python_environment, until,
};
use serde_json::json;

/// In front of what the chart renders: Helm makes the namespace by itself.
const HEAD: &str =
    "# Rendered from the chart beside this file. After a change of the chart: `UPDATE=1 cargo xtask test manifest`.
apiVersion: v1
kind: Namespace
metadata:
  name: egret-system
  labels:
    pod-security.kubernetes.io/enforce: privileged
";

fn config(file: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/kubernetes").join(file)
}

/// The chart, by the real Helm.
fn helm(args: &[&str]) -> Result<String> {
    let helm = python_environment().join("bin/helm");
    let output = Command::new(&helm)
        .args(args)
        .output()
        .with_context(|| format!("cannot run {}: `cargo xtask setup` installs it", helm.display()))?;
    ensure!(output.status.success(), "helm {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn the_manifest_is_the_rendered_chart() -> Result<()> {
    let chart = config("egret");
    let chart = chart.to_string_lossy();
    helm(&["lint", "--strict", &chart])?;
    let rendered = format!("{HEAD}{}", helm(&["template", "egret", &chart, "--namespace", NAMESPACE])?);
    let file = config("egret.yaml");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&file, &rendered)?;
    }
    let kept = fs::read_to_string(&file)?;
    for (at, (kept, rendered)) in kept.lines().zip(rendered.lines()).enumerate() {
        ensure!(kept == rendered, "{}:{}: {kept:?}, and the chart has {rendered:?}", file.display(), at + 1);
    }
    ensure!(kept == rendered, "{} and the chart differ in length", file.display());
    Ok(())
}

/// Agent and controller, each with the rights of its service account: nothing that they ask for is refused.
#[test]
fn the_rights_are_enough() -> Result<()> {
    let server = ApiServer::start()?;
    server.install_crds(&crds::all())?;
    server.apply_yaml(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {egret.dev/enroll: 'true'}}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: world, namespace: shop}\nspec:\n  host: world.lab.test\n  \
         trafficPolicy: {tls: {mode: MUTUAL, credentialName: own}}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: world, namespace: shop}\nspec:\n  hosts: [world.lab.test]\n  \
         ports: [{number: 80, name: http, protocol: HTTP, targetPort: 443}]\n  resolution: DNS\n",
    )?;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "sleep", "namespace": "shop"},
        "spec": {"nodeName": "node-a", "serviceAccountName": "sleep", "containers": [{"name": "main", "image": "none"}]},
    });
    server.create(&pod)?;
    let lab = Lab::new()?;
    let _controller = Controller::start(&server, lab.dir())?;
    let _agent = Agent::start_in_cluster(&lab, &agent_of(&server, "node-a")?, "node-a", &[])?;
    let asked = |verb: &str, resource: &str| {
        server
            .requests()
            .iter()
            .any(|seen| seen.verb == verb && seen.resource == resource && seen.user.contains("egret-agent"))
    };
    until("the Secret to be watched", std::time::Duration::from_secs(10), || {
        (asked("watch", "secrets") && asked("create", "certificatesigningrequests")).then_some(())
    })?;
    let refused: Vec<_> = server.requests().into_iter().filter(|seen| seen.code == 403).collect();
    ensure!(refused.is_empty(), "{refused:#?}");
    // By name only (a CA may lie beside its certificate, as in Istio), and none of the mesh's own CA.
    let secrets =
        server.requests().into_iter().filter(|seen| seen.resource == "secrets" && seen.user.contains("agent"));
    for seen in secrets {
        ensure!(
            seen.namespace == "shop"
                && ["metadata.name=own", "metadata.name=own-cacert"].contains(&seen.field_selector.as_str()),
            "{seen:?}"
        );
    }
    Ok(())
}
