//! The agent's own life: killed, restarted, drained, uninstalled, and pods that go away under it.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::Result;
use egret_tests::{
    Agent, Lab, names,
    objects::{documents, entry, rule},
};

const MARK: &str = "must-not-be-readable";
const HOST: &str = "www.lab.test";

fn mesh(lab: &Lab, pods: &[String]) -> Result<()> {
    let service = [entry(HOST, &["80 HTTP 443"]), rule(HOST, "mode: SIMPLE")];
    lab.write("mesh.yaml", &documents(&[pods, &service].concat()))
}

/// Killed under load and started again: refused meanwhile, never plain, and served again by itself.
#[test]
fn killed_and_restarted_under_load() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    mesh(&lab, &[pod.document("")])?;
    let mut agent = Agent::start(&lab)?;
    let mut wire = lab.tap()?;
    let (stop, served) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| -> Result<()> {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let reply = pod.curl(&[&format!("http://{HOST}/hello?{MARK}")]);
                    served.fetch_add(u32::from(reply.is_ok_and(|reply| reply.status == 200)), Ordering::Relaxed);
                }
            });
        }
        let outcome = (0..3).try_for_each(|_| {
            std::thread::sleep(Duration::from_millis(300));
            agent.kill9()?;
            std::thread::sleep(Duration::from_millis(200));
            let before = served.load(Ordering::Relaxed);
            agent.restart()?;
            egret_tests::until("service to be back", Duration::from_secs(1), || {
                (served.load(Ordering::Relaxed) > before).then_some(())
            })
        });
        stop.store(true, Ordering::Relaxed);
        outcome
    })?;
    assert!(!wire.saw(&pod.netns, names::ROUTER.parse()?, MARK)?, "plain text left the pod");
    assert!(lab.hits().iter().all(|hit| hit.tls == "TLSv1.3"));
    Ok(())
}

/// SIGTERM: what is in flight is finished, then the agent exits 0; a second SIGTERM does not wait.
#[test]
fn sigterm_drains() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    let odd = "odd.lab.test";
    let service = entry(odd, &["80 HTTP 9015", "81 HTTP 9004"]);
    lab.write("mesh.yaml", &documents(&[pod.document(""), service, rule(odd, "mode: SIMPLE")]))?;
    let mut agent = Agent::start_with(&lab, &["--drain-timeout", "8s"])?;
    std::thread::scope(|scope| -> Result<()> {
        let slow = scope.spawn(|| pod.curl(&["http://odd.lab.test/slow"]));
        std::thread::sleep(Duration::from_millis(500));
        agent.terminate()?;
        std::thread::sleep(Duration::from_millis(200));
        let late = pod.curl(&["http://odd.lab.test/too-late"])?;
        assert_ne!(late.status, 200, "no new connections: {late:?}");
        let reply = slow.join().map_err(|_| anyhow::anyhow!("curl panicked"))??;
        assert_eq!((reply.status, reply.body.as_str()), (200, "late\n"), "what was in flight is whole: {reply:?}");
        Ok(())
    })?;
    let status = agent.wait(Duration::from_secs(5))?;
    assert_eq!(status.code(), Some(0), "{}", agent.stderr());
    let refused = pod.curl(&["http://odd.lab.test/"])?;
    assert_eq!(refused.exit, 7, "after the end capture stays closed: {refused:?}");

    agent.restart()?;
    std::thread::scope(|scope| -> Result<()> {
        scope.spawn(|| pod.curl(&["http://odd.lab.test:81/never"]));
        std::thread::sleep(Duration::from_millis(500));
        agent.terminate()?;
        std::thread::sleep(Duration::from_millis(500));
        assert!(agent.alive(), "it waits for the request");
        let start = Instant::now();
        agent.terminate()?;
        agent.wait(Duration::from_secs(3))?;
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        Ok(())
    })
}

/// A pod's namespace goes and comes again under the same name: the new one is enrolled, others never notice.
#[test]
fn a_namespace_that_is_made_again() -> Result<()> {
    let lab = Lab::new()?;
    let (stay, gone) = (lab.pod("stay")?, lab.pod("gone")?);
    mesh(&lab, &[stay.document(""), gone.document("")])?;
    let mut agent = Agent::start(&lab)?;
    let url = format!("http://{HOST}/hello");
    assert_eq!(gone.curl(&[&url])?.status, 200);
    drop(gone);
    assert_eq!(stay.curl(&[&url])?.status, 200);
    let again = lab.pod("gone")?;
    let served = egret_tests::until("the new namespace to be enrolled", Duration::from_secs(5), || {
        again.curl(&[&url]).ok().filter(|reply| reply.status == 200)
    });
    served.map_err(|error| error.context(agent.stderr()))?;
    agent.wait_ready()?;
    assert_eq!(stay.curl(&[&url])?.status, 200);
    Ok(())
}

/// A pod whose namespace is not there yet: not ready, and the reason; its coming makes it ready.
#[test]
fn readiness_names_what_is_awaited() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    let late = pod.document("").replace("name: sleep", "name: late").replace("-sleep", "-late");
    mesh(&lab, &[pod.document(""), late])?;
    let mut agent = Agent::spawn(&lab, &[])?;
    let body = egret_tests::until("an answer of the admin port", Duration::from_secs(10), || {
        let (status, body) = agent.admin("GET", "/healthz/ready").ok()?;
        (status == 503 && body.contains("late")).then_some(body)
    });
    body.map_err(|error| error.context(agent.stderr()))?;
    assert_eq!(agent.admin("GET", "/healthz/live")?.0, 200);
    let _late = lab.pod("late")?;
    agent.wait_ready()
}

/// Somebody in the pod has egret's port: the sentence says so, and once it is free the pod is enrolled by itself.
#[test]
fn a_port_that_is_taken_in_the_pod() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    mesh(&lab, &[pod.document("")])?;
    let taken = pod.netns.listen("0.0.0.0:15001".parse()?)?;
    let mut agent = Agent::spawn(&lab, &[])?;
    let said = egret_tests::until("the reason", Duration::from_secs(10), || {
        let (_, body) = agent.admin("GET", "/healthz/ready").ok()?;
        body.contains("port 15001 is taken").then_some(body)
    });
    said.map_err(|error| error.context(agent.stderr()))?;
    drop(taken);
    agent.wait_ready()
}

/// What keeps the agent from starting is said in one sentence, and nothing is left behind.
#[test]
fn refusals_at_start() -> Result<()> {
    let lab = Lab::new()?;
    let config = lab.config_dir().to_string_lossy().into_owned();
    let state = lab.dir().join("state-x").to_string_lossy().into_owned();
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let admin = taken.local_addr()?.to_string();
    let run = |args: &[&str]| egret_tests::egret(&[&["run", "--state-dir", &state], args].concat());
    let (code, _, said) = run(&["--config", &config, "--admin", &admin])?;
    assert!(code != 0 && said.contains(&admin), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    let (code, _, said) = run(&["--config", "/nonexistent/mesh", "--admin", "127.0.0.1:0"])?;
    assert!(code != 0 && said.contains("/nonexistent/mesh"), "{said}");
    // An agent that did not start has attached nothing that somebody would have to remove.
    let (code, said, _) = egret_tests::egret(&["uninstall", "--state-dir", &state])?;
    assert!(code == 0 && said.contains("nothing"), "{said}");
    Ok(())
}
