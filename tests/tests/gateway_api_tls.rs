//! TLS of the Gateway API over the wire: listeners with several certificates and with demands on their clients, TLSRoutes
//! with weights, and BackendTLSPolicies towards a server outside the mesh.

use anyhow::Result;
use egret_tests::{
    Agent, Lab, Pod, names,
    objects::{documents, object},
    until,
};

const HOST: &str = "web.example.com";

/// `object` of the Gateway API.
fn gateway_api(kind: &str, name: &str, spec: &str) -> String {
    object(kind, name, spec).replace("networking.istio.io/v1", "gateway.networking.k8s.io/v1")
}

/// What `openssl s_client` tells of a handshake with the gateway.
fn s_client(from: &Pod, to: &str, more: &[&str]) -> Result<String> {
    let args = [&["s_client", "-connect", to, "-servername", HOST], more].concat();
    let output = from.run("openssl", &args, b"")?;
    Ok(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn listeners_choose_certificates_and_ask_for_them() -> Result<()> {
    let lab = Lab::new()?;
    let (gateway, web, outside) = (lab.pod("gateway")?, lab.pod("web")?, lab.pod("outside")?);
    let (one, two) = (lab.pod("one")?, lab.pod("two")?);
    let _web = lab.backends_in(&web.netns, &[("web", "0.0.0.0:8080")])?;
    let _odds = (lab.odd_in(&one)?, lab.odd_in(&two)?);
    let pki = &lab.pki;
    pki.task_leaf("rsa", &format!("/CN={HOST}/O=rsa"))?;
    pki.leaf("ecdsa", "example.com", &format!("/CN={HOST}/O=ecdsa"), Some(&format!("DNS:{HOST}")))?;
    let pair = |leaf: &str| pki.secret(leaf, &[("tls.crt", pki.crt(leaf)), ("tls.key", pki.key(leaf))]);
    let service = |name: &str, port: u16, target: u16| {
        object(
            "Service",
            name,
            &format!("{{selector: {{app: {name}}}, ports: [{{name: p, port: {port}, targetPort: {target}}}]}}"),
        )
    };
    let spec = |ca: &str| {
        let tls = "certificateRefs: [{name: rsa}, {name: ecdsa}]";
        let asked = format!("frontendValidation: {{caCertificateRefs: [{{group: '', kind: ConfigMap, name: {ca}}}]}}");
        gateway_api(
            "Gateway",
            "gateway",
            &format!(
                "{{gatewayClassName: istio, listeners: [\n\
                 {{name: open, port: 8443, protocol: HTTPS, hostname: {HOST}, tls: {{{tls}}}}},\n\
                 {{name: asked, port: 9443, protocol: HTTPS, hostname: {HOST}, tls: {{{tls}, {asked}}}}},\n\
                 {{name: tls, port: 7443, protocol: TLS, hostname: '*.lab.test', tls: {{mode: Passthrough}}}}]}}"
            ),
        )
    };
    let tls_route = |weights: [u8; 2]| {
        gateway_api(
            "TLSRoute",
            "split",
            &format!(
                "{{parentRefs: [{{name: gateway, sectionName: tls}}], hostnames: [odd.lab.test], rules: [{{backendRefs: \
                 [{{name: one, port: 443, weight: {}}}, {{name: two, port: 443, weight: {}}}]}}]}}",
                weights[0], weights[1]
            ),
        )
    };
    lab.write(
        "mesh.yaml",
        &documents(&[
            gateway.document("gateway.networking.k8s.io/gateway-name: gateway"),
            web.document("app: web"),
            one.document("app: one"),
            two.document("app: two"),
            service("web", 80, 8080),
            service("one", 443, 9008),
            service("two", 443, 9008),
            pair("rsa")?,
            pair("ecdsa")?,
            gateway_api(
                "HTTPRoute",
                "web",
                "{parentRefs: [{name: gateway}], rules: [{backendRefs: [{name: web, port: 80}]}]}",
            ),
        ]),
    )?;
    lab.write("ca.yaml", &pki.ca_config_map("clients", "example.com")?)?;
    lab.write("gateway.yaml", &spec("clients"))?;
    lab.write("route.yaml", &tls_route([3, 1]))?;
    let agent = Agent::start(&lab)?;

    // Each client gets the certificate that its algorithms are good for.
    let at = |port: u16| format!("{}:{port}", gateway.v4);
    for (algorithms, version, kind, subject) in [
        ("rsa_pss_rsae_sha256", "-tls1_3", "RSA-PSS", "O = rsa"),
        ("ecdsa_secp256r1_sha256", "-tls1_3", "ECDSA", "O = ecdsa"),
        ("rsa_pss_rsae_sha256", "-tls1_2", "RSA-PSS", "O = rsa"),
        ("ecdsa_secp256r1_sha256", "-tls1_2", "ECDSA", "O = ecdsa"),
    ] {
        let said = s_client(&outside, &at(8443), &["-sigalgs", algorithms, version])?;
        let chosen = said.contains(&format!("Peer signature type: {kind}"));
        assert!(chosen && said.contains(subject), "{algorithms} {version}: {said}\n{}", agent.stderr());
    }
    // By the key exchange's algorithms where TLS 1.2 names them.
    for (suite, subject) in [("ECDHE-RSA-AES128-GCM-SHA256", "O = rsa"), ("ECDHE-ECDSA-AES128-GCM-SHA256", "O = ecdsa")]
    {
        let said = s_client(&outside, &at(8443), &["-tls1_2", "-cipher", suite])?;
        assert!(said.contains(subject), "{suite}: {said}");
    }

    // Clients that must show a certificate.
    let ca = pki.crt("example.com").to_string_lossy().into_owned();
    let get = |port: u16, leaf: Option<&str>| {
        let mut args = vec!["--cacert".to_owned(), ca.clone()];
        if let Some(leaf) = leaf {
            for (flag, path) in [("--cert", pki.crt(leaf)), ("--key", pki.key(leaf))] {
                args.extend([flag.to_owned(), path.to_string_lossy().into_owned()]);
            }
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        outside.call(&at(port), &format!("https://{HOST}/from"), &args)
    };
    assert_eq!(get(8443, None)?.status, 200, "{}", agent.stderr());
    let with = get(9443, Some("client"))?;
    assert_eq!(with.status, 200, "{with:?}\n{}", agent.stderr());
    for leaf in [None, Some("web")] {
        let refused = get(9443, leaf)?;
        assert!(refused.status == 0 && [35, 56, 98].contains(&refused.exit), "{leaf:?} {refused:?}");
    }
    // Its CA gone: nobody gets in, and the listener beside it serves on.
    agent.reload(|| lab.remove("ca.yaml"))?;
    for leaf in [None, Some("client")] {
        let refused = get(9443, leaf)?;
        assert!(refused.status == 0 && [35, 56, 98].contains(&refused.exit), "{leaf:?} {refused:?}");
    }
    assert_eq!(get(8443, None)?.status, 200, "{}", agent.stderr());
    let (_, told, _) = agent.egret(&["status"])?;
    assert!(told.contains("NoValidCACertificate"), "{told}");
    // It comes back, as the CA of others.
    agent.reload(|| lab.write("ca.yaml", &pki.ca_config_map("clients", "system")?))?;
    assert_eq!(get(9443, Some("client"))?.status, 0);
    assert_eq!(get(9443, Some("web"))?.status, 200, "{}", agent.stderr());

    // TLS passed through, three to one; then all to the other.
    let split = |mark: &str, calls: usize| -> Result<[usize; 2]> {
        for _ in 0..calls {
            let reply = outside.call(&at(7443), &format!("https://odd.lab.test/{mark}"), &["-k"])?;
            assert_eq!(reply.status, 200, "{reply:?}\n{}\n{}", agent.stdout(), agent.stderr());
            assert!(reply.body.contains(&format!("GET /{mark}")), "{reply:?}");
        }
        let of = |pod: &Pod| {
            let upstream = format!("\"{}:9008\"", pod.v4);
            let text = agent.stdout();
            text.lines().filter(|line| line.contains(&upstream) && line.contains("default/gateway")).count()
        };
        let mut last = [0; 2];
        until("every connection in the log", std::time::Duration::from_secs(3), || {
            last = [of(&one), of(&two)];
            (last[0] + last[1] >= calls).then_some(last)
        })
    };
    let first = split("split", 40)?;
    assert!(first[0] >= 20 && first[1] >= 2, "{first:?}");
    agent.reload(|| lab.write("route.yaml", &tls_route([0, 1])))?;
    let reply = outside.call(&at(7443), "https://odd.lab.test/only", &["-k"])?;
    assert_eq!(reply.status, 200, "{reply:?}");
    let line = until("the last", std::time::Duration::from_secs(3), || {
        let text = agent.stdout();
        let lines: Vec<_> = text.lines().filter(|line| line.contains("outbound|443||")).map(str::to_owned).collect();
        (lines.iter().filter(|line| line.contains("default/gateway")).count() == 41).then(|| lines.last().cloned())?
    });
    let line = line.map_err(|error| error.context(agent.stdout()))?;
    assert!(line.contains(&format!("{}:9008", two.v4)), "{line}");
    Ok(())
}

#[test]
fn a_backend_tls_policy_leads_out_of_the_mesh() -> Result<()> {
    let lab = Lab::new()?;
    let (sleep, gateway, outside) = (lab.pod("sleep")?, lab.pod("gateway")?, lab.pod("outside")?);
    let nginx_pod = lab.pod("nginx")?;
    let pki = &lab.pki;
    pki.task_leaf(HOST, &format!("/CN={HOST}/O=some organization"))?;
    let _nginx = lab.nginx_in(&nginx_pod, HOST)?;
    let policy = |host: &str| {
        gateway_api(
            "BackendTLSPolicy",
            "nginx",
            &format!(
                "{{targetRefs: [{{group: '', kind: Service, name: nginx}}], validation: {{hostname: {host}, \
                 caCertificateRefs: [{{group: '', kind: ConfigMap, name: ca}}]}}}}"
            ),
        )
    };
    lab.write(
        "mesh.yaml",
        &documents(&[
            sleep.document("app: sleep"),
            gateway.document("gateway.networking.k8s.io/gateway-name: gateway"),
            format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: nginx, labels: {{app: nginx}}}}\nstatus: {{podIP: {}}}\n",
                nginx_pod.v4
            ),
            object(
                "Service",
                "nginx",
                "{clusterIP: 10.97.0.30, selector: {app: nginx}, ports: [{name: http, port: 80, targetPort: 443}]}",
            ),
            gateway_api(
                "Gateway",
                "gateway",
                "{gatewayClassName: istio, listeners: [{name: http, port: 8080, protocol: HTTP}]}",
            ),
            gateway_api(
                "HTTPRoute",
                "nginx",
                "{parentRefs: [{name: gateway}], rules: [{backendRefs: [{name: nginx, port: 80}]}]}",
            ),
        ]),
    )?;
    lab.write("policy.yaml", &policy(HOST))?;
    lab.write("ca.yaml", &pki.ca_config_map("ca", "example.com")?)?;
    let agent = Agent::start(&lab)?;
    let said = || format!("{}\n{}", agent.stdout(), agent.stderr());
    let mut wire = lab.tap()?;
    let inside = |path: &str| sleep.call("10.97.0.30:80", &format!("http://nginx{path}"), &[]);
    let through = |path: &str| outside.call(&format!("{}:8080", gateway.v4), &format!("http://any.example{path}"), &[]);
    let router = names::ROUTER.parse()?;

    let reply = inside("/told/mark-inside")?;
    assert_eq!(reply.body, format!("TLSv1.2 {HOST} nginx /told/mark-inside\n"), "{reply:?}\n{}", said());
    let reply = through("/told/mark-through")?;
    assert_eq!(reply.body, format!("TLSv1.2 {HOST} any.example /told/mark-through\n"), "{reply:?}\n{}", said());
    assert!(wire.saw(&sleep.netns, router, "mark-through")?, "the client's own leg, in the clear as it was sent");
    assert!(!wire.saw(&sleep.netns, router, "mark-inside")?, "plain text on the wire");
    let (_, told, _) = agent.egret(&["status"])?;
    assert!(told.lines().any(|row| row.contains("BackendTLSPolicy") && row.contains("True")), "{told}");

    // Not its name, not its CA, no CA at all: refused with the reason, and never in the clear.
    agent.reload(|| lab.write("policy.yaml", &policy("other.example.com")))?;
    let reply = inside("/told/mark-name")?;
    assert!(reply.status == 503 && reply.body.contains("TLS_error"), "{reply:?}\n{}", said());
    agent.reload(|| lab.write("policy.yaml", &policy(HOST)))?;
    agent.reload(|| lab.write("ca.yaml", &pki.ca_config_map("ca", "system")?))?;
    let reply = inside("/told/mark-other")?;
    assert!(reply.status == 503 && reply.body.contains("TLS_error"), "{reply:?}\n{}", said());
    agent.reload(|| lab.remove("ca.yaml"))?;
    for reply in [inside("/told/mark-gone")?, through("/told/gone")?] {
        assert!(reply.status == 503 && reply.body.contains("ConfigMap default/ca"), "{reply:?}\n{}", said());
    }
    let (_, told, _) = agent.egret(&["status"])?;
    assert!(told.lines().any(|row| row.contains("BackendTLSPolicy") && row.contains("NoValidCACertificate")), "{told}");
    for mark in ["mark-name", "mark-other", "mark-gone"] {
        assert!(!wire.saw(&sleep.netns, router, mark)?, "{mark} on the wire");
    }
    agent.reload(|| lab.write("ca.yaml", &pki.ca_config_map("ca", "example.com")?))?;
    assert_eq!(inside("/told/back")?.status, 200, "{}", said());
    wire.stop();
    Ok(())
}
