//! A pod that takes mesh mTLS only, in an agent's absence: nobody reaches its application, and the next agent serves it.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use egret_tests::{Agent, Lab, Netns, Pod, egret, line, objects::documents, run_in, until};

const PORT: u16 = 7070;
const HTTP: u16 = 7071;
const SERVICE: &str = "10.111.0.9:2525";
const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default}\nspec: {mtls: {mode: STRICT}}\n";

/// The application of a pod: it answers each line, or request, with the client that it sees, and remembers what reached it.
struct Application {
    heard: Arc<Mutex<Vec<String>>>,
}

impl Application {
    fn start(pod: &Pod) -> Result<Self> {
        let heard = Arc::new(Mutex::new(Vec::new()));
        for port in [PORT, HTTP] {
            let listener = pod.netns.listen(format!("[::]:{port}").parse()?)?;
            let book = heard.clone();
            // Ends with the process: it waits in `accept`.
            std::thread::spawn(move || serve(&listener, &book));
        }
        Ok(Self { heard })
    }

    /// Everything that came since it was asked last; a connection by itself is `connected`.
    fn heard(&self) -> Vec<String> {
        self.heard.lock().map(|mut heard| std::mem::take(&mut *heard)).unwrap_or_default()
    }
}

fn serve(listener: &TcpListener, heard: &Arc<Mutex<Vec<String>>>) {
    let remember = |heard: &Mutex<Vec<String>>, text: &str| {
        if let Ok(mut heard) = heard.lock() {
            heard.push(text.to_owned());
        }
    };
    for mut stream in listener.incoming().flatten() {
        remember(heard, "connected");
        let heard = heard.clone();
        std::thread::spawn(move || {
            let Ok(client) = stream.peer_addr().map(|peer| peer.ip().to_canonical()) else { return };
            let _ = stream.set_read_timeout(Some(Duration::from_secs(20)));
            loop {
                let text = line(&mut stream);
                if text.is_empty() {
                    return;
                }
                remember(&heard, &text);
                let mut answer = format!("{text} from {client}\n");
                if text.ends_with("HTTP/1.1") {
                    while !line(&mut stream).is_empty() {}
                    let body = client.to_string();
                    answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                }
                if stream.write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
        });
    }
}

/// One line to an address, and the answer to it.
fn say(from: &Netns, to: SocketAddr, text: &str) -> Result<String, ErrorKind> {
    let mut stream = from.connect(to).map_err(|error| error.kind())?;
    stream.write_all(format!("{text}\n").as_bytes()).map_err(|error| error.kind())?;
    let mut first = [0];
    stream.read_exact(&mut first).map_err(|error| error.kind())?;
    Ok(format!("{}{}", char::from(first[0]), line(&mut stream)))
}

/// A client and an application of the mesh, and the Service between them.
struct Mesh {
    lab: Lab,
    client: Pod,
    app: Pod,
    application: Application,
}

impl Mesh {
    fn new(peer_authentication: &str, annotation: &str) -> Result<Self> {
        let lab = Lab::new()?;
        let (client, app) = (lab.pod("client")?, lab.pod("app")?);
        let application = Application::start(&app)?;
        let service = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: app}}\nspec:\n  clusterIP: 10.111.0.9\n  selector: {{app: app}}\n  ports:\n  \
             - {{name: tcp, port: 2525, targetPort: {PORT}}}\n  - {{name: http, port: 80, targetPort: {HTTP}}}\n"
        );
        let document = app.document("app: app").replace("  annotations:\n", &format!("  annotations:\n{annotation}"));
        lab.write("pods.yaml", &documents(&[client.document(""), document, service]))?;
        lab.write("peers.yaml", peer_authentication)?;
        Ok(Self { lab, client, app, application })
    }

    /// The ways in for somebody without a certificate.
    fn ways(&self) -> [SocketAddr; 2] {
        [IpAddr::V4(self.app.v4), IpAddr::V6(self.app.v6)].map(|ip| SocketAddr::new(ip, PORT))
    }

    /// Plain text from outside ends this way, and the application hears nothing of it.
    fn assert_plain(&self, expected: ErrorKind, when: &str) {
        for to in self.ways() {
            assert_eq!(say(self.lab.outside(), to, "plain"), Err(expected), "{to} {when}");
        }
        assert_eq!(self.application.heard(), [""; 0], "{when}");
    }

    fn assert_plain_passes(&self, when: &str) {
        for to in self.ways() {
            let answer = say(self.lab.outside(), to, "plain");
            assert!(answer.as_ref().is_ok_and(|text| text.starts_with("plain from ")), "{to} {when}: {answer:?}");
        }
        assert_eq!(self.application.heard(), ["connected", "plain", "connected", "plain"], "{when}");
    }

    /// Over mesh mTLS; what the application answered.
    fn assert_served(&self, agent: &Agent) -> Result<String> {
        let answer = say(&self.client.netns, SERVICE.parse()?, "over the mesh");
        let answer = answer.map_err(|kind| anyhow::anyhow!("{kind:?}: {}", agent.stderr()))?;
        assert!(answer.starts_with("over the mesh from "), "{answer}");
        assert_eq!(self.application.heard(), ["connected", "over the mesh"]);
        Ok(answer)
    }
}

