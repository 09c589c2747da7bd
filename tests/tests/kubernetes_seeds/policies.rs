//! Who may call the world, by workload identity.

use anyhow::{Context, Result};
use egret_tests::{
    Lab,
    kube::{Node, crds},
};

use super::stage::*;

#[test]
fn egress_authorization() -> Result<()> {
    let (lab, server) = (Lab::new()?, cluster(crds::ISTIO, &["default"])?);
    let node = Node::new(&lab, &server, NODE)?;
    let (_controller, agent) = start_on(&lab, &server, &node, &[])?;
    let documents = example("egress-authorization/policy.yaml")?;
    let pods = run_pods(&node, &documents)?;
    let [sleep, other] = &pods[..] else { anyhow::bail!("{} pods", pods.len()) };
    await_status(other, CNN, 301, SOON)?;
    let documents = objects(&documents);
    let (policy, origination) = documents.split_last().context("documents")?;
    apply(&server, origination)?;
    let mark = await_status(other, CNN, 200, SOON)?;
    assert_eq!(lab.hit(&mark)?.tls, "TLSv1.3");

    server.apply_yaml(policy)?;
    let denied = await_status(other, CNN, 403, SOON)?;
    let url = format!("http://{CNN}/politics?posted");
    let posted = sleep.curl(&["-X", "POST", &url])?;
    assert_eq!((posted.status, posted.body.as_str()), (403, "RBAC: access denied"), "{posted:?}");
    let mark = await_status(sleep, CNN, 200, SOON)?;
    assert_eq!(lab.hit(&mark)?.from, sleep.net()?.v4.to_string());
    assert!(lab.hits().iter().all(|hit| !hit.request.contains(&denied) && !hit.request.contains("?posted")));

    server.delete_yaml(policy)?;
    await_status(other, CNN, 200, SOON)?;
    delete(&server, origination)?;
    await_status(other, CNN, 301, SOON)?;
    end(pods, &agent)
}
