//! TLS origination at the pod itself, and who may have it.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Result, ensure};
use egret_tests::{
    CLIENT_DN, Lab,
    kube::{Node, NodePod, crds},
    objects::{entry, rule},
    until,
};

use super::stage::*;

/// Without a rule the server redirects; with the ServiceEntry still; with the DestinationRule plain HTTP becomes verified TLS.
#[test]
fn tls_origination_comes_and_goes_with_its_objects() -> Result<()> {
    let (lab, server) = (Lab::new()?, cluster(crds::ISTIO, &["default"])?);
    let node = Node::new(&lab, &server, NODE)?;
    let (_controller, agent) = start_on(&lab, &server, &node, &[])?;
    let pod = node.pod("default", "sleep", SLEEP)?;
    await_status(&pod, CNN, 301, SOON)?;
    let documents = example("egress-tls-origination/simple.yaml")?;
    let [entry, rule] = &documents[..] else { anyhow::bail!("the example has {} documents", documents.len()) };
    server.apply_yaml(entry)?;
    // Port 80 is sent to port 443 in plain text without the rule, which the server answers with 400.
    await_status(&pod, CNN, 400, SOON)?;
    server.apply_yaml(rule)?;
    let mark = await_status(&pod, CNN, 200, SOON)?;
    let hit = lab.hit(&mark)?;
    assert_eq!((hit.tls.as_str(), hit.sni.as_str(), hit.host.as_str()), ("TLSv1.3", CNN, CNN));
    assert_eq!(hit.from, pod.net()?.v4.to_string(), "the source address stays the pod's own");
    let reply = pod.curl(&["-L", "-i", "http://edition.cnn.com/politics"])?;
    assert_eq!((reply.status, reply.version.as_str(), reply.redirects), (200, "1.1", 0), "{reply:?}");
    assert!(reply.body.ends_with("politics page\n"), "{reply:?}");

    server.delete_yaml(rule)?;
    await_status(&pod, CNN, 400, SOON)?;
    server.delete_yaml(entry)?;
    await_status(&pod, CNN, 301, SOON)?;
    end(vec![pod], &agent)
}

/// Refused until the Secret is there, and again once it is gone; its rotation counts for the next connection within a second.
/// Pods that the rule does not select never present the certificate.
#[test]
fn mutual_tls_follows_its_secret() -> Result<()> {
    let (lab, server) = (Lab::new()?, cluster(crds::ISTIO, &["default"])?);
    let node = Node::new(&lab, &server, NODE)?;
    let (_controller, agent) = start_on(&lab, &server, &node, &[])?;
    let pod = node.pod("default", "sleep", SLEEP)?;
    let other = node.pod("default", "other", "metadata: {labels: {app: other}}")?;
    apply(&server, &example("egress-mutual-tls/mutual.yaml")?)?;
    await_status(&pod, NGINX, 503, SOON)?;
    server.apply_yaml(&lab.pki.client_secret("client-credential", "client")?)?;
    let url = format!("http://{NGINX}/?");
    let served = |mark: &str| -> Result<_> {
        let reply = pod.curl(&["-i", &format!("{url}{mark}")])?;
        ensure!(reply.status == 200 && reply.body.contains("Welcome to nginx!"), "{reply:?}");
        lab.hit(&format!("?{mark}"))
    };
    until("the Secret to count", SOON, || served("first").ok())?;
    let hit = served("mine")?;
    assert_eq!((hit.client_dn.as_str(), hit.sni.as_str()), (CLIENT_DN, NGINX));
    let refused = other.curl(&[&format!("{url}theirs")])?;
    assert_ne!(refused.status, 200, "{refused:?}");
    let own = pod.net()?.v4.to_string();
    assert!(lab.hits().iter().all(|hit| hit.client_dn.is_empty() || hit.from == own));

    lab.pki.task_leaf("rotated", "/CN=rotated.example.com/O=client organization")?;
    server.apply_yaml(&lab.pki.client_secret("client-credential", "rotated")?)?;
    let mut count = 0;
    until("the new certificate", Duration::from_secs(1), || {
        count += 1;
        served(&format!("rotated-{count}")).ok().filter(|hit| hit.client_dn.contains("rotated.example.com"))
    })?;
    server.remove("Secret", "default", "client-credential")?;
    let gone = || pod.curl(&[&format!("{url}gone")]).ok().filter(|reply| reply.status == 503);
    until("the refusal", Duration::from_secs(1), gone)?;
    end(vec![pod, other], &agent)
}

