use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use http::{HeaderName, HeaderValue, header::USER_AGENT};

use super::*;
use crate::{
    mesh::WorkloadId,
    telemetry::record::{Flag, Kept},
    tls::{ClientCertificate, SessionParameters},
};

/// An HTTP request that went well.
pub(crate) fn request() -> Record {
    let mut request_headers = Kept::default();
    request_headers.append(USER_AGENT, HeaderValue::from_static("curl/7.88.1"));
    Record {
        protocol: Some("HTTP/1.1"),
        method: Some("GET".into()),
        path: Some("/politics?x=1".into()),
        authority: Some("edition.cnn.com".into()),
        response_code: 200,
        response_code_details: Some("via_upstream".into()),
        bytes_received: 0,
        bytes_sent: 1834,
        upstream_service_time: Some(Duration::from_micros(41_900)),
        request_id: "2e6a0bd4-0d2f-4a53-8b50-2f4a8bd52f6d".parse().ok(),
        route_name: Some("default".into()),
        request_headers,
        ..connection()
    }
}

/// A TCP connection.
pub(crate) fn connection() -> Record {
    Record {
        workload: Arc::new(WorkloadId { namespace: "default".into(), name: "sleep".into() }),
        start: SystemTime::UNIX_EPOCH + Duration::from_millis(1_767_323_045_678),
        duration: Duration::from_millis(120),
        protocol: None,
        method: None,
        path: None,
        authority: None,
        response_code: 0,
        flags: Vec::new(),
        response_code_details: None,
        connection_termination_details: None,
        upstream_transport_failure_reason: None,
        downstream_transport_failure_reason: None,
        bytes_received: 906,
        bytes_sent: 5583,
        upstream_service_time: None,
        request_id: None,
        upstream_host: Some("151.101.131.5:443".into()),
        upstream_local_address: Some("10.0.0.2:40000".parse().unwrap()),
        downstream_local_address: Some("151.101.1.5:443".parse().unwrap()),
        downstream_remote_address: Some("10.0.0.2:39998".parse().unwrap()),
        reporter: Default::default(),
        source_identity: None,
        client_certificate: None,
        downstream_tls: false,
        downstream_session: None,
        requested_server_name: None,
        route_name: None,
        cluster: None,
        cluster_name: Some("outbound|443||edition.cnn.com".into()),
        upstream_tls: false,
        grpc_status: None,
        grpc: false,
        request_headers: Kept::default(),
        response_headers: Kept::default(),
    }
}

fn settings(json: bool, format: Option<&str>) -> Settings {
    Settings { access_log_json: json, access_log_format: format.map(str::to_owned), ..Settings::default() }
}

fn line(json: bool, format: Option<&str>, record: &Record) -> String {
    let mut line = Vec::new();
    Format::compile(&settings(json, format)).unwrap().line(record, &mut line);
    String::from_utf8(line).unwrap()
}

#[test]
fn the_default_text_line_of_a_request() {
    assert_eq!(
        line(false, None, &request()),
        "[2026-01-02T03:04:05.678Z] \"GET /politics?x=1 HTTP/1.1\" 200 - via_upstream - \"-\" 0 1834 120 41 \"-\" \
         \"curl/7.88.1\" \"2e6a0bd4-0d2f-4a53-8b50-2f4a8bd52f6d\" \"edition.cnn.com\" \"151.101.131.5:443\" \
         outbound|443||edition.cnn.com 10.0.0.2:40000 151.101.1.5:443 10.0.0.2:39998 - default default/sleep\n"
    );
}

#[test]
fn a_clients_certificate_and_what_was_agreed_on() {
    let format = "%DOWNSTREAM_PEER_URI_SAN% %DOWNSTREAM_PEER_DNS_SAN% %DOWNSTREAM_PEER_SUBJECT% \
                  %DOWNSTREAM_PEER_FINGERPRINT_256% %DOWNSTREAM_TLS_VERSION% %DOWNSTREAM_TLS_CIPHER% %SOURCE_PRINCIPAL%\n";
    assert_eq!(line(false, Some(format), &request()), "- - - - - - -\n");
    let certificate = ClientCertificate {
        subject: "CN=client".into(),
        uri_names: vec!["spiffe://a/b".into(), "urn:c".into()],
        dns_names: vec!["a.example".into()],
        hash: "ab12".into(),
        der: Vec::new(),
    };
    let session = SessionParameters { version: "TLSv1.3", cipher: "TLS_AES_256_GCM_SHA384" };
    let shown = Record {
        client_certificate: Some(Arc::new(certificate)),
        downstream_session: Some(session),
        source_identity: Some("spiffe://a/b".into()),
        ..request()
    };
    let expected = "spiffe://a/b,urn:c a.example CN=client ab12 TLSv1.3 TLS_AES_256_GCM_SHA384 spiffe://a/b\n";
    assert_eq!(line(false, Some(format), &shown), expected);
}

