//! Mesh identity: who calls whom, proved by certificates that no application sees.

use std::{
    io::{Read, Write},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result};
use egret_tests::{Agent, Lab, Pod, objects::documents, run, until};

const ADDRESS: &str = "10.97.0.10";
const NAME: &str = "web.default.svc.cluster.local";

/// A Service of pods `app: web`: port 80 leads to their port 8080 by its name.
fn service(more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec:\n  {more}\n  selector: {{app: web}}\n  ports: [{{name: http, port: 80, targetPort: web}}]\n"
    )
}

/// A connection for each request, so that each ends, and is logged, at once.
const ONCE: &str = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web}
spec: {host: web, trafficPolicy: {connectionPool: {http: {maxRequestsPerConnection: 1}}}}
";

/// The pod with the port that the Service means.
fn web(pod: &Pod) -> String {
    let spec = format!("spec: {{serviceAccountName: {0}}}", pod.name);
    let with = format!(
        "spec:\n  serviceAccountName: {0}\n  containers: [{{name: web, image: web, ports: [{{name: web, containerPort: 8080}}]}}]",
        pod.name
    );
    pod.document("app: web").replace(&spec, &with)
}

fn get(pod: &Pod, name: &str, path: &str) -> Result<egret_tests::Reply> {
    pod.curl(&["--resolve", &format!("{name}:80:{ADDRESS}"), &format!("http://{name}{path}")])
}

/// Pod to pod by the Service's name, short name and address: nothing readable on the wire between enrolled pods, plain
/// text to a pod outside.
#[test]
fn calls_between_enrolled_pods_are_encrypted_by_themselves() -> Result<()> {
    let lab = Lab::new()?;
    let (client, inside) = (lab.pod("client")?, lab.pod("inside")?);
    let backends = lab.backends_in(&inside.netns, &[("inside", "0.0.0.0:8080")])?;
    lab.write(
        "mesh.yaml",
        &documents(&[
            client.document("app: client"),
            web(&inside),
            service(&format!("clusterIP: {ADDRESS}")),
            ONCE.to_owned(),
        ]),
    )?;
    let agent = Agent::start(&lab)?;
    let mut wire = lab.tap()?;
    for (name, path) in [(NAME, "/full-name-marker"), ("web", "/short-name-marker"), (ADDRESS, "/address-marker")] {
        let reply = get(&client, name, path)?;
        assert_eq!(reply.status, 200, "{name}: {reply:?}\n{}\n{}", agent.stdout(), agent.stderr());
        assert_eq!(backends.with_path(path).len(), 1, "{name}");
    }
    assert!(!wire.saw(&client.netns, egret_tests::names::ROUTER.parse()?, "-marker")?, "readable on the wire");
    let line = agent.log_line(&format!("outbound|80||{NAME}"))?;
    assert!(line.contains(&format!("\"{}:8080\" outbound|80||{NAME}", inside.v4)), "{line}");
    // The other side has a line of its own: what came in, for whom.
    let line = agent.log_line("inbound|8080||")?;
    assert!(line.contains("default/inside"), "{line}");
    let (_, table, _) = agent.egret(&["pc", "secret", "client"])?;
    assert!(table.contains("default ") && table.contains("ROOTCA "), "{table}");

    // The same Service, and a second pod behind it that is not enrolled: it is called in plain text.
    let outside = lab.pod("outside")?;
    let plain = lab.backends_in(&outside.netns, &[("outside", "0.0.0.0:8080")])?;
    let stranger = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: outside, labels: {{app: web}}}}\nspec:\n  containers: [{{name: web, image: web, ports: [{{name: web, containerPort: 8080}}]}}]\nstatus: {{podIP: {}}}\n",
        outside.v4
    );
    agent.reload(|| lab.write("stranger.yaml", &stranger))?;
    for turn in 0..20 {
        assert_eq!(get(&client, NAME, &format!("/both-{turn}"))?.status, 200);
    }
    assert!(!plain.with_path("/both-").is_empty() && !backends.with_path("/both-").is_empty());
    assert!(wire.saw(&client.netns, egret_tests::names::ROUTER.parse()?, "GET /both-")?);
    // Somebody who is not in the mesh calls an enrolled pod as before.
    let mut stream = lab.outside().connect((inside.v4, 8080).into())?;
    stream.write_all(b"GET /from-outside HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut head = [0; 12];
    stream.read_exact(&mut head)?;
    assert_eq!(&head, b"HTTP/1.1 200");
    assert_eq!(backends.with_path("/from-outside").len(), 1);
    Ok(())
}

