//! Envoy, configured as Istio configures a sidecar: one virtual outbound listener that hands connections over by their
//! original destination, an HTTP connection manager for port 80, upstream TLS contexts, passthrough by server name for port
//! 443. Istio's own filters (its statistics, metadata exchange) are not in Envoy's release, so Envoy is spared their cost.

use std::{fs, path::Path};

use anyhow::Result;
use serde_json::{Value, json};

use super::{Log, Running, Setup, configured, redirected, shown};
use crate::bench::{
    hosts::{Host, TLS},
    iptables::OUTBOUND,
    stage::{Cpus, Stage},
};

pub fn start<'a>(stage: &'a Stage, program: &Path, setup: &Setup, cpus: Cpus) -> Result<Running<'a>> {
    let room = stage.room("envoy")?;
    let path = room.join("envoy.json");
    fs::write(&path, serde_json::to_vec(&bootstrap(stage, setup, &room))?)?;
    let mut command = stage.peer_in_pod(&shown(program), cpus.proxy);
    command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "error", "-c"]).arg(&path);
    redirected(stage, "envoy", &room, command, false)
}

fn bootstrap(stage: &Stage, setup: &Setup, room: &Path) -> Value {
    let hosts = configured(setup);
    let clusters: Vec<Value> =
        hosts.iter().flat_map(|host| [http_cluster(stage, setup, host), tls_cluster(host)]).collect();
    json!({
        // Without it Envoy warns that it may accept connections without end.
        "overload_manager": {"resource_monitors": [{
            "name": "envoy.resource_monitors.global_downstream_max_connections",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                "max_active_downstream_connections": 100_000,
            },
        }]},
        "static_resources": {
            "listeners": [virtual_outbound(), port_80(setup, &hosts, room), port_443(setup, &hosts, room)],
            "clusters": clusters,
        },
    })
}

fn filter(name: &str, kind: &str, mut config: Value) -> Value {
    config["@type"] = json!(format!("type.googleapis.com/{kind}"));
    json!({"name": name, "typed_config": config})
}

/// Takes everything, and hands it over to the listener of the address that was dialled.
fn virtual_outbound() -> Value {
    let original = filter(
        "envoy.filters.listener.original_dst",
        "envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
        json!({}),
    );
    let nobody = filter(
        "envoy.filters.network.tcp_proxy",
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        json!({"stat_prefix": "BlackHoleCluster", "cluster": "BlackHoleCluster"}),
    );
    json!({
        "name": "virtualOutbound",
        "address": address("0.0.0.0", OUTBOUND),
        "use_original_dst": true,
        "listener_filters": [original],
        "filter_chains": [{"filters": [nobody]}],
        "traffic_direction": "OUTBOUND",
        "max_connections_to_accept_per_socket_event": 1,
    })
}

/// Port 80 of every address: HTTP by Host, with Istio's settings of the connection manager.
fn port_80(setup: &Setup, hosts: &[Host], room: &Path) -> Value {
    let http = "envoy.extensions.filters.http";
    let filters = [
        filter("envoy.filters.http.fault", &format!("{http}.fault.v3.HTTPFault"), json!({})),
        filter("envoy.filters.http.cors", &format!("{http}.cors.v3.Cors"), json!({})),
        filter("envoy.filters.http.router", &format!("{http}.router.v3.Router"), json!({})),
    ];
    let manager = filter(
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        json!({
            "stat_prefix": "outbound_0.0.0.0_80",
            "codec_type": "AUTO",
            "route_config": {
                "name": "80",
                "virtual_hosts": hosts.iter().map(virtual_host).collect::<Vec<_>>(),
                "validate_clusters": false,
                "ignore_port_in_host_matching": true,
            },
            "http_filters": filters,
            "access_log": access_log(setup, room),
            "use_remote_address": false,
            "normalize_path": true,
            "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
            "stream_idle_timeout": "0s",
            "upgrade_configs": [{"upgrade_type": "websocket"}],
            // Istio has this for h2 from outside; the suite's clients hold some tens of streams.
            "http2_protocol_options": {"max_concurrent_streams": 1024},
        }),
    );
    virtual_listener(80, json!([{"filters": [manager]}]))
}

fn virtual_host(host: &Host) -> Value {
    json!({
        "name": format!("{}:80", host.name),
        "domains": [host.name],
        "routes": [{
            "name": "default",
            "match": {"prefix": "/"},
            "route": {
                "cluster": cluster_name(80, host),
                "timeout": "0s",
                "max_stream_duration": {"max_stream_duration": "0s", "grpc_timeout_header_max": "0s"},
                "retry_policy": {
                    "retry_on": "connect-failure,refused-stream,unavailable,cancelled",
                    "num_retries": 2,
                    "host_selection_retry_max_attempts": "5",
                },
            },
        }],
        "include_request_attempt_count": true,
    })
}

