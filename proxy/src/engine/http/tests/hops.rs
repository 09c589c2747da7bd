//! What one proxy of the mesh tells the next, and what the world outside must not hear.

use std::sync::Arc;

use super::lab::*;
use crate::{engine::accept::Role, mesh::*};

const AT: ListenerId = ListenerId { bind: None, port: 8080 };

async fn inside() -> Cluster {
    Cluster { mesh_external: false, ..cluster("a", Protocol::Http, &[mirror().await]) }
}

/// A gateway pod whose listener serves host `a` from this cluster. `known`: the test's client counts as an enrolled pod.
async fn gateway(cluster: Cluster, known: bool) -> Lab {
    let mut hosts = HostMap::default();
    hosts.insert("a", Arc::new(virtual_host(vec![Route::to_cluster("r".into(), Arc::new(cluster))])));
    let table = Arc::new(RouteTable { name: "http.8080".into(), hosts });
    let listener = Listener { id: AT, serves: Servers::Http(table) };
    let gateway = GatewayTable { listeners: [(AT, Arc::new(listener))].into(), ..GatewayTable::default() };
    let mut snapshot = of_workload(Outbound::default(), Some(gateway), 1);
    if known {
        let peer =
            Peer { identity: "spiffe://cluster.local/ns/default/sa/client".into(), captured: Some(Arc::default()) };
        Arc::make_mut(&mut Arc::get_mut(&mut snapshot.mesh).unwrap().peers)
            .insert("127.0.0.1".parse().unwrap(), Arc::new(peer));
    }
    Lab::at(snapshot, "192.0.2.1:80".parse().unwrap(), Role::Gateway(AT)).await
}

const TOLD: &str = "x-request-id: 7\r\nx-forwarded-proto: https\r\nx-envoy-attempt-count: 3\r\nx-mine: 1\r\n";

#[tokio::test]
async fn the_next_hop_is_told_and_the_client_hears_how_long_it_took() {
    let lab = Lab::with(inside().await).await;
    let (head, body) = lab.ask("GET /", "").await;
    let id = lab.record().await.request_id.unwrap().to_string();
    assert_eq!(field(&body, "x-request-id"), Some(id.as_str()), "the log's own");
    assert_eq!(field(&body, "x-forwarded-proto"), Some("http"));
    assert_eq!(field(&body, "x-envoy-attempt-count"), Some("1"));
    assert_eq!(field(&body, "x-forwarded-for"), None, "only a gateway tells of the client");
    assert!(field(&head, "x-envoy-upstream-service-time").unwrap().parse::<u64>().is_ok(), "{head}");
    // What the application says of itself is kept.
    let (_, body) = lab.ask("GET /", "x-request-id: 7\r\nx-forwarded-proto: https\r\n").await;
    assert_eq!((field(&body, "x-request-id"), field(&body, "x-forwarded-proto")), (Some("7"), Some("https")));
}

#[tokio::test]
async fn the_original_path_is_told_inside_the_mesh() {
    let mut route = Route::to_cluster("r".into(), Arc::new(inside().await));
    route.matches.path = Some(TextMatch::Prefix("/old".into()));
    let Action::Forward(forward) = &mut route.action else { panic!() };
    forward.rewrite_path = PathChange::Prefix("/new".into());
    let lab = Lab::routes(vec![route]).await;
    let (_, body) = lab.ask("GET /old/x?y", "").await;
    assert!(body.starts_with("GET /new/x?y "), "{body}");
    assert_eq!(field(&body, "x-envoy-original-path"), Some("/old/x?y"));
    // The log shows that header in the place of the path: an application cannot write it.
    let (_, body) = lab.ask("GET /else", "x-envoy-original-path: /harmless\r\n").await;
    assert!(body.is_empty(), "{body}");
    let lab = Lab::with(inside().await).await;
    let (_, body) = lab.ask("GET /real", "x-envoy-original-path: /harmless\r\n").await;
    assert_eq!(field(&body, "x-envoy-original-path"), None, "{body}");
    assert!(!lab.record().await.request_headers.has("x-envoy-original-path"));
}

#[tokio::test]
async fn outside_nothing_is_added() {
    let lab = Lab::with(cluster("a", Protocol::Http, &[mirror().await])).await;
    let (head, body) = lab.ask("GET /", "x-mine: 1\r\n").await;
    let mut lines: Vec<_> = body.trim_end().lines().collect();
    lines[1..].sort_unstable();
    assert_eq!(lines, ["GET / HTTP/1.1", "host: a", "x-mine: 1"]);
    assert_eq!(field(&head, "x-envoy-upstream-service-time"), None, "{head}");
}

#[tokio::test]
async fn a_gateway_appends_the_client() {
    let lab = gateway(inside().await, false).await;
    let (head, body) = lab.ask("GET /", &format!("{TOLD}x-forwarded-for: 10.9.9.9\r\n")).await;
    assert_eq!(field(&body, "x-forwarded-for"), Some("10.9.9.9,127.0.0.1"), "{body}");
    assert_eq!(field(&body, "x-forwarded-proto"), Some("http"), "a stranger's word does not count");
    assert_eq!(field(&head, "x-envoy-upstream-service-time"), None, "nor is a stranger told");
}

/// What the client's own proxy has added on the way to the gateway does not leave the mesh.
#[tokio::test]
async fn at_the_edge_what_is_internal_is_taken_off() {
    let outside = || async { cluster("a", Protocol::Http, &[mirror().await]) };
    let lab = gateway(outside().await, true).await;
    let (_, body) = lab.ask("GET /", TOLD).await;
    let mut lines: Vec<_> = body.trim_end().lines().collect();
    lines[1..].sort_unstable();
    assert_eq!(lines, ["GET / HTTP/1.1", "host: a", "x-mine: 1"]);
    // A client that is no pod of the mesh has said those things itself.
    let lab = gateway(outside().await, false).await;
    let (_, body) = lab.ask("GET /", TOLD).await;
    assert_eq!(field(&body, "x-request-id"), Some("7"), "{body}");
}

#[tokio::test]
async fn a_gateway_knows_no_other_hosts() {
    let lab = gateway(inside().await, false).await;
    let mut client = lab.client().await;
    client.send("GET / HTTP/1.1\r\nHost: b\r\n\r\n").await;
    assert!(client.head().await.starts_with("HTTP/1.1 404 "));
}