/// A headless Service: the client has resolved a pod's own address, and that pod is called, encrypted.
#[test]
fn headless_services_are_encrypted_too() -> Result<()> {
    let lab = Lab::new()?;
    let (client, inside) = (lab.pod("client")?, lab.pod("inside")?);
    let backends = lab.backends_in(&inside.netns, &[("inside", "0.0.0.0:8080")])?;
    let service = service("clusterIP: None").replace("port: 80, targetPort: web", "port: 8080");
    lab.write("mesh.yaml", &documents(&[client.document(""), web(&inside), service]))?;
    let agent = Agent::start(&lab)?;
    let mut wire = lab.tap()?;
    let url = format!("http://{NAME}:8080/headless-marker");
    let reply = client.curl(&["--resolve", &format!("{NAME}:8080:{}", inside.v4), &url])?;
    assert_eq!(reply.status, 200, "{reply:?}\n{}\n{}", agent.stdout(), agent.stderr());
    assert_eq!(backends.with_path("/headless-marker").len(), 1);
    assert!(!wire.saw(&client.netns, egret_tests::names::ROUTER.parse()?, "headless-marker")?);
    Ok(())
}

/// A gateway pod that dies: requests go to the others; with none left, 503 UH.
#[test]
fn a_gateway_that_dies_is_left_out() -> Result<()> {
    let lab = Lab::new()?;
    let (client, one, two) = (lab.pod("client")?, lab.pod("gateway-one")?, lab.pod("gateway-two")?);
    let gateway = |pod: &Pod| pod.document("istio: egress");
    let rest = GATEWAY.to_owned();
    lab.write("mesh.yaml", &documents(&[client.document(""), rest]))?;
    lab.write("one.yaml", &gateway(&one))?;
    lab.write("two.yaml", &gateway(&two))?;
    let agent = Agent::start(&lab)?;
    let get = |path: &str| client.curl(&[&format!("http://edition.cnn.com/politics?{path}")]);
    for turn in 0..10 {
        let reply = get(&format!("both-{turn}"))?;
        assert_eq!(reply.status, 200, "{reply:?}\n{}\n{}", agent.stdout(), agent.stderr());
    }
    let from: std::collections::BTreeSet<_> = lab.hits().into_iter().map(|hit| hit.from).collect();
    assert_eq!(from, [one.v4.to_string(), two.v4.to_string()].into());
    // Its namespace goes at once; its document stays, as that of a pod that has crashed.
    let gone = one.v4.to_string();
    drop(one);
    until("the agent to notice", Duration::from_secs(5), || {
        agent.stderr().contains("pod default/gateway-one: no longer enrolled").then_some(())
    })?;
    for turn in 0..10 {
        assert_eq!(get(&format!("one-left-{turn}"))?.status, 200, "turn {turn}\n{}", agent.stderr());
    }
    assert!(lab.hits().iter().filter(|hit| hit.request.contains("one-left")).all(|hit| hit.from != gone));
    agent.reload(|| lab.remove("one.yaml"))?;
    agent.reload(|| lab.remove("two.yaml"))?;
    let reply = get("none-left")?;
    assert_eq!((reply.status, reply.body.trim()), (503, "no healthy upstream"), "{reply:?}");
    let line = agent.log_line("none-left")?;
    assert!(line.contains(" 503 UH "), "{line}");
    assert!(lab.hits().iter().all(|hit| !hit.request.contains("none-left")));
    Ok(())
}

