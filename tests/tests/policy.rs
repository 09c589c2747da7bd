//! What no rule names: passed through, blocked, or none of egret's business.

use anyhow::Result;
use egret_tests::{
    Agent, Lab, names,
    objects::{documents, entry, mesh, port_rule},
};

/// ALLOW_ANY: HTTP, TLS and raw bytes go to the address dialled; UDP, loopback and the pod's own address are left alone.
#[test]
fn unmatched_traffic_passes_untouched() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    lab.write("pod.yaml", &pod.document(""))?;
    let agent = Agent::start(&lab)?;
    let plain = pod.curl(&["http://www.lab.test:8080/x"])?;
    assert_eq!((plain.status, plain.body.as_str()), (200, "plain www.lab.test/x\n"));
    let line = agent.log_line("GET /x ")?;
    assert!(line.contains(" PassthroughCluster ") && line.contains(" allow_any "), "{line}");
    let ca = lab.pki.crt("system");
    let tls = pod.curl(&["--cacert", &ca.to_string_lossy(), "https://edition.cnn.com/politics"])?;
    assert_eq!((tls.status, tls.version.as_str()), (200, "2"), "{tls:?}");
    let six = pod.curl(&["http://six.lab.test/"])?;
    assert_eq!(six.status, 301, "{six:?}");
    // The head comes to the server byte for byte as far as HTTP is concerned.
    let mirrored = pod.curl(&[&format!("http://{}:9010/mirror", names::ODD)])?;
    assert!(mirrored.body.starts_with("GET /mirror HTTP/1.1\r\n"), "{mirrored:?}");
    assert!(!mirrored.body.to_lowercase().contains("x-forwarded"), "{mirrored:?}");
    for own in [format!("{}:7100", pod.v4), "127.0.0.1:7100".to_owned()] {
        let listener = pod.netns.listen(own.parse()?)?;
        let client = pod.connect(&own)?;
        let (_, peer) = listener.accept()?;
        assert_eq!(peer, client.local_addr()?, "nobody stands between");
    }
    Ok(())
}

/// REGISTRY_ONLY: HTTP gets 502 with an empty body, TLS and TCP are reset, what the registry has passes.
#[test]
fn registry_only() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    let cnn = "edition.cnn.com";
    lab.write(
        "mesh.yaml",
        &documents(&[
            mesh(&["outboundTrafficPolicy: {mode: REGISTRY_ONLY}"]),
            pod.document(""),
            entry(cnn, &["80 HTTP 443", "443 HTTPS"]),
            port_rule(cnn, 80, "mode: SIMPLE"),
        ]),
    )?;
    let agent = Agent::start(&lab)?;
    assert_eq!(pod.curl(&["http://edition.cnn.com/politics"])?.status, 200, "{}", agent.stderr());
    let blocked = pod.curl(&["http://www.lab.test/"])?;
    assert_eq!((blocked.status, blocked.body.as_str()), (502, ""), "{blocked:?}");
    let line = agent.log_line("www.lab.test")?;
    assert!(line.contains(" BlackHoleCluster ") && line.contains(" block_all"), "{line}");
    let ca = lab.pki.crt("system");
    let tls = pod.curl(&["--cacert", &ca.to_string_lossy(), "https://www.lab.test/"])?;
    assert!(tls.status == 0 && matches!(tls.exit, 35 | 56), "{tls:?}");
    assert_eq!(pod.exchange(&format!("{}:9002", names::ODD), b"raw bytes\n")?, b"");
    assert_eq!(lab.hits().len(), 1, "{:?}", lab.hits());
    Ok(())
}

/// Nobody makes the agent dial itself, or the host's loopback, by a name or an address.
#[test]
fn the_agent_dials_neither_itself_nor_the_hosts_loopback() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    lab.write("pod.yaml", &pod.document(""))?;
    let agent = Agent::start(&lab)?;
    // Dialling the in-pod listener itself: nobody was redirected, so it closes.
    let direct = pod.exchange(&format!("{}:15001", pod.v4), b"GET / HTTP/1.1\r\nHost: www.lab.test\r\n\r\n")?;
    assert_eq!(direct, b"", "{}", String::from_utf8_lossy(&direct));
    let outside = lab.outside().connect((pod.v4, 15001).into());
    if let Ok(mut stream) = outside {
        use std::io::{Read, Write};
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: www.lab.test\r\n\r\n");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert_eq!(answer, b"", "{}", String::from_utf8_lossy(&answer));
    }
    for host in ["localhost", "127.0.0.1", "[::1]"] {
        let request = format!("GET /healthz/ready HTTP/1.1\r\nHost: {host}:15000\r\nConnection: close\r\n\r\n");
        let answer = pod.exchange(&format!("{}:80", names::WEB), request.as_bytes())?;
        let text = String::from_utf8_lossy(&answer).into_owned();
        assert!(!text.starts_with("HTTP/1.1 200"), "{host}: {text}\n{}", agent.stdout());
    }
    Ok(())
}
