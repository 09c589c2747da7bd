//! Whatever the objects are: nothing panics, lookups agree with a slow and obvious oracle, and no plain text leaves for
//! a host with a TLS rule.

use rand::{RngExt as _, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::*;

pub const HOSTS: &[&str] = &["a.com", "b.a.com", "c.b.a.com", "*.a.com", "*.b.a.com", "*.com", "*", "d.org"];
pub const NAMESPACES: &[&str] = &["n1", "n2", "istio-system"];
pub const PROTOCOLS: &[&str] = &["HTTP", "HTTPS", "TCP", "TLS", "GRPC"];

pub fn one<'a>(random: &mut StdRng, list: &[&'a str]) -> &'a str {
    list.choose(random).copied().unwrap_or_default()
}

#[test]
fn host_maps_agree_with_an_oracle() {
    let mut random = StdRng::seed_from_u64(1);
    for round in 0..2_000 {
        let label = |random: &mut StdRng| one(random, &["a", "b", "B", "com", ""]).to_owned();
        let name = |random: &mut StdRng| {
            let count = random.random_range(1..5);
            (0..count).map(|_| label(random)).collect::<Vec<_>>().join(".")
        };
        let mut map = HostMap::default();
        let mut patterns = Vec::new();
        for _ in 0..random.random_range(0..6) {
            let base = name(&mut random);
            let pattern = match random.random_range(0..4) {
                0 => "*".to_owned(),
                1 => format!("*.{base}"),
                _ => base,
            };
            map.insert(&pattern, pattern.clone());
            patterns.push(pattern);
        }
        let asked = name(&mut random);
        let lower = |name: &str| name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let wanted = lower(&asked);
        let rank = |pattern: &String| {
            let pattern = lower(pattern);
            match pattern.strip_prefix('*') {
                None => (pattern == wanted).then_some(usize::MAX),
                Some("") => Some(0),
                Some(suffix) => (wanted.len() > suffix.len() && wanted.ends_with(suffix)).then_some(suffix.len()),
            }
        };
        let best = patterns.iter().filter_map(rank).max();
        let got = map.get(&asked).map(|pattern| rank(pattern).expect("it matches"));
        assert_eq!(got, best, "round {round}: {asked} in {patterns:?}");
    }
}

#[test]
fn address_maps_agree_with_an_oracle() {
    let mut random = StdRng::seed_from_u64(2);
    for _ in 0..2_000 {
        let mut map = AddressMap::default();
        let mut all: Vec<ipnet::IpNet> = Vec::new();
        for _ in 0..random.random_range(0..8) {
            let address = std::net::Ipv4Addr::from(random.random_range(0u32..256) << 24 >> random.random_range(0..8));
            let network = ipnet::Ipv4Net::new(address, random.random_range(0..=32)).unwrap().trunc().into();
            assert_eq!(map.insert_new(network, network), !all.contains(&network));
            all.push(network);
        }
        let address = IpAddr::V4(std::net::Ipv4Addr::from(random.random_range(0u32..256) << 24));
        let best = all.iter().filter(|net| net.contains(&address)).map(ipnet::IpNet::prefix_len).max();
        assert_eq!(map.get(address).map(ipnet::IpNet::prefix_len), best);
    }
}

