//! Ways to write a request so that one part of a proxy reads another host or another message than the next part.

use anyhow::Result;
use egret_tests::{
    Agent, Lab, Pod, Wire, names,
    objects::{documents, entry, port_rule},
};

const MARK: &str = "must-not-be-readable";

struct Scene {
    wire: Wire,
    agent: Agent,
    pod: Pod,
    lab: Lab,
}

fn scene() -> Result<Scene> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    let cnn = "edition.cnn.com";
    let odd = "odd.lab.test";
    lab.write(
        "mesh.yaml",
        &documents(&[
            pod.document("app: sleep"),
            entry(cnn, &["80 HTTP 443", "443 HTTPS"]),
            port_rule(cnn, 80, "mode: SIMPLE"),
            entry(odd, &["80 HTTP 9008"]),
            port_rule(odd, 80, "mode: SIMPLE"),
        ]),
    )?;
    let agent = Agent::start(&lab)?;
    Ok(Scene { wire: lab.tap()?, agent, pod, lab })
}

impl Scene {
    /// Sends raw bytes to the web server's plain port, and hands back the answer's status; 0 for none.
    fn raw(&self, text: &str) -> Result<(u16, String)> {
        let answer = self.pod.exchange(&format!("{}:80", names::WEB), text.as_bytes())?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split_whitespace().nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        Ok((status, answer))
    }

    fn unread(&mut self) -> Result<()> {
        let seen = self.wire.saw(&self.pod.netns, names::ROUTER.parse()?, MARK)?;
        assert!(!seen, "plain text left the pod\n{}", self.agent.stdout());
        Ok(())
    }
}

/// Each names the host of the rule, and must get TLS like the plain spelling does.
#[test]
fn other_spellings_of_the_host() -> Result<()> {
    let mut scene = scene()?;
    let requests = [
        ("port", format!("GET /politics?{MARK} HTTP/1.1\r\nHost: edition.cnn.com:80\r\nConnection: close\r\n\r\n")),
        ("dot", format!("GET /politics?{MARK} HTTP/1.1\r\nHost: edition.cnn.com.\r\nConnection: close\r\n\r\n")),
        ("case", format!("GET /politics?{MARK} HTTP/1.1\r\nhOST: EDITION.CNN.com\r\nConnection: close\r\n\r\n")),
        (
            "blanks",
            format!("GET /politics?{MARK} HTTP/1.1\r\nHost: \t edition.cnn.com \t\r\nConnection: close\r\n\r\n"),
        ),
        ("1.0", format!("GET /politics?{MARK} HTTP/1.0\r\nHost: edition.cnn.com\r\n\r\n")),
        (
            "leading line",
            format!("\r\nGET /politics?{MARK} HTTP/1.1\r\nHost: edition.cnn.com\r\nConnection: close\r\n\r\n"),
        ),
        (
            "absolute form",
            format!(
                "GET http://edition.cnn.com/politics?{MARK} HTTP/1.1\r\nHost: www.lab.test\r\nConnection: close\r\n\r\n"
            ),
        ),
    ];
    for (what, request) in &requests {
        let (status, answer) = scene.raw(request)?;
        assert_eq!(status, 200, "{what}: {answer}\n{}", scene.agent.stdout());
    }
    assert!(scene.lab.hits().iter().all(|hit| hit.tls == "TLSv1.3"), "{:?}", scene.lab.hits());
    scene.unread()
}

/// What HTTP does not allow is answered 400 and nothing is sent on.
#[test]
fn requests_that_can_be_read_in_two_ways() -> Result<()> {
    let mut scene = scene()?;
    let requests = [
        ("two hosts", format!("GET /{MARK} HTTP/1.1\r\nHost: edition.cnn.com\r\nHost: www.lab.test\r\n\r\n")),
        ("no host", format!("GET /{MARK} HTTP/1.1\r\nX: y\r\n\r\n")),
        ("userinfo", format!("GET /{MARK} HTTP/1.1\r\nHost: edition.cnn.com@www.lab.test\r\n\r\n")),
        (
            "length and chunked",
            format!(
                "POST /{MARK} HTTP/1.1\r\nHost: edition.cnn.com\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
        ),
        (
            "two lengths",
            format!(
                "POST /{MARK} HTTP/1.1\r\nHost: edition.cnn.com\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde"
            ),
        ),
        (
            "folded coding",
            format!(
                "POST /{MARK} HTTP/1.1\r\nHost: edition.cnn.com\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"
            ),
        ),
        (
            "unknown coding",
            format!("POST /{MARK} HTTP/1.1\r\nHost: edition.cnn.com\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        ),
        ("blank before colon", format!("GET /{MARK} HTTP/1.1\r\nHost : edition.cnn.com\r\n\r\n")),
        ("nul in a value", format!("GET /{MARK} HTTP/1.1\r\nHost: edition.cnn.com\r\nX: a\0b\r\n\r\n")),
    ];
    for (what, request) in &requests {
        let (status, answer) = scene.raw(request)?;
        assert!(status == 400 || (status == 501 && what.contains("unknown")), "{what}: {answer:?}");
        assert_eq!(answer.matches("\r\n\r\n").count(), 1, "{what}: the connection ends there: {answer:?}");
    }
    assert!(scene.lab.hits().is_empty(), "{:?}", scene.lab.hits());
    scene.unread()
}

/// A method in lower case is a method nobody knows, and still a request; an unknown one goes through TLS.
#[test]
fn odd_methods_do_not_open_a_tunnel() -> Result<()> {
    let mut scene = scene()?;
    for method in ["get", "BREW", "PRI"] {
        let request = format!("{method} /{MARK} HTTP/1.1\r\nHost: edition.cnn.com\r\nConnection: close\r\n\r\n");
        let _ = scene.raw(&request)?;
    }
    let (status, answer) = scene.raw("CONNECT edition.cnn.com:80 HTTP/1.1\r\nHost: edition.cnn.com:80\r\n\r\n")?;
    assert!((400..600).contains(&status), "CONNECT is refused clearly: {answer:?}");
    scene.unread()
}

/// HTTP/2 with prior knowledge is read as HTTP/2, whatever the port's name.
#[test]
fn http2_with_prior_knowledge() -> Result<()> {
    let mut scene = scene()?;
    let reply = scene.pod.curl(&["--http2-prior-knowledge", &format!("http://edition.cnn.com/politics?{MARK}")])?;
    assert_eq!((reply.status, reply.version.as_str()), (200, "2"), "{reply:?}");
    assert_eq!(scene.lab.hit(MARK)?.tls, "TLSv1.3");
    scene.unread()
}

/// Bad chunking in the middle of a body ends the exchange; what follows it is not taken for a request.
#[test]
fn bad_chunking_does_not_start_a_second_request() -> Result<()> {
    let mut scene = scene()?;
    let request = format!(
        "POST /first HTTP/1.1\r\nHost: odd.lab.test\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nGET /{MARK} HTTP/1.1\r\nHost: odd.lab.test\r\n\r\n"
    );
    let (_, answer) = scene.raw(&request)?;
    assert!(!answer.contains(&format!("GET /{MARK}")), "{answer:?}");
    scene.unread()
}
