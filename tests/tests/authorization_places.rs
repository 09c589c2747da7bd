//! AuthorizationPolicy over the wire, one policy after another: what each kind of rule closes, for whom, and what stays open.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use egret_tests::{
    Agent, Backends, Daemon, Lab, Pod, line, names,
    objects::{documents, entry, in_namespace, object},
};

const DENIED: &str = "RBAC: access denied";
const NONE: &str = "rbac_access_denied_matched_policy[none]";
const RULE: &str = "rbac_access_denied_matched_policy[ns[default]-policy[p]-rule[0]]";
const SERVICE: &str = "10.97.0.20";
const WEB: &str = "web.default.svc.cluster.local";

/// `sleep` of the namespace default and `other` of foo call `web`; `gateway` passes TLS on; `edge` ends TLS by itself.
struct Stage {
    agent: Agent,
    backends: Backends,
    _odd: Daemon,
    sleep: Pod,
    other: Pod,
    web: Pod,
    gateway: Pod,
    _edge: Pod,
    lab: Lab,
}

impl Stage {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let (sleep, other, web) = (lab.pod("sleep")?, lab.pod("other")?, lab.pod("web")?);
        let (gateway, edge) = (lab.pod("gateway")?, lab.pod("edge")?);
        let backends = lab.backends_in(&web.netns, &[("web", "0.0.0.0:8080")])?;
        let odd = lab.odd_in(&web)?;
        let service = format!(
            "{{clusterIP: {SERVICE}, selector: {{app: web}}, ports: [{{name: http, port: 80, targetPort: 8080}}, \
             {{name: tcp, port: 2525, targetPort: 9001}}]}}"
        );
        let ways = ["edition.cnn.com", "www.lab.test"].map(|host| {
            format!(
                "{{match: [{{port: 8443, sniHosts: [{host}]}}], route: [{{destination: {{host: {host}, port: {{number: 443}}}}}}]}}"
            )
        });
        lab.pki.task_leaf("edge.example.com", "/CN=edge.example.com/O=edge")?;
        let files = [("tls.crt", lab.pki.crt("edge.example.com")), ("tls.key", lab.pki.key("edge.example.com"))];
        lab.write(
            "mesh.yaml",
            &documents(&[
                sleep.document("app: sleep"),
                in_namespace(&other.document("app: other"), "foo"),
                web.document("app: web"),
                gateway.document("istio: egress"),
                edge.document("app: edge").replace(
                    "  annotations:\n",
                    "  annotations:\n    sidecar.istio.io/userVolume: '{\"tls\":{\"secret\":{\"secretName\":\"edge\"}}}'\n    \
                     sidecar.istio.io/userVolumeMount: '{\"tls\":{\"mountPath\":\"/etc/edge\"}}'\n",
                ),
                lab.pki.secret("edge", &files)?,
                object(
                    "Sidecar",
                    "edge",
                    "{workloadSelector: {labels: {app: edge}}, ingress: [{port: {number: 9443, protocol: HTTPS, name: https}, \
                     defaultEndpoint: '127.0.0.1:8080', tls: {mode: SIMPLE, privateKey: /etc/edge/tls.key, \
                     serverCertificate: /etc/edge/tls.crt}}]}",
                ),
                security(
                    "PeerAuthentication",
                    "edge",
                    "{selector: {matchLabels: {app: edge}}, mtls: {mode: STRICT}, portLevelMtls: {9443: {mode: DISABLE}}}",
                ),
                object("Service", "web", &service),
                entry("edition.cnn.com", &["443 TLS"]),
                entry("www.lab.test", &["443 TLS"]),
                object(
                    "Gateway",
                    "egress",
                    "{selector: {istio: egress}, servers: [{port: {number: 8443, name: tls, protocol: TLS}, \
                     hosts: [edition.cnn.com, www.lab.test], tls: {mode: PASSTHROUGH}}]}",
                ),
                object(
                    "VirtualService",
                    "egress",
                    &format!("{{hosts: [edition.cnn.com, www.lab.test], gateways: [egress], tls: [{}]}}", ways.join(", ")),
                ),
            ]),
        )?;
        let agent = Agent::start(&lab)?;
        Ok(Self { agent, backends, _odd: odd, sleep, other, web, gateway, _edge: edge, lab })
    }

    /// What counts from now on, and nothing else.
    fn set(&self, policies: &[String]) -> Result<()> {
        self.agent.reload(|| self.lab.write("policy.yaml", &documents(policies)))
    }

    /// From a pod through the Service: mesh mTLS.
    fn from(&self, pod: &Pod, path: &str, more: &[&str]) -> Result<u16> {
        let reply = pod.call(SERVICE, &format!("http://{WEB}{path}"), &[&["--path-as-is"], more].concat())?;
        assert_eq!(reply.status == 403, reply.body == DENIED, "{reply:?}");
        Ok(reply.status)
    }

    /// From outside the mesh, in plain text, straight to the pod.
    fn outside(&self, method: &str, target: &str, more: &str) -> Result<Answer> {
        let mut stream = self.lab.outside().connect((self.web.v4, 8080).into())?;
        ask(&mut stream, method, target, more)
    }

    /// Status for `sleep`, `other` and for a caller outside the mesh.
    fn statuses(&self, path: &str) -> Result<[u16; 3]> {
        Ok([
            self.from(&self.sleep, path, &[])?,
            self.from(&self.other, path, &[])?,
            self.outside("GET", path, "")?.status,
        ])
    }

    fn said(&self) -> String {
        format!("{}\n{}", self.agent.stdout(), self.agent.stderr())
    }
}

