use std::collections::{BTreeMap, HashSet};

use super::*;
use crate::{
    mesh::WorkloadId,
    telemetry::{
        access_log::tests::{connection, request},
        record::Flag,
    },
};

fn metrics() -> Metrics {
    Metrics::new(Arc::new(AtomicU64::new(0)))
}

/// The samples of a scrape: `name{labels}` to value. Fails on what Prometheus would refuse: a line that is neither
/// comment nor sample, a sample twice, a sample whose family was not declared before it.
fn parse(text: &str) -> BTreeMap<String, f64> {
    assert!(text.ends_with("# EOF\n"));
    let mut samples = BTreeMap::new();
    let mut family = String::new();
    let mut declared = HashSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            family = rest.split(' ').next().unwrap().to_owned();
            assert!(declared.insert(family.clone()), "{family} declared twice");
        } else if !line.starts_with('#') {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(name.starts_with(&family), "{name} stands under {family}");
            assert!(samples.insert(name.to_owned(), value.parse().unwrap()).is_none(), "{name} twice");
        }
    }
    samples
}

fn scrape(metrics: &Metrics) -> BTreeMap<String, f64> {
    parse(&metrics.encode().unwrap())
}

fn find<'a>(samples: &'a BTreeMap<String, f64>, name: &str, labels: &[&str]) -> Vec<(&'a str, f64)> {
    let found = samples.iter().filter(|(sample, _)| {
        sample.split('{').next() == Some(name) && labels.iter().all(|label| sample.contains(label))
    });
    found.map(|(sample, value)| (sample.as_str(), *value)).collect()
}

#[test]
#[expect(clippy::float_cmp, reason = "small whole numbers")]
fn requests_come_out_in_istios_names() {
    let metrics = metrics();
    let passthrough = Record { cluster_name: Some("PassthroughCluster".into()), ..request() };
    metrics.record(&passthrough);
    metrics.record(&passthrough);
    metrics.record(&Record { response_code: 503, flags: vec![Flag::URX, Flag::UF, Flag::UF], ..passthrough.clone() });
    let samples = scrape(&metrics);
    let ok = find(&samples, "istio_requests_total", &["response_code=\"200\""]);
    assert_eq!(ok.len(), 1);
    assert_eq!(ok[0].1, 2.0);
    for label in [
        "reporter=\"source\"",
        "source_workload=\"sleep\"",
        "source_workload_namespace=\"default\"",
        "source_principal=\"unknown\"",
        "destination_service=\"unknown\"",
        "destination_service_name=\"PassthroughCluster\"",
        "destination_service_namespace=\"unknown\"",
        "request_protocol=\"http\"",
        "response_flags=\"-\"",
        "grpc_response_status=\"\"",
        "connection_security_policy=\"unknown\"",
    ] {
        assert!(ok[0].0.contains(label), "{label} in {}", ok[0].0);
    }
    let failed = find(&samples, "istio_requests_total", &["response_code=\"503\"", "response_flags=\"UF,URX\""]);
    assert_eq!(failed[0].1, 1.0);
    let labels = ["response_code=\"200\"", "le=\"100.0\""];
    assert_eq!(find(&samples, "istio_request_duration_milliseconds_bucket", &labels)[0].1, 0.0);
    let labels = ["response_code=\"200\"", "le=\"250.0\""];
    assert_eq!(find(&samples, "istio_request_duration_milliseconds_bucket", &labels)[0].1, 2.0);
    assert_eq!(find(&samples, "istio_response_bytes_sum", &["response_code=\"200\""])[0].1, 3668.0);
    assert_eq!(find(&samples, "istio_request_bytes_count", &["response_code=\"200\""])[0].1, 2.0);
    assert!(find(&samples, "istio_tcp_sent_bytes_total", &[]).is_empty());
}

