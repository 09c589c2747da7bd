//! A gateway's TLS listener as a scanner and as a vandal see it: sslyze, and the hellos of `hellos.py` (tlslite-ng).

use std::net::SocketAddr;

use anyhow::{Context, Result};
use egret_tests::{Agent, Daemon, Lab, Pod, objects, python, run_in};
use serde_json::Value;

const HOST: &str = "httpbin.example.com";

/// A gateway with one TLS server for [`HOST`].
struct Site {
    _app: Daemon,
    _pod: Pod,
    gateway: Pod,
    outside: Pod,
    agent: Agent,
    lab: Lab,
}

impl Site {
    fn new(mode: &str) -> Result<Self> {
        let lab = Lab::new()?;
        let (gateway, app, outside) = (lab.pod("gateway")?, lab.pod("app")?, lab.pod("outside")?);
        lab.pki.task_leaf(HOST, &format!("/CN={HOST}"))?;
        lab.pki.leaf("ecdsa", "example.com", &format!("/CN={HOST}"), Some(&format!("DNS:{HOST}")))?;
        let served = lab.httpbin_in(&app.netns, SocketAddr::new(app.v4.into(), 80))?;
        let secret = |name: &str, leaf: &str| {
            let (pki, ca) = (&lab.pki, "example.com");
            pki.secret(name, &[("tls.crt", pki.crt(leaf)), ("tls.key", pki.key(leaf)), ("ca.crt", pki.crt(ca))])
        };
        let texts = [
            gateway.document("istio: ingressgateway"),
            app.document("app: app"),
            secret("rsa", HOST)?,
            secret("ecdsa", "ecdsa")?,
            objects::object("Service", "app", "{selector: {app: app}, ports: [{name: http, port: 80}]}"),
            objects::object(
                "Gateway",
                "gateway",
                &format!(
                    "{{selector: {{istio: ingressgateway}}, servers: [{{port: {{number: 8443, name: https, protocol: HTTPS}}, \
                     hosts: [{HOST}], tls: {{mode: {mode}, credentialNames: [rsa, ecdsa]}}}}]}}"
                ),
            ),
            objects::object(
                "VirtualService",
                "app",
                &format!(
                    "{{hosts: [{HOST}], gateways: [gateway], http: [{{route: [{{destination: {{host: app}}}}]}}]}}"
                ),
            ),
        ];
        lab.write("mesh.yaml", &objects::documents(&texts))?;
        let agent = Agent::start(&lab)?;
        Ok(Self { _app: served, _pod: app, gateway, outside, agent, lab })
    }

    fn get(&self, more: &[&str]) -> Result<egret_tests::Reply> {
        let to = format!("{}:8443", self.gateway.v4);
        self.outside.call(&to, &format!("https://{HOST}/status/418"), &[&["-k"], more].concat())
    }

    /// What `openssl s_client` prints, with `input` typed.
    fn s_client(&self, args: &[&str], input: &str) -> Result<String> {
        let to = format!("{}:8443", self.gateway.v4);
        let mut command = self.outside.netns.command("openssl");
        command.args(["s_client", "-connect", &to, "-servername", HOST]).args(args);
        let output = run_in(command, input.as_bytes())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(text(&output.stdout) + &text(&output.stderr))
    }
}

#[test]
fn a_scanner_finds_nothing() -> Result<()> {
    let site = Site::new("SIMPLE")?;
    let report = site.lab.dir().join("sslyze.json");
    let mut command = site.outside.netns.command(&python()?.with_file_name("sslyze").to_string_lossy());
    // All scans but those that ask the world about the certificate.
    for scan in [
        "sslv2",
        "sslv3",
        "tlsv1",
        "tlsv1_1",
        "tlsv1_2",
        "tlsv1_3",
        "compression",
        "reneg",
        "early_data",
        "heartbleed",
        "openssl_ccs",
        "robot",
        "fallback",
        "elliptic_curves",
        "resum",
    ] {
        command.arg(format!("--{scan}"));
    }
    command.args(["--mozilla_config=disable", "--sni", HOST, "--json_out"]).arg(&report);
    command.arg(format!("{}:8443", site.gateway.v4));
    let output = run_in(command, b"")?;
    let report: Value = serde_json::from_slice(&std::fs::read(&report).with_context(|| format!("{output:?}"))?)?;
    let found = &report["server_scan_results"][0]["scan_result"];
    let of = |scan: &str| {
        assert_eq!(found[scan]["status"], "COMPLETED", "{scan}: {}", found[scan]);
        &found[scan]["result"]
    };
    let suites = |version: &str| -> Vec<String> {
        let accepted = of(&format!("{version}_cipher_suites"))["accepted_cipher_suites"].as_array();
        let name = |one: &Value| one["cipher_suite"]["name"].as_str().unwrap_or_default().to_owned();
        accepted.into_iter().flatten().map(name).collect()
    };
    for version in ["ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1"] {
        assert!(suites(version).is_empty(), "{version}: {:?}", suites(version));
    }
    let (old, new) = (suites("tls_1_2"), suites("tls_1_3"));
    assert!(
        old.len() >= 4 && old.iter().all(|name| name.starts_with("TLS_ECDHE_") && !name.contains("CBC")),
        "{old:?}"
    );
    // Both certificates are there to choose from.
    assert!(
        old.iter().any(|name| name.contains("_RSA_")) && old.iter().any(|name| name.contains("_ECDSA_")),
        "{old:?}"
    );
    assert_eq!(new.len(), 3, "{new:?}");
    assert_eq!(of("tls_compression")["supports_compression"], false);
    assert_eq!(of("tls_1_3_early_data")["supports_early_data"], false);
    assert_eq!(of("session_renegotiation")["is_vulnerable_to_client_renegotiation_dos"], false);
    assert_eq!(of("session_renegotiation")["supports_secure_renegotiation"], true);
    assert_eq!(of("heartbleed")["is_vulnerable_to_heartbleed"], false);
    assert_eq!(of("openssl_ccs_injection")["is_vulnerable_to_ccs_injection"], false);
    let robot = of("robot")["robot_result"].as_str().unwrap_or_default();
    assert!(robot.starts_with("NOT_VULNERABLE"), "{robot}");
    assert_eq!(site.get(&[])?.status, 418, "and serves on");
    Ok(())
}