fn security(kind: &str, name: &str, spec: &str) -> String {
    object(kind, name, spec).replace("networking.istio.io/v1", "security.istio.io/v1")
}

/// The policy `p` about `web`.
fn policy(spec: &str) -> String {
    security("AuthorizationPolicy", "p", &format!("{{selector: {{matchLabels: {{app: web}}}}, {spec}}}"))
}

struct Answer {
    status: u16,
    head: String,
}

/// A request, and all of its answer: the connection may go on.
fn ask(stream: &mut TcpStream, method: &str, target: &str, more: &str) -> Result<Answer> {
    write!(stream, "{method} {target} HTTP/1.1\r\nHost: {WEB}\r\ncontent-length: 0\r\n{more}\r\n")?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream
            .read_exact(&mut byte)
            .with_context(|| format!("{target}: after {:?}", String::from_utf8_lossy(&head)))?;
        head.extend(byte);
    }
    let head = String::from_utf8(head)?.to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
    stream.read_exact(&mut vec![0; length])?;
    let status = head.split_whitespace().nth(1).and_then(|code| code.parse().ok()).context("no status")?;
    Ok(Answer { status, head })
}

/// No spelling of a path gets past a rule about it, whoever asks.
fn paths_and_methods(stage: &Stage) -> Result<()> {
    stage.set(&[policy(
        "action: DENY, rules: [{to: [{operation: {paths: [/admin, '/admin/*']}}, {operation: {methods: [DELETE]}}]}]",
    )])?;
    assert_eq!(stage.statuses("/open")?, [200; 3], "{}", stage.said());
    assert_eq!(stage.statuses("/administrator")?, [200; 3]);
    let spellings = [
        "/admin?denied",
        "/admin/x?denied",
        "/./admin/x?denied",
        "/%2e/admin/x?denied",
        "/%2E%2e/admin/x?denied",
        "/open/../admin/x?denied",
        "/open/%2e%2e/admin/x?denied",
        "/%61dmin/x?denied",
        "/.\\admin/x?denied",
        "/open/./../admin//x?denied",
    ];
    for path in spellings {
        assert_eq!(stage.from(&stage.sleep, path, &[])?, 403, "{path}\n{}", stage.said());
        for target in [path.to_owned(), format!("http://{WEB}{path}"), format!("http://elsewhere.test:81{path}")] {
            let answer = stage.outside("GET", &target, "")?;
            assert!([400, 403].contains(&answer.status), "{target}: {}\n{}", answer.head, stage.said());
        }
    }
    // Repeated slashes make another path in Istio's normal form, and the same one to many a server: denied, in doubt.
    assert_eq!(stage.outside("GET", "//admin/slashes?denied", "")?.status, 403, "{}", stage.said());
    for (path, status) in [("/open?denied", 403), ("/open", 200)] {
        let method = if status == 403 { "DELETE" } else { "PUT" };
        assert_eq!(stage.outside(method, path, "")?.status, status);
        assert_eq!(stage.outside(method, &format!("http://{WEB}{path}"), "")?.status, status);
        assert_eq!(stage.from(&stage.other, path, &["-X", method])?, status);
    }
    let line = stage.agent.log_line("DELETE")?;
    assert!(line.contains(RULE) && line.contains(" 403 "), "{line}");
    stage.set(&[policy("action: DENY, rules: [{to: [{operation: {paths: ['//admin/*', '*/x']}}]}]")])?;
    for path in
        ["//admin/y?denied", "/.//admin/y?denied", "//%2e/admin/y?denied", "//admin/y/../x?denied", "/a//x?denied"]
    {
        assert_eq!(stage.from(&stage.other, path, &[])?, 403, "{path}\n{}", stage.said());
        assert_eq!(stage.outside("GET", &format!("http://{WEB}{path}"), "")?.status, 403, "{path}");
    }
    assert_eq!(stage.statuses("/admin/y")?, [200; 3]);
    Ok(())
}