const GATEWAY: &str = "apiVersion: v1
kind: Service
metadata: {name: egress}
spec:
  selector: {istio: egress}
  ports: [{name: https, port: 443, targetPort: 8443}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: cnn}
spec:
  hosts: [edition.cnn.com]
  ports: [{number: 80, name: http, protocol: HTTP}, {number: 443, name: https, protocol: HTTPS}]
  resolution: DNS
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: egress}
spec:
  selector: {istio: egress}
  servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: ['*'], tls: {mode: ISTIO_MUTUAL}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: egress}
spec: {host: egress, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}, tls: {mode: ISTIO_MUTUAL}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: cnn}
spec: {host: edition.cnn.com, trafficPolicy: {portLevelSettings: [{port: {number: 443}, tls: {mode: SIMPLE}}]}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: cnn}
spec:
  hosts: [edition.cnn.com]
  gateways: [mesh, egress]
  http:
  - match: [{gateways: [mesh], port: 80}]
    route: [{destination: {host: egress, port: {number: 443}}}]
  - match: [{gateways: [egress]}]
    route: [{destination: {host: edition.cnn.com, port: {number: 443}}}]
";

/// A mesh authority made with openssl, given to egret as Istio's plug-in CA.
struct Authority {
    dir: PathBuf,
}

