//! Kubernetes Services as a caller inside the mesh meets them: names, addresses, ports by name, what is hidden and what is gone.

use anyhow::Result;
use egret_tests::{
    Agent, Lab, Pod, names,
    objects::{documents, in_namespace, mesh, object},
};

const ADDRESS: &str = "10.97.0.20";
/// Nothing answers here: who reaches the service was led by its name.
const ELSEWHERE: &str = "192.0.2.80";

/// A pod `app: web` whose port named `web` is this one.
fn web(pod: &Pod, port: u16) -> String {
    let spec = format!("spec: {{serviceAccountName: {}}}", pod.name);
    let with = format!(
        "spec:\n  serviceAccountName: {}\n  containers: [{{name: web, image: web, ports: [{{name: web, containerPort: {port}}}]}}]",
        pod.name
    );
    pod.document("app: web").replace(&spec, &with)
}

/// Every form of the name and the address lead to the pods; a port's name means in each pod what the pod says it does.
#[test]
fn services_are_called_by_name_and_address() -> Result<()> {
    let lab = Lab::new()?;
    let (client, one, two) = (lab.pod("client")?, lab.pod("one")?, lab.pod("two")?);
    let _one = lab.backends_in(&one.netns, &[("one", "0.0.0.0:8080")])?;
    let _two = lab.backends_in(&two.netns, &[("two", "0.0.0.0:9090")])?;
    let service = object(
        "Service",
        "web",
        &format!(
            "{{clusterIP: {ADDRESS}, selector: {{app: web}}, ports: [{{name: http, port: 80, targetPort: web}}]}}"
        ),
    );
    lab.write("mesh.yaml", &documents(&[client.document(""), web(&one, 8080), web(&two, 9090), service]))?;
    let agent = Agent::start(&lab)?;
    for host in [
        "web",
        "web.default",
        "web.default.svc",
        "web.default.svc.cluster.local",
        "WEB",
        "web.default.svc.cluster.local.",
    ] {
        let reply = client.call(ELSEWHERE, &format!("http://{host}/"), &[])?;
        assert_eq!(reply.status, 200, "{host}: {reply:?}\n{}\n{}", agent.stdout(), agent.stderr());
    }
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..30 {
        // A Host that nobody knows: the address alone says where to.
        let reply = client.call(ADDRESS, &format!("http://{ADDRESS}/"), &["-i"])?;
        assert_eq!(reply.status, 200, "{reply:?}\n{}\n{}", agent.stdout(), agent.stderr());
        seen.extend(reply.header("x-instance").map(str::to_owned));
    }
    assert_eq!(seen, ["one".to_owned(), "two".to_owned()].into(), "each pod on its own port");
    Ok(())
}

/// An EndpointSlice with these endpoints, as JSON.
fn slice(service: &str, port: u16, endpoints: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {service}, labels: {{kubernetes.io/service-name: {service}}}}}\naddressType: IPv4\nports: [{{name: http, port: {port}}}]\nendpoints: {endpoints}\n"
    )
}

