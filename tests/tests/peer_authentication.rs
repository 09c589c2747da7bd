//! PeerAuthentication over the wire: who may speak plain text to which port, as policies come, overlap and go.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
};

use anyhow::{Context, Result};
use egret_tests::{Agent, Daemon, Lab, Netns, Pod, line, names, objects};

/// Ports of `odd.py`: answers with the head it got, without TLS.
const HEAD: u16 = 9010;
/// Its own TLS.
const OWN_TLS: u16 = 9008;
/// Speaks first.
const BANNER: u16 = 9001;
/// Counts what comes before the half-close.
const COUNTS: u16 = 9002;

fn policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{namespace: {namespace}, name: {name}}}\nspec: {spec}\n"
    )
}

struct Site {
    _odd: Daemon,
    app: Pod,
    client: Pod,
    lab: Lab,
}

impl Site {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let (client, app) = (lab.pod("client")?, lab.pod("app")?);
        lab.write("pods.yaml", &objects::documents(&[client.document(""), app.document("app: app")]))?;
        let service = "{clusterIP: None, selector: {app: app}, ports: [{name: http, port: 9010}, {name: tls, port: 9008}, \
                       {name: tcp, port: 9001}, {name: tcp-counts, port: 9002}]}";
        lab.write("service.yaml", &objects::object("Service", "app", service))?;
        let odd = lab.odd_in(&app)?;
        Ok(Self { _odd: odd, app, client, lab })
    }

    fn at(&self, port: u16) -> SocketAddr {
        (self.app.v4, port).into()
    }

    /// A plain request from outside the mesh: the body's first line, or how the connection ended.
    fn plain(&self, port: u16) -> Result<std::result::Result<String, ErrorKind>> {
        let mut stream = self.lab.outside().connect(self.at(port))?;
        // A server that refuses may have closed before everything is written.
        let _ = stream.write_all(b"GET /plain HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n");
        let mut text = String::new();
        Ok(match stream.read_to_string(&mut text) {
            Ok(_) if text.is_empty() => Err(ErrorKind::UnexpectedEof),
            Ok(_) => Ok(text.lines().next().unwrap_or_default().to_owned()),
            Err(error) => Err(error.kind()),
        })
    }

    /// The same by a pod of the mesh, by the service's name.
    fn inside(&self, agent: &Agent) -> Result<()> {
        let reply = self.client.call(&self.at(HEAD).to_string(), "http://app:9010/inside", &[])?;
        anyhow::ensure!(reply.status == 200, "{reply:?}\n{}\n{}", agent.stdout(), agent.stderr());
        Ok(())
    }

    fn set(&self, agent: &Agent, policies: &[String]) -> Result<()> {
        agent.reload(|| self.lab.write("policies.yaml", &objects::documents(policies)))
    }
}

/// Mesh, namespace, workload, port: the narrowest that says something decides.
#[test]
fn the_narrowest_policy_decides() -> Result<()> {
    let site = Site::new()?;
    let agent = Agent::start(&site.lab)?;
    let reset = Err(ErrorKind::ConnectionReset);
    let open = Ok("HTTP/1.1 200 OK".to_owned());
    let mode = |mode: &str| format!("{{mtls: {{mode: {mode}}}}}");
    let mesh = policy("istio-system", "default", &mode("STRICT"));
    let workload = |rest: &str| policy("default", "app", &format!("{{selector: {{matchLabels: {{app: app}}}}{rest}}}"));
    for (policies, expected) in [
        (vec![mesh.clone()], &reset),
        (vec![mesh.clone(), policy("default", "default", &mode("PERMISSIVE"))], &open),
        (vec![mesh.clone(), policy("default", "default", &mode("UNSET"))], &reset),
        (vec![mesh.clone(), policy("elsewhere", "default", &mode("PERMISSIVE"))], &reset),
        (vec![policy("default", "default", &mode("STRICT")), workload(", mtls: {mode: DISABLE}")], &open),
        (vec![policy("default", "default", &mode("STRICT")), workload(", mtls: {mode: UNSET}")], &reset),
        (vec![mesh.clone(), workload(", mtls: {mode: STRICT}, portLevelMtls: {9010: {mode: PERMISSIVE}}")], &open),
        (vec![mesh.clone(), workload(", mtls: {mode: STRICT}, portLevelMtls: {9010: {mode: DISABLE}}")], &open),
        (vec![mesh, workload(", mtls: {mode: PERMISSIVE}, portLevelMtls: {9010: {mode: STRICT}}")], &reset),
        (vec![policy("default", "gone", "{}")], &open),
    ] {
        site.set(&agent, &policies)?;
        assert_eq!(site.plain(HEAD)?, *expected, "{policies:#?}\n{}", agent.stderr());
        // Whatever is in force, a caller of the mesh finds the way that is open.
        site.inside(&agent).with_context(|| format!("{policies:#?}"))?;
    }
    Ok(())
}

