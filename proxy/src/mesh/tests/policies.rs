//! What a DestinationRule says besides TLS: which level counts, and what the mesh says where the rule is silent.

use std::time::Duration;

use super::*;

const ENTRY: &str = "{hosts: [x.com], resolution: STATIC, location: MESH_INTERNAL, ports: [{number: 80, name: http, protocol: HTTP}, {number: 81, name: alt, protocol: HTTP}],
    endpoints: [{address: 192.0.2.1, labels: {v: one}, locality: eu/west}, {address: 192.0.2.2, labels: {v: two, topology.kubernetes.io/region: us}}]}";

fn cluster(config: &str, policy: &str, name: &str) -> Arc<Cluster> {
    let config = format!(
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata: {{mesh: \"{config}\"}}\n"
    );
    let text = config
        + &pod("a", "p", "{}")
        + &entry("a", "e", ENTRY)
        + &rule("a", "r", &format!("{{host: x.com, {policy}}}"));
    mesh(&text).quiet().of("a", "p").cluster(name).expect("a cluster").clone()
}

#[test]
fn each_level_replaces_what_it_has() {
    let policy = "trafficPolicy: {
            loadBalancer: {consistentHash: {httpHeaderName: X-User}},
            outlierDetection: {consecutive5xxErrors: 3},
            connectionPool: {http: {maxRetries: 7, maxConcurrentStreams: 9, useClientProtocol: true}, tcp: {maxConnectionDuration: 9s, tcpKeepalive: {time: 4s}}},
            portLevelSettings: [{port: {number: 81}, outlierDetection: {consecutive5xxErrors: 4}}]},
        subsets: [{name: plain, labels: {v: one}},
                  {name: own, labels: {v: two}, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN, warmup: {duration: 30s}}, outlierDetection: {interval: 1s}}},
                  {name: port, trafficPolicy: {portLevelSettings: [{port: {number: 80}, loadBalancer: {simple: RANDOM}}]}}]";
    let seen = |name: &str| {
        let cluster = cluster("", policy, name);
        let hash = match cluster.hash.as_deref() {
            Some(ConsistentHash { key: HashKey::Header(name), ring: HashRing::Ring { minimum: 1024 } }) => name.clone(),
            None => String::new(),
            other => panic!("{other:?}"),
        };
        let outlier = cluster.outlier.as_ref().map(|outlier| (outlier.consecutive_5xx, outlier.interval.as_secs()));
        (hash, outlier, cluster.pool.max_retries, cluster.load_balancer)
    };
    use LoadBalancer::*;
    let user = "x-user".to_owned();
    let none = String::new();
    assert_eq!(seen("outbound|80||x.com"), (user.clone(), Some((Some(3), 10)), Some(7), LeastRequest));
    assert_eq!(seen("outbound|80|plain|x.com"), (user, Some((Some(3), 10)), Some(7), LeastRequest));
    // A port level has nothing but its own, a subset what it has and the rest from above.
    assert_eq!(seen("outbound|81||x.com"), (none.clone(), Some((Some(4), 10)), None, LeastRequest));
    assert_eq!(seen("outbound|80|own|x.com"), (none.clone(), Some((Some(5), 1)), Some(7), RoundRobin));
    assert_eq!(seen("outbound|80|port|x.com"), (none, None, None, Random));

    let whole = cluster("", policy, "outbound|80||x.com");
    assert_eq!((whole.pool.max_concurrent_streams, whole.pool.use_client_protocol), (Some(9), true));
    assert_eq!(whole.pool.max_connection_duration, Some(Duration::from_secs(9)));
    assert_eq!(whole.pool.tcp_keepalive.unwrap().time, Some(Duration::from_secs(4)));
    assert_eq!(whole.warmup, None);
    let own = cluster("", policy, "outbound|80|own|x.com");
    assert_eq!(own.warmup.as_ref().unwrap().duration, Duration::from_secs(30));
}

