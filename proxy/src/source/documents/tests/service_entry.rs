//! ServiceEntries, and how leniently fields are written.

use std::time::Duration;

use super::*;

fn service_entry(spec: &str) -> (Option<ServiceEntry>, Vec<String>) {
    let text = format!("apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: s}}\nspec:\n{spec}");
    let parsed = parse(&text);
    let entry = match parsed.objects.first() {
        Some(AnyObject::ServiceEntry(o)) => Some(o.spec.clone()),
        _ => None,
    };
    (entry, said(&parsed))
}

#[test]
fn service_entries_are_checked_as_istio_checks_them() {
    let cases: &[Case] = &[
        ("  hosts: [a.b]\n", &[]),
        ("  hosts: [A.b., '*.c.d']\n  ports: [{number: 80, name: http}]\n", &[]),
        ("  ports: []\n", &["4:1: `hosts` is missing"]),
        ("  hosts: []\n", &["4:1: `hosts` must name at least one host"]),
        (
            "  hosts: ['*']\n",
            &["5:11: hosts[0]: `*` alone would take every host of the mesh; name a domain, such as *.example.com"],
        ),
        (
            "  hosts:\n  - a.b\n  - '*foo.b'\n",
            &["7:5: hosts[1]: \"*foo.b\" has `*` elsewhere than as its whole first label"],
        ),
        ("  hosts: [10.0.0.1]\n", &["5:11: hosts[0]: \"10.0.0.1\" is an IP address, not a name"]),
        (
            "  hosts: [a_b.c]\n",
            &["5:11: hosts[0]: \"a_b.c\" has the label \"a_b\": letters, digits and `-` inside only, 1 to 63 of them"],
        ),
        ("  hosts: [short]\n", &["5:11: warning: hosts[0]: \"short\" has no dot: it matches that very name only"]),
        (
            "  hosts: [a.b]\n  ports:\n  - {number: 0, name: a}\n  - {number: 65536, name: b}\n  - {number: x, name: c}\n  - {name: d}\n",
            &[
                "7:14: ports[0].number: must be from 1 to 65535, not 0",
                "8:14: ports[1].number: must be from 1 to 65535, not 65536",
                "9:14: ports[2].number: must be a whole number, not `x`",
                "10:5: ports[3]: `number` is missing",
            ],
        ),
        (
            "  hosts: [a.b]\n  ports:\n  - {number: 80, name: a, protocol: HTTP}\n  - number: 80\n    name: a\n    protocol: SMTP\n",
            &[
                "8:13: ports[1].number: port 80 is given twice",
                "9:11: ports[1].name: port name \"a\" is given twice",
                "10:15: ports[1].protocol: \"SMTP\" is not one of HTTP, HTTP2, HTTP_PROXY, GRPC, GRPC-WEB, HTTPS, TLS, TCP, MONGO, MYSQL, REDIS, UDP, HBONE",
            ],
        ),
        (
            "  hosts: [a.b]\n  resolution: dns\n",
            &["6:15: resolution: \"dns\" is not one of NONE, STATIC, DNS, DNS_ROUND_ROBIN, DYNAMIC_DNS"],
        ),
        (
            "  hosts: [a.b]\n  location: OUTSIDE\n",
            &["6:13: location: \"OUTSIDE\" is not one of MESH_EXTERNAL, MESH_INTERNAL"],
        ),
        (
            "  hosts: [a.b]\n  endpoints: [{address: 1.1.1.1}]\n",
            &["6:14: endpoints: resolution NONE goes to the address dialled: it takes no endpoints"],
        ),
        (
            "  hosts: ['*.b.c']\n  resolution: DNS\n",
            &["5:11: hosts[0]: \"*.b.c\" cannot be resolved: resolution DNS wants full names, or endpoints"],
        ),
        ("  hosts: ['*.b.c']\n  resolution: DNS\n  endpoints: [{address: x.b.c}]\n", &[]),
        (
            "  hosts: [b.c]\n  resolution: DYNAMIC_DNS\n",
            &["5:11: hosts[0]: resolution DYNAMIC_DNS is for wildcard hosts; use DNS for a full name"],
        ),
        (
            "  hosts: [a.b]\n  resolution: STATIC\n",
            &[
                "6:15: warning: resolution: resolution STATIC without endpoints or workloadSelector: nothing can be reached",
            ],
        ),
        (
            "  hosts: [a.b]\n  resolution: STATIC\n  ports: [{number: 80, name: http}]\n  endpoints:\n  - address: name.b\n  - address: 10.0.0.1\n    ports: {https: 443}\n  - {address: unix://rel}\n",
            &[
                "9:14: endpoints[0].address: \"name.b\" is not an IP address: resolution STATIC does not look names up",
                "11:20: endpoints[1].ports.https: the ServiceEntry has no port named \"https\"",
                "12:15: endpoints[2].address: \"unix://rel\" must hold an absolute path",
            ],
        ),
        (
            "  hosts: [a.b]\n  resolution: DNS_ROUND_ROBIN\n  endpoints: [{address: x.b}, {address: y.b}]\n",
            &["7:31: endpoints[1]: resolution DNS_ROUND_ROBIN takes one endpoint at most"],
        ),
        (
            "  hosts: [a.b]\n  addresses: [10.0.0.0/8, 1.2.3.4, 'fd00::/8', nonsense]\n",
            &["6:48: addresses[3]: \"nonsense\" is neither an IP address nor a CIDR block"],
        ),
        (
            "  hosts: [a.b]\n  resolution: DNS\n  addresses: [10.0.0.0/8]\n",
            &["7:15: addresses[0]: a CIDR block goes with resolution NONE or STATIC only"],
        ),
        (
            "  hosts: [a.b, c.d]\n  resolution: DNS\n  ports: [{number: 1, name: a, protocol: TCP}]\n",
            &["4:1: several hosts on a TCP port cannot be told apart: only HTTP, HTTPS and TLS name their host"],
        ),
        (
            "  hosts: [a.b]\n  resolution: STATIC\n  endpoints: [{address: 1.1.1.1}]\n  workloadSelector: {labels: {a: b}}\n",
            &["8:21: workloadSelector: goes without `endpoints`: give one of the two"],
        ),
        (
            "  hosts: [a.b]\n  exportTo: ['.', 'not a name']\n",
            &["6:19: exportTo[1]: \"not a name\" is neither `.`, `*`, `~` nor the name of a namespace"],
        ),
        (
            "  hosts: [a.b]\n  resolutoin: DNS\n  fancy: 1\n",
            &[
                "6:3: warning: resolutoin: unknown field (did you mean `resolution`?)",
                "7:3: warning: fancy: unknown field",
            ],
        ),
        (
            "  hosts: [a.b]\n  Resolution: DNS\n  export: 1\n",
            &[
                "6:3: warning: Resolution: unknown field (did you mean `resolution`?)",
                "7:3: warning: export: unknown field",
            ],
        ),
        ("  hosts: a.b\n", &["5:10: hosts: must be a list, not `a.b`"]),
        (
            "  hosts: [true, {a: b}]\n",
            &["5:11: hosts[0]: must be text: write \"true\", in quotes", "5:17: hosts[1]: must be text, not a mapping"],
        ),
        (
            "  hosts: [a.b]\n  hosts: [c.d]\n",
            &["6:3: error: ServiceEntry default/s: key `hosts` is given twice (first on line 5)"],
        ),
    ];
    each(cases, "ServiceEntry default/s", |spec| service_entry(spec).1);
}