fn callers(stage: &Stage) -> Result<()> {
    let of_foo = policy("rules: [{from: [{source: {namespaces: [foo]}}]}]");
    stage.set(std::slice::from_ref(&of_foo))?;
    assert_eq!(stage.statuses("/?denied-but-foo")?, [403, 200, 403], "{}", stage.said());
    // Nobody in the whole mesh; what a pod calls is none of that.
    let nothing = in_namespace(&security("AuthorizationPolicy", "allow-nothing", "{}"), "istio-system");
    stage.set(std::slice::from_ref(&nothing))?;
    assert_eq!(stage.statuses("/?denied")?, [403; 3], "{}", stage.said());
    assert!(stage.agent.log_line("/?denied ")?.contains(NONE));
    assert_eq!(stage.sleep.curl(&["http://www.lab.test/"])?.status, 301, "{}", stage.said());
    assert_eq!(through(stage, "edition.cnn.com")?, 0);
    // One more ALLOW policy adds to it.
    stage.set(&[nothing, of_foo])?;
    assert_eq!(stage.statuses("/?denied-but-foo")?, [403, 200, 403], "{}", stage.said());

    stage
        .set(&[policy(&format!("action: DENY, rules: [{{from: [{{source: {{ipBlocks: [{}]}}}}]}}]", names::ROUTER))])?;
    assert_eq!(stage.statuses("/?outside-not")?, [200, 200, 403], "{}", stage.said());
    stage.set(&[policy(&format!("rules: [{{from: [{{source: {{ipBlocks: [{}/32]}}}}]}}]", stage.other.v4))])?;
    assert_eq!(stage.statuses("/?denied-but-foo")?, [403, 200, 403], "{}", stage.said());

    stage.set(&[policy("action: DENY, rules: [{when: [{key: source.namespace, values: [foo]}]}]")])?;
    assert_eq!(stage.statuses("/?foo-not")?, [200, 403, 200], "{}", stage.said());
    stage.set(&[policy("rules: [{when: [{key: 'request.headers[x-key]', values: [open-*]}]}]")])?;
    assert_eq!(stage.statuses("/?denied")?, [403; 3], "{}", stage.said());
    for (key, status) in [("open-sesame", 200), ("opensesame", 403)] {
        assert_eq!(stage.from(&stage.sleep, "/keyed", &["-H", &format!("x-key: {key}")])?, status, "{key}");
        assert_eq!(stage.outside("GET", "/keyed", &format!("X-Key: {key}\r\n"))?.status, status, "{key}");
    }
    assert_eq!(stage.backends.with_path("/keyed").len(), 2);
    Ok(())
}

