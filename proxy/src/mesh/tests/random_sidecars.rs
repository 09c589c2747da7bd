//! Whatever a Sidecar imports: what it leaves is as if nothing else were there, and no guard is weaker for it.

use rand::{RngExt as _, SeedableRng, rngs::StdRng};

use super::{
    random::{HOSTS, NAMESPACES, PROTOCOLS, check, one},
    *,
};

const IMPORTS: &[&str] = &[
    "*/*",
    "./*",
    "~/*",
    "n1/*",
    "n2/*",
    "*/a.com",
    "n2/*.a.com",
    "*/*.com",
    "./b.a.com",
    "istio-system/*",
    "*/d.org",
];

/// Whether `a.com` of a namespace is imported by some of these hosts, in an obvious way.
fn imported(hosts: &[&str], client: &str, namespace: &str, host: &str) -> bool {
    hosts.iter().any(|import| {
        let (within, pattern) = import.split_once('/').unwrap();
        let within = if within == "." { client } else { within };
        (within == "*" || within == namespace) && covers(pattern, host)
    })
}

#[test]
fn what_is_not_imported_is_as_if_it_were_not_there_but_stays_guarded() {
    let mut random = StdRng::seed_from_u64(4);
    let (mut clusters, mut refused, mut passed) = (0, 0, 0);
    for round in 0..300 {
        let imports: Vec<&str> = (0..random.random_range(1..3)).map(|_| one(&mut random, IMPORTS)).collect();
        let mut others = pod("n1", "p", "{app: x}") + &pod("n1", "q", "{app: y}");
        let mut entries = Vec::new();
        for index in 0..random.random_range(1..7) {
            let port = if random.random_bool(0.7) { 80 } else { 81 };
            let (namespace, host) = (one(&mut random, NAMESPACES), one(&mut random, HOSTS));
            // Refused where it is read.
            let host = if host == "*" { "d.org" } else { host };
            let spec = format!(
                "{{hosts: ['{host}'], ports: [{{number: {port}, name: p, protocol: {}}}], resolution: NONE{}}}",
                one(&mut random, PROTOCOLS),
                one(&mut random, &["", ", addresses: [10.0.0.0/8]", ", addresses: [10.0.0.1]", ", exportTo: ['.']"]),
            );
            entries.push((imported(&imports, "n1", namespace, host), entry(namespace, &format!("e{index}"), &spec)));
        }
        for index in 0..random.random_range(0..4) {
            let tls = one(&mut random, &["{mode: SIMPLE}", "{mode: DISABLE}", "{mode: ISTIO_MUTUAL}"]);
            let policy = match random.random_range(0..4) {
                0 => format!("portLevelSettings: [{{port: {{number: 80}}, tls: {tls}}}]"),
                _ => format!("tls: {tls}"),
            };
            let spec = format!(
                "{{host: '{}', trafficPolicy: {{{policy}}}{}}}",
                one(&mut random, HOSTS),
                one(&mut random, &["", "", ", exportTo: ['.']", ", workloadSelector: {matchLabels: {app: x}}"]),
            );
            others += &rule(one(&mut random, NAMESPACES), &format!("r{index}"), &spec);
        }
        let all: String = entries.iter().map(|(_, text)| text.as_str()).collect();
        let left: String = entries.iter().filter(|(left, _)| *left).map(|(_, text)| text.as_str()).collect();
        let quoted: Vec<String> = imports.iter().map(|host| format!("'{host}'")).collect();
        let own = sidecar("n1", "s", &format!("{{egress: [{{hosts: [{}]}}]}}", quoted.join(", ")));
        let parsed = objects(&(all.clone() + &others + &own));
        let under = compile(&parsed, &PodAddresses::new());
        let open = mesh(&(all + &others));
        let oracle = mesh(&(left + &others));
        for (id, workload) in &under.workloads {
            let tables = [&open.workloads[id], &oracle.workloads[id]].map(|workload| &workload.outbound);
            for host in ["a.com", "b.a.com", "c.b.a.com", "x.com", "d.org", "10.0.0.1", ""] {
                for address in ["10.0.0.1:80", "10.0.0.2:81", "9.9.9.9:80", "9.9.9.9:82"] {
                    let to = dst(address);
                    check(&parsed, workload, to, host, round);
                    let asks: [fn(&Outbound, SocketAddr, &str) -> Decision; 3] = [
                        |table, to, host| table.http(to, host).decision(),
                        |table, to, _| table.tcp(to),
                        |table, to, host| table.tls(to, Some(host)),
                    ];
                    for (kind, ask) in asks.into_iter().enumerate() {
                        let got = ask(&workload.outbound, to, host);
                        let [open, oracle] = tables.map(|table| ask(table, to, host));
                        let why = format!(
                            "round {round} {imports:?}: {id} {kind} {host} {to}: {got:?}, {open:?}, {oracle:?}"
                        );
                        match &got {
                            Decision::Cluster(_) => {
                                assert_eq!(got.short(), oracle.short(), "{why}");
                                assert_eq!(got.cluster().service, oracle.cluster().service, "{why}");
                                clusters += 1;
                            }
                            Decision::Passthrough => {
                                assert!(matches!(oracle, Decision::Passthrough | Decision::Refuse(_)), "{why}");
                                // What is TLS already needs no guard; HTTP is guarded by its names.
                                let guarded = match &open {
                                    Decision::Refuse(_) => true,
                                    Decision::Cluster(to) => {
                                        to.tls.encrypts() && (kind == 1 || to.protocol != Protocol::Tcp)
                                    }
                                    _ => false,
                                };
                                assert!(kind == 2 || !guarded, "{why}");
                                passed += 1;
                            }
                            Decision::Refuse(_) => refused += 1,
                            other => panic!("{other:?}: {why}"),
                        }
                    }
                }
            }
        }
    }
    assert!(clusters > 1_000 && refused > 1_000 && passed > 1_000, "{clusters} {refused} {passed}");
}
