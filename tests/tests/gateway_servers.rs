//! Settings of a gateway's TLS servers as `openssl s_client` and curl see them, and an east-west gateway that passes mesh mTLS
//! through.

use anyhow::Result;
use egret_tests::{
    Agent, Lab,
    objects::{documents, entry_with, object, rule},
};

const HOST: &str = "web.example.com";

/// The clients' demands, versions and files, each on a port of its own; files lie in the gateway pod's volumes.
#[test]
fn what_servers_ask_and_offer() -> Result<()> {
    let lab = Lab::new()?;
    let (gateway, web, outside) = (lab.pod("gateway")?, lab.pod("web")?, lab.pod("outside")?);
    let _web = lab.backends_in(&web.netns, &[("web", "0.0.0.0:8080")])?;
    let _odd = lab.odd_in(&web)?;
    let pki = &lab.pki;
    pki.leaf("server", "example.com", &format!("/CN={HOST}"), Some(&format!("DNS:{HOST}")))?;
    for name in ["alice", "bob"] {
        pki.leaf(name, "example.com", &format!("/CN={name}"), Some(&format!("DNS:{name}.example.com")))?;
    }
    let said = egret_tests::run(
        "openssl",
        &["x509", "-in", &pki.crt("alice").to_string_lossy(), "-noout", "-fingerprint", "-sha256"],
    )?;
    let hash = said.trim().rsplit('=').next().unwrap_or_default().to_owned();
    let server = |port: u16, tls: &str| {
        let files = "serverCertificate: /etc/certs/tls.crt, privateKey: /etc/certs/tls.key";
        format!(
            "{{port: {{number: {port}, name: https-{port}, protocol: HTTPS}}, hosts: [{HOST}], tls: {{{files}, {tls}}}}}"
        )
    };
    let ca = "caCertificates: /etc/extra/ca.crt";
    let servers = [
        server(8443, &format!("mode: OPTIONAL_MUTUAL, {ca}")),
        server(8444, &format!("mode: MUTUAL, {ca}, verifyCertificateHash: ['{hash}']")),
        server(8445, &format!("mode: MUTUAL, {ca}, subjectAltNames: [bob.example.com]")),
        server(8446, "mode: SIMPLE, minProtocolVersion: TLSV1_3"),
        server(8447, "mode: SIMPLE, maxProtocolVersion: TLSV1_2, cipherSuites: [ECDHE-ECDSA-AES256-GCM-SHA384]"),
        format!(
            "{{port: {{number: 8448, name: tls-tcp, protocol: TLS}}, hosts: [{HOST}], tls: {{mode: SIMPLE, \
                 serverCertificate: /etc/certs/tls.crt, privateKey: /etc/certs/tls.key}}}}"
        ),
        format!(
            "{{port: {{number: 8080, name: http, protocol: HTTP}}, hosts: [{HOST}], tls: {{httpsRedirect: true}}}}"
        ),
    ];
    let pod = format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: gateway\n  labels: {{istio: ingress}}\n  annotations:\n    egret.dev/netns: {}\n    \
         sidecar.istio.io/userVolume: '[{{\"name\": \"extra\", \"secret\": {{\"secretName\": \"extra\"}}}}]'\n    \
         sidecar.istio.io/userVolumeMount: '[{{\"name\": \"extra\", \"mountPath\": \"/etc/extra\"}}]'\n\
         spec:\n  serviceAccountName: gateway\n  volumes: [{{name: certs, secret: {{secretName: certs}}}}]\n  \
         containers: [{{name: istio-proxy, image: pause, volumeMounts: [{{name: certs, mountPath: /etc/certs}}]}}]\n",
        gateway.netns.name()
    );
    lab.write(
        "mesh.yaml",
        &documents(&[
            pod,
            web.document("app: web"),
            object("Service", "web", "{selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 9002}]}"),
            pki.secret("certs", &[("tls.crt", pki.crt("server")), ("tls.key", pki.key("server"))])?,
            pki.secret("extra", &[("ca.crt", pki.crt("example.com"))])?,
            object("Gateway", "gw", &format!("{{selector: {{istio: ingress}}, servers: [{}]}}", servers.join(", "))),
            object(
                "VirtualService",
                "web",
                &format!(
                    "{{hosts: [{HOST}], gateways: [gw], http: [{{route: [{{destination: {{host: web, port: {{number: 80}}}}}}]}}], \
                     tcp: [{{match: [{{port: 8448}}], route: [{{destination: {{host: web, port: {{number: 9002}}}}}}]}}]}}"
                ),
            ),
        ]),
    )?;
    let agent = Agent::start(&lab)?;
    let told = || format!("{}\n{}", agent.stdout(), agent.stderr());
    let get = |port: u16, leaf: Option<&str>| -> Result<(u16, i32)> {
        let path = |path: std::path::PathBuf| path.to_string_lossy().into_owned();
        let mut args = vec!["--cacert".to_owned(), path(pki.crt("example.com"))];
        if let Some(leaf) = leaf {
            args.extend(["--cert".to_owned(), path(pki.crt(leaf)), "--key".to_owned(), path(pki.key(leaf))]);
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let reply = outside.call(&format!("{}:{port}", gateway.v4), &format!("https://{HOST}/"), &args)?;
        Ok((reply.status, reply.exit))
    };
    for (port, leaf, good) in [
        (8443, None, true),
        (8443, Some("alice"), true),
        (8443, Some("web"), false),
        (8444, Some("alice"), true),
        (8444, Some("bob"), false),
        (8444, None, false),
        (8445, Some("bob"), true),
        (8445, Some("alice"), false),
        (8446, None, true),
        (8447, None, true),
    ] {
        let (status, exit) = get(port, leaf)?;
        assert_eq!((status == 200, exit == 0), (good, good), "{port} {leaf:?}: {status} {exit}\n{}", told());
    }
    // Versions and suites.
    for (port, more, good) in [
        (8446, &["-tls1_2"][..], false),
        (8446, &["-tls1_3"], true),
        (8447, &["-tls1_3"], false),
        (8447, &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384"], true),
        (8447, &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"], false),
    ] {
        let to = format!("{}:{port}", gateway.v4);
        let args = [&["s_client", "-connect", &to, "-servername", HOST], more].concat();
        let output = outside.run("openssl", &args, b"")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(
            said.contains("CN = web.example.com") && !said.contains("Cipher is (NONE)"),
            good,
            "{port} {more:?}: {said}"
        );
    }
    // To HTTPS, though the host has a route.
    let reply = outside.call(&format!("{}:8080", gateway.v4), &format!("http://{HOST}/path?q=1"), &["-i"])?;
    assert_eq!(
        (reply.status, reply.header("location")),
        (301, Some(&*format!("https://{HOST}/path?q=1"))),
        "{reply:?}"
    );

    // Raw bytes inside TLS: all of them, and the half-close arrives before the answer.
    let script = "import socket, ssl, sys\n\
        context = ssl.create_default_context(cafile=sys.argv[2])\n\
        raw = socket.create_connection((sys.argv[1], 8448), 10)\n\
        tls = context.wrap_socket(raw, server_hostname='web.example.com', suppress_ragged_eofs=False)\n\
        tls.sendall(b'x' * 20_000_000)\n\
        try:\n    tls.unwrap()\nexcept (OSError, ssl.SSLError) as error:\n    print(error)\n";
    let ca_path = pki.crt("example.com").to_string_lossy().into_owned();
    let output = outside.run("/usr/bin/python3", &["-c", script, &gateway.v4.to_string(), &ca_path], b"")?;
    // Python's `unwrap` meets the answer where it awaits close_notify: what matters is the line of the log.
    let line = agent.log_line("outbound|9002||web.default").map_err(|error| error.context(format!("{output:?}")))?;
    assert!(line.contains(" 20000000 12 "), "{line}");

    Ok(())
}

/// Another network's pods are reached through its gateway, which sees none of it: the identities are those of the two ends.
#[test]
fn an_east_west_gateway_passes_mesh_mtls_through() -> Result<()> {
    let lab = Lab::new()?;
    let (sleep, gateway, web) = (lab.pod("sleep")?, lab.pod("eastwest")?, lab.pod("web")?);
    let outside = lab.pod("outside")?;
    let _odd = lab.odd_in(&web)?;
    let auto = |host: &str| {
        format!(
            "{{selector: {{istio: eastwest}}, servers: [{{port: {{number: 15443, name: tls, protocol: TLS}}, hosts: ['{host}'], \
             tls: {{mode: AUTO_PASSTHROUGH}}}}]}}"
        )
    };
    let wire_host = "web.far.example";
    let name = "web.default.svc.cluster.local";
    lab.write(
        "mesh.yaml",
        &documents(&[
            sleep.document("app: sleep"),
            gateway.document("istio: eastwest"),
            web.document("app: web"),
            object("Service", "web", "{selector: {app: web}, clusterIP: 10.97.0.40, ports: [{name: http, port: 80, targetPort: 9010}]}"),
            entry_with(
                wire_host,
                &["80 HTTP"],
                &format!("  resolution: STATIC\n  location: MESH_INTERNAL\n  endpoints: [{{address: {}, ports: {{http-80: 15443}}}}]\n", gateway.v4),
            ),
            rule(wire_host, &format!("mode: ISTIO_MUTUAL, sni: outbound_.80_._.{name}, subjectAltNames: ['spiffe://cluster.local/ns/default/sa/web']")),
        ]),
    )?;
    lab.write("gateway.yaml", &object("Gateway", "eastwest", &auto("*.default.svc.cluster.local")))?;
    lab.write(
        "strict.yaml",
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: strict}\nspec: {mtls: {mode: STRICT}}\n",
    )?;
    let agent = Agent::start(&lab)?;
    let get = |path: &str| sleep.call("10.97.0.41:80", &format!("http://{wire_host}{path}"), &[]);
    let reply = get("/far")?;
    assert_eq!(reply.status, 200, "{reply:?}\n{}\n{}", agent.stdout(), agent.stderr());
    let told = reply.body.to_lowercase();
    assert!(told.contains("uri=spiffe://cluster.local/ns/default/sa/sleep") && !told.contains("sa/eastwest"), "{told}");
    let line = agent.log_line("default/eastwest").or_else(|_| agent.log_line("default/web"))?;
    assert!(line.contains(&format!("outbound_.80_._.{name}")), "{line}");
    // What the gateway's server does not name is not led on. (A connection that is open goes on: nobody cuts it.)
    let shown = || -> Result<bool> {
        let (to, name) = (format!("{}:15443", gateway.v4), format!("outbound_.80_._.{name}"));
        let output = outside.run("openssl", &["s_client", "-connect", &to, "-servername", &name], b"")?;
        Ok(String::from_utf8_lossy(&output.stdout).contains("BEGIN CERTIFICATE"))
    };
    assert!(shown()?, "the pod's own certificate, through the gateway");
    agent.reload(|| lab.write("gateway.yaml", &object("Gateway", "eastwest", &auto("*.other.svc.cluster.local"))))?;
    assert!(!shown()?);
    Ok(())
}
