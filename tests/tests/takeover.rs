//! A next agent takes the place of one that serves: an upgrade that no connection notices.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use egret_tests::{
    Agent, Lab, Pod, names,
    objects::{documents, entry, object, rule},
    under_load,
};

const HOST: &str = "www.lab.test";
const APP: &str = "app.default.svc.cluster.local";
const ADDRESS: &str = "10.97.0.20";

fn served(pod: &Pod, args: &[&str]) -> Result<()> {
    let reply = pod.curl(args)?;
    ensure!(reply.status == 200, "{reply:?}");
    Ok(())
}

fn listening(pod: &Pod) -> Result<String> {
    let output = pod.run("ss", &["-Hltn"], b"")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Egress, calls between pods, what comes from outside and a gateway, each with connections of its own, while agents take turns;
/// and a request that was under way before all that gets its answer whole.
#[test]
fn no_connection_notices_a_next_agent() -> Result<()> {
    let lab = Lab::new()?;
    let (client, app) = (lab.pod("client")?, lab.pod("app")?);
    let (gateway, outside) = (lab.pod("gateway")?, lab.pod("outside")?);
    let _app = lab.backends_in(&app.netns, &[("app", "0.0.0.0:8080")])?;
    let service = format!(
        "{{clusterIP: {ADDRESS}, selector: {{app: app}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}"
    );
    let server =
        "{selector: {istio: gateway}, servers: [{port: {number: 8080, name: http, protocol: HTTP}, hosts: ['*']}]}";
    let route = format!("{{hosts: ['*'], gateways: [gateway], http: [{{route: [{{destination: {{host: {APP}}}}}]}}]}}");
    lab.write(
        "mesh.yaml",
        &documents(&[
            client.document(""),
            app.document("app: app"),
            gateway.document("istio: gateway"),
            object("Service", "app", &service),
            object("Gateway", "gateway", server),
            object("VirtualService", "gateway", &route),
            entry(HOST, &["80 HTTP 443"]),
            rule(HOST, "mode: SIMPLE"),
            entry("odd.lab.test", &["80 HTTP 9015"]),
            rule("odd.lab.test", "mode: SIMPLE"),
        ]),
    )?;
    let mut agent = Agent::start_with(&lab, &["--drain-timeout", "10s"])?;
    let mut wire = lab.tap()?;
    let before = listening(&client)?;
    let app_at = format!("http://{}:8080/from-outside", app.v4);
    let gateway_at = format!("http://{}:8080/through-the-gateway", gateway.v4);
    let resolve = format!("{APP}:80:{ADDRESS}");
    let egress = |number| served(&client, &[&format!("http://{HOST}/hello?unreadable-{number}")]);
    let mesh = |number| served(&client, &["--resolve", &resolve, &format!("http://{APP}/unreadable-{number}")]);
    let inbound = |_| served(&outside, &[&app_at]);
    let through = |_| served(&outside, &[&gateway_at]);
    for _ in 0..3 {
        std::thread::scope(|scope| {
            let slow = scope.spawn(|| client.curl(&["http://odd.lab.test/slow"]));
            let mut old = None;
            under_load(&[&egress, &mesh, &inbound, &through], || {
                old = Some(agent.take_over()?);
                Ok(())
            })
            .with_context(|| format!("{}\n{}", agent.stderr(), agent.stdout()))?;
            let mut old = old.context("nobody was there before")?;
            let slow = slow.join().map_err(|_| anyhow::anyhow!("curl panicked"))??;
            ensure!((slow.status, slow.body.as_str()) == (200, "late\n"), "{slow:?}\n{}", old.stderr());
            let status = old.wait(Duration::from_secs(15)).with_context(|| old.stderr())?;
            ensure!(status.code() == Some(0), "{status}: {}", old.stderr());
            Ok(())
        })?;
    }
    assert_eq!(listening(&client)?, before, "the same sockets, and no more");
    assert!(!wire.saw(&client.netns, names::ROUTER.parse()?, "unreadable")?, "readable on the wire");
    assert!(agent.egret(&["status"])?.1.contains("attached"), "{:?}", agent.egret(&["status"])?);
    Ok(())
}