#[test]
fn a_killed_agent_leaves_nobody_in_and_the_next_serves() -> Result<()> {
    let mesh = Mesh::new(STRICT, "")?;
    let mut agent = Agent::start(&mesh.lab)?;
    mesh.assert_served(&agent)?;
    mesh.assert_plain(ErrorKind::ConnectionReset, "while an agent runs");
    for _ in 0..2 {
        agent.kill9()?;
        mesh.assert_plain(ErrorKind::ConnectionRefused, "while none runs");
        // What the pod does by itself is nobody's business.
        let own = say(&mesh.app.netns, SocketAddr::new(mesh.app.v4.into(), PORT), "itself");
        assert_eq!(own, Ok(format!("itself from {}", mesh.app.v4)));
        assert_eq!(mesh.application.heard(), ["connected", "itself"]);
        agent.restart()?;
        mesh.assert_served(&agent)?;
        mesh.assert_plain(ErrorKind::ConnectionReset, "while the next runs");
    }
    Ok(())
}

/// Clients without pause while agents are killed and started: no plain word comes through.
#[test]
fn no_plain_text_while_agents_change() -> Result<()> {
    let mesh = Mesh::new(STRICT, "")?;
    let mut agent = Agent::start(&mesh.lab)?;
    let end = Instant::now() + Duration::from_secs(4);
    let (outside, ways) = (mesh.lab.outside(), mesh.ways());
    let attempts = std::thread::scope(|scope| -> Result<usize> {
        let clients = scope.spawn(|| {
            let mut attempts = 0;
            while Instant::now() < end {
                for to in ways {
                    attempts += 1;
                    assert!(say(outside, to, "plain").is_err());
                }
            }
            attempts
        });
        while Instant::now() < end {
            std::thread::sleep(Duration::from_millis(300));
            agent.kill9()?;
            std::thread::sleep(Duration::from_millis(100));
            agent.restart()?;
        }
        clients.join().map_err(|_| anyhow::anyhow!("plain text came through: {:?}", mesh.application.heard()))
    })?;
    assert!(attempts > 50, "{attempts}");
    assert_eq!(mesh.application.heard(), [""; 0]);
    mesh.assert_served(&agent)?;
    Ok(())
}

/// Not STRICT alone: whatever the agent would have had to enforce.
#[test]
fn policies_and_ingresses_close_the_pod_too() -> Result<()> {
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: app}\nspec:\n  \
                  selector: {matchLabels: {app: app}}\n  rules:\n  - from: [{source: {namespaces: [default]}}]\n";
    let ingress = format!(
        "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: app}}\nspec:\n  \
         workloadSelector: {{labels: {{app: app}}}}\n  ingress:\n  - port: {{number: 9081, protocol: TCP, name: tcp}}\n    \
         defaultEndpoint: 0.0.0.0:{PORT}\n"
    );
    for document in [policy, &ingress] {
        let mesh = Mesh::new(document, "")?;
        let mut agent = Agent::start(&mesh.lab)?;
        mesh.assert_served(&agent)?;
        agent.kill9()?;
        mesh.assert_plain(ErrorKind::ConnectionRefused, document);
    }
    Ok(())
}