#[test]
#[expect(clippy::float_cmp, reason = "small whole numbers")]
fn connections_are_counted_apart_from_requests() {
    let metrics = metrics();
    let lost = Record { cluster_name: Some("BlackHoleCluster".into()), ..connection() };
    metrics.opened(&lost);
    metrics.opened(&lost);
    metrics.closed(&lost);
    metrics.record(&lost);
    let samples = scrape(&metrics);
    let one = |name| {
        let found =
            find(&samples, name, &["destination_service_name=\"BlackHoleCluster\"", "request_protocol=\"tcp\""]);
        assert_eq!(found.len(), 1, "{name}");
        assert!(!found[0].0.contains("response_code="), "{}", found[0].0);
        found[0].1
    };
    assert_eq!(one("istio_tcp_connections_opened_total"), 2.0);
    assert_eq!(one("istio_tcp_connections_closed_total"), 1.0);
    assert_eq!(one("istio_tcp_received_bytes_total"), 906.0);
    assert_eq!(one("istio_tcp_sent_bytes_total"), 5583.0);
    assert!(find(&samples, "istio_requests_total", &[]).is_empty());
}

#[test]
fn the_servers_side_knows_itself_and_whom_mesh_mtls_has_proved() {
    let metrics = metrics();
    let plain = Record { reporter: Reporter::Destination, cluster_name: Some("inbound|80||".into()), ..connection() };
    let caller = "spiffe://cluster.local/ns/default/sa/caller";
    metrics.record(&plain);
    metrics.record(&Record { source_identity: Some(caller.into()), ..plain });
    let samples = scrape(&metrics);
    let name = "istio_tcp_received_bytes_total";
    let own = ["reporter=\"destination\"", "destination_workload=\"sleep\"", "source_workload=\"unknown\""];
    assert_eq!(find(&samples, name, &own).len(), 2);
    let proved = [&*format!("source_principal=\"{caller}\""), "connection_security_policy=\"mutual_tls\""];
    assert_eq!(find(&samples, name, &proved).len(), 1);
    let other = ["source_principal=\"unknown\"", "connection_security_policy=\"none\""];
    assert_eq!(find(&samples, name, &other).len(), 1);
    // Requests, in the same words.
    let served = Record { reporter: Reporter::Destination, source_identity: Some(caller.into()), ..request() };
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: sleep, annotations: {egret.dev/netns: sleep}}\nspec: {serviceAccountName: sleep}\n";
    let mut objects = crate::api::Objects::default();
    let parsed = crate::source::documents::parse_file(Arc::from(std::path::Path::new("pod.yaml")), pod);
    parsed.objects.into_iter().for_each(|object| objects.insert(object));
    metrics.set_mesh(&crate::mesh::compile(&objects, &Default::default()));
    metrics.record(&served);
    let samples = scrape(&metrics);
    let own = ["reporter=\"destination\"", "destination_principal=\"spiffe://cluster.local/ns/default/sa/sleep\""];
    let found = find(&samples, "istio_requests_total", &[own.as_slice(), proved.as_slice()].concat());
    assert_eq!(found.len(), 1, "{samples:#?}");
    assert!(found[0].0.contains("response_code=\"200\"") && found[0].0.contains("destination_workload=\"sleep\""));
}

#[test]
fn a_peer_cannot_make_series_at_will() {
    let metrics = metrics();
    for code in 600..=999 {
        metrics.record(&Record {
            response_code: code,
            grpc_status: Some(u32::from(code)),
            authority: Some(format!("host{code}.example").into()),
            cluster_name: Some(format!("made-up-{code}").into()),
            ..request()
        });
    }
    let samples = scrape(&metrics);
    let found = find(&samples, "istio_requests_total", &[]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].0.contains("response_code=\"unknown\"") && found[0].0.contains("service_name=\"unknown\""));
}

#[test]
fn series_of_pods_that_are_gone_make_room_and_then_the_rest_is_unknown() {
    let table = istio::Series::<istio::Tcp>::with_limit(3);
    let labels = |pod: &str| Labels {
        source: Arc::new(Source::named(&WorkloadId { namespace: "n".into(), name: pod.into() })),
        caller: None,
        destination: Destination::new(None, "PassthroughCluster"),
        protocol: RequestProtocol::Tcp,
        response_code: None,
        grpc_status: None,
        flags: Flags::new(&[]),
    };
    let lives = |source: &Source| source.id().name != "gone";
    let add = |pod: &str| table.get(labels(pod), lives).opened.fetch_add(1, Ordering::Relaxed);
    add("gone");
    add("a");
    add("b");
    assert_eq!(add("c"), 0, "the pod that is gone made room");
    assert_eq!(add("d"), 0);
    assert_eq!(add("e"), 1, "d and e are counted together");
    assert_eq!(add("a"), 1, "old series go on");
}