impl Authority {
    fn new(lab: &Lab, name: &str) -> Result<Self> {
        let dir = lab.dir().join(name);
        std::fs::create_dir(&dir)?;
        let authority = Self { dir };
        let made = ["req", "-x509", "-nodes", "-days", "30", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
        let files = ["-keyout", &authority.path("ca-key.pem"), "-out", &authority.path("ca-cert.pem")];
        let rest = ["-subj", &format!("/O=Mesh/CN={name}"), "-addext", "keyUsage=critical,keyCertSign,cRLSign"];
        run("openssl", &[&made[..], &files[..], &rest[..]].concat())?;
        Ok(authority)
    }

    fn path(&self, file: &str) -> String {
        self.dir.join(file).to_string_lossy().into_owned()
    }

    fn secret(&self, lab: &Lab) -> Result<String> {
        let file = |name: &str| self.dir.join(name);
        let entries = [
            ("ca-cert.pem", file("ca-cert.pem")),
            ("ca-key.pem", file("ca-key.pem")),
            ("root-cert.pem", file("ca-cert.pem")),
            ("cert-chain.pem", file("ca-cert.pem")),
        ];
        let secret = lab.pki.secret("cacerts", &entries)?;
        Ok(secret.replacen("metadata: {", "metadata: {namespace: istio-system, ", 1))
    }

    /// A leaf with a SPIFFE identity, valid between these dates (`YYMMDDHHMMSSZ`).
    fn leaf(&self, name: &str, spiffe: &str, from: &str, to: &str) -> Result<[String; 2]> {
        let (key, csr, crt) =
            (self.path(&format!("{name}.key")), self.path(&format!("{name}.csr")), self.path(&format!("{name}.crt")));
        let made = ["req", "-new", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-subj", "/O=x"];
        run("openssl", &[&made[..], &["-keyout", &key, "-out", &csr]].concat())?;
        let config = self.path("ca.conf");
        std::fs::write(self.path("index.txt"), "")?;
        std::fs::write(
            &config,
            format!(
                "[ca]\ndefault_ca=d\n[d]\ndatabase={}\nnew_certs_dir={}\nrand_serial=yes\ndefault_md=sha256\npolicy=p\nx509_extensions=e\nunique_subject=no\n\
                 [p]\norganizationName=supplied\n[e]\nsubjectAltName=URI:{spiffe}\nextendedKeyUsage=serverAuth,clientAuth\nkeyUsage=digitalSignature\n",
                self.path("index.txt"),
                self.dir.display()
            ),
        )?;
        let signed = ["ca", "-batch", "-notext", "-config", &config, "-cert", &self.path("ca-cert.pem")];
        let rest =
            ["-keyfile", &self.path("ca-key.pem"), "-startdate", from, "-enddate", to, "-in", &csr, "-out", &crt];
        run("openssl", &[&signed[..], &rest[..]].concat())?;
        Ok([crt, key])
    }
}

const SPIFFE: &str = "spiffe://cluster.local/ns/default/sa/client";
const PAST: [&str; 2] = ["200101000000Z", "200201000000Z"];
const NOW: [&str; 2] = ["250101000000Z", "490101000000Z"];

/// What a gateway's ISTIO_MUTUAL port makes of callers with a certificate of another authority, an expired one, none, and a
/// good one; the log tells which identity was shown.
#[test]
fn a_gateway_takes_certificates_of_its_mesh_only() -> Result<()> {
    let lab = Lab::new()?;
    let gateway = lab.pod("gateway")?;
    let (ours, theirs) = (Authority::new(&lab, "ours")?, Authority::new(&lab, "theirs")?);
    lab.write("mesh.yaml", &documents(&[gateway.document("istio: egress"), GATEWAY.to_owned(), ours.secret(&lab)?]))?;
    let agent = Agent::start(&lab)?;
    let address = format!("{}:8443", gateway.v4);
    let call = |leaf: Option<[String; 2]>| -> Result<String> {
        let mut args =
            vec!["netns", "exec", lab.outside().name(), "openssl", "s_client", "-connect", &address, "-quiet"];
        args.extend(["-servername", "edition.cnn.com", "-alpn", "istio", "-verify_quiet"]);
        if let Some([crt, key]) = &leaf {
            args.extend(["-cert", crt, "-key", key]);
        }
        let mut command = std::process::Command::new("ip");
        command.args(args);
        let output = egret_tests::run_in(
            command,
            b"GET /politics HTTP/1.1\r\nHost: edition.cnn.com\r\nConnection: close\r\n\r\n",
        )?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let good = call(Some(ours.leaf("good", SPIFFE, NOW[0], NOW[1])?))?;
    assert!(good.starts_with("HTTP/1.1 200"), "{good}\n{}\n{}", agent.stdout(), agent.stderr());
    let refused = |leaf: Option<[String; 2]>, words: &[&str]| -> Result<()> {
        let before = agent.stdout().lines().count();
        let answer = call(leaf)?;
        assert!(!answer.contains("HTTP/1.1"), "{answer}");
        let line = until("a line about the refusal", Duration::from_secs(3), || {
            agent
                .stdout()
                .lines()
                .skip(before)
                .find(|line| words.iter().all(|word| line.contains(word)))
                .map(str::to_owned)
        });
        line.map(drop).with_context(|| format!("{words:?} in:\n{}", agent.stdout()))
    };
    refused(Some(ours.leaf("expired", SPIFFE, PAST[0], PAST[1])?), &["TLS_error", "expired", SPIFFE])?;
    refused(Some(theirs.leaf("foreign", SPIFFE, NOW[0], NOW[1])?), &["TLS_error", SPIFFE])?;
    refused(None, &["TLS_error"])?;
    assert_eq!(lab.hits().len(), 1);
    Ok(())
}

/// The other side: servers that show an expired certificate, one of another authority, or another pod's identity.
#[test]
fn callers_take_the_endpoint_s_own_identity_only() -> Result<()> {
    let lab = Lab::new()?;
    let client = lab.pod("client")?;
    let (ours, theirs) = (Authority::new(&lab, "ours")?, Authority::new(&lab, "theirs")?);
    let expected = "spiffe://cluster.local/ns/default/sa/web";
    let entry = |name: &str, port: u16| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}}}\nspec:\n  hosts: [{name}.lab.test]\n  location: MESH_INTERNAL\n  resolution: STATIC\n  \
             ports: [{{number: 80, name: http, protocol: HTTP}}]\n  endpoints: [{{address: 198.51.100.40, ports: {{http: {port}}}, serviceAccount: web}}]\n---\n\
             apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}}}\nspec: {{host: {name}.lab.test, trafficPolicy: {{tls: {{mode: ISTIO_MUTUAL}}}}}}\n"
        )
    };
    let cases = [
        ("good", ours.leaf("good", expected, NOW[0], NOW[1])?, 9201, &[][..]),
        ("expired", ours.leaf("expired", expected, PAST[0], PAST[1])?, 9202, &["expired"]),
        ("foreign", theirs.leaf("foreign", expected, NOW[0], NOW[1])?, 9203, &[expected]),
        ("other", ours.leaf("other", SPIFFE, NOW[0], NOW[1])?, 9204, &[expected, SPIFFE]),
    ];
    let mut objects = vec![client.document(""), ours.secret(&lab)?];
    let mut servers = Vec::new();
    for (name, [crt, key], port, _) in &cases {
        objects.push(entry(name, *port));
        let accept = format!("198.51.100.40:{port}");
        let args = [
            "s_server",
            "-accept",
            &accept,
            "-cert",
            crt,
            "-key",
            key,
            "-www",
            "-alpn",
            "istio",
            "-Verify",
            "1",
            "-verify_return_error",
        ];
        servers.push(lab.serve(name, "openssl", &[&args[..], &["-CAfile", &ours.path("ca-cert.pem")]].concat())?);
        until("openssl to listen", Duration::from_secs(5), || lab.outside().connect(accept.parse().ok()?).ok())?;
    }
    lab.write("mesh.yaml", &documents(&objects))?;
    let agent = Agent::start(&lab)?;
    for (name, _, _, words) in &cases {
        let reply = client.curl(&[
            "--resolve",
            &format!("{name}.lab.test:80:192.0.2.1"),
            &format!("http://{name}.lab.test/{name}"),
        ])?;
        if words.is_empty() {
            assert_eq!(reply.status, 200, "{reply:?}\n{}\n{}", agent.stdout(), agent.stderr());
            continue;
        }
        assert_eq!(reply.status, 503, "{name}: {reply:?}");
        let line = agent.log_line(&format!("GET /{name} "))?;
        assert!(line.contains("TLS_error") && words.iter().all(|word| line.contains(word)), "{words:?}: {line}");
    }
    Ok(())
}