/// SIGTERM: what is open goes on to its end; what is new is refused from the first moment of the drain, and after it.
#[test]
fn a_draining_agent_hands_nothing_back() -> Result<()> {
    let mesh = Mesh::new(STRICT, "")?;
    let mut agent = Agent::start_with(&mesh.lab, &["--drain-timeout", "8s"])?;
    let mut open = mesh.client.connect(SERVICE)?;
    open.write_all(b"open\n")?;
    assert!(line(&mut open).starts_with("open from "), "{}", agent.stderr());
    mesh.application.heard();
    agent.terminate()?;
    let draining = until("the drain", Duration::from_secs(3), || agent.stderr().contains("draining").then_some(()));
    draining.context("it does not drain")?;
    mesh.assert_plain(ErrorKind::ConnectionRefused, "while it drains");
    assert!(agent.alive(), "it waits for the open connection");
    open.write_all(b"still\n")?;
    assert!(line(&mut open).starts_with("still from "));
    drop(open);
    assert_eq!(agent.wait(Duration::from_secs(6))?.code(), Some(0), "{}", agent.stderr());
    mesh.application.heard();
    mesh.assert_plain(ErrorKind::ConnectionRefused, "after its end");
    Ok(())
}

/// What is forbidden when the agent ends is what counts, however it came to be.
#[test]
fn changes_of_the_mode_count_for_what_comes_after() -> Result<()> {
    let mesh = Mesh::new("\n", "")?;
    let mut agent = Agent::start(&mesh.lab)?;
    mesh.assert_plain_passes("PERMISSIVE");
    let mut open = mesh.client.connect(SERVICE)?;
    open.write_all(b"open\n")?;
    assert!(line(&mut open).starts_with("open from "));
    agent.reload(|| mesh.lab.write("peers.yaml", STRICT))?;
    open.write_all(b"still\n")?;
    assert!(line(&mut open).starts_with("still from "), "a connection over mesh mTLS is not cut: {}", agent.stderr());
    mesh.application.heard();
    mesh.assert_plain(ErrorKind::ConnectionReset, "STRICT");
    agent.kill9()?;
    mesh.assert_plain(ErrorKind::ConnectionRefused, "STRICT, and no agent");
    agent.restart()?;
    agent.reload(|| mesh.lab.write("peers.yaml", &STRICT.replace("STRICT", "PERMISSIVE")))?;
    mesh.assert_plain_passes("PERMISSIVE again");
    agent.kill9()?;
    mesh.assert_plain_passes("PERMISSIVE, and no agent");
    Ok(())
}

/// The pod leaves the mesh, or egret the machine: then nothing is forbidden any more, and nothing is left.
#[test]
fn what_leaves_is_opened() -> Result<()> {
    let mesh = Mesh::new(STRICT, "")?;
    let mut agent = Agent::start(&mesh.lab)?;
    mesh.assert_plain(ErrorKind::ConnectionReset, "STRICT");
    agent.reload(|| mesh.lab.write("pods.yaml", &mesh.client.document("")))?;
    mesh.assert_plain_passes("no longer enrolled");
    agent.reload(|| mesh.lab.write("pods.yaml", &mesh.app.document("app: app")))?;
    mesh.assert_plain(ErrorKind::ConnectionReset, "enrolled again");
    agent.kill9()?;
    mesh.assert_plain(ErrorKind::ConnectionRefused, "no agent");
    let state = agent.state().to_string_lossy().into_owned();
    let (code, _, said) = egret(&["uninstall", "--state-dir", &state])?;
    assert_eq!(code, 0, "{said}");
    mesh.assert_plain_passes("uninstalled");
    Ok(())
}

