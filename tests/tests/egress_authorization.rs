//! Egress policy by workload identity: the shipped example, and what its reader is told to see.

use anyhow::Result;
use egret_tests::{Agent, Lab};

#[test]
fn who_may_call_the_world() -> Result<()> {
    let lab = Lab::new()?;
    let (sleep, other) = (lab.pod("sleep")?, lab.pod("other")?);
    lab.ship(&["egress-authorization/policy.yaml"], &[&sleep, &other])?;
    let agent = Agent::start(&lab)?;
    let reply = sleep.curl(&["http://edition.cnn.com/politics?allowed"])?;
    assert_eq!(reply.status, 200, "{reply:?}\n{}", agent.stderr());
    let reply = sleep.curl(&["-X", "POST", "http://edition.cnn.com/politics?posted"])?;
    assert_eq!((reply.status, reply.body.as_str()), (403, "RBAC: access denied"), "{reply:?}");
    let reply = other.curl(&["http://edition.cnn.com/politics?other"])?;
    assert_eq!((reply.status, reply.body.as_str()), (403, "RBAC: access denied"), "{reply:?}");
    let line = agent.log_line("/politics?other")?;
    assert!(line.contains(" 403 ") && line.contains("rbac_access_denied_matched_policy[none]"), "{line}");
    // TLS of its own is a connection without a method: nothing allows it.
    let reply = other.curl(&["-k", "https://edition.cnn.com/politics?tls"])?;
    assert!(reply.status == 0 && reply.exit != 0, "{reply:?}");
    assert!(lab.hits().iter().all(|hit| hit.request.contains("?allowed")), "{:?}", lab.hits());
    agent.await_metric("istio_requests_total", &["response_code=\"403\"", "source_workload=\"other\""], 1.0)?;
    Ok(())
}