#[test]
fn no_plain_text_leaves_for_a_host_with_a_rule() {
    let mut random = StdRng::seed_from_u64(3);
    let quote = |host: &str| format!("'{host}'");
    for round in 0..150 {
        let mut text = NAMESPACES.iter().map(|namespace| pod(namespace, "p", "{app: x}")).collect::<String>();
        text += &pod("n1", "q", "{app: y}");
        for index in 0..random.random_range(0..5) {
            let port = if random.random_bool(0.7) { 80 } else { 81 };
            let spec = format!(
                "{{hosts: [{}], ports: [{{number: {port}, name: p, protocol: {}}}], resolution: NONE{}}}",
                quote(one(&mut random, HOSTS)),
                one(&mut random, PROTOCOLS),
                one(&mut random, &["", ", addresses: [10.0.0.0/8]", ", addresses: [10.0.0.1]", ", exportTo: ['.']"]),
            );
            text += &entry(one(&mut random, NAMESPACES), &format!("e{index}"), &spec);
        }
        for index in 0..random.random_range(0..5) {
            let tls = one(
                &mut random,
                &["{mode: SIMPLE}", "{mode: DISABLE}", "{mode: MUTUAL, credentialName: c}", "{mode: ISTIO_MUTUAL}"],
            );
            let policy = match random.random_range(0..4) {
                0 => format!("portLevelSettings: [{{port: {{number: 80}}, tls: {tls}}}]"),
                _ => format!("tls: {tls}"),
            };
            let spec = format!(
                "{{host: {}, trafficPolicy: {{{policy}}}{}}}",
                quote(one(&mut random, HOSTS)),
                one(&mut random, &["", "", ", exportTo: ['.']", ", workloadSelector: {matchLabels: {app: x}}"]),
            );
            text += &rule(one(&mut random, NAMESPACES), &format!("r{index}"), &spec);
        }
        let parsed = parse_file(Arc::from(Path::new("t")), &text);
        let mut objects = Objects::default();
        parsed.objects.into_iter().for_each(|object| objects.insert(object));
        let mesh = compile(&objects, &PodAddresses::new());
        for workload in mesh.workloads.values() {
            for host in ["a.com", "b.a.com", "c.b.a.com", "x.com", "d.org", "10.0.0.1", ""] {
                for address in ["10.0.0.1:80", "10.0.0.2:81", "9.9.9.9:80", "9.9.9.9:82"] {
                    check(&objects, workload, dst(address), host, round);
                    let _ = workload.outbound.tls(dst(address), Some(host));
                    let _ = workload.outbound.tcp(dst(address));
                    let _ = workload.outbound.first_bytes(dst(address));
                }
            }
        }
    }
}

/// By the rules of the client's own namespace alone, which decide wherever one of them matches: the most specific host's
/// rules, those whose selector matches before the others.
pub fn check(objects: &Objects, workload: &Workload, dst: SocketAddr, host: &str, round: usize) {
    let own = objects.destination_rules.values().filter(|rule| rule.meta.namespace == workload.id.namespace);
    let matching: Vec<_> = own.filter(|rule| covers(&rule.spec.host, host)).collect();
    let rank = |pattern: &str| if pattern.contains('*') { pattern.len() } else { usize::MAX };
    let Some(best) = matching.iter().map(|rule| rank(&rule.spec.host)).max() else { return };
    let best: Vec<_> = matching.into_iter().filter(|rule| rank(&rule.spec.host) == best).collect();
    let selects = |rule: &&Arc<crate::api::Object<crate::api::istio::DestinationRule>>| {
        let selector = rule.spec.workload_selector.as_ref();
        selector.is_some_and(|selector| selector.iter().all(|(key, value)| workload.labels.get(key) == Some(value)))
    };
    let chosen = best.iter().copied().find(selects);
    let Some(rule) = chosen.or_else(|| best.iter().copied().find(|rule| rule.spec.workload_selector.is_none())) else {
        return;
    };
    let Some(policy) = &rule.spec.traffic_policy else { return };
    let level = policy.port_level_settings.iter().find(|(port, _)| *port == dst.port());
    let tls = level.map_or(policy.tls.as_ref(), |(_, level)| level.tls.as_ref());
    let wants = tls.is_some_and(|tls| tls.mode != crate::api::istio::TlsMode::Disable);
    let decision = workload.outbound.http(dst, host).decision();
    let plain = match &decision {
        Decision::Cluster(cluster) => !cluster.tls.encrypts() && cluster.protocol != Protocol::Tcp,
        Decision::Passthrough => true,
        Decision::Block | Decision::Refuse(_) | Decision::Route(_) => false,
    };
    assert!(!(wants && plain), "round {round}: {} to {host} at {dst}: {decision:?} under {}", workload.id, rule.id);
}
