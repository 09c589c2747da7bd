//! `--kubernetes` of the commands that ask: from anywhere, through the API server, the agent of the pod's node.

use std::process::Command;

use anyhow::Result;
use egret_tests::{
    Agent, Lab, agent_binary,
    kube::{ApiServer, crds},
};
use serde_json::{Value, json};

/// A pod of the agents' DaemonSet, as far as it is asked for; who asks it reaches this machine.
fn agent_pod(node: &str, port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("egret-agent-{node}"), "namespace": "egret-system", "labels": {"app": "egret-agent"}},
        "spec": {
            "nodeName": node, "hostNetwork": true,
            "containers": [{"name": "agent", "image": "egret", "ports": [{"name": "status", "containerPort": port}]}],
        },
        "status": {"phase": "Running", "hostIP": "127.0.0.1", "podIP": "127.0.0.1"},
    })
}

fn pod(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": {"egret.dev/enroll": "true"}},
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": "none"}]},
    })
}

#[test]
fn the_agent_of_the_pods_node_is_asked() -> Result<()> {
    let server = ApiServer::start()?;
    server.install_crds(crds::ISTIO)?;
    server.apply_yaml(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: egret-system}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: world, namespace: shop}\nspec:\n  hosts: [world.lab.test]\n  \
         ports: [{number: 80, name: http, protocol: HTTP}]\n  resolution: DNS\n",
    )?;
    let lab = Lab::new()?;
    let agents = [("node-a", "sleep"), ("node-b", "cart")]
        .into_iter()
        .map(|(node, name)| {
            server.create(&pod(name, node))?;
            let agent = Agent::start_in_cluster(&lab, &server.kubeconfig("admin")?, node, &[])?;
            server.create(&agent_pod(node, agent.admin_address().port() + 20))?;
            Ok(agent)
        })
        .collect::<Result<Vec<_>>>()?;
    let kubeconfig = server.kubeconfig("admin")?;
    let egret = |args: &[&str]| -> Result<(bool, String, String)> {
        // No agent listens on the usual address: an answer can have come through the API server only.
        let output = Command::new(agent_binary()?).args(args).env("KUBECONFIG", &kubeconfig).output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((output.status.success(), text(&output.stdout), text(&output.stderr)))
    };

    let (done, out, error) = egret(&["status", "--kubernetes"])?;
    assert!(done, "{error}");
    let nodes: Vec<_> = out.lines().filter(|line| line.starts_with("NODE ")).collect();
    assert_eq!(
        nodes,
        ["NODE node-a (egret-system/egret-agent-node-a)", "NODE node-b (egret-system/egret-agent-node-b)"]
    );
    assert!(out.contains(&format!("process {}:", agents[1].pid())), "{out}");
    let (_, json, _) = egret(&["status", "--kubernetes", "-o", "json"])?;
    let json: Value = serde_json::from_str(&json)?;
    assert_eq!(json["node-a"]["pid"], agents[0].pid());

    for name in [["-n", "shop", "pc", "cluster", "cart"], ["pc", "cluster", "cart.shop", "-n", "other"]] {
        let (done, out, error) = egret(&[&name[..], &["--kubernetes"]].concat())?;
        assert!(done && out.contains("world.lab.test"), "{out}{error}");
    }
    let (done, out, error) = egret(&["-n", "shop", "explain", "sleep", "http://world.lab.test/", "--kubernetes"])?;
    assert!(done && out.contains("world.lab.test"), "{out}{error}");

    let (done, _, error) = egret(&["pc", "cluster", "nobody", "--kubernetes"])?;
    assert!(!done && error.contains("the cluster has no pod default/nobody"), "{error}");
    server.create(&pod("far", "node-c"))?;
    let (done, _, error) = egret(&["-n", "shop", "pc", "cluster", "far", "--kubernetes"])?;
    assert!(!done && error.contains("no agent runs on node node-c"), "{error}");
    // One agent that is gone is told; the other is shown all the same.
    drop(agents);
    let (done, out, error) = egret(&["status", "--kubernetes"])?;
    assert!(!done && out.contains("no answer: ") && error.contains("2 agents do not answer"), "{out}{error}");
    Ok(())
}