/// A port that is not HTTP: closed before the application has said a word.
fn raw_ports(stage: &Stage) -> Result<()> {
    // What the application says first; nothing where the connection is closed, by an end or a reset and not by silence.
    let said = |mut stream: TcpStream| {
        let (start, text) = (Instant::now(), line(&mut stream));
        assert!(start.elapsed() < Duration::from_secs(3), "{text:?} and then nothing\n{}", stage.said());
        text
    };
    let banner = |pod: &Pod| Ok::<_, anyhow::Error>(said(pod.connect(&format!("{SERVICE}:2525"))?));
    let sleep = "from: [{source: {principals: [cluster.local/ns/default/sa/sleep]}}]";
    stage.set(&[policy(&format!("rules: [{{{sleep}, to: [{{operation: {{ports: ['9001']}}}}]}}]"))])?;
    assert!(banner(&stage.sleep)?.starts_with("220 ready"), "{}", stage.said());
    assert_eq!(banner(&stage.other)?, "", "{}", stage.said());
    // In plain text the client must speak first, or is waited for: TLS may be what it begins with.
    let mut plain = stage.lab.outside().connect((stage.web.v4, 9001).into())?;
    plain.write_all(b"plain\n")?;
    assert_eq!(said(plain), "");
    let logged = stage.agent.log_line(" inbound|9001|| ")?;
    assert!(logged.contains("default/web"), "{logged}");
    egret_tests::until("the closed connection in the log", Duration::from_secs(3), || {
        stage.agent.stdout().lines().find(|line| line.contains("9001") && line.contains(NONE)).map(drop)
    })?;
    stage.set(&[policy(&format!("action: DENY, rules: [{{{sleep}, to: [{{operation: {{ports: ['9001']}}}}]}}]"))])?;
    assert!(banner(&stage.other)?.starts_with("220 ready"), "{}", stage.said());
    assert_eq!(banner(&stage.sleep)?, "", "{}", stage.said());
    assert_eq!(stage.statuses("/other-port")?, [200; 3]);
    egret_tests::until("the rule in the log", Duration::from_secs(3), || {
        stage.agent.stdout().lines().find(|line| line.contains("9001") && line.contains(RULE)).map(drop)
    })?;
    Ok(())
}

/// What is open goes on, and its next request is asked for by the policy of now.
fn open_connections(stage: &Stage) -> Result<()> {
    stage.set(&[])?;
    let mut streams =
        [stage.lab.outside().connect((stage.web.v4, 8080).into())?, stage.sleep.connect(&format!("{SERVICE}:80"))?];
    for stream in &mut streams {
        assert_eq!(ask(stream, "GET", "/kept", "")?.status, 200, "{}", stage.said());
    }
    let all = policy("action: DENY, rules: [{}]");
    let dry = all.replace("{name: p}", "{name: p, annotations: {istio.io/dry-run: 'true'}}");
    assert_ne!(dry, all);
    stage.set(&[dry])?;
    for stream in &mut streams {
        assert_eq!(ask(stream, "GET", "/kept-dry", "")?.status, 200, "{}", stage.said());
    }
    stage.set(&[all])?;
    for stream in &mut streams {
        assert_eq!(ask(stream, "GET", "/kept?denied", "")?.status, 403, "{}", stage.said());
    }
    // A gRPC client is told in its own words.
    let answer = stage.outside("POST", "/grpc?denied", "content-type: application/grpc\r\n")?;
    assert!(answer.status == 200 && answer.head.contains("grpc-status: 7\r\n"), "{}", answer.head);
    let grpc = ["-i", "--http2-prior-knowledge", "-X", "POST", "-H", "content-type: application/grpc+proto"];
    let reply = stage.sleep.call(SERVICE, &format!("http://{WEB}/grpc?denied"), &grpc)?;
    assert!(reply.status == 200 && reply.header("grpc-status") == Some("7"), "{reply:?}\n{}", stage.said());
    Ok(())
}