/// STRICT says nothing to who is not of the mesh, on any port, and the application hears of nobody.
#[test]
fn strict_lets_nothing_else_in() -> Result<()> {
    let site = Site::new()?;
    site.lab.write("policies.yaml", &policy("default", "default", "{mtls: {mode: STRICT}}"))?;
    let agent = Agent::start(&site.lab)?;
    for port in [HEAD, OWN_TLS, BANNER, COUNTS, 4444] {
        assert_eq!(site.plain(port)?, Err(ErrorKind::ConnectionReset), "{port}");
    }
    assert!(agent.log_line("filter_chain_not_found")?.contains(" NR "), "{}", agent.stdout());
    // A server that speaks first must not be heard.
    let mut silent = site.lab.outside().connect(site.at(BANNER))?;
    silent.set_read_timeout(Some(std::time::Duration::from_secs(1)))?;
    let mut byte = [0];
    let heard = egret_tests::read(&mut silent, &mut byte);
    assert!(!matches!(heard, Ok(1)), "the banner came through");
    // Nor does TLS without a certificate of the mesh help, whether it ends here or would at the application.
    for port in [HEAD, OWN_TLS] {
        let reply = curl(site.lab.outside(), &["-k", &format!("https://{}/", site.at(port))])?;
        assert_ne!(reply, 0, "{port}");
    }
    // The mesh itself: HTTP, the application's own TLS, a server that speaks first, halves that close.
    let mut wire = site.lab.tap()?;
    site.inside(&agent)?;
    let reply = site.client.call(&site.at(OWN_TLS).to_string(), "https://app:9008/own-tls", &["-k"])?;
    assert_eq!(reply.status, 200, "{reply:?}\n{}\n{}", agent.stdout(), agent.stderr());
    let mut banner = site.client.connect(&site.at(BANNER).to_string())?;
    assert!(line(&mut banner).starts_with("220 ready"));
    banner.write_all(b"shout\n")?;
    assert_eq!(line(&mut banner), "SHOUT");
    let mut half = site.client.connect(&site.at(COUNTS).to_string())?;
    half.write_all(&[b'x'; 3_000_000])?;
    half.shutdown(Shutdown::Write)?;
    assert_eq!(line(&mut half), "got 3000000");
    for needle in ["GET /inside", "220 ready", "xxxxxxxx"] {
        assert!(!wire.saw(&site.client.netns, names::ROUTER.parse()?, needle)?, "{needle} on the wire");
    }
    // What the pod says to itself is nobody's business.
    let own = site.app.curl(&[&format!("http://{}/own", site.at(HEAD))])?;
    assert_eq!(own.status, 200, "{own:?}");
    Ok(())
}

/// A connection that was let in under PERMISSIVE gets no further answer once plain text is forbidden.
#[test]
fn strict_counts_for_the_next_request() -> Result<()> {
    let site = Site::new()?;
    let agent = Agent::start(&site.lab)?;
    let mut stream = site.lab.outside().connect(site.at(HEAD))?;
    let ask = |stream: &mut TcpStream| -> std::io::Result<String> {
        stream.write_all(b"GET /kept HTTP/1.1\r\nHost: app\r\n\r\n")?;
        let mut head = [0; 12];
        stream.read_exact(&mut head)?;
        Ok(String::from_utf8_lossy(&head).into_owned())
    };
    assert_eq!(ask(&mut stream)?, "HTTP/1.1 200");
    // The rest of that answer.
    stream.set_read_timeout(Some(std::time::Duration::from_millis(300)))?;
    let mut rest = [0; 4096];
    while matches!(egret_tests::read(&mut stream, &mut rest), Ok(1..)) {}
    stream.set_read_timeout(Some(std::time::Duration::from_secs(10)))?;
    site.set(&agent, &[policy("default", "default", "{mtls: {mode: STRICT}}")])?;
    let answer = ask(&mut stream);
    assert!(!answer.as_ref().is_ok_and(|head| head == "HTTP/1.1 200"), "{answer:?}");
    Ok(())
}

fn curl(from: &Netns, args: &[&str]) -> Result<i32> {
    let mut command = from.command("curl");
    command.args(["-sS", "--max-time", "10"]).args(args);
    Ok(egret_tests::run_in(command, b"")?.status.code().unwrap_or(-1))
}
