//! What the agent costs: memory idle, for each pod and each idle connection, and CPU for each request. The figures of the
//! README come from here: `cargo run -p egret-tests --example measure` (with `EGRET_BIN` or after `cargo xtask build`).
//! Wants `wrk`.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::SocketAddr,
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, Result};
use egret_tests::{
    Agent, Lab,
    objects::{documents, entry, rule},
};

/// Enough for a slope that stands out of the noise, and done in seconds.
const PODS: usize = 50;
const CONNECTIONS: usize = 1000;
const HOST: &str = "www.lab.test";

fn main() -> Result<()> {
    let lab = Lab::new()?;
    let mut pods = vec![lab.pod("sleep")?];
    let write = |pods: &[egret_tests::Pod]| {
        let mut all: Vec<String> = pods.iter().map(|pod| pod.document("")).collect();
        all.extend([entry(HOST, &["80 HTTP 443"]), rule(HOST, "mode: SIMPLE")]);
        lab.write("mesh.yaml", &documents(&all))
    };
    write(&pods)?;
    let agent = Agent::start(&lab)?;
    sleep(Duration::from_secs(1));
    let idle = resident(agent.pid())?;
    println!("resident, one pod, idle: {:.1} MiB", idle / 1024.0);

    for number in 1..=PODS {
        pods.push(lab.pod(&format!("p{number}"))?);
    }
    agent.reload(|| write(&pods))?;
    sleep(Duration::from_secs(2));
    let many = resident(agent.pid())?;
    println!("for each further enrolled pod: {:.1} KiB", (many - idle) / PODS as f64);

    let to: SocketAddr = format!("{}:80", egret_tests::names::WEB).parse().context("the lab's web address")?;
    let mut open = Vec::with_capacity(CONNECTIONS);
    // Each makes one request first: an idle connection is one that waits for its next.
    for _ in 0..CONNECTIONS {
        let mut stream = pods[0].connect(&to.to_string())?;
        stream.write_all(format!("GET /hello HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes())?;
        let mut answer = [0; 4096];
        anyhow::ensure!(stream.read(&mut answer)? > 0, "the agent closed the connection");
        open.push(stream);
    }
    sleep(Duration::from_secs(1));
    println!("for each idle connection: {:.1} KiB", (resident(agent.pid())? - many) / CONNECTIONS as f64);
    drop(open);

    for connections in ["64", "1"] {
        let before = cpu(agent.pid())?;
        let url = format!("http://{HOST}/hello");
        let output = pods[0].run("wrk", &["-t1", "-c", connections, "-d", "8s", "--latency", &url], b"")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let after = cpu(agent.pid())?;
        let line = text.lines().find(|line| line.contains("requests in")).context(text.clone())?;
        let requests: f64 = line.split_whitespace().next().unwrap_or("0").parse().context("wrk's count")?;
        let median = text.lines().find(|line| line.contains("50%")).unwrap_or("").trim().to_owned();
        println!(
            "{connections} connections: {requests} requests, {:.1} CPU µs each, {median}",
            (after - before) * 1e6 / requests
        );
        anyhow::ensure!(!text.contains("Non-2xx"), "{text}");
    }
    Ok(())
}

/// VmRSS in KiB.
fn resident(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).context("no VmRSS")?.parse()?)
}

/// utime + stime in seconds: ticks are hundredths on every Linux that runs this.
fn cpu(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after = stat.rsplit(')').next().context("stat")?;
    let fields: Vec<&str> = after.split_whitespace().collect();
    Ok((fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) / 100.0)
}
