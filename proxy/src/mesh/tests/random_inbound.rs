//! Whatever PeerAuthentications, Sidecars and Gateways say: nothing panics, no port of a pod is more open than a slow and
//! obvious oracle has it, and no gateway server asks less of its clients than is written.

use rand::{RngExt as _, SeedableRng, rngs::StdRng};

use super::{
    random::{HOSTS, one},
    *,
};

const MODES: &[&str] = &["STRICT", "PERMISSIVE", "DISABLE", "UNSET"];
const PORTS: &[u16] = &[80, 8080, 9080];
const TLS: &[&str] = &[
    "",
    "{mode: SIMPLE, credentialName: pair}",
    "{mode: MUTUAL, credentialName: pair}",
    "{mode: MUTUAL, credentialName: both}",
    "{mode: OPTIONAL_MUTUAL, credentialName: both}",
    "{mode: MUTUAL, credentialName: none}",
    "{mode: MUTUAL, serverCertificate: /nowhere/a, privateKey: /nowhere/b, caCertificates: /nowhere/c}",
    "{mode: SIMPLE, credentialName: pair, minProtocolVersion: TLSV1_3, maxProtocolVersion: TLSV1_2}",
    "{mode: SIMPLE, credentialName: pair, cipherSuites: [ECDHE-RSA-AES128-GCM-SHA256]}",
    "{mode: MUTUAL, credentialNames: [pair, both], subjectAltNames: [x], verifyCertificateHash: [zz]}",
];

/// Every document that is refused by itself is left out, as in the agent.
fn lenient(yaml: &str) -> Mesh {
    let mut objects = Objects::default();
    let parsed = parse_file(Arc::from(Path::new("test.yaml")), yaml);
    parsed.objects.into_iter().for_each(|object| objects.insert(object));
    compile(&objects, &PodAddresses::new())
}