#[test]
fn the_default_text_line_of_a_tcp_connection() {
    let record = Record {
        requested_server_name: Some("edition.cnn.com".into()),
        flags: vec![Flag::UF, Flag::URX],
        // What the engine gives for a tunnel.
        route_name: Some("".into()),
        ..connection()
    };
    assert_eq!(
        line(false, None, &record),
        "[2026-01-02T03:04:05.678Z] \"- - -\" 0 UF,URX - - \"-\" 906 5583 120 - \"-\" \"-\" \"-\" \"-\" \
         \"151.101.131.5:443\" outbound|443||edition.cnn.com 10.0.0.2:40000 151.101.1.5:443 10.0.0.2:39998 \
         edition.cnn.com - default/sleep\n"
    );
}

#[test]
fn the_default_json_line() {
    let line = line(true, None, &request());
    let order: Vec<_> = json::DEFAULT.iter().map(|(key, _)| line.find(&format!("\"{key}\":")).unwrap()).collect();
    assert!(order.is_sorted(), "keys come in Istio's order: {line}");
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        value,
        serde_json::json!({
            "start_time": "2026-01-02T03:04:05.678Z", "route_name": "default", "method": "GET",
            "path": "/politics?x=1", "protocol": "HTTP/1.1", "response_code": 200, "response_flags": "-",
            "response_code_details": "via_upstream", "connection_termination_details": null, "bytes_received": 0,
            "bytes_sent": 1834, "duration": 120, "upstream_service_time": "41", "x_forwarded_for": null,
            "user_agent": "curl/7.88.1", "request_id": "2e6a0bd4-0d2f-4a53-8b50-2f4a8bd52f6d",
            "authority": "edition.cnn.com", "upstream_host": "151.101.131.5:443",
            "upstream_cluster": "outbound|443||edition.cnn.com", "upstream_local_address": "10.0.0.2:40000",
            "downstream_local_address": "151.101.1.5:443", "downstream_remote_address": "10.0.0.2:39998",
            "requested_server_name": null, "upstream_transport_failure_reason": null, "workload": "default/sleep",
            "source_principal": null,
        })
    );
}

#[test]
fn a_text_format_of_ones_own() {
    let format = "%START_TIME(%Y/%m/%d %H:%M:%S.%3f)% %REQ(X-NONE?USER-AGENT):4% %RESP(X-Y)% \
                  %UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_REMOTE_PORT% 100%% %TRAILER(X)%\n";
    assert_eq!(line(false, Some(format), &request()), "2026/01/02 03:04:05.678 curl - 10.0.0.2 39998 100% -\n");
}