#[test]
fn protobuf_json_is_read_as_leniently_as_istio_does() {
    let spec = "  hosts: ['A.B']\n  export_to: ['*']\n  subject_alt_names: [x.y]\n  workload_selector: null\n  resolution: STATIC\n  addresses: ~\n  \
                ports:\n  - {number: '80', name: http, protocol: http, target_port: 8080.0}\n  - {number: 0x1BB, name: https, targetPort: 0}\n  \
                endpoints:\n  - {address: 10.0.0.1, service_account: sa, weight: '5', ports: {http: '81'}}\n";
    let (entry, said) = service_entry(spec);
    assert_eq!(said, [""; 0]);
    let entry = entry.expect("read");
    assert_eq!(
        (entry.hosts, entry.export_to, entry.subject_alt_names),
        (vec!["a.b".into()], vec!["*".into()], vec!["x.y".into()])
    );
    assert_eq!(
        entry.ports.iter().map(|p| (p.number, p.target_port)).collect::<Vec<_>>(),
        [(80, Some(8080)), (443, None)]
    );
    let endpoint = &entry.endpoints[0];
    assert_eq!((endpoint.weight, endpoint.ports["http"], endpoint.service_account.as_str()), (5, 81, "sa"));
    assert_eq!(entry.workload_selector, None);

    let spec = "  host: a.b\n  traffic_policy:\n    connection_pool:\n      tcp: {connect_timeout: 1.5s, max_connections: '7', idle_timeout: 0s}\n      \
                http: {idleTimeout: 1h30m, maxRetries: 0, h2_upgrade_policy: UPGRADE, http1_max_pending_requests: 3}\n    \
                tls: {mode: MUTUAL, credential_name: c, insecure_skip_verify: yes, ca_crl: ''}\n    loadBalancer: {simple: LEAST_CONN}\n";
    let (rule, said) = rule(spec);
    assert_eq!(said, [""; 0]);
    let policy = rule.expect("read").traffic_policy.expect("policy");
    let (pool, tls) = (policy.connection_pool.expect("pool"), policy.tls.expect("tls"));
    assert_eq!(pool.tcp_connect_timeout, Some(Duration::from_millis(1500)));
    assert_eq!(
        (pool.tcp_max_connections, pool.http1_max_pending_requests, pool.http_max_retries),
        (Some(7), Some(3), None)
    );
    assert_eq!((pool.tcp_idle_timeout, pool.http_idle_timeout), (Some(limits::NEVER), Some(Duration::from_secs(5400))));
    assert_eq!(pool.http_h2_upgrade, Some(true));
    assert_eq!((tls.mode, tls.credential_name.as_deref(), tls.ca_crl), (TlsMode::Mutual, Some("c"), None));
    assert!(tls.insecure_skip_verify);
    assert_eq!(policy.load_balancer.as_ref().map(|balancing| balancing.simple), Some(LoadBalancer::LeastRequest));
}

#[test]
fn snake_case_fields_are_found_by_their_own_name() {
    let text = "apiVersion: networking.istio.io/v1beta1\nkind: DestinationRule\nmetadata: {name: d}\nspec:\n  host: a.b\n  \
                traffic_policy:\n    tls:\n      mode: SIMPLE\n      credential_name: x\n";
    let parsed = parse(text);
    let origin = parsed.objects[0].origin();
    assert_eq!(origin.locate("spec.trafficPolicy.tls.credentialName"), (9, 24));
    assert_eq!(origin.locate("spec.trafficPolicy.tls"), (7, 5), "a block is at its key");
    assert_eq!(origin.locate("spec.trafficPolicy.tls.caCertificates"), (7, 5));
    // The other way round, Kubernetes knows no snake_case.
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {service_account_name: x}\n";
    assert_eq!(said(&parse(text)), ["4:8: warning: Pod default/p: spec.service_account_name: unknown field"]);
}