fn document(kind: &str, namespace: &str, name: &str, spec: &str) -> String {
    let group = if kind == "PeerAuthentication" { "security" } else { "networking" };
    format!(
        "---\napiVersion: {group}.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

/// One level of PeerAuthentication: its mode, and those of ports.
#[derive(Default)]
struct Level {
    mode: Option<&'static str>,
    ports: Vec<(u16, &'static str)>,
}

impl Level {
    fn random(random: &mut StdRng, ports: bool) -> Self {
        let mode = random.random_bool(0.8).then(|| one(random, MODES));
        let given = PORTS.iter().filter(|_| ports && random.random_bool(0.4)).copied().collect::<Vec<_>>();
        Self { mode, ports: given.into_iter().map(|port| (port, one(random, MODES))).collect() }
    }

    fn spec(&self, selector: &str) -> String {
        let mut spec = vec![selector.to_owned()];
        spec.extend(self.mode.map(|mode| format!("mtls: {{mode: {mode}}}")));
        if !self.ports.is_empty() {
            let ports: Vec<_> = self.ports.iter().map(|(port, mode)| format!("{port}: {{mode: {mode}}}")).collect();
            spec.push(format!("portLevelMtls: {{{}}}", ports.join(", ")));
        }
        spec.retain(|part| !part.is_empty());
        format!("{{{}}}", spec.join(", "))
    }
}

/// The first of these that says something.
fn effective(port: u16, levels: [Option<&Level>; 3]) -> &'static str {
    let [own, namespace, mesh] = levels;
    let of_port = own.and_then(|own| own.ports.iter().find(|(number, _)| *number == port)).map(|(_, mode)| *mode);
    let modes = [own, namespace, mesh].map(|level| level.and_then(|level| level.mode));
    let said = std::iter::once(of_port).chain(modes).flatten().find(|mode| *mode != "UNSET");
    said.unwrap_or("PERMISSIVE")
}

#[test]
fn no_port_is_more_open_than_what_is_written() {
    let mut random = StdRng::seed_from_u64(5);
    let (mut strict, mut ended, mut refused) = (0, 0, 0);
    for round in 0..1_500 {
        let mut level = |ports| random.random_bool(0.6).then(|| Level::random(&mut random, ports));
        let (own, namespace, mesh) = (level(true), level(false), level(false));
        let mut text = pod("shop", "web", "{app: web}");
        text += &secret("shop", "pair", &["tls.crt", "tls.key"]);
        text += &secret("shop", "both", &["tls.crt", "tls.key", "ca.crt"]);
        for (level, namespace, selector) in [
            (&own, "shop", "selector: {matchLabels: {app: web}}"),
            (&namespace, "shop", ""),
            (&mesh, "istio-system", ""),
        ] {
            if let Some(level) = level {
                let name = if selector.is_empty() { "all" } else { "own" };
                text += &document("PeerAuthentication", namespace, name, &level.spec(selector));
            }
        }
        // What is about others.
        let stranger = Level::random(&mut random, true);
        text += &document("PeerAuthentication", "shop", "a", &stranger.spec("selector: {matchLabels: {app: x}}"));
        text += &document("PeerAuthentication", "other", "a", &stranger.spec("selector: {matchLabels: {app: web}}"));
        let mut ingress = Vec::new();
        for port in PORTS {
            if random.random_bool(0.5) {
                continue;
            }
            let tls = one(&mut random, TLS);
            let protocol = one(&mut random, &["HTTP", "HTTPS", "TCP", "TLS"]);
            let field = if tls.is_empty() { String::new() } else { format!(", tls: {tls}") };
            let end = one(&mut random, &["", ", defaultEndpoint: '127.0.0.1:80'", ", defaultEndpoint: '0.0.0.0:8080'"]);
            ingress.push((
                *port,
                tls,
                format!("{{port: {{number: {port}, protocol: {protocol}, name: a}}{field}{end}}}"),
            ));
        }
        let listeners: Vec<_> = ingress.iter().map(|(_, _, text)| text.as_str()).collect();
        let spec = format!("{{ingress: [{}]}}", listeners.join(", "));
        let own_sidecar = document("Sidecar", "shop", "web", &spec);
        let counts = parse_file(Arc::from(Path::new("test.yaml")), &own_sidecar).refused.is_empty();
        let mesh_made = lenient(&(text + &own_sidecar));
        let (_, workload) = mesh_made.workloads.iter().next().unwrap();
        let table = workload.inbound.as_ref().unwrap();
        for port in PORTS.iter().copied().chain([1234]) {
            let want = effective(port, [own.as_ref(), namespace.as_ref(), mesh.as_ref()]);
            let got = table.modes.of(port);
            assert_eq!(got.name(), want, "round {round}: {port} of {spec}");
            assert!(got != MtlsMode::Strict || table.fail_closed(), "round {round}");
            strict += usize::from(got == MtlsMode::Strict);
            let written = ingress.iter().find(|(number, ..)| counts && *number == port).map(|(_, tls, _)| *tls);
            let written = written.filter(|tls| !tls.is_empty() && got == MtlsMode::Disable);
            match (written, &table.port(port).tls) {
                (None, None) => {}
                (Some(_), Some(DownstreamTls::Refuse(_))) => refused += 1,
                (Some(written), Some(DownstreamTls::Terminate(settings))) => {
                    asks_what_is_written(written, &settings.clients);
                    assert!(table.fail_closed(), "round {round}");
                    ended += 1;
                }
                other => panic!("round {round}: {port} of {spec}: {other:?}"),
            }
        }
    }
    assert!(strict > 200 && ended > 50 && refused > 50, "{strict} {ended} {refused}");
}

fn asks_what_is_written(written: &str, clients: &ClientCertificates) {
    let same = match clients {
        ClientCertificates::None => written.contains("mode: SIMPLE"),
        ClientCertificates::Optional(_) => written.contains("mode: OPTIONAL_MUTUAL"),
        ClientCertificates::Required(_) => written.contains("mode: MUTUAL"),
    };
    assert!(same, "{written}: {clients:?}");
}

#[test]
fn no_gateway_server_asks_less_than_what_is_written() {
    let mut random = StdRng::seed_from_u64(6);
    let (mut ended, mut refused) = (0, 0);
    for round in 0..400 {
        let mut text = pod("shop", "gw", "{gw: a}");
        text += &secret("shop", "pair", &["tls.crt", "tls.key"]);
        text += &secret("shop", "both", &["tls.crt", "tls.key", "ca.crt"]);
        text += &entry("shop", "e", &format!("{{hosts: [a.com, b.a.com], {HTTP}}}"));
        let mut written = Vec::new();
        for gateway in 0..random.random_range(1..3) {
            let mut servers = Vec::new();
            for index in 0..random.random_range(1..4) {
                let passing = ["{mode: PASSTHROUGH}", "{mode: AUTO_PASSTHROUGH}", "{mode: ISTIO_MUTUAL}", ""];
                let tls = if random.random_bool(0.2) { one(&mut random, &passing) } else { one(&mut random, TLS) };
                let host = one(&mut random, HOSTS);
                let within = one(&mut random, &["", "", "shop/", "./", "*/", "other/"]);
                let (number, protocol) = (one(&mut random, &["443", "8443"]), one(&mut random, &["HTTPS", "TLS"]));
                let field = if tls.is_empty() { String::new() } else { format!(", tls: {tls}") };
                servers.push(format!(
                    "{{port: {{number: {number}, name: p{index}, protocol: {protocol}}}, hosts: ['{within}{host}']{field}}}"
                ));
                written.push((format!(".{number}.p{index}.g{gateway}.shop"), tls));
            }
            let spec = format!("{{selector: {{gw: a}}, servers: [{}]}}", servers.join(", "));
            text += &document("Gateway", "shop", &format!("g{gateway}"), &spec);
        }
        text += &document(
            "VirtualService",
            "shop",
            "v",
            "{hosts: ['*.a.com', a.com], gateways: [g0, g1], http: [{route: [{destination: {host: a.com}}]}], tls: [{match: [{sniHosts: [b.a.com]}], route: [{destination: {host: b.a.com, port: {number: 80}}}]}]}",
        );
        let mesh = lenient(&text);
        let (_, workload) = mesh.workloads.iter().next().unwrap();
        for (id, listener) in workload.gateway.iter().flat_map(|table| &table.listeners) {
            let Servers::Tls(servers) = &listener.serves else { continue };
            for server in servers.values() {
                let found = written.iter().find(|(name, _)| server.name.contains(name.as_str()));
                let (_, tls) = found.unwrap_or_else(|| panic!("round {round}: {id:?} {}: {written:?}", server.name));
                match &server.tls {
                    DownstreamTls::Terminate(settings) => {
                        asks_what_is_written(tls, &settings.clients);
                        ended += 1;
                    }
                    DownstreamTls::IstioMutual => assert!(tls.contains("ISTIO_MUTUAL"), "round {round}: {tls}"),
                    DownstreamTls::Passthrough => assert!(tls.contains("PASSTHROUGH"), "round {round}: {tls}"),
                    DownstreamTls::Refuse(_) => refused += 1,
                }
            }
        }
    }
    assert!(ended > 50 && refused > 50, "{ended} {refused}");
}