#[test]
fn a_json_format_of_ones_own() {
    let format =
        r#"{"n": "%RESPONSE_CODE%", "mixed": "<%RESPONSE_CODE% %REQ(X-NONE)%>", "in": {"a": ["%DURATION%", 7, true]}}"#;
    assert_eq!(line(true, Some(format), &request()), "{\"in\":{\"a\":[120,7,true]},\"mixed\":\"<200 ->\",\"n\":200}\n");
    let error = Format::compile(&settings(true, Some("%PROTOCOL%\n"))).unwrap_err().to_string();
    assert!(error.starts_with("accessLogEncoding is JSON, and accessLogFormat is no JSON object"), "{error}");
    let error = Format::compile(&settings(true, Some(r#"{"k": "a %NOPE%"}"#))).unwrap_err().to_string();
    assert_eq!(error, "unknown operator %NOPE% at character 3 of the value of `k`");
}

#[test]
fn no_value_ends_its_line_or_field() {
    let mut record = request();
    record.path = Some("/a\"b\\c\r\nGET /\u{7f}\u{85}\u{2028}é".into());
    record.request_headers = Kept::default();
    record.request_headers.append(USER_AGENT, HeaderValue::from_bytes(b"x\ty\xff").unwrap());
    let text = line(false, Some("\"%REQ(:PATH)%\" %REQ(USER-AGENT)%"), &record);
    assert_eq!(text, "\"/a\\\"b\\\\c\\x0d\\x0aGET /\\x7f\\xc2\\x85\\xe2\\x80\\xa8é\" x\\x09y\\xff\n");

    let json = line(true, None, &record);
    assert_eq!(json.matches('\n').count(), 1);
    assert!(!json.trim_end().chars().any(char::is_control), "{json}");
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["path"], record.path.as_deref().unwrap());
    assert_eq!(value["user_agent"], "x\ty\u{fffd}");
}

#[test]
fn a_cut_value_stays_whole_characters() {
    let record = Record { path: Some("/aé".into()), ..request() };
    assert_eq!(line(false, Some("%REQ(:PATH):3%|%REQ(:PATH):4%|%REQ(:PATH):0%"), &record), "/a|/aé|\n");
}

#[test]
fn fields_of_one_name_are_one_list() {
    let mut record = request();
    let name = HeaderName::from_static("x-forwarded-for");
    record.request_headers.append(name.clone(), HeaderValue::from_static("1.1.1.1"));
    record.request_headers.append(name, HeaderValue::from_static("2.2.2.2"));
    assert_eq!(line(false, Some("%REQ(X-FORWARDED-FOR)%"), &record), "1.1.1.1,2.2.2.2\n");
}

#[test]
fn headers_are_wanted_only_where_a_format_shows_them() {
    let headers = |json, format| Format::compile(&settings(json, format)).unwrap().headers();
    let names = |names: &[HeaderName]| names.iter().map(|name| name.as_str().to_owned()).collect::<Vec<_>>();
    let default = headers(false, None);
    assert_eq!(names(&default.request), ["x-envoy-original-path", "x-forwarded-for", "user-agent", "x-request-id"]);
    assert_eq!(names(&default.response), ["x-envoy-upstream-service-time"]);
    assert_eq!(headers(true, None), default);
    assert_eq!(headers(false, Some("%REQ(:METHOD)% %REQ(:PATH)% %RESPONSE_CODE%")), Headers::default());
    let own = headers(true, Some(r#"{"a": {"b": ["%RESP(X?Y)%", "<%REQ(:PATH?Z)% %REQ(Z)%>"]}}"#));
    assert_eq!((names(&own.request), names(&own.response)), (vec!["z".into()], vec!["x".into(), "y".into()]));
}

fn output(path: &std::path::Path) -> (AccessLog, Arc<AtomicU64>) {
    let dropped = Arc::new(AtomicU64::new(0));
    let format = Format::compile(&settings(false, Some("%RESPONSE_CODE%"))).unwrap();
    (AccessLog::start(format, path, dropped.clone()).unwrap(), dropped)
}

const SOON: Duration = Duration::from_secs(10);

#[test]
fn a_rotated_file_is_opened_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let (log, _) = output(&path);
    log.write(&request());
    assert!(log.flush(SOON));
    // As logrotate does it, then tells the process.
    std::fs::rename(&path, folder.path().join("access.log.1")).unwrap();
    log.output().reopen();
    log.write(&connection());
    assert!(log.flush(SOON));
    assert_eq!(std::fs::read_to_string(folder.path().join("access.log.1")).unwrap(), "200\n");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "0\n");
    // And where nobody tells it, it looks by itself.
    std::fs::remove_file(&path).unwrap();
    std::thread::sleep(crate::limits::ACCESS_LOG_FILE_CHECK);
    log.write(&request());
    assert!(log.flush(SOON));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "200\n");
}

/// Lines gather between two writes, and nobody has to ask for them.
#[test]
fn lines_come_soon_by_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let (log, _) = output(&path);
    for count in 1..=20 {
        log.write(&request());
        let begun = std::time::Instant::now();
        while std::fs::read_to_string(&path).unwrap_or_default().len() < 4 * count {
            assert!(begun.elapsed() < SOON, "line {count} stays away");
            std::thread::sleep(Duration::from_millis(1));
        }
        // At every stage of the writing thread: resting, looking, asleep.
        std::thread::sleep(crate::limits::ACCESS_LOG_PAUSE * (count as u32 % 7) / 3);
    }
}

#[test]
fn lines_that_cannot_be_written_are_counted_and_the_log_recovers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("missing/access.log");
    let (log, dropped) = output(&path);
    log.write(&request());
    assert!(log.flush(SOON));
    assert_eq!(dropped.load(std::sync::atomic::Ordering::Relaxed), 1);
    std::fs::create_dir(folder.path().join("missing")).unwrap();
    log.write(&request());
    assert!(log.flush(SOON));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "200\n");
}

#[test]
fn a_reader_that_never_reads_costs_lines_and_no_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    // Held open for reading, so that the writer's open succeeds and its writes fill the pipe and then wait.
    let reader = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let (log, dropped) = output(&path);
    let long = Record { path: Some("x".repeat(64 * 1024).into()), ..request() };
    let log = log.with_format(Format::compile(&settings(false, Some("%REQ(:PATH)%"))).unwrap());
    let started = std::time::Instant::now();
    for _ in 0..1000 {
        log.write(&long);
    }
    assert!(started.elapsed() < SOON, "the data path waited");
    assert!(dropped.load(std::sync::atomic::Ordering::Relaxed) > 500);
    assert!(!log.flush(Duration::from_millis(50)), "flush must not claim what is not so");
    // The last reader goes: the writer's EPIPE ends its thread's wait and not the process.
    drop(reader);
    assert!(log.flush(SOON));
}

#[test]
fn several_threads_write_whole_lines() {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("access.log");
    let (log, dropped) = output(&path);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..500).for_each(|_| log.write(&request())));
        }
    });
    assert!(log.flush(SOON));
    assert_eq!(dropped.load(std::sync::atomic::Ordering::Relaxed), 0);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "200\n".repeat(2000));
}
