//! Whatever VirtualServices, Gateways and HTTPRoutes say beside services and rules: compiling ends and ends the same, a
//! table in layers answers as one built whole, routes lead to clusters of their own table, and no route sends a host that
//! a rule guards to that host in plain text.

use std::{collections::BTreeMap, fmt::Write as _};

use rand::{RngExt as _, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::*;
use crate::{
    api::istio::TlsMode,
    mesh::{
        authorization::Authorization,
        clusters::{HolderId, HolderOf, Workshop},
        enrol, gateway_api,
        gateways::Gateways,
        peer_authentications::PeerAuthentications,
        peers::Peers,
        registry::Registry,
        rules::{Client, Rules},
        view::{Scope, Selection},
        virtual_services::VirtualServices,
        volumes::Volumes,
    },
};

const HOSTS: &[&str] =
    &["a.com", "b.a.com", "c.b.a.com", "*.a.com", "*.b.a.com", "d.org", "web.n1.svc.cluster.local", "web"];
const NAMES: &[&str] = &["a.com", "b.a.com", "c.b.a.com", "x.com", "d.org", "web.n1", "web", "10.0.0.1", ""];
const ADDRESSES: &[&str] = &["10.0.0.1:80", "10.0.0.2:81", "9.9.9.9:80", "9.9.9.9:82", "10.0.0.1:443", "10.0.0.1:81"];
const NAMESPACES: &[&str] = &["n1", "n2", "istio-system"];
const PORTS: &[&str] = &["80", "80", "81", "443"];

struct Dice(StdRng);

impl Dice {
    fn one<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list.choose(&mut self.0).copied().unwrap_or_default()
    }

    fn chance(&mut self, share: f64) -> bool {
        self.0.random_bool(share)
    }

    /// One of the texts, or nothing.
    fn maybe(&mut self, share: f64, list: &[&str]) -> String {
        if self.chance(share) { self.one(list).to_owned() } else { String::new() }
    }

    fn list(&mut self, most: usize, mut item: impl FnMut(&mut Self) -> String) -> String {
        let items: Vec<String> = (0..self.0.random_range(1..=most)).map(|_| item(self)).collect();
        format!("[{}]", items.join(", "))
    }

    fn hosts(&mut self) -> String {
        self.list(2, |dice| format!("'{}'", dice.one(HOSTS)))
    }

    fn gateways(&mut self) -> String {
        self.one(&[
            "",
            "",
            "gateways: [mesh], ",
            "gateways: [n1/gw], ",
            "gateways: [mesh, n1/gw], ",
            "gateways: [gw], ",
        ])
        .to_owned()
    }

    fn sources(&mut self) -> String {
        self.maybe(0.3, &["sourceLabels: {app: x}, ", "sourceLabels: {app: y}, ", "sourceNamespace: n2, "])
            + &self.maybe(0.2, &["port: 80, ", "port: 81, ", "gateways: [mesh], ", "gateways: [n1/gw], "])
    }

    fn destination(&mut self) -> String {
        let host = self.one(&["a.com", "b.a.com", "c.b.a.com", "d.org", "web", "web.n1.svc.cluster.local"]);
        let subset = self.maybe(0.3, &[", subset: v1", ", subset: own"]);
        let port = if self.chance(0.5) { format!(", port: {{number: {}}}", self.one(PORTS)) } else { String::new() };
        format!("destination: {{host: {host}{subset}{port}}}")
    }

    fn http(&mut self) -> String {
        let matches = self.maybe(0.7, &["x"]).len();
        let mut text = String::from("{");
        if matches > 0 {
            let given = self.list(2, |dice| {
                let path = dice.maybe(0.7, &["uri: {prefix: /a}, ", "uri: {regex: '/b.*'}, ", "uri: {exact: /c}, "]);
                format!("{{{path}{}headers: {{x-a: {{exact: v}}}}}}", dice.sources())
            });
            write!(text, "match: {given}, ").unwrap();
        }
        match self.0.random_range(0..12) {
            0 => text += "redirect: {uri: /x}",
            1 => text += "directResponse: {status: 418}",
            2 => text += "delegate: {name: delegate, namespace: n1}",
            _ => {
                let rewrite =
                    ["rewrite: {uri: /z}, ", "rewrite: {authority: b.a.com}, ", "rewrite: {authority: a.com}, "];
                text += &self.maybe(0.3, &rewrite);
                text += &self.maybe(0.2, &["headers: {request: {set: {host: c.b.a.com}}}, "]);
                if self.chance(0.2) {
                    let to = self.destination();
                    write!(text, "mirrors: [{{{to}}}], ").unwrap();
                }
                let route = self.list(3, |dice| {
                    let headers = dice.maybe(0.2, &[", headers: {request: {set: {host: b.a.com}}}"]);
                    format!("{{{}, weight: {}{headers}}}", dice.destination(), dice.one(&["0", "1", "50"]))
                });
                write!(text, "route: {route}").unwrap();
            }
        }
        text + "}"
    }

    fn virtual_service(&mut self, index: usize) -> String {
        let mut spec = format!("hosts: {}, {}", self.hosts(), self.gateways());
        spec += &self.maybe(0.2, &["exportTo: ['.'], ", "exportTo: [n2], "]);
        if self.chance(0.8) {
            let http = self.list(3, Self::http);
            write!(spec, "http: {http}, ").unwrap();
        }
        if self.chance(0.3) {
            let tcp = self.list(2, |dice| {
                let net = dice.maybe(0.5, &["destinationSubnets: [10.0.0.0/8], ", "destinationSubnets: [10.0.0.1], "]);
                format!("{{match: [{{{net}{}}}], route: [{{{}}}]}}", dice.sources(), dice.destination())
            });
            write!(spec, "tcp: {tcp}, ").unwrap();
        }
        if self.chance(0.3) {
            let sni = self.one(&["a.com", "b.a.com", "c.b.a.com"]);
            let tls = self.list(2, |dice| {
                format!("{{match: [{{{}sniHosts: [{sni}]}}], route: [{{{}}}]}}", dice.sources(), dice.destination())
            });
            write!(spec, "tls: {tls}").unwrap();
        }
        let namespace = self.one(NAMESPACES);
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: v{index}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
        )
    }

    fn service_entry(&mut self, index: usize) -> String {
        let ports = match self.0.random_range(0..3) {
            0 => "{number: 80, name: http, protocol: HTTP}, {number: 443, name: https, protocol: HTTPS}".to_owned(),
            1 => format!("{{number: 80, name: p, protocol: {}}}", self.one(&["HTTP", "TCP", "TLS", "GRPC"])),
            _ => "{number: 81, name: http, protocol: HTTP}, {number: 80, name: auto}".to_owned(),
        };
        let more = self.one(&["", "", ", addresses: [10.0.0.0/8]", ", addresses: [10.0.0.1]", ", exportTo: ['.']"]);
        let resolution = self.one(&[
            "NONE",
            "NONE",
            "DNS",
            "DYNAMIC_DNS",
            "STATIC, endpoints: [{address: 10.1.0.1, labels: {v: '1'}}, {address: 10.1.0.2}]",
        ]);
        let host = self.one(HOSTS);
        let spec = format!("{{hosts: ['{host}'], ports: [{ports}], resolution: {resolution}{more}}}");
        entry(self.one(NAMESPACES), &format!("e{index}"), &spec)
    }

    fn destination_rule(&mut self, index: usize) -> String {
        let tls = self.one(&[
            "{mode: SIMPLE}",
            "{mode: SIMPLE}",
            "{mode: DISABLE}",
            "{mode: MUTUAL, credentialName: c}",
            "{mode: ISTIO_MUTUAL}",
            "{mode: MUTUAL, clientCertificate: /etc/c, privateKey: /etc/k, caCertificates: /etc/ca}",
        ]);
        let policy = match self.0.random_range(0..4) {
            0 => format!("trafficPolicy: {{portLevelSettings: [{{port: {{number: 80}}, tls: {tls}}}]}}, "),
            1 => String::new(),
            _ => format!("trafficPolicy: {{tls: {tls}}}, "),
        };
        let subsets = "subsets: [{name: v1, labels: {v: '1'}}, {name: own, trafficPolicy: {tls: {mode: DISABLE}}}], ";
        let more = self.one(&["", "", "exportTo: ['.'], ", "workloadSelector: {matchLabels: {app: x}}, "]);
        let subsets = self.maybe(0.6, &[subsets]);
        let spec = format!("{{host: '{}', {policy}{subsets}{more}}}", self.one(HOSTS));
        rule(self.one(NAMESPACES), &format!("r{index}"), &spec)
    }

    fn gateway(&mut self) -> String {
        let mut servers = Vec::new();
        for port in [80, 81, 443, 444] {
            let hosts =
                self.list(2, |dice| format!("'{}'", dice.one(&["*", "*.a.com", "n1/a.com", "d.org", "b.a.com"])));
            let protocol = match port {
                443 => "protocol: HTTPS}, tls: {mode: ISTIO_MUTUAL}",
                444 => "protocol: TLS}, tls: {mode: ISTIO_MUTUAL}",
                _ => self.one(&["protocol: HTTP}", "protocol: HTTP}, tls: {httpsRedirect: true}", "protocol: TCP}"]),
            };
            servers.push(format!("{{hosts: {hosts}, port: {{number: {port}, name: p{port}, {protocol}}}"));
        }
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: gw, namespace: n1}}\nspec: {{selector: {{istio: gw}}, servers: [{}]}}\n",
            servers.join(", ")
        )
    }

    fn http_route(&mut self, index: usize) -> String {
        let parent = self.one(&[
            "{name: kube}",
            "{name: kube, namespace: n1}",
            "{group: '', kind: Service, name: web, port: 80}",
            "{group: networking.istio.io, kind: ServiceEntry, name: e0}",
            "{group: networking.istio.io, kind: ServiceEntry, name: e1}",
        ]);
        let hostnames = self.maybe(0.5, &["hostnames: [b.a.com], ", "hostnames: ['*.a.com'], "]);
        let filters = self.maybe(
            0.4,
            &[
                ", filters: [{type: URLRewrite, urlRewrite: {hostname: b.a.com}}]",
                ", filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: Host, value: a.com}]}}]",
            ],
        );
        let backends = self.list(3, |dice| {
            let name = dice.one(&["a.com", "b.a.com", "'*.a.com'", "'*.b.a.com'", "d.org"]);
            let filters = dice.maybe(
                0.3,
                &[
                    ", filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: Host, value: c.b.a.com}]}}]",
                ],
            );
            let port = dice.one(&["80", "81"]);
            format!("{{group: networking.istio.io, kind: Hostname, name: {name}, port: {port}{filters}}}")
        });
        let namespace = self.one(&["n1", "n2"]);
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: h{index}, namespace: {namespace}}}\nspec: {{parentRefs: [{parent}], {hostnames}rules: [{{backendRefs: {backends}{filters}}}]}}\n"
        )
    }

    fn world(&mut self) -> String {
        let mut text = String::from(WORLD);
        for namespace in NAMESPACES {
            text += &pod(namespace, "p", "{app: x}");
            text += &pod(namespace, "q", "{app: y}");
        }
        text += &self.maybe(0.3, &[REGISTRY_ONLY]);
        for index in 0..self.0.random_range(1..6) {
            text += &self.service_entry(index);
        }
        for index in 0..self.0.random_range(0..6) {
            text += &self.destination_rule(index);
        }
        for index in 0..self.0.random_range(0..6) {
            text += &self.virtual_service(index);
        }
        for index in 0..self.0.random_range(0..3) {
            text += &self.http_route(index);
        }
        text + &self.gateway()
    }
}