/// A rule names files, which are in the pods' volumes: a Secret's in one, several sources in one volume in the other. Of those
/// sources only what a path leads to is read, and rotation counts as ever.
#[test]
fn files_of_secret_and_projected_volumes() -> Result<()> {
    let (lab, server) = (Lab::new()?, cluster(crds::ISTIO, &["default"])?);
    let node = Node::new(&lab, &server, NODE)?;
    let (_controller, agent) = start_on(&lab, &server, &node, &[])?;
    let pod = |name: &str, volume: &str| {
        let mounts = "volumeMounts: [{name: certs, mountPath: /etc/certs, readOnly: true}]";
        let spec =
            format!("{{containers: [{{name: app, image: app, {mounts}}}], volumes: [{{name: certs, {volume}}}]}}");
        node.pod("default", name, &format!("spec: {spec}"))
    };
    let whole = pod("whole", "secret: {secretName: client-credential}")?;
    let pair =
        "secret: {name: client-credential, items: [{key: tls.crt, path: tls.crt}, {key: tls.key, path: tls.key}]}";
    let sources = [
        "secret: {name: before, optional: true}",
        "secret: {name: authority}",
        pair,
        "secret: {name: unread, items: [{key: other, path: other}]}",
        "serviceAccountToken: {path: token}",
    ]
    .map(|source| format!("{{{source}}}"));
    let parts = pod("parts", &format!("projected: {{sources: [{}]}}", sources.join(", ")))?;
    let files = "mode: MUTUAL, clientCertificate: /etc/certs/tls.crt, privateKey: /etc/certs/tls.key, caCertificates: /etc/certs/ca.crt";
    apply(&server, &[entry(NGINX, &["80 HTTP 443"]), rule(NGINX, files)])?;
    await_status(&whole, NGINX, 503, SOON)?;
    await_status(&parts, NGINX, 503, SOON)?;

    let authority = |leaf: &str| lab.pki.secret("authority", &[("ca.crt", lab.pki.crt(leaf))]);
    server.apply_yaml(&lab.pki.client_secret("client-credential", "client")?)?;
    server.apply_yaml(&authority("example.com")?)?;
    let mut count = 0;
    let mut presents = |pod: &NodePod<'_>, name: &str| {
        until(&format!("{} to present {name}", pod.name()), SOON, || {
            count += 1;
            let mark = format!("{}-{count}.", pod.name());
            let reply = pod.curl(&[&format!("http://{NGINX}/?{mark}")]).ok()?;
            (reply.status == 200 && lab.hit(&mark).ok()?.client_dn.contains(name)).then_some(())
        })
    };
    presents(&whole, CLIENT_DN)?;
    presents(&parts, CLIENT_DN)?;
    lab.pki.task_leaf("rotated", "/CN=rotated.example.com/O=client organization")?;
    server.apply_yaml(&lab.pki.client_secret("client-credential", "rotated")?)?;
    presents(&whole, "rotated.example.com")?;
    presents(&parts, "rotated.example.com")?;

    // An authority that did not sign the server's certificate, in one of the two.
    server.apply_yaml(&authority("system")?)?;
    await_status(&parts, NGINX, 503, SOON)?;
    presents(&whole, "rotated.example.com")?;
    server.apply_yaml(&authority("example.com")?)?;
    presents(&parts, "rotated.example.com")?;

    let read = server.requests().into_iter().filter(|seen| seen.resource == "secrets" && seen.namespace == "default");
    let read: BTreeSet<_> =
        read.filter(|seen| seen.user_agent.starts_with("egret/")).map(|seen| seen.field_selector).collect();
    assert_eq!(Vec::from_iter(read), ["metadata.name=authority", "metadata.name=client-credential"]);
    end(vec![whole, parts], &agent)
}