#[test]
fn places_count_where_somebody_says_how() {
    let distribute = "localityLbSetting: {distribute: [{from: eu/*, to: {eu/*: 80, us/*: 20}}]}";
    let outlier = "outlierDetection: {consecutive5xxErrors: 1}";
    let failover = "localityLbSetting: {failover: [{from: eu, to: us}]}";
    for (what, config, policy, want) in [
        ("nothing said", "", "{}".to_owned(), None),
        ("failing over wants outlierDetection", "", format!("{{loadBalancer: {{{failover}}}}}"), None),
        ("the rule's", "", format!("{{{outlier}, loadBalancer: {{{failover}}}}}"), Some((0, 1))),
        ("weights do not", "", format!("{{loadBalancer: {{{distribute}}}}}"), Some((1, 0))),
        ("on by default", "", format!("{{{outlier}}}"), Some((0, 0))),
        ("the mesh's", failover, format!("{{{outlier}}}"), Some((0, 1))),
        ("the mesh's weights", distribute, "{}".to_owned(), Some((1, 0))),
        (
            "the rule's before the mesh's",
            distribute,
            format!("{{{outlier}, loadBalancer: {{{failover}}}}}"),
            Some((0, 1)),
        ),
        ("off in the mesh", "localityLbSetting: {enabled: false}", format!("{{{outlier}}}"), None),
        (
            "off in the rule",
            distribute,
            format!("{{{outlier}, loadBalancer: {{localityLbSetting: {{enabled: false}}}}}}"),
            None,
        ),
    ] {
        let cluster = cluster(config, &format!("trafficPolicy: {policy}"), "outbound|80||x.com");
        let got = cluster.locality.as_ref().map(|setting| (setting.distribute.len(), setting.failover.len()));
        assert_eq!(got, want, "{what}");
    }
}

#[test]
fn endpoints_bear_labels_where_a_rule_compares_them() {
    let with = |priority: &str| {
        let policy = format!(
            "trafficPolicy: {{outlierDetection: {{consecutive5xxErrors: 1}}, loadBalancer: {{localityLbSetting: {{{priority}}}}}}}, subsets: [{{name: two, labels: {{v: two}}}}]"
        );
        let labels = |name: &str| -> Vec<String> {
            let cluster = cluster("", &policy, name);
            let Discovery::Static(list) = &cluster.discovery else { panic!() };
            list.iter()
                .map(|endpoint| {
                    endpoint.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
                })
                .collect()
        };
        (labels("outbound|80||x.com"), labels("outbound|80|two|x.com"))
    };
    assert_eq!(with("enabled: true"), (vec![String::new(); 2], vec![String::new()]));
    let one = "topology.kubernetes.io/region=eu topology.kubernetes.io/zone=west v=one".to_owned();
    let two = "topology.kubernetes.io/region=us v=two".to_owned();
    assert_eq!(with("failoverPriority: [v]"), (vec![one, two.clone()], vec![two]));
}

#[test]
fn subsets_choose_pods() {
    let text = pod("client", "c", "{}")
        + "---\napiVersion: v1\nkind: Service\nmetadata: {name: edge, namespace: sys}\nspec: {clusterIP: 10.96.0.1, selector: {app: edge}, ports: [{port: 80, name: http2, targetPort: 8080}]}\n"
        + &["v1", "v2"].map(|v| format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: edge-{v}, namespace: sys, labels: {{app: edge, version: {v}}}, annotations: {{egret.dev/netns: {v}}}}}\nstatus: {{podIP: 10.1.0.{}}}\n",
            &v[1..]
        )).concat()
        + &rule("sys", "r", "{host: edge, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}");
    let mesh = mesh(&text).quiet();
    let of = |subset: &str| {
        let name = format!("outbound|80|{subset}|edge.sys.svc.cluster.local");
        let Discovery::Static(list) = mesh.of("client", "c").cluster(&name).unwrap().discovery.clone() else {
            panic!()
        };
        list.into_iter().map(|endpoint| endpoint.address).collect::<Vec<_>>()
    };
    let at = |text: &str| EndpointAddress::Ip(dst(text));
    assert_eq!(of("v1"), [at("10.1.0.1:8080")]);
    assert_eq!(of("v2"), [at("10.1.0.2:8080")]);
    assert_eq!(of(""), [at("10.1.0.1:8080"), at("10.1.0.2:8080")]);
}
