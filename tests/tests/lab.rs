//! The lab without an agent: what the other tests prove by absence must be seen here to be there.

use anyhow::Result;
use egret_tests::{CLIENT_DN, Lab, names};

/// The capture finds a marker that did travel in the clear, and not one that travelled inside TLS.
#[test]
fn the_wire_shows_plain_text_and_hides_tls() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    let mut wire = lab.tap()?;
    let plain = pod.curl(&["http://edition.cnn.com/politics?marker-in-the-clear"])?;
    assert_eq!((plain.status, plain.version.as_str()), (301, "1.1"), "{plain:?}");
    let ca = lab.pki.crt("system");
    let tls = pod.curl(&["--cacert", ca.to_str().unwrap(), "https://edition.cnn.com/politics?marker-inside-tls"])?;
    assert_eq!((tls.status, tls.version.as_str(), tls.body.as_str()), (200, "2", "politics page\n"), "{tls:?}");
    let router = names::ROUTER.parse()?;
    assert!(wire.saw(&pod.netns, router, "marker-in-the-clear")?);
    assert!(!wire.saw(&pod.netns, router, "marker-inside-tls")?);
    let hit = lab.hit("marker-inside-tls")?;
    assert_eq!((hit.tls.as_str(), hit.sni.as_str()), ("TLSv1.3", "edition.cnn.com"));
    Ok(())
}

/// nginx lets the documentation's client certificate in, and nobody without one; the certificates are X.509 v1.
#[test]
fn the_mutual_server_demands_a_certificate() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    let path = |path: std::path::PathBuf| path.to_string_lossy().into_owned();
    let url = "https://my-nginx.mesh-external.svc.cluster.local/";
    let ca = path(lab.pki.crt("example.com"));
    let without = pod.curl(&["--cacert", &ca, url])?;
    assert_eq!(without.status, 400, "{without:?}");
    let (cert, key) = (path(lab.pki.crt("client")), path(lab.pki.key("client")));
    let with = pod.curl(&["--cacert", &ca, "--cert", &cert, "--key", &key, url])?;
    assert_eq!(with.status, 200, "{with:?}");
    assert!(with.body.contains("Welcome to nginx!"));
    assert!(lab.hits().iter().any(|hit| hit.client_dn == CLIENT_DN), "{:?}", lab.hits());
    let text = egret_tests::run("openssl", &["x509", "-noout", "-text", "-in", &cert])?;
    assert!(text.contains("Version: 1") && !text.contains("Alternative"), "{text}");
    Ok(())
}

/// Pods reach the outside by both families, and a name that nobody has is not found.
#[test]
fn pods_have_both_families_and_a_resolver() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    assert_eq!(pod.curl(&["http://six.lab.test/"])?.status, 301);
    assert_eq!(pod.curl(&["http://nobody.lab.test/"])?.exit, 6);
    let answer = pod.exchange("198.51.100.40:9010", b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n")?;
    assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
    Ok(())
}