const REGISTRY_ONLY: &str = r#"---
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data: {mesh: "outboundTrafficPolicy: {mode: REGISTRY_ONLY}"}
"#;

/// Gateway pods (one of which another volume serves), a service inside, a delegate and a Gateway of the Gateway API.
const WORLD: &str = r#"---
apiVersion: v1
kind: Pod
metadata: {name: gw, namespace: n1, labels: {istio: gw, gateway.networking.k8s.io/gateway-name: kube}, annotations: {egret.dev/netns: gw1}}
spec:
  containers: [{name: c, volumeMounts: [{name: v, mountPath: /etc}]}]
  volumes: [{name: v, secret: {secretName: mounted}}]
---
apiVersion: v1
kind: Pod
metadata: {name: gw, namespace: n2, labels: {istio: gw, app: x}, annotations: {egret.dev/netns: gw2}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: n1}
spec: {clusterIP: 10.0.0.1, selector: {app: y}, ports: [{port: 80, name: http}, {port: 81, name: tcp}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: delegate, namespace: n1}
spec: {http: [{match: [{uri: {prefix: /a/b}}], route: [{destination: {host: b.a.com}}]}, {route: [{destination: {host: web}}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: kube, namespace: n1}
spec: {gatewayClassName: istio, listeners: [{name: web, port: 8000, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}]}
"#;

#[test]
fn tables_keep_their_promises() {
    let mut seen = Seen::default();
    for round in rounds() {
        let text = Dice(StdRng::seed_from_u64(round)).world();
        let parsed = parse_file(Arc::from(Path::new("t")), &text);
        let mut objects = Objects::default();
        parsed.objects.into_iter().for_each(|object| objects.insert(object));
        let mesh = compile(&objects, &addresses());
        let again = compile(&objects, &addresses());
        assert_eq!(said(&mesh), said(&again), "round {round}\n{text}");
        let whole = unshared(&objects);
        for (id, workload) in &mesh.workloads {
            let at = format!("round {round}, {id}");
            for host in NAMES {
                for address in ADDRESSES {
                    let dst = dst(address);
                    let answers = answers(&workload.outbound, dst, host);
                    let whole = &whole[id];
                    // Which of several sniffed services takes raw bytes without a name nobody can say.
                    let sniffed = |table: &Outbound| table.tcp_any(dst.port()).map(|any| any.protocol);
                    let sniffed = [&workload.outbound, whole].map(sniffed).contains(&Some(Protocol::Auto));
                    let count = if sniffed { 1 } else { answers.len() };
                    let wanted = self::answers(whole, dst, host);
                    assert_eq!(answers[..count], wanted[..count], "{at}: {host} at {dst}\n{text}");
                }
            }
            let gateway = |mesh: &Mesh| serde_json::to_value(&mesh.workloads[id].gateway).unwrap();
            assert_eq!(gateway(&mesh), gateway(&again), "{at}\n{text}");
            let promises = Promises { objects: &objects, workload, at: &at, text: &text };
            promises.outbound(&mut seen);
            promises.gateway(&mut seen);
        }
    }
    // What was never met was never tested.
    assert!(seen.wanted > 200 && seen.routes > 2_000 && seen.gateway_routes > 200 && seen.tunnels > 100, "{seen:?}");
}

/// `EGRET_TEST_ROUNDS=1000..9000` for a long run.
fn rounds() -> std::ops::Range<u64> {
    let given = std::env::var("EGRET_TEST_ROUNDS").ok();
    let given = given.as_deref().and_then(|given| given.split_once(".."));
    given.map_or(0..80, |(from, to)| from.parse().unwrap()..to.parse().unwrap())
}

fn addresses() -> PodAddresses {
    let pods = NAMESPACES.iter().flat_map(|namespace| ["p", "q", "gw"].map(|name| (namespace, name)));
    let id = |(namespace, name): (&&str, &str)| WorkloadId { namespace: (*namespace).into(), name: name.into() };
    let address = |at: usize| vec![IpAddr::from([10, 1, 0, u8::try_from(at).unwrap()])];
    pods.enumerate().map(|(at, pod)| (id(pod), address(at + 1))).collect()
}

fn said(mesh: &Mesh) -> Vec<String> {
    let statuses = mesh.statuses.iter().map(|status| format!("{status:?}"));
    mesh.diagnostics.iter().map(ToString::to_string).chain(statuses).collect()
}

/// Everything that the data path could be told, as text.
fn answers(table: &Outbound, dst: SocketAddr, host: &str) -> [String; 4] {
    // Of several rules that forbid the same, any may be named.
    let show = |decision: Decision| match decision {
        Decision::Refuse(_) => "refuse".to_owned(),
        other => format!("{other:?}"),
    };
    let http = match table.http(dst, host) {
        HttpDecision::Host(host) => serde_json::to_string(&host).unwrap(),
        HttpDecision::Unmatched(decision) => show(decision),
        HttpDecision::NotFound => "not found".to_owned(),
    };
    let (tls, tcp) = (show(table.tls(dst, Some(host))), show(table.tcp(dst)));
    [http, tls, tcp, format!("{:?}", table.first_bytes(dst))]
}

/// The table of each workload built as if it were alone: nothing shared with others of its namespace, no layers.
fn unshared(objects: &Objects) -> BTreeMap<WorkloadId, Outbound> {
    let mut findings = super::super::findings::Findings::default();
    let findings = &mut findings;
    let (objects, _) = gateway_api::convert(objects, findings);
    let config = enrol::mesh_config(&objects, findings);
    let settings = enrol::settings(config);
    let enrolled = enrol::enrolled(&objects, findings);
    let gateways = Gateways::new(&objects, &enrolled, findings);
    let addresses = addresses();
    let authentications = PeerAuthentications::new(&objects, &settings.root_namespace, findings);
    let peers = Peers::new(&enrolled, &gateways, &authentications, &addresses, &settings.trust_domain);
    let registry = Registry::new(&objects, &peers, findings);
    let rules = Rules::new(&objects);
    let services = VirtualServices::new(&objects, findings);
    let scope = Scope {
        registry: &registry,
        services: &services,
        root: &settings.root_namespace,
        policy: settings.outbound_policy,
    };
    let authorization = Authorization::new(&objects, &settings, findings);
    let auto_mtls = settings.auto_mtls && peers.any_captured();
    let mut tables = BTreeMap::new();
    for enrol::Enrolled { id, pod, .. } in enrolled {
        let mut workshop = Workshop::new(&objects, &rules, config, auto_mtls, &authorization, findings);
        let (namespace, labels) = (pod.meta.namespace.as_str(), &pod.meta.labels);
        let selected = rules.selected(namespace, labels);
        let client = Client { namespace, selected: &selected };
        let (volumes, _) = Volumes::new(pod, true);
        let holder = HolderOf { id: HolderId { namespace: 0, places: 0 }, namespace, volumes: &volumes };
        let selection = Selection::new(&mut workshop, scope, client);
        tables.insert(id, selection.table(&mut workshop, scope, (client, labels), holder, None).0);
    }
    tables
}

/// How often there was something to look at.
#[derive(Debug, Default)]
struct Seen {
    wanted: usize,
    routes: usize,
    gateway_routes: usize,
    tunnels: usize,
}

struct Promises<'a> {
    objects: &'a Objects,
    workload: &'a Workload,
    at: &'a str,
    text: &'a str,
}

impl Promises<'_> {
    fn outbound(&self, seen: &mut Seen) {
        let table = &self.workload.outbound;
        for cluster in table.all_clusters() {
            seen.wanted += usize::from(self.wants(&cluster.host, cluster.port));
            if cluster.host.contains('.') {
                self.encrypted(cluster, &cluster.host);
            }
        }
        let own = |cluster: &Arc<Cluster>| {
            let known = table.cluster(&cluster.name);
            assert!(known.is_some_and(|known| Arc::ptr_eq(known, cluster)), "{}: {cluster:?}\n{}", self.at, self.text);
        };
        for host in NAMES {
            for address in ADDRESSES {
                let dst = dst(address);
                if let HttpDecision::Host(found) = table.http(dst, host) {
                    found.clusters().for_each(own);
                    found.routes.iter().for_each(|route| self.route(route, host));
                    seen.routes += found.routes.len();
                }
                for decision in [table.tls(dst, Some(host)), table.tcp(dst)] {
                    match decision {
                        Decision::Cluster(cluster) => own(&cluster),
                        Decision::Route(route) => {
                            seen.tunnels += 1;
                            route.destinations.iter().filter_map(|(to, _)| to.known()).for_each(own);
                        }
                        _ => {}
                    }
                }
            }
        }
    }

    fn gateway(&self, seen: &mut Seen) {
        let Some(gateway) = &self.workload.gateway else { return };
        for cluster in gateway.clusters() {
            let own = self.workload.outbound.cluster(&cluster.name).expect("a cluster that the pod sees");
            assert_eq!((&own.tls, &own.host), (&cluster.tls, &cluster.host), "{}\n{}", self.at, self.text);
            self.encrypted(cluster, &cluster.host);
        }
        for (id, listener) in &gateway.listeners {
            let servers: Vec<_> = match &listener.serves {
                Servers::Tls(servers) => servers.values().map(|server| Some(&*server.name)).collect(),
                _ => vec![None],
            };
            for server in servers {
                for host in NAMES {
                    let HttpDecision::Host(found) = self.workload.at_gateway(*id, server, host) else { continue };
                    seen.gateway_routes += found.routes.len();
                    found.routes.iter().for_each(|route| self.route(route, host));
                }
            }
        }
    }

    /// A request for `host` that takes this route.
    fn route(&self, route: &Route, host: &str) {
        let Action::Forward(forward) = &route.action else { return };
        let written = |rules: &HeaderRules| {
            let host = rules.set.iter().chain(&rules.add).find(|(name, _)| *name == http::header::HOST);
            host.map(|(_, value)| value.to_str().unwrap().to_owned())
        };
        let whole = forward.rewrite_authority.clone().or_else(|| written(&route.request_headers));
        for to in &forward.destinations {
            let name = whole.clone().or_else(|| written(&to.request_headers)).unwrap_or_else(|| host.to_owned());
            to.cluster.known().into_iter().for_each(|cluster| self.encrypted(cluster, &name));
            let mirrored = forward.mirrors.iter().filter_map(|mirror| mirror.cluster.known());
            mirrored.for_each(|cluster| self.encrypted(cluster, &name));
        }
    }

    /// What goes to `cluster` by the name of `host`, which is the cluster's own.
    fn encrypted(&self, cluster: &Cluster, host: &str) {
        // A subset that says otherwise is believed.
        if !covers(&cluster.host, host) || cluster.subset == "own" {
            return;
        }
        let fine = cluster.tls.encrypts() || !self.wants(host, cluster.port);
        assert!(fine, "{}: {host} to {} in plain text\n{}", self.at, cluster.name, self.text);
    }

    /// By the rules of the workload's own namespace alone, which decide wherever one of them matches: the most specific
    /// host's, those whose selector matches before the others; of equals the first that has a policy.
    fn wants(&self, host: &str, port: u16) -> bool {
        let namespace = &self.workload.id.namespace;
        let own = self.objects.destination_rules.values().filter(|rule| rule.meta.namespace == *namespace);
        let full = |name: &str| match name {
            "web" => format!("web.{namespace}.svc.cluster.local"),
            name => name.to_owned(),
        };
        // A rule for `web` is for the Service of that name, and nothing else of that name gets plain text either.
        let host = full(host);
        let matching: Vec<_> = own.filter(|rule| covers(&full(&rule.spec.host), &host)).collect();
        let rank = |pattern: &str| if pattern.contains('*') { pattern.len() } else { usize::MAX };
        let Some(best) = matching.iter().map(|rule| rank(&rule.spec.host)).max() else { return false };
        let best: Vec<_> = matching.into_iter().filter(|rule| rank(&rule.spec.host) == best).collect();
        let held = |wanted: &BTreeMap<String, String>| {
            wanted.iter().all(|(key, value)| self.workload.labels.get(key) == Some(value))
        };
        let selecting = best.iter().filter(|rule| rule.spec.workload_selector.as_ref().is_some_and(held));
        let selecting: Vec<_> = selecting.collect();
        let counting: Vec<_> = match selecting.is_empty() {
            true => best.iter().filter(|rule| rule.spec.workload_selector.is_none()).collect(),
            false => selecting,
        };
        let Some(policy) = counting.iter().find_map(|rule| rule.spec.traffic_policy.as_ref()) else { return false };
        let level = policy.port_level_settings.iter().find(|(number, _)| *number == port);
        let tls = level.map_or(policy.tls.as_ref(), |(_, level)| level.tls.as_ref());
        tls.is_some_and(|tls| tls.mode != TlsMode::Disable)
    }
}