/// TLS to the gateway, which passes it on: the status, or 0 and no byte of TLS from anybody.
fn through(stage: &Stage, host: &str) -> Result<u16> {
    let mut command = stage.lab.outside().command("curl");
    let to = format!("::{}:8443", stage.gateway.v4);
    command.args(["-sSk", "--max-time", "10", "-o", "/dev/null", "-w", "%{http_code}", "--connect-to", &to]);
    command.arg(format!("https://{host}/?by-gateway"));
    let output = egret_tests::run_in(command, b"")?;
    assert!(matches!(output.status.code(), Some(0 | 35)), "served, or closed within the handshake: {output:?}");
    String::from_utf8(output.stdout)?.parse().with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

fn server_names(stage: &Stage) -> Result<()> {
    let gateway = |spec: &str| {
        security("AuthorizationPolicy", "p", &format!("{{selector: {{matchLabels: {{istio: egress}}}}, {spec}}}"))
    };
    let both = || Ok::<_, anyhow::Error>([through(stage, "edition.cnn.com")?, through(stage, "www.lab.test")?]);
    stage.set(&[])?;
    assert_eq!(both()?, [200, 200], "{}", stage.said());
    stage.set(&[gateway("action: DENY, rules: [{when: [{key: connection.sni, values: [edition.cnn.com]}]}]")])?;
    assert_eq!(both()?, [0, 200], "{}", stage.said());
    egret_tests::until("the rule in the log", Duration::from_secs(3), || {
        let of = |line: &&str| line.contains("edition.cnn.com") && line.contains(RULE);
        stage.agent.stdout().lines().find(of).map(drop)
    })?;
    stage.set(&[gateway("rules: [{when: [{key: connection.sni, values: ['*.cnn.com']}]}]")])?;
    assert_eq!(both()?, [200, 0], "{}", stage.said());
    // Nobody sees a host in there: a DENY rule goes without that part of it, an ALLOW rule goes altogether.
    for spec in ["action: DENY, rules", "action: ALLOW, rules"] {
        stage.set(&[gateway(&format!("{spec}: [{{to: [{{operation: {{hosts: [edition.cnn.com]}}}}]}}]"))])?;
        assert_eq!(both()?, [0, 0], "{spec}\n{}", stage.said());
    }
    Ok(())
}

fn certificates(stage: &Stage) -> Result<()> {
    for (pod, shown) in [("edge", true), ("web", false)] {
        let (code, table, said) = stage.agent.egret(&["proxy-config", "secret", pod])?;
        assert!(code == 0 && table.contains("default ") && table.contains("ROOTCA "), "{pod}: {table}{said}");
        let row = "file-cert:/etc/edge/tls.crt~/etc/edge/tls.key ";
        assert!(table.contains(row) == shown && table.contains("file-cert") == shown, "{pod}: {table}");
    }
    Ok(())
}

#[test]
fn each_policy_closes_what_it_says() -> Result<()> {
    let stage = Stage::new()?;
    certificates(&stage)?;
    paths_and_methods(&stage)?;
    callers(&stage)?;
    raw_ports(&stage)?;
    open_connections(&stage)?;
    server_names(&stage)?;
    assert!(stage.backends.with_path("?denied").iter().all(|seen| seen["path"] == "/?denied-but-foo"));
    assert_eq!(stage.backends.with_path("?denied-but-foo").len(), 3, "foo's own");
    Ok(())
}
