//! What `egret uninstall` leaves: nothing. Alone in its file, as it looks at what all agents of the machine have pinned.

use std::collections::BTreeSet;

use anyhow::Result;
use egret_tests::{Agent, Lab, egret};

/// What agents have pinned, and the cgroups that they made.
fn remains() -> Result<BTreeSet<String>> {
    let found = egret_tests::run("find", &["/sys/fs/bpf", "/sys/fs/cgroup", "-path", "*egret*"])?;
    Ok(found.lines().map(str::to_owned).collect())
}

/// Uninstalled, pods are as if egret had never been: they reach the outside by themselves.
#[test]
fn uninstall_leaves_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    lab.write("pod.yaml", &pod.document(""))?;
    let before = remains()?;
    let mut agent = Agent::start(&lab)?;
    assert_ne!(remains()?, before, "something is pinned while it runs");
    let state = agent.state().to_string_lossy().into_owned();
    let (code, _, said) = egret(&["uninstall", "--state-dir", &state])?;
    assert!(code != 0 && said.contains("run"), "not under a running agent's feet: {said}");
    assert_eq!(pod.curl(&["http://www.lab.test/"])?.status, 301);
    agent.kill9()?;
    assert_eq!(pod.curl(&["http://www.lab.test/"])?.exit, 7, "refused while nothing runs");
    let (code, _, said) = egret(&["uninstall", "--state-dir", &state])?;
    assert_eq!(code, 0, "{said}");
    assert_eq!(remains()?, before);
    assert_eq!(pod.curl(&["http://www.lab.test/"])?.status, 301, "on its own again");
    let (again, _, said) = egret(&["uninstall", "--state-dir", &state])?;
    assert_eq!(again, 0, "a second time is no error: {said}");
    Ok(())
}
