//! A big cluster: what the agent of one node takes, and how soon a change is in force.
//!
//! `EGRET_SCALE=10000` makes it ten thousand pods, and as many ServiceEntries and DestinationRules together; what is measured
//! is printed (`--nocapture`).

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use egret_tests::{
    Agent, Lab,
    kube::{ApiServer, crds},
};
use futures_util::{StreamExt as _, stream};
use kube::{
    Api,
    api::{DynamicObject, Patch, PatchParams, PostParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};

const NODE: &str = "node-a";
const NAMESPACES: usize = 20;
/// Pods of a Service.
const EACH: usize = 10;
/// Of an unoptimised agent on a busy machine; a real one takes a small part of it.
const LATEST: Duration = Duration::from_secs(10);

fn scale() -> usize {
    std::env::var("EGRET_SCALE").ok().and_then(|text| text.parse().ok()).unwrap_or(600)
}

fn namespace(service: usize) -> String {
    format!("n{}", service % NAMESPACES)
}

fn address(pod: usize) -> String {
    format!("10.1.{}.{}", pod / 250, pod % 250 + 1)
}

fn cluster_ip(service: usize) -> String {
    format!("10.96.{}.{}", service / 250, service % 250 + 1)
}

fn service(service: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": format!("s{service}"), "namespace": namespace(service)},
        "spec": {"clusterIP": cluster_ip(service), "selector": {"app": format!("s{service}")},
                 "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    })
}

fn pod(pod: usize) -> Value {
    let service = pod / EACH;
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("p{pod}"), "namespace": namespace(service),
                     "labels": {"app": format!("s{service}"), "pod-template-hash": "5d4f8c7b9", "version": "v1"}},
        "spec": {"nodeName": "node-b", "serviceAccountName": "web",
                 "containers": [{"name": "main", "image": "none", "ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIP": address(pod), "podIPs": [{"ip": address(pod)}]},
    })
}

/// The slice of a service; `unready`: that one of its pods is not.
fn slice(service: usize, unready: Option<usize>) -> Value {
    let endpoints = (service * EACH..(service + 1) * EACH).map(|pod| {
        let ready = unready != Some(pod);
        json!({"addresses": [address(pod)], "conditions": {"ready": ready, "serving": ready, "terminating": false},
               "nodeName": "node-b", "zone": "z1",
               "targetRef": {"kind": "Pod", "namespace": namespace(service), "name": format!("p{pod}")}})
    });
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": format!("s{service}-abcde"), "namespace": namespace(service),
                     "labels": {"kubernetes.io/service-name": format!("s{service}")}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints.collect::<Vec<_>>(),
    })
}

fn entry(at: usize) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
        "metadata": {"name": format!("e{at}"), "namespace": "shop"},
        "spec": {"hosts": [format!("e{at}.example.com")], "location": "MESH_EXTERNAL", "resolution": "STATIC",
                 "endpoints": [{"address": "192.0.2.1"}],
                 "ports": [{"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 443}]},
    })
}

fn rule(at: usize, name: &str) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
        "metadata": {"name": format!("e{at}"), "namespace": "shop"},
        "spec": {"host": format!("e{at}.example.com"), "trafficPolicy": {"tls": {"mode": "SIMPLE", "sni": name}}},
    })
}

fn api(client: &kube::Client, object: &Value) -> Result<(Api<DynamicObject>, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
    let (group, version) = version.rsplit_once('/').unwrap_or(("", &version));
    let plural = match kind.as_str() {
        "ServiceEntry" => "serviceentries".to_owned(),
        other => format!("{}s", other.to_lowercase()),
    };
    let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, &kind), &plural);
    let api = Api::namespaced_with(client.clone(), &text(&object["metadata"]["namespace"]), &resource);
    Ok((api, text(&object["metadata"]["name"])))
}

async fn create(client: &kube::Client, object: Value) -> Result<()> {
    let (api, name) = api(client, &object)?;
    let made: DynamicObject = serde_json::from_value(object.clone())?;
    api.create(&PostParams::default(), &made).await.with_context(|| format!("cannot create {name}"))?;
    if object["kind"] == "Pod" {
        let status = Patch::Merge(json!({"status": object["status"]}));
        api.patch_status(&name, &PatchParams::default(), &status).await?;
    }
    Ok(())
}

async fn patch(client: &kube::Client, object: Value) -> Result<()> {
    let (api, name) = api(client, &object)?;
    api.patch(&name, &PatchParams::default(), &Patch::Merge(object)).await?;
    Ok(())
}

/// The agent's resident set in MiB, now and at its highest.
fn memory(agent: &Agent) -> Result<(usize, usize)> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
    let of = |name: &str| -> Option<usize> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.split_whitespace().next()?.parse::<usize>().ok()? / 1024)
    };
    Ok((of("VmRSS:").context("no VmRSS")?, of("VmHWM:").context("no VmHWM")?))
}