/// A thread finds a series again by what made it; what the labels say of that may have changed meanwhile.
#[test]
#[expect(clippy::float_cmp, reason = "small whole numbers")]
fn a_series_is_the_one_of_the_labels_in_force() {
    let (metrics, other) = (metrics(), metrics());
    let record = Record { cluster_name: Some("PassthroughCluster".into()), ..request() };
    (0..3).for_each(|_| metrics.record(&record));
    other.record(&record);
    metrics.record(&Record { grpc: true, ..record.clone() });
    metrics.record(&Record { cluster_name: Some("BlackHoleCluster".into()), ..record.clone() });
    metrics.record(&Record { source_identity: Some("a".into()), reporter: Reporter::Destination, ..record.clone() });
    metrics.record(&Record { source_identity: Some("b".into()), reporter: Reporter::Destination, ..record.clone() });
    let sum = |metrics: &Metrics, labels: &[&str]| {
        find(&scrape(metrics), "istio_requests_total", labels).into_iter().map(|(_, value)| value).sum::<f64>()
    };
    assert_eq!((sum(&metrics, &[]), sum(&other, &[])), (7.0, 1.0));
    for (label, count) in [
        ("destination_service_name=\"BlackHoleCluster\"", 1.0),
        ("request_protocol=\"grpc\"", 1.0),
        ("source_principal=\"a\"", 1.0),
        ("source_principal=\"b\"", 1.0),
        ("source_app=\"unknown\"", 7.0),
    ] {
        assert_eq!(sum(&metrics, &[label]), count, "{label}");
    }
    let pod =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: sleep, labels: {app: s}, annotations: {egret.dev/netns: s}}\n";
    let mut objects = crate::api::Objects::default();
    let parsed = crate::source::documents::parse_file(Arc::from(std::path::Path::new("pod.yaml")), pod);
    parsed.objects.into_iter().for_each(|object| objects.insert(object));
    metrics.set_mesh(&crate::mesh::compile(&objects, &Default::default()));
    metrics.record(&record);
    assert_eq!(sum(&metrics, &["source_app=\"s\""]), 1.0);
}

#[test]
fn the_agents_own_metrics_have_their_exact_names() {
    let metrics = metrics();
    metrics.handshake(true, Duration::from_millis(3));
    metrics.handshake(false, Duration::from_millis(9));
    metrics.handshake_accepted(true);
    metrics.handshake_accepted(false);
    metrics.reload(true, 0);
    metrics.reload(false, 2);
    metrics.on_scrape(|| Scraped {
        capture: CaptureCounters { redirected: 7, denied: 1, exempt: 2, enrolled: 3 },
        certificates: vec![
            CertificateExpiry { name: "kubernetes://c".into(), namespace: "default".into(), not_after: 200 },
            CertificateExpiry { name: "kubernetes://c".into(), namespace: "default".into(), not_after: 100 },
        ],
    });
    let samples = scrape(&metrics);
    for (name, value) in [
        ("egret_tls_handshakes_total{result=\"success\"}", 1.0),
        ("egret_tls_handshakes_total{result=\"failure\"}", 1.0),
        ("egret_tls_handshake_duration_milliseconds_count", 2.0),
        ("egret_tls_accepted_handshakes_total{result=\"success\"}", 1.0),
        ("egret_tls_accepted_handshakes_total{result=\"failure\"}", 1.0),
        ("egret_certificate_expiry_timestamp_seconds{name=\"kubernetes://c\",namespace=\"default\"}", 100.0),
        ("egret_capture_redirected_total", 7.0),
        ("egret_capture_denied_total", 1.0),
        ("egret_capture_exempt_total", 2.0),
        ("egret_capture_enrolled_pods", 3.0),
        ("egret_config_reloads_total{result=\"accepted\"}", 1.0),
        ("egret_config_reloads_total{result=\"rejected\"}", 1.0),
        ("egret_config_objects_rejected", 2.0),
        ("egret_access_log_dropped_total", 0.0),
        (concat!("egret_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}"), 1.0),
    ] {
        assert_eq!(samples.get(name), Some(&value), "{name} of {samples:#?}");
    }
    assert!(samples["process_resident_memory_bytes"] > 1e6);
    assert!(samples["process_open_fds"] >= 3.0);
    assert!(samples["process_start_time_seconds"] > 1e9);
    assert!(samples.contains_key("process_cpu_seconds_total"));
}
