//! `cargo xtask demo`: what egret does, shown to a person, with real programs in namespaces of this machine.

use std::{path::Path, time::Instant};

use anyhow::{Context, Result, ensure};
use egret_tests::{Agent, CLIENT_DN, Hit, Lab, Pod, Wire, names, until};

use crate::{setup, show::Show, steps};

const SIMPLE: &str = "config/examples/egress-tls-origination";
const MUTUAL: &str = "config/examples/egress-mutual-tls";
const GATEWAY: [&str; 2] = ["config/examples/egress-gateway/pods.yaml", "config/examples/egress-gateway/simple.yaml"];
const CNN: &str = "http://edition.cnn.com/politics";
const NGINX: &str = "http://my-nginx.mesh-external.svc.cluster.local/";

pub fn run() -> Result<()> {
    setup::need_root("the demo")?;
    setup::for_building()?;
    setup::for_lab()?;
    steps::cargo(&["build", "--release", "-p", "egret"])?;
    let binary = crate::root().join("target/release/egret");
    let start = Instant::now();
    egret_tests::sweep();
    // Every value made in there removes what it stands for when it goes, on success, failure and Ctrl-C alike.
    let outcome = play(&binary);
    println!("\nEverything the demo made is removed again. ({:.1} s)", start.elapsed().as_secs_f64());
    outcome
}

fn play(binary: &Path) -> Result<()> {
    let mut show = Show::new();
    show.scene("A pod, and an outside world");
    let lab = Lab::new()?;
    let pod = lab.pod_named("sleep")?;
    let mut wire = lab.tap()?;
    show.say(&format!("pod \"sleep\"  {}: a network namespace with curl, and one wire to the outside", pod.v4));
    show.say("outside      real nginx and a real DNS server, in a namespace of their own; tcpdump on the wire");
    show.say(&format!("             edition.cnn.com is {} there; my-nginx… wants a client certificate", names::WEB));

    show.scene("Without egret: what an application with plain http:// URLs gets");
    let reply = fetch(&show, &pod, &format!("{CNN}?in-the-clear"))?;
    ensure!(reply == 301, "the web server should have answered 301");
    show.finding("on the wire", readable(wire.saw(&pod.netns, names::ROUTER.parse()?, "in-the-clear")?));

    show.scene("egret starts: one process for the whole node, none in the pod");
    lab.write("client-credential.yaml", &lab.pki.client_secret("client-credential", "client")?)?;
    show.command("host", &format!("egret run --config {SIMPLE} {MUTUAL} …/client-credential.yaml"));
    let mut agent = Agent::start_from(&lab, binary, &["--config", SIMPLE, MUTUAL])?;
    show.say(&format!("ready, process {}; the Secret holds a certificate made with `openssl x509 -req`", agent.pid()));

    show.scene("The same plain http:// URL, now: DestinationRule with mode SIMPLE");
    let reply = fetch(&show, &pod, CNN)?;
    ensure!(reply == 200, "expected 200, got {reply}:\n{}", agent.stderr());
    what_nginx_saw(&show, &lab.hit("GET /politics HTTP/1.1")?);
    // nginx's first line is of the plain request; the one over TLS is the one to show.
    show.finding("access log", &agent.log_line("edition.cnn.com")?);

    show.scene("A server that demands a client certificate: mode MUTUAL, credentialName client-credential");
    let reply = fetch(&show, &pod, NGINX)?;
    ensure!(reply == 200, "expected 200, got {reply}:\n{}", agent.stderr());
    let hit = until("nginx's log", std::time::Duration::from_secs(3), || {
        lab.hits().into_iter().find(|hit| hit.client_dn == CLIENT_DN)
    })?;
    what_nginx_saw(&show, &hit);
    show.finding("access log", &agent.log_line("my-nginx")?);
    show.command("host", "egret proxy-config secret sleep");
    show.output(&agent.egret(&["proxy-config", "secret", "sleep"])?.1);

    show.scene("The agent dies: kill -9");
    agent.kill9()?;
    let reply = fetch(&show, &pod, &format!("{CNN}?after-the-kill"))?;
    ensure!(reply == 0, "somebody answered, although the agent is dead");
    let leaked = wire.saw(&pod.netns, names::ROUTER.parse()?, "after-the-kill")?;
    show.finding("on the wire", readable(leaked));
    ensure!(!leaked, "plain text left the pod");
    ensure!(plain_marks(&mut wire, &pod)? == 1, "plain text left the pod while egret ran");

    show.scene("egret uninstall");
    agent.end();
    show.say("the programs in the kernel and their maps are gone");
    steps::go_on()?;
    gateway(&mut show, &lab, binary, &pod, &mut wire)
}