/// How long until the agent says of `url`, as the pod would ask for it, something that `holds`.
fn in_force(agent: &Agent, url: &str, began: Instant, holds: impl Fn(&str) -> bool) -> Result<Duration> {
    let path = format!("/explain?pod=sleep&namespace=shop&url={url}");
    loop {
        let (_, said) = agent.admin("GET", &path)?;
        if holds(&said) {
            return Ok(began.elapsed());
        }
        ensure!(began.elapsed() < LATEST, "{url} is behind after {LATEST:?}: {said}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn told(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |part: usize| times[(times.len() * part / 100).min(times.len() - 1)].as_millis();
    println!("{what}: p50 {} ms, p99 {} ms ({} changes)", at(50), at(99), times.len());
}

#[test]
fn changes_in_a_big_cluster_are_soon_in_force() -> Result<()> {
    let (scale, server, lab) = (scale(), ApiServer::start()?, Lab::new()?);
    let (services, rules) = (scale / EACH, scale / 2);
    server.install_crds(crds::ISTIO)?;
    for name in (0..NAMESPACES).map(|at| format!("n{at}")).chain(["shop".to_owned()]) {
        server.apply_yaml(&format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n"))?;
    }
    let sleep = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "sleep", "namespace": "shop", "labels": {"egret.dev/enroll": "true"}},
        "spec": {"nodeName": NODE, "containers": [{"name": "main", "image": "none"}]},
    });
    server.create(&sleep)?;
    let user = server.client();
    let client = user.kube();
    let all = (0..scale).map(pod).chain((0..services).map(service)).chain((0..services).map(|at| slice(at, None)));
    let all = all.chain((0..rules).map(entry)).chain((0..rules).map(|at| rule(at, "first.test")));
    let began = Instant::now();
    user.block_on(async {
        let mut made = stream::iter(all).map(|object| create(&client, object)).buffer_unordered(16);
        while let Some(done) = made.next().await {
            done?;
        }
        anyhow::Ok(())
    })?;
    println!("{scale} pods, {services} services with slices, {} rules: made in {:?}", rules * 2, began.elapsed());
    let began = Instant::now();
    let agent = Agent::start_in_cluster(&lab, &server.kubeconfig("admin")?, NODE, &[])?;
    let (now, most) = memory(&agent)?;
    println!("ready after {} ms; {now} MiB, {most} MiB at its highest", began.elapsed().as_millis());

    let changes = if scale < 5_000 { 8 } else { 50 };
    let churning = client.clone();
    let churn = async move {
        let mut random = 0_usize;
        let mut twenty_a_second = tokio::time::interval(Duration::from_millis(50));
        loop {
            twenty_a_second.tick().await;
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // The first services are those that are measured.
            let of = changes + (random >> 33) % (services - changes);
            let unready = (random >> 20).is_multiple_of(2).then_some(of * EACH);
            if let Err(error) = patch(&churning, slice(of, unready)).await {
                eprintln!("churn: {error:#}");
            }
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let churn = runtime.spawn(churn);
    let mut times: [Vec<Duration>; 3] = Default::default();
    for at in 0..changes {
        let began = Instant::now();
        let name = format!("changed-{at}.test");
        user.block_on(patch(&client, rule(at, &name)))?;
        times[0].push(in_force(&agent, &format!("http://e{at}.example.com/"), began, |said| said.contains(&name))?);

        let url = format!("http://{}/", cluster_ip(at));
        let first = format!("{}:8080", address(at * EACH));
        for ready in [false, true] {
            let began = Instant::now();
            user.block_on(patch(&client, slice(at, (!ready).then_some(at * EACH))))?;
            times[1].push(in_force(&agent, &url, began, |said| said.contains(&first) == ready)?);
        }

        let new = services + at;
        let began = Instant::now();
        user.block_on(create(&client, service(new)))?;
        let host = format!("s{new}.{}.svc.cluster.local", namespace(new));
        times[2].push(in_force(&agent, &format!("http://{}/", cluster_ip(new)), began, |said| said.contains(&host))?);
    }
    churn.abort();
    let worst = times.iter().flatten().max().copied().unwrap_or_default();
    for (what, times) in ["DestinationRule", "pod ready or not", "new Service"].into_iter().zip(times) {
        told(what, times);
    }
    let (now, most) = memory(&agent)?;
    println!("after the changes: {now} MiB, {most} MiB at its highest");
    println!("load: {}", std::fs::read_to_string("/proc/loadavg")?.trim());
    ensure!(worst < LATEST, "{worst:?}");
    Ok(())
}