/// The authority changes under running traffic: no request fails, and the new one counts.
#[test]
fn the_root_rotates_without_a_failed_request() -> Result<()> {
    let lab = Lab::new()?;
    let (client, inside) = (lab.pod("client")?, lab.pod("inside")?);
    let _backends = lab.backends_in(&inside.netns, &[("inside", "0.0.0.0:8080")])?;
    lab.write(
        "mesh.yaml",
        &documents(&[client.document(""), web(&inside), service(&format!("clusterIP: {ADDRESS}"))]),
    )?;
    let agent = Agent::start(&lab)?;
    let serial = || -> Result<String> {
        let (_, table, _) = agent.egret(&["pc", "secret", "client"])?;
        let row = table.lines().find(|row| row.starts_with("ROOTCA")).context(table.clone())?;
        Ok(row.split_whitespace().nth(4).unwrap_or_default().to_owned())
    };
    let first = serial()?;
    assert_eq!(get(&client, NAME, "/before")?.status, 200, "{}\n{}", agent.stdout(), agent.stderr());
    let authority = Authority::new(&lab, "next")?;
    lab.write("cacerts.yaml", &authority.secret(&lab)?)?;
    let mut changed = false;
    for turn in 0..30 {
        let reply = get(&client, NAME, &format!("/turn-{turn}"))?;
        assert_eq!(reply.status, 200, "turn {turn}: {reply:?}\n{}\n{}", agent.stdout(), agent.stderr());
        changed |= serial()? != first;
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(changed, "the new root never came into force: {}", agent.stderr());
    Ok(())
}