/// Where slices say which endpoints a service has, labels do not: the ready ones are called, and those outside the mesh too.
#[test]
fn slices_say_who_is_called() -> Result<()> {
    let lab = Lab::new()?;
    let (client, one, two) = (lab.pod("client")?, lab.pod("one")?, lab.pod("two")?);
    let _one = lab.backends_in(&one.netns, &[("one", "0.0.0.0:8080")])?;
    let _two = lab.backends_in(&two.netns, &[("two", "0.0.0.0:8080")])?;
    let service = |selector: &str| {
        object("Service", "web", &format!("{{clusterIP: {ADDRESS}, {selector}ports: [{{name: http, port: 80}}]}}"))
    };
    let of = |pod: &Pod, ready: bool| {
        format!(
            "{{addresses: [{}], conditions: {{ready: {ready}}}, targetRef: {{kind: Pod, name: {}}}}}",
            pod.v4, pod.name
        )
    };
    let write = |selector: &str, endpoints: &[String]| {
        let endpoints = format!("[{}]", endpoints.join(", "));
        let slice = slice("web", 8080, &endpoints);
        let pods = [client.document(""), one.document("app: web"), two.document("app: web")];
        lab.write("mesh.yaml", &documents(&[pods.as_slice(), &[service(selector), slice]].concat()))
    };
    let seen = |agent: &Agent| -> Result<std::collections::BTreeSet<String>> {
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..12 {
            let reply = client.call(ADDRESS, "http://web/", &["-i"])?;
            let instance = reply.header("x-instance").map(str::to_owned);
            assert!(instance.is_some() == (reply.status == 200), "{reply:?}\n{}", agent.stderr());
            seen.insert(instance.unwrap_or_else(|| reply.status.to_string()));
        }
        Ok(seen)
    };
    let selecting = "selector: {app: web}, ";
    write(selecting, &[of(&one, true), of(&two, true)])?;
    let agent = Agent::start(&lab)?;
    assert_eq!(seen(&agent)?, ["one".to_owned(), "two".to_owned()].into());
    agent.reload(|| write(selecting, &[of(&one, false), of(&two, true)]))?;
    assert_eq!(seen(&agent)?, ["two".to_owned()].into(), "one is not ready");
    agent.reload(|| write(selecting, &[of(&one, false)]))?;
    assert_eq!(seen(&agent)?, ["503".to_owned()].into(), "and nobody is");
    // Kept by hand, for a Service that selects nothing.
    agent.reload(|| write("", &[format!("{{addresses: [{}]}}", one.v4)]))?;
    assert_eq!(seen(&agent)?, ["one".to_owned()].into());
    Ok(())
}

/// A service of type ExternalName is the name that it stands for.
#[test]
fn an_external_name_is_resolved() -> Result<()> {
    let lab = Lab::new()?;
    let client = lab.pod("client")?;
    let alias = object(
        "Service",
        "alias",
        "{type: ExternalName, externalName: web.lab.test, ports: [{name: http, port: 8080}]}",
    );
    lab.write("mesh.yaml", &documents(&[client.document(""), alias]))?;
    let agent = Agent::start(&lab)?;
    let reply = client.call(ELSEWHERE, "http://alias.default.svc.cluster.local:8080/x", &["--http1.1"])?;
    assert_eq!(reply.status, 200, "{reply:?}\n{}\n{}", agent.stdout(), agent.stderr());
    assert_eq!(reply.body, "plain alias.default.svc.cluster.local/x\n", "the Host is left alone");
    let line = agent.log_line("\"GET /x ")?;
    assert!(line.contains("outbound|8080||alias.default.svc.cluster.local"), "{line}");
    Ok(())
}

/// A service exported to its own namespace is nobody else's, by name or by address.
#[test]
fn a_hidden_service_is_hidden() -> Result<()> {
    let lab = Lab::new()?;
    let (client, near, app) = (lab.pod("client")?, lab.pod("near")?, lab.pod("app")?);
    let backends = lab.backends_in(&app.netns, &[("app", "0.0.0.0:8080")])?;
    let service = object(
        "Service",
        "web",
        &format!(
            "{{clusterIP: {ADDRESS}, selector: {{app: web}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}"
        ),
    );
    let hidden = service.replace("{name: web}", "{name: web, annotations: {networking.istio.io/exportTo: '.'}}");
    lab.write(
        "mesh.yaml",
        &documents(&[
            client.document(""),
            in_namespace(&near.document(""), "shop"),
            in_namespace(&app.document("app: web"), "shop"),
            in_namespace(&hidden, "shop"),
            mesh(&["outboundTrafficPolicy: {mode: REGISTRY_ONLY}"]),
        ]),
    )?;
    let agent = Agent::start(&lab)?;
    for url in ["http://web.shop.svc.cluster.local/", "http://web.shop/", &format!("http://{ADDRESS}/")] {
        let reply = near.call(ADDRESS, url, &[])?;
        assert_eq!(reply.status, 200, "{url}: {reply:?}\n{}\n{}", agent.stdout(), agent.stderr());
        let reply = client.call(ADDRESS, &format!("{url}stranger"), &[])?;
        assert_eq!(reply.status, 502, "{url}: {reply:?}\n{}\n{}", agent.stdout(), agent.stderr());
    }
    assert!(backends.with_path("stranger").is_empty());
    Ok(())
}