/// A document that is refused may be the one that wants the pod: it stays refused until all are mended.
#[test]
fn what_a_refused_document_may_want_stays_refused() -> Result<()> {
    let mesh = Mesh::new(STRICT, "")?;
    let mut agent = Agent::start(&mesh.lab)?;
    agent.kill9()?;
    let broken = mesh.app.document("app: app").replace("kind: Pod", "kind: Pod\nnonsense: [");
    mesh.lab.write("pods.yaml", &mesh.client.document(""))?;
    mesh.lab.write("app.yaml", &broken)?;
    agent.restart()?;
    mesh.assert_plain(ErrorKind::ConnectionRefused, "the document is refused");
    // It is said once the agent is ready, by and by.
    until("the agent to say so", Duration::from_secs(5), || {
        agent.stderr().contains("stays refused while documents are").then_some(())
    })?;
    agent.reload(|| mesh.lab.write("app.yaml", "\n"))?;
    mesh.assert_plain_passes("nobody wants it");
    Ok(())
}

/// Somebody in the pod has the port on which the agent would accept: nobody is let in past it.
#[test]
fn a_taken_inbound_port_leaves_nobody_in() -> Result<()> {
    let mesh = Mesh::new(STRICT, "")?;
    let taken = mesh.app.netns.listen("127.0.0.1:15006".parse()?)?;
    let mut agent = Agent::spawn(&mesh.lab, &[])?;
    let said = until("the reason", Duration::from_secs(10), || {
        let (_, body) = agent.admin("GET", "/healthz/ready").ok()?;
        body.contains("port 15006 is taken").then_some(())
    });
    said.map_err(|error| error.context(agent.stderr()))?;
    mesh.assert_plain(ErrorKind::ConnectionRefused, "nobody accepts");
    drop(taken);
    agent.wait_ready()?;
    mesh.assert_served(&agent)?;
    mesh.assert_plain(ErrorKind::ConnectionReset, "accepted again");
    Ok(())
}

/// `interceptionMode: TPROXY`: the application sees who calls, inside and outside the mesh, over both families.
#[test]
fn the_application_sees_its_clients() -> Result<()> {
    let tproxy = "    sidecar.istio.io/interceptionMode: TPROXY\n";
    let mesh = Mesh::new("\n", tproxy)?;
    let agent = Agent::start(&mesh.lab)?;
    let (_, status, _) = agent.egret(&["status"])?;
    assert!(status.contains("     captured, original source     enrolled"), "{status}");
    let outside = mesh.lab.outside();
    for to in mesh.ways() {
        let mut stream = outside.connect(to)?;
        let client = stream.local_addr()?.ip();
        stream.write_all(b"who\n")?;
        assert_eq!(line(&mut stream), format!("who from {client}"), "{}", agent.stderr());
    }
    mesh.application.heard();
    let answer = mesh.assert_served(&agent)?;
    assert_eq!(answer, format!("over the mesh from {}", mesh.client.v4));
    // Requests of different clients share no connection to the application.
    for _ in 0..2 {
        for (netns, own) in [(outside, None), (&mesh.client.netns, Some(mesh.client.v4))] {
            let mut command = netns.command("curl");
            let url =
                own.map_or_else(|| format!("http://{}:{HTTP}/", mesh.app.v4), |_| "http://10.111.0.9/".to_owned());
            command.args(["-sS", "--max-time", "10", "-w", " %{local_ip}", "-H", "host: app", &url]);
            let said = String::from_utf8(run_in(command, b"")?.stdout)?;
            let (seen, local) = said.split_once(' ').with_context(|| said.clone())?;
            assert_eq!(seen, local, "{}", agent.stderr());
        }
    }
    let rules = |what: &str| -> Result<bool> {
        let output = mesh.app.run("ip", &["rule"], b"")?;
        let text = String::from_utf8(output.stdout).with_context(|| what.to_owned())?;
        Ok(text.contains("lookup 15006"))
    };
    assert!(rules("while it serves")?);
    drop(agent);
    assert!(!rules("after uninstall")?);
    Ok(())
}
