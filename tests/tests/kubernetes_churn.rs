//! Pods by the hundred come and go, and each calls from its first moment on: nothing is readable on the wire, nobody is taken
//! for somebody else, though addresses are used again at once, and nothing is left over.

use std::{
    collections::BTreeSet,
    ops::Range,
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use egret_tests::{
    Held, Lab,
    kube::{ApiServer, Driver, Node, NodePod, Runtime, controller, crds},
    names,
    objects::{documents, entry, object},
    until,
};
use serde_json::{Value, json};

const NODE: &str = "one";
const NGINX: &str = "my-nginx.mesh-external.svc.cluster.local";
/// The mesh's Service, which the name server knows nothing of.
const SERVER: &str = "10.97.0.60";
const MARK: &str = "must-not-be-readable";
const APPLICATION: &str = include_str!("kubernetes_churn.sh");
/// Kinds of pods: a service account and a client certificate each.
const KINDS: [&str; 4] = ["red", "green", "blue", "white"];
/// Unless `EGRET_CHURN_PODS` says otherwise: what two CPUs do in half a minute.
const PODS: usize = 200;
/// Threads that make pods, and pods of one thread at a time.
const MAKERS: usize = 8;
const TOGETHER: usize = 4;
const LIMIT: Duration = Duration::from_secs(60);

/// What the pods of one kind present to the world.
fn rule(kind: &str) -> String {
    let tls = format!("{{mode: MUTUAL, credentialName: {kind}, sni: {NGINX}}}");
    let selector = format!("workloadSelector: {{matchLabels: {{app: {kind}}}}}");
    object(
        "DestinationRule",
        kind,
        &format!(
            "{{host: {NGINX}, {selector}, trafficPolicy: {{portLevelSettings: [{{port: {{number: 80}}, tls: {tls}}}]}}}}"
        ),
    )
}

fn cluster(lab: &Lab) -> Result<ApiServer> {
    let server = ApiServer::start()?;
    server.install_crds(crds::ISTIO)?;
    server.apply_yaml(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: default, labels: {egret.dev/enroll: 'true'}}\n",
    )?;
    server.apply_yaml(&entry(NGINX, &["80 HTTP 443"]))?;
    for kind in KINDS {
        lab.pki.leaf(kind, "example.com", &format!("/CN={kind}"), None)?;
        server.apply_yaml(&documents(&[lab.pki.client_secret(kind, kind)?, rule(kind)]))?;
    }
    server.apply_yaml(&documents(&[
        object(
            "Service",
            "server",
            &format!("{{clusterIP: {SERVER}, selector: {{app: server}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}"),
        ),
        object("PeerAuthentication", "default", "{mtls: {mode: STRICT}}").replace("networking.", "security."),
    ]))?;
    Ok(server)
}

/// The pod of this number, which begins to call before it is known to anybody but the API server.
fn begin<'n>(node: &'n Node<'_>, number: usize) -> Result<NodePod<'n>> {
    let kind = KINDS[number % KINDS.len()];
    let name = format!("{kind}-{number}");
    let targets = [format!("{NGINX}={}", names::MTLS), format!("server={SERVER}")];
    let mark = format!("{name}-{MARK}");
    let command = ["bash", "-c", APPLICATION, "churn", &mark, &targets[0], &targets[1]];
    let rest = json!({
        "metadata": {"labels": {"app": kind}},
        "spec": {"serviceAccountName": kind, "containers": [{"name": "app", "image": "app", "command": command}]},
    });
    node.pod("default", &name, &rest.to_string())
}

/// Waits until the pod was answered by both; how often it was refused before, and how often it had to come again.
fn end(mut pod: NodePod<'_>) -> Result<[usize; 2]> {
    let ended = pod.wait(LIMIT);
    let log = pod.log();
    ensure!(matches!(ended, Ok(Some(0))), "{}: {ended:?}: {log}", pod.name());
    let told = |key: &str| log.split_whitespace().find_map(|word| word.strip_prefix(key)?.parse().ok());
    let counts = [told("refused="), told("later=")].map(|count| count.context(log.clone()));
    pod.delete()?;
    let [refused, later] = counts;
    Ok([refused?, later?])
}