/// The shipped example, with an agent of its own: its rules for edition.cnn.com are others than the first scenes'.
fn gateway(show: &mut Show, lab: &Lab, binary: &Path, pod: &Pod, wire: &mut Wire) -> Result<()> {
    show.scene("An egress gateway: Istio's task as it is, and a second pod with nothing in it");
    let gateway = lab.pod_named("egressgateway")?;
    show.say(&format!("pod \"egressgateway\"  {}: no process; its listeners live in the agent", gateway.v4));
    show.command("host", &format!("egret run --config {}", GATEWAY.join(" ")));
    let agent = Agent::start_from(lab, binary, &["--config", GATEWAY[0], GATEWAY[1]])?;
    let reply = fetch(show, pod, &format!("{CNN}?by-the-gateway"))?;
    ensure!(reply == 200, "expected 200, got {reply}:\n{}", agent.stderr());
    let hit = lab.hit("by-the-gateway")?;
    what_nginx_saw(show, &hit);
    ensure!(hit.from == gateway.v4.to_string(), "the request did not come from the gateway");
    let leaked = wire.saw(&pod.netns, names::ROUTER.parse()?, "by-the-gateway")?;
    show.finding("on both wires", readable(leaked));
    ensure!(!leaked, "plain text left a pod");
    show.finding("gateway's log", &agent.log_line("outbound|443||edition.cnn.com")?);
    steps::go_on()
}

/// Runs curl in the pod, shows it, and hands the status back; 0 where there was no response.
fn fetch(show: &Show, pod: &Pod, url: &str) -> Result<u16> {
    steps::go_on()?;
    show.command(&pod.name, &format!("curl -i {url}"));
    let reply = pod.curl(&["-i", url]).context("curl")?;
    steps::go_on()?;
    let (head, body) = reply.body.split_once("\r\n\r\n").unwrap_or((&reply.body, ""));
    if reply.status == 0 {
        show.output(reply.stderr.trim());
    } else {
        let kept = |line: &&str| line.starts_with("HTTP/") || line.to_ascii_lowercase().starts_with("location");
        show.output(&head.lines().filter(kept).collect::<Vec<_>>().join("\n"));
        if reply.status == 200 {
            show.output(body);
        }
    }
    Ok(reply.status)
}

fn what_nginx_saw(show: &Show, hit: &Hit) {
    let dn = if hit.client_dn.is_empty() { "no client certificate".to_owned() } else { hit.client_dn.clone() };
    let tls = if hit.tls.is_empty() { "plain text" } else { &hit.tls };
    show.finding("nginx saw", &format!("{tls}, SNI {}, {dn}, from {}, {:?}", hit.sni, hit.from, hit.request));
}

fn readable(seen: bool) -> &'static str {
    if seen {
        "tcpdump reads the request: plain text"
    } else {
        "tcpdump finds nothing of it: no plain text left the pod"
    }
}

/// How many of the demo's requests could be read on the wire; the one before egret started, and no other.
fn plain_marks(wire: &mut Wire, pod: &Pod) -> Result<usize> {
    let router = names::ROUTER.parse()?;
    let mut seen = 0;
    for mark in ["GET /politics?in-the-clear", "GET /politics HTTP", "GET / HTTP", "GET /politics?after-the-kill"] {
        seen += usize::from(wire.saw(&pod.netns, router, mark)?);
    }
    Ok(seen)
}
