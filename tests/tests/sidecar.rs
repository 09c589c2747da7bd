//! What a Sidecar's `egress` leaves of the world, over the wire.

use anyhow::Result;
use egret_tests::{
    Agent, Lab,
    objects::{documents, entry, object, port_rule, rule},
};

/// The host that is imported is reached with the TLS that its rule wants. Another one that is known is unknown here, and
/// one that a rule names is refused rather than sent in plain text, under whatever policy.
#[test]
fn only_what_is_imported_is_reached_and_what_is_hidden_stays_guarded() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    let free = lab.pod("free")?;
    let (cnn, www, six) = ("edition.cnn.com", "www.lab.test", "six.lab.test");
    lab.write(
        "mesh.yaml",
        &documents(&[
            pod.document("app: sleep"),
            free.document("app: free"),
            entry(cnn, &["80 HTTP 443", "443 HTTPS"]),
            port_rule(cnn, 80, "mode: SIMPLE"),
            entry(www, &["80 HTTP"]),
            entry(six, &["80 HTTP 443"]),
            rule(six, "mode: SIMPLE"),
        ]),
    )?;
    let narrow = |policy: &str| {
        let spec = format!(
            "{{workloadSelector: {{labels: {{app: sleep}}}}, egress: [{{hosts: [./{cnn}]}}], outboundTrafficPolicy: {{mode: {policy}}}}}"
        );
        lab.write("sidecar.yaml", &object("Sidecar", "narrow", &spec))
    };
    narrow("REGISTRY_ONLY")?;
    let agent = Agent::start(&lab)?;

    assert_eq!(pod.curl(&["http://edition.cnn.com/politics"])?.status, 200, "{}", agent.stderr());
    let blocked = pod.curl(&["http://www.lab.test/blocked"])?;
    assert_eq!((blocked.status, blocked.body.as_str()), (502, ""), "{blocked:?}");
    let line = agent.log_line("/blocked")?;
    assert!(line.contains(" BlackHoleCluster ") && line.contains(" block_all"), "{line}");
    let (_, told, _) = agent.egret(&["explain", "sleep", "http://www.lab.test/"])?;
    assert!(told.contains("is not imported by Sidecar default/narrow"), "{told}");

    let hidden = "is not imported by Sidecar default/narrow";
    let refused = pod.curl(&["http://six.lab.test/"])?;
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.body.contains(hidden), "{refused:?}");
    // The other pod of the namespace is under no Sidecar.
    assert_ne!(free.curl(&["http://www.lab.test/free"])?.status, 502);

    agent.reload(|| narrow("ALLOW_ANY"))?;
    assert_eq!(pod.curl(&["http://edition.cnn.com/politics"])?.status, 200);
    let passed = pod.curl(&["http://www.lab.test/passed"])?;
    assert_ne!(passed.status, 502, "{passed:?}");
    let line = agent.log_line("/passed")?;
    assert!(line.contains(" PassthroughCluster "), "{line}");
    let refused = pod.curl(&["http://six.lab.test/"])?;
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.body.contains(hidden), "{refused:?}");

    agent.reload(|| lab.remove("sidecar.yaml"))?;
    assert_ne!(pod.curl(&["http://www.lab.test/open"])?.status, 0);
    let line = agent.log_line("/open")?;
    assert!(line.contains(" outbound|80||www.lab.test "), "{line}");
    Ok(())
}