/// Port 443 of every address: raw bytes by server name.
fn port_443(setup: &Setup, hosts: &[Host], room: &Path) -> Value {
    let chains: Vec<Value> = hosts
        .iter()
        .map(|host| {
            let proxy = filter(
                "envoy.filters.network.tcp_proxy",
                "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                json!({
                    "stat_prefix": cluster_name(443, host),
                    "cluster": cluster_name(443, host),
                    "access_log": access_log(setup, room),
                }),
            );
            json!({"filter_chain_match": {"server_names": [host.name]}, "filters": [proxy]})
        })
        .collect();
    virtual_listener(443, json!(chains))
}

fn virtual_listener(port: u16, chains: Value) -> Value {
    let listener = "envoy.extensions.filters.listener";
    let mut filters = vec![filter(
        "envoy.filters.listener.tls_inspector",
        &format!("{listener}.tls_inspector.v3.TlsInspector"),
        json!({}),
    )];
    if port == 80 {
        filters.push(filter(
            "envoy.filters.listener.http_inspector",
            &format!("{listener}.http_inspector.v3.HttpInspector"),
            json!({}),
        ));
    }
    json!({
        "name": format!("0.0.0.0_{port}"),
        "address": address("0.0.0.0", port),
        "bind_to_port": false,
        "listener_filters": filters,
        "listener_filters_timeout": "5s",
        "continue_on_listener_filters_timeout": true,
        "filter_chains": chains,
        "traffic_direction": "OUTBOUND",
    })
}

fn http_cluster(stage: &Stage, setup: &Setup, host: &Host) -> Value {
    let file = |path: std::path::PathBuf| json!({"filename": shown(&path)});
    let mut common = json!({
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
        "alpn_protocols": [if host.h2 { "h2" } else { "http/1.1" }],
        "validation_context": {
            "trusted_ca": file(stage.pki.crt("ca")),
            "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": host.name}}],
        },
    });
    if host.mutual {
        common["tls_certificates"] =
            json!([{"certificate_chain": file(stage.pki.crt("client")), "private_key": file(stage.pki.key("client"))}]);
    }
    let mut context = json!({"sni": host.name, "common_tls_context": common});
    if let Some(most) = setup.session_keys {
        context["max_session_keys"] = json!(most);
    }
    let tls =
        filter("envoy.transport_sockets.tls", "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", context);
    let protocol = if host.h2 { "http2_protocol_options" } else { "http_protocol_options" };
    let mut cluster = cluster(80, host);
    cluster["transport_socket"] = tls;
    cluster["typed_extension_protocol_options"] = json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {protocol: {}},
        },
    });
    cluster
}

fn tls_cluster(host: &Host) -> Value {
    cluster(443, host)
}

fn cluster(port: u16, host: &Host) -> Value {
    let name = cluster_name(port, host);
    let most = u32::MAX;
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "10s",
        "lb_policy": "LEAST_REQUEST",
        "circuit_breakers": {"thresholds": [{
            "max_connections": most, "max_pending_requests": most, "max_requests": most, "max_retries": most,
            "track_remaining": true,
        }]},
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(host.address, TLS)}}]}],
        },
    })
}

fn cluster_name(port: u16, host: &Host) -> String {
    format!("outbound|{port}||{}", host.name)
}

fn address(address: &str, port: u16) -> Value {
    json!({"socket_address": {"address": address, "port_value": port}})
}

fn access_log(setup: &Setup, room: &Path) -> Value {
    let format = match setup.log {
        Log::Off => return json!([]),
        Log::Text => json!({"text_format_source": {"inline_string": TEXT}}),
        Log::Json => {
            let fields = JSON.iter().map(|(name, format)| ((*name).to_owned(), json!(format)));
            json!({"json_format": serde_json::Map::from_iter(fields)})
        }
    };
    let file = filter(
        "envoy.access_loggers.file",
        "envoy.extensions.access_loggers.file.v3.FileAccessLog",
        json!({"path": shown(&room.join("access.log")), "log_format": format}),
    );
    json!([file])
}

/// Istio's default format.
const TEXT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% \
    %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" \
    %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \
    \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% \
    %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";

/// Istio's default fields in JSON.
const JSON: &[(&str, &str)] = &[
    ("start_time", "%START_TIME%"),
    ("route_name", "%ROUTE_NAME%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("connection_termination_details", "%CONNECTION_TERMINATION_DETAILS%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER_RAW%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    ("upstream_transport_failure_reason", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
];