/// The last pod of a service goes: 503 UH, and back once there is one again.
#[test]
fn a_service_without_pods_says_so() -> Result<()> {
    let lab = Lab::new()?;
    let (client, app) = (lab.pod("client")?, lab.pod("app")?);
    let _backends = lab.backends_in(&app.netns, &[("app", "0.0.0.0:8080")])?;
    let service = object(
        "Service",
        "web",
        &format!(
            "{{clusterIP: {ADDRESS}, selector: {{app: web}}, ports: [{{name: http, port: 80, targetPort: 8080}}, \
             {{name: tcp, port: 2525, targetPort: 9001}}]}}"
        ),
    );
    lab.write("mesh.yaml", &documents(&[client.document(""), service]))?;
    lab.write("app.yaml", &app.document("app: web"))?;
    let agent = Agent::start(&lab)?;
    let get = |path: &str| client.call(ADDRESS, &format!("http://web{path}"), &[]);
    assert_eq!(get("/there")?.status, 200, "{}\n{}", agent.stdout(), agent.stderr());
    agent.reload(|| lab.remove("app.yaml"))?;
    let reply = get("/gone")?;
    assert_eq!((reply.status, reply.body.trim()), (503, "no healthy upstream"), "{reply:?}\n{}", agent.stderr());
    let line = agent.log_line("/gone")?;
    assert!(line.contains(" 503 UH ") && line.contains("outbound|80||web.default.svc.cluster.local"), "{line}");
    // A raw connection ends without a byte, perhaps while it is made.
    assert!(client.exchange(&format!("{ADDRESS}:2525"), b"hello\n").unwrap_or_default().is_empty());
    let line = agent.log_line("outbound|2525||web")?;
    assert!(line.contains(" UH "), "{line}");
    agent.reload(|| lab.write("app.yaml", &app.document("app: web")))?;
    assert_eq!(get("/back")?.status, 200, "{}\n{}", agent.stdout(), agent.stderr());
    Ok(())
}

/// Service by name, its pods by their own names: a headless service leads to the very pod that was dialled.
#[test]
fn a_headless_service_leads_to_the_pod_dialled() -> Result<()> {
    let lab = Lab::new()?;
    let (client, one, two) = (lab.pod("client")?, lab.pod("one")?, lab.pod("two")?);
    let _one = lab.backends_in(&one.netns, &[("one", "0.0.0.0:8080")])?;
    let _two = lab.backends_in(&two.netns, &[("two", "0.0.0.0:8080")])?;
    let odd = lab.odd_in(&two)?;
    let service = object(
        "Service",
        "web",
        "{clusterIP: None, selector: {app: web}, ports: [{name: http, port: 8080}, {name: tcp, port: 9001}]}",
    );
    lab.write("mesh.yaml", &documents(&[client.document(""), web(&one, 8080), web(&two, 8080), service]))?;
    let agent = Agent::start(&lab)?;
    let mut wire = lab.tap()?;
    for _ in 0..5 {
        let mut stream = client.connect(&format!("{}:9001", two.v4))?;
        let mut banner = [0; 9];
        std::io::Read::read_exact(&mut stream, &mut banner)?;
        assert_eq!(&banner, b"220 ready");
    }
    for pod in [&one, &two] {
        let reply = client.call(&pod.v4.to_string(), "http://web:8080/headless-mark", &["-i"])?;
        assert_eq!(reply.status, 200, "{reply:?}\n{}\n{}", agent.stdout(), agent.stderr());
    }
    assert!(!wire.saw(&client.netns, names::ROUTER.parse()?, "headless-mark")?);
    assert!(!wire.saw(&client.netns, names::ROUTER.parse()?, "220 ready")?);
    drop(odd);
    Ok(())
}