/// Makes and ends the pods of these numbers, many at a time; what each told.
fn churn(node: &Node<'_>, numbers: Range<usize>) -> Result<Vec<[usize; 2]>> {
    let (next, told) = (AtomicUsize::new(numbers.start), Mutex::new(Vec::new()));
    let make = || -> Result<()> {
        loop {
            let first = next.fetch_add(TOGETHER, Ordering::Relaxed);
            let own = first..numbers.end.min(first + TOGETHER);
            if own.is_empty() {
                return Ok(());
            }
            let pods = own.map(|number| begin(node, number)).collect::<Result<Vec<_>>>()?;
            for pod in pods {
                let counts = end(pod)?;
                told.lock().unwrap_or_else(PoisonError::into_inner).push(counts);
            }
        }
    };
    std::thread::scope(|scope| {
        let makers: Vec<_> = (0..MAKERS).map(|_| scope.spawn(make)).collect();
        makers.into_iter().try_for_each(|maker| maker.join().unwrap_or_else(|_| anyhow::bail!("a maker panicked")))
    })?;
    Ok(told.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Runs the mesh's server, the churn, and takes the server away: what each pod told, and the requests that the server got.
fn round(lab: &Lab, node: &Node<'_>, numbers: Range<usize>) -> Result<(Vec<[usize; 2]>, Vec<Value>)> {
    let server = "metadata: {labels: {app: server}}\nspec: {serviceAccountName: server}";
    let server = node.pod("default", "server", server)?;
    let application = lab.backends_in(&server.net()?.netns, &[("server", "0.0.0.0:8080")])?;
    let told = churn(node, numbers)?;
    let seen = application.seen();
    drop(application);
    server.delete()?;
    Ok((told, seen))
}

/// Each presented its own name, and no other: to nginx, and to the mesh's server, which saw these requests.
fn check_names(lab: &Lab, requests: &[Value], numbers: Range<usize>) -> Result<()> {
    let wanted: BTreeSet<_> = numbers.map(|number| format!("{}-{number}", KINDS[number % KINDS.len()])).collect();
    let name = |target: &str| Some(target.split_once("?")?.1.split_once(&format!("-{MARK}"))?.0.to_owned());
    let kind = |name: &str| name.split('-').next().unwrap_or_default().to_owned();
    let mut seen = BTreeSet::new();
    for hit in lab.hits() {
        let Some(name) = name(&hit.request) else { continue };
        ensure!(hit.client_dn == format!("CN={}", kind(&name)) && hit.tls == "TLSv1.3", "{hit:?}");
        seen.insert(name);
    }
    ensure!(wanted.is_subset(&seen), "{:?} never came", wanted.difference(&seen));
    let mut seen = BTreeSet::new();
    for request in requests {
        let name = name(request["path"].as_str().unwrap_or_default()).with_context(|| request.to_string())?;
        let caller = request["headers"]["x-forwarded-client-cert"].as_str().unwrap_or_default();
        ensure!(caller.contains(&format!("URI=spiffe://cluster.local/ns/default/sa/{}", kind(&name))), "{request}");
        seen.insert(name);
    }
    assert_eq!(seen, wanted);
    Ok(())
}

/// Folders below one, however deep.
fn folders(path: &Path) -> usize {
    let below = std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    below.filter(|path| path.is_dir()).map(|path| 1 + folders(&path)).sum()
}

/// Network namespaces of this lab, and cgroups of its node.
fn made(lab: &Lab, node: &Node<'_>) -> Result<[usize; 2]> {
    let id = lab.outside().name().strip_suffix("out").context("a name of the lab")?;
    let namespaces = std::fs::read_dir("/run/netns")?.flatten();
    let namespaces = namespaces.filter(|entry| entry.file_name().to_string_lossy().starts_with(id)).count();
    Ok([namespaces, folders(node.tree())])
}

#[test]
fn pods_that_come_and_go() -> Result<()> {
    let pods = std::env::var("EGRET_CHURN_PODS").map_or(Ok(PODS), |text| text.parse()).context("EGRET_CHURN_PODS")?;
    let lab = Lab::new()?;
    let api = cluster(&lab)?;
    // Without a process of the sandbox: the application is the pod's first one.
    let node = Node::with(&lab, &api, NODE, Driver::Systemd, Runtime::CriO)?;
    let (_controller, agent) = controller::start_on(&lab, &api, &node, &[])?;
    let witness = lab.pod("witness")?;
    let mut wire = lab.tap()?;
    let now = || Ok::<_, anyhow::Error>((Held::by(&agent)?, made(&lab, &node)?));
    // So that what is made once, at a first connection, is there.
    round(&lab, &node, 0..KINDS.len())?;
    let before = until("the agent to be quiet", LIMIT, || {
        let one = now().ok()?;
        std::thread::sleep(Duration::from_secs(1));
        Some(one).filter(|one| one.0.enrolled == 0 && now().is_ok_and(|other| *one == other))
    })?;

    let numbers = KINDS.len()..KINDS.len() + pods;
    let began = Instant::now();
    let (told, requests) = round(&lab, &node, numbers.clone()).with_context(|| agent.stderr())?;
    let took = began.elapsed();
    assert_eq!(told.len(), pods);
    let refused = told.iter().filter(|[refused, _]| *refused > 0).count();
    let calls: [usize; 2] = [0, 1].map(|at| told.iter().map(|counts| counts[at]).sum());
    println!(
        "{pods} pods in {took:.1?}; {refused} were refused before their enrolment, {} times in all; {} calls were answered 503 before \
         there was a certificate; {} MiB resident; {before:?}",
        calls[0],
        calls[1],
        agent.metric("process_resident_memory_bytes", &[])? / 1048576.0
    );
    ensure!(refused >= pods / 10, "only {refused} of {pods} pods called before they were enrolled");
    check_names(&lab, &requests, numbers)?;
    until("nothing to be left over", LIMIT, || now().ok().filter(|now| *now == before))
        .with_context(|| format!("began with {before:?}, and now {:?}", now()))?;
    assert!(!wire.saw(&witness.netns, names::ROUTER.parse()?, MARK)?, "plain text left a pod");
    Ok(())
}