/// What a client could ask for and does not get: another handshake within the connection, data before the handshake's end,
/// compression; and what it gets: resumption.
#[test]
fn no_renegotiation_no_early_data_no_compression() -> Result<()> {
    let site = Site::new("OPTIONAL_MUTUAL")?;
    // `R` alone on a line asks for a renegotiation.
    let told = site.s_client(&["-tls1_2"], "R\n")?;
    assert!(told.contains("RENEGOTIATING") && told.contains("no renegotiation"), "{told}");
    assert!(told.contains("Compression: NONE"), "{told}");
    assert!(told.contains("Secure Renegotiation IS supported"), "{told}");
    let told = site.s_client(&["-tls1_2", "-comp"], "Q\n")?;
    assert!(told.contains("Compression: NONE"), "{told}");
    let session = site.lab.dir().join("session.pem");
    let session = session.to_string_lossy();
    let request = format!("GET /status/418 HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    for version in ["-tls1_2", "-tls1_3"] {
        // The tickets of TLS 1.3 come after the handshake: -ign_eof waits for the answer, and so for them.
        let told = site.s_client(&[version, "-ign_eof", "-sess_out", &session], &request)?;
        assert!(told.contains("418") && !told.contains("Reused"), "{told}");
        assert!(!told.contains("Max Early Data: 1"), "{told}");
        let told = site.s_client(&[version, "-ign_eof", "-sess_in", &session], &request)?;
        assert!(told.contains("Reused, TLSv1") && told.contains("418"), "{told}");
    }
    let early = site.lab.dir().join("early");
    std::fs::write(&early, &request)?;
    let told = site.s_client(&["-tls1_3", "-sess_in", &session, "-early_data", &early.to_string_lossy()], "Q\n")?;
    assert!(!told.contains("Early data was accepted"), "{told}");
    Ok(())
}

/// What the hellos of `hellos.py` must be answered with.
fn verdict(told: &Value) -> std::result::Result<(), &'static str> {
    let text = |key: &str| told[key].as_str().unwrap_or_default();
    let (case, answer, end) = (text("case"), text("answer"), text("end"));
    let hello = matches!(answer, "server hello" | "hello retry");
    if !hello && end == "open" {
        return Err("hangs");
    }
    if told["seconds"].as_f64().is_none_or(|seconds| seconds > 7.0) {
        return Err("late");
    }
    const GOOD: &[&str] = &[
        "whole",
        "whole, TLS 1.2",
        "a byte at a time",
        "a byte a record",
        "two records",
        "seven bytes a record, slowly",
        "a share of an unknown group",
        "heartbeats",
        "early data",
        "an ALPN of nothing we speak",
    ];
    // No TLS record at all, or none that could tell whose server is meant.
    const NO_HELLO: &[&str] = &["plain HTTP", "zeros", "a record version of 9.9", "an SSL 2.0 hello"];
    let random = ["noise", "flipped"].iter().any(|kind| case.starts_with(kind));
    let nobody = matches!(case, "a name that no server has" | "no name" | "an address for a name");
    match () {
        () if GOOD.contains(&case) && !hello => Err("is refused"),
        () if GOOD.contains(&case) || random => Ok(()),
        () if (nobody || NO_HELLO.contains(&case)) && hello => Err("gets a handshake"),
        () if nobody || NO_HELLO.contains(&case) => Ok(()),
        () if !answer.starts_with("alert ") && !hello => Err("gets no alert"),
        () => Ok(()),
    }
}

#[test]
fn broken_hellos_get_an_alert() -> Result<()> {
    let site = Site::new("SIMPLE")?;
    let script = site.lab.dir().join("hellos.py");
    std::fs::write(&script, include_str!("../src/hellos.py"))?;
    let mut command = site.outside.netns.command(&python()?.to_string_lossy());
    command.arg(&script).args([&site.gateway.v4.to_string(), "8443", HOST]);
    let output = run_in(command, b"")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let answers: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    assert!(output.status.success() && answers.len() > 300, "{}", String::from_utf8_lossy(&output.stderr));
    let wrong: Vec<_> = answers.iter().filter_map(|told| Some(format!("{}: {told}", verdict(told).err()?))).collect();
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), site.agent.stderr());
    assert!(!site.agent.stderr().contains("panicked"), "{}", site.agent.stderr());
    assert_eq!(site.get(&[])?.status, 418, "and serves on");
    Ok(())
}
