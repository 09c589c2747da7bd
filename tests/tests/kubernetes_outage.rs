//! The API server goes away: what is in force stays so, and an agent that starts meanwhile is closed until the server is back.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use egret_tests::{
    Lab,
    kube::{ALONE, ApiServer, ENROLLED, Load, Node, NodePod, controller, crds},
    names,
    objects::{documents, entry, rule},
    until,
};

const NODE: &str = "one";
const HOST: &str = "www.lab.test";
const MARK: &str = "must-not-be-readable";
/// Requests that are answered while nobody can be asked.
const REQUESTS: usize = 600;
/// Longer than the agent's pauses between two attempts grow in the time that this test takes.
const RECOVERY: Duration = Duration::from_secs(60);

/// curl's status and exit code (7: refused).
fn curl(pod: &NodePod<'_>, url: &str) -> Result<(u16, i32)> {
    let reply = pod.curl(&["-o", "/dev/null", url])?;
    Ok((reply.status, reply.exit))
}

fn await_served(pod: &NodePod<'_>, url: &str) -> Result<()> {
    until(&format!("{} to be served", pod.name()), RECOVERY, || {
        curl(pod, url).ok().filter(|(status, _)| *status == 200)
    })
    .map(drop)
}

#[test]
fn a_load_goes_on_without_the_api_server_and_a_new_agent_is_closed_until_it_is_back() -> Result<()> {
    let (lab, server) = (Lab::new()?, ApiServer::start()?);
    server.install_crds(crds::ISTIO)?;
    server.apply_yaml(&documents(&[entry(HOST, &["80 HTTP 443"]), rule(HOST, "mode: SIMPLE")]))?;
    let node = Node::new(&lab, &server, NODE)?;
    let (controller, mut agent) = controller::start_on(&lab, &server, &node, &[])?;
    let mut wire = lab.tap()?;
    let other = node.pod("default", "other", ALONE)?;
    let to = format!("{}:80", names::WEB);
    let loads = ["first", "second", "third"]
        .map(|name| Load::start(&node, name, ENROLLED, &to, HOST, MARK))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;

    server.stop();
    let before = lab.hits().len();
    until("it to be told that the server is gone", Duration::from_secs(10), || {
        let (_, told, _) = agent.egret(&["status"]).ok()?;
        told.contains("the API server cannot be reached").then_some(())
    })?;
    until("a load of requests", RECOVERY, || (lab.hits().len() >= before + REQUESTS).then_some(()))?;
    assert_eq!(agent.admin("GET", "/healthz/ready")?.0, 200, "what was read stays in force");
    let mut pods = Vec::new();
    for load in loads {
        let (pod, requests, failed) = load.end()?;
        ensure!(failed.is_empty(), "of {requests} requests: {failed:#?}\n{}", agent.stderr());
        pods.push(pod);
    }

    // Nobody can tell a new agent anything.
    agent.terminate()?;
    ensure!(agent.wait(Duration::from_secs(10))?.success(), "{}", agent.stderr());
    let url = format!("http://{HOST}/hello?{MARK}");
    for pod in &pods {
        assert_eq!(curl(pod, &url)?, (0, 7), "{}: no agent runs", pod.name());
    }
    let count = lab.hits().len();
    agent.relaunch()?;
    let why = until("the agent to say what it waits for", Duration::from_secs(20), || {
        let (status, body) = agent.admin("GET", "/healthz/ready").ok()?;
        (status == 503 && body.contains("the API server cannot be reached")).then_some(body)
    })
    .with_context(|| agent.stderr())?;
    assert!(why.contains("configuration: not read yet"), "{why}");
    let (_, told, _) = agent.egret(&["status"])?;
    assert!(told.contains("the API server cannot be reached"), "{told}");
    for pod in &pods {
        assert_eq!(curl(pod, &url)?, (0, 7), "{}: nothing is known of it", pod.name());
    }
    assert_eq!(lab.hits().len(), count, "a request got out");
    // Who was left alone before goes on.
    let plain = format!("http://{}:8080/", names::WEB);
    assert_eq!(curl(&other, &plain)?, (200, 0));

    server.resume()?;
    agent.wait_ready().or_else(|_| agent.wait_ready())?;
    for pod in &pods {
        await_served(pod, &url)?;
    }
    // What is new counts, too: certificates are issued and pods are enrolled as before.
    let late = node.pod("default", "late", ENROLLED)?;
    await_served(&late, &url)?;
    until("the controller to lead again", RECOVERY, || matches!(controller.ready(), Ok((200, _))).then_some(()))?;
    assert!(lab.hits().iter().filter(|hit| hit.request.contains(MARK)).all(|hit| hit.tls == "TLSv1.3"));
    assert!(!wire.saw(&other.net()?.netns, names::ROUTER.parse()?, MARK)?, "plain text left a pod");
    Ok(())
}
