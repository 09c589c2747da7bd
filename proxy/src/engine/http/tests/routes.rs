//! What routes do with requests, from the client's and the upstream's side.

use std::{sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue};

use super::{h2::grpc_upstream, lab::*};
use crate::{api::virtual_service::Abort, mesh::*, telemetry::record::Flag};

/// A route for all requests to a cluster of this name at an upstream that answers with the head it got.
async fn echoing(name: &str) -> Route {
    Route::to_cluster(name.into(), Arc::new(cluster(name, Protocol::Http, &[mirror().await])))
}

fn forward(route: &mut Route) -> &mut Forward {
    let Action::Forward(forward) = &mut route.action else { panic!() };
    forward
}

fn on_path(path: TextMatch) -> RequestMatch {
    RequestMatch { path: Some(path), ..RequestMatch::default() }
}

fn acting(action: Action) -> Route {
    let nowhere = Arc::new(cluster("nowhere", Protocol::Http, &[]));
    Route { action, ..Route::to_cluster("acting".into(), nowhere) }
}

fn lines(list: &[(&'static str, &'static str)]) -> Vec<(HeaderName, HeaderValue)> {
    list.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
}

fn set(list: &[(&'static str, &'static str)]) -> HeaderRules {
    HeaderRules { set: lines(list), ..HeaderRules::default() }
}

fn add(list: &[(&'static str, &'static str)]) -> HeaderRules {
    HeaderRules { add: lines(list), ..HeaderRules::default() }
}

#[tokio::test]
async fn the_first_route_that_matches_is_taken_and_none_is_404() {
    let mut first = echoing("first").await;
    first.matches = on_path(TextMatch::Prefix("/one".into()));
    let mut second = echoing("second").await;
    second.matches = RequestMatch {
        headers: vec![(HeaderName::from_static("x-v"), TextMatch::Exact("2".into()))],
        ..RequestMatch::default()
    };
    let lab = Lab::routes(vec![first, second]).await;
    lab.ask("GET /one?q", "x-v: 2\r\n").await;
    lab.ask("GET /two", "x-v: 2\r\n").await;
    let (head, body) = lab.ask("GET /two", "x-v: 3\r\n").await;
    assert!(head.starts_with("HTTP/1.1 404 ") && body.is_empty(), "{head}{body}");
    let records = lab.records(3).await;
    let seen: Vec<_> = records.iter().map(|record| (record.route_name.as_deref(), record.cluster_name())).collect();
    let named = |name| (Some(name), Some(if name == "first" { "outbound|80||first" } else { "outbound|80||second" }));
    assert_eq!(seen, [named("first"), named("second"), (None, None)]);
    assert_eq!(records[2].flags, [Flag::NR]);
    assert_eq!(records[2].response_code_details.as_deref(), Some("route_not_found"));
}

/// A rule on a path must not be passed by writing the path in another way.
#[tokio::test]
async fn no_spelling_of_a_path_evades_a_route() {
    let mut forbidden = acting(Action::Direct(DirectResponse { status: 403, body: "no".into() }));
    forbidden.matches = on_path(TextMatch::PathPrefix("/admin".into()));
    let lab = Lab::routes(vec![forbidden, echoing("rest").await]).await;
    for path in
        ["/admin", "/x/../admin/", "/%61dmin", "/x/%2e%2E/admin", "/./admin", "\\admin", "/x\\..\\admin", "//../admin"]
    {
        let line = format!("GET {}", if path.starts_with('\\') { "/\\..\\admin" } else { path });
        let (head, body) = lab.ask(&line, "").await;
        assert!(head.starts_with("HTTP/1.1 403 ") && body == "no", "{path}: {head}{body}");
    }
    // The upstream sees the path that was matched, not another one.
    for (path, expected) in [("/x/../b?q=/../", "/b?q=/../"), ("//admin", "//admin"), ("/%2fadmin", "/%2fadmin")] {
        let (_, body) = lab.ask(&format!("GET {path}"), "").await;
        assert!(body.starts_with(&format!("GET {expected} HTTP/1.1\r\n")), "{path}: {body}");
    }
    let (head, _) = lab.ask("GET /%00/admin", "").await;
    assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
    // The log tells what was sent.
    assert_eq!(lab.records(12).await[1].path.as_deref(), Some("/x/../admin/"));
}

/// What is put before the path must not be climbed out of.
#[tokio::test]
async fn no_rewritten_path_leads_out_of_the_prefix() {
    let mut raw = echoing("raw").await;
    raw.matches = on_path(TextMatch::Prefix("/api".into()));
    forward(&mut raw).rewrite_path = PathChange::Prefix("/v1/".into());
    let mut regex = echoing("regex").await;
    regex.matches = on_path(TextMatch::Prefix("/re".into()));
    forward(&mut regex).rewrite_path =
        PathChange::Regex { pattern: "^/re(.*)$".into(), substitution: r"/v2/\1".into() };
    forward(&mut regex).rewrite_pattern = Some(RewritePattern {
        regex: Arc::new(regex::Regex::new("^/re(.*)$").unwrap()),
        substitution: "/v2/${1}".into(),
    });
    let lab = Lab::routes(vec![raw, regex]).await;
    for path in ["/api../secret", "/api..", "/api%2e%2E/secret?q", "/re../secret", "/re."] {
        let (head, body) = lab.ask(&format!("GET {path}"), "").await;
        assert!(head.starts_with("HTTP/1.1 400 "), "{path}: {head}{body}");
    }
    for (path, expected) in [("/api..a/b?q=/../", "/v1/..a/b?q=/../"), ("/re%2f/b", "/v2/%2f/b")] {
        let (_, body) = lab.ask(&format!("GET {path}"), "").await;
        assert!(body.starts_with(&format!("GET {expected} HTTP/1.1\r\n")), "{path}: {body}");
    }
    // A route for every path changes it, too.
    let mut every = echoing("every").await;
    forward(&mut every).rewrite_path = PathChange::Prefix("/v1/".into());
    let lab = Lab::routes(vec![every]).await;
    let (_, body) = lab.ask("GET /../secret", "").await;
    assert!(body.starts_with("GET /v1/secret HTTP/1.1\r\n"), "{body}");
}

/// A service that resolves what it is asked for resolves its own names only, whatever route leads to it.
#[tokio::test]
async fn a_wildcard_service_dials_nothing_that_is_not_its_own() {
    let upstream = mirror().await;
    let mut route = echoing("*.x.test").await;
    let mut wild = cluster("*.x.test", Protocol::Http, &[]);
    wild.discovery = Discovery::Dynamic { port: upstream.port() };
    forward(&mut route).destinations[0].cluster = ClusterRef::Known(Arc::new(wild));
    forward(&mut route).rewrite_authority = Some("127.0.0.1".into());
    let lab = Lab::routes(vec![route]).await;
    let (head, body) = lab.ask("GET /", "").await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}{body}");
    assert_eq!(lab.records(1).await[0].flags, [Flag::UH]);
}

/// Where no route looks at the path it is nobody's business here.
#[tokio::test]
async fn without_rules_a_path_stays_as_it_was_sent() {
    let lab = Lab::routes(vec![echoing("a").await]).await;
    let (_, body) = lab.ask("GET /x/../%61//%2e", "").await;
    assert!(body.starts_with("GET /x/../%61//%2e HTTP/1.1\r\n"), "{body}");
}

#[tokio::test]
async fn weights_are_kept() {
    let to = |name: &str, address, weight| WeightedDestination {
        cluster: ClusterRef::Known(Arc::new(cluster(name, Protocol::Http, &[address]))),
        weight,
        request_headers: HeaderRules::default(),
        response_headers: set(&[("x-to", if name == "ten" { "ten" } else { "ninety" })]),
    };
    let address = mirror().await;
    let mut route = echoing("a").await;
    forward(&mut route).destinations =
        vec![to("ninety", address, 90), to("zero", nowhere(), 0), to("ten", address, 10)];
    let lab = Lab::routes(vec![route]).await;
    let mut client = lab.client().await;
    let mut tens = 0;
    for _ in 0..10_000 {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let (head, _) = client.response().await;
        match field(&head, "x-to") {
            Some("ten") => tens += 1,
            to => assert_eq!(to, Some("ninety"), "{head}"),
        }
    }
    // 3 % of all requests on either side; five standard deviations are 1.5 %.
    assert!((700..=1300).contains(&tens), "{tens} of 10,000");
}

#[tokio::test]
async fn a_destination_that_is_not_there() {
    let to = |cluster| {
        let mut route = acting(Action::Forward(Box::new(Forward::to(Vec::new()))));
        forward(&mut route).destinations = vec![WeightedDestination {
            cluster,
            weight: 1,
            request_headers: HeaderRules::default(),
            response_headers: HeaderRules::default(),
        }];
        route
    };
    let name = Arc::from("outbound|80|v3|a");
    let lab = Lab::routes(vec![to(ClusterRef::Unknown { name, why: "subset v3 is not defined".into() })]).await;
    let (head, body) = lab.ask("GET /", "").await;
    assert!(head.starts_with("HTTP/1.1 503 ") && body.contains("subset v3"), "{head}{body}");
    let record = lab.record().await;
    assert_eq!((record.flags.as_slice(), record.cluster_name()), (&[Flag::NC][..], Some("outbound|80|v3|a")));
    assert_eq!(record.response_code_details.as_deref(), Some("cluster_not_found"));
    assert_eq!(record.route_name.as_deref(), Some("acting"));
    let lab = Lab::routes(vec![to(ClusterRef::Invalid { why: "no such Service".into() })]).await;
    assert!(lab.ask("GET /", "").await.0.starts_with("HTTP/1.1 500 "));
    let lab = Lab::routes(vec![acting(Action::Refuse("the delegate is missing".into()))]).await;
    let (head, body) = lab.ask("GET /", "").await;
    assert!(head.starts_with("HTTP/1.1 503 ") && body.contains("the delegate is missing"), "{head}{body}");
}

#[tokio::test]
async fn redirects_and_direct_responses() {
    let mut moved = acting(Action::Redirect(Redirect {
        path: PathChange::Prefix("/new".into()),
        authority: Some("b".into()),
        port: Some(RedirectPort::Number(8443)),
        scheme: Some("https".into()),
        code: 308,
    }));
    moved.matches = on_path(TextMatch::Prefix("/old".into()));
    let mut teapot = acting(Action::Direct(DirectResponse { status: 418, body: "short and stout".into() }));
    teapot.response_headers = set(&[("content-type", "text/teapot")]);
    let lab = Lab::routes(vec![moved, teapot]).await;
    let (head, body) = lab.ask("GET /old/x?q", "").await;
    assert!(head.starts_with("HTTP/1.1 308 ") && body.is_empty(), "{head}");
    assert_eq!(field(&head, "location"), Some("https://b:8443/new/x?q"));
    let (head, body) = lab.ask("GET /", "").await;
    assert!(head.starts_with("HTTP/1.1 418 ") && body == "short and stout", "{head}{body}");
    assert_eq!(field(&head, "content-type"), Some("text/teapot"));
    // HEAD: the length of what GET would have got, and a client that reads nothing more has not left early.
    let mut client = lab.client().await;
    client.send("HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    let head = client.rest().await;
    assert!(head.starts_with("HTTP/1.1 418 ") && head.ends_with("\r\n\r\n"), "{head}");
    assert_eq!(field(&head, "content-length"), Some("15"));
    for record in lab.records(3).await {
        assert_eq!(record.response_code_details.as_deref(), Some("direct_response"));
        assert!(record.flags.is_empty(), "{record:?}");
    }
}

#[tokio::test]
async fn https_is_required_before_any_route() {
    let host = VirtualHost { require_tls: true, ..virtual_host(vec![echoing("a").await]) };
    let mut outbound = Outbound::default();
    outbound.ports.entry(80).or_default().http.insert("a", Arc::new(host));
    let lab = Lab::new(of_workload(outbound, None, 1), "192.0.2.1:80".parse().unwrap()).await;
    let (head, _) = lab.ask("GET /x?y", "").await;
    assert!(head.starts_with("HTTP/1.1 301 "), "{head}");
    assert_eq!(field(&head, "location"), Some("https://a/x?y"));
    // Naming https on a connection in plain text is not speaking it.
    let mut client = lab.client().await;
    client.send("GET https://a/x HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(client.head().await.starts_with("HTTP/1.1 301 "));
}

#[tokio::test]
async fn rewrites_are_seen_by_the_upstream_and_not_by_the_log() {
    let mut prefix = echoing("prefix").await;
    prefix.matches = on_path(TextMatch::Prefix("/old".into()));
    forward(&mut prefix).rewrite_path = PathChange::Prefix("/new".into());
    forward(&mut prefix).rewrite_authority = Some("b.example:81".into());
    let mut regex = echoing("regex").await;
    forward(&mut regex).rewrite_pattern = Some(RewritePattern {
        regex: Arc::new(regex::Regex::new("/item/([0-9]+)").unwrap()),
        substitution: "/${1}/item".into(),
    });
    let lab = Lab::routes(vec![prefix, regex]).await;
    let (_, body) = lab.ask("GET /old/x?q", "").await;
    assert!(body.starts_with("GET /new/x?q HTTP/1.1\r\n"), "{body}");
    assert_eq!(field(&body, "host"), Some("b.example:81"));
    assert_eq!(field(&body, "x-envoy-original-path"), None, "the cluster is outside the mesh");
    // The absolute form names the host twice: both are rewritten.
    let mut client = lab.client().await;
    client.send("GET http://a/old HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let (_, body) = client.response().await;
    assert!(body.starts_with("GET /new HTTP/1.1\r\n"), "{body}");
    assert_eq!(field(&body, "host"), Some("b.example:81"));
    let (_, body) = lab.ask("GET /item/7?q", "").await;
    assert!(body.starts_with("GET /7/item?q HTTP/1.1\r\n"), "{body}");
    let records = lab.records(3).await;
    let paths: Vec<_> = records.iter().map(|record| record.path.as_deref().unwrap()).collect();
    assert_eq!((paths[0], paths[2]), ("/old/x?q", "/item/7?q"));
    assert_eq!(records[0].authority.as_deref(), Some("a"));
}

/// h2 has its names in `:authority` and `:path`.
#[tokio::test]
async fn rewrites_reach_an_h2_upstream() {
    let (address, _) = grpc_upstream().await;
    let mut route = Route::to_cluster("r".into(), Arc::new(cluster("a", Protocol::Http2, &[address])));
    forward(&mut route).rewrite_path = PathChange::Full("/new".into());
    forward(&mut route).rewrite_authority = Some("b.example:81".into());
    let lab = Lab::routes(vec![route]).await;
    let mut client = lab.client().await;
    client.send("GET http://a/old?q HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let head = client.head().await;
    assert_eq!(field(&head, "x-uri"), Some("http://b.example:81/new?q"), "{head}");
}

/// Each of several destinations may want to be called by another name; that of the whole route goes before it.
#[tokio::test]
async fn a_destination_can_have_a_host_of_its_own() {
    let named = |route_host: Option<&'static str>| async move {
        let mut route = echoing("a").await;
        let mut other = echoing("b").await;
        forward(&mut route).destinations.push(forward(&mut other).destinations.remove(0));
        forward(&mut route).destinations[0].weight = 0;
        forward(&mut route).destinations[1].request_headers = set(&[("host", "own.example"), ("x-to", "b")]);
        route.request_headers = set(&route_host.map(|host| ("host", host)).into_iter().collect::<Vec<_>>());
        Lab::routes(vec![route]).await.ask("GET /", "").await.1
    };
    let body = named(None).await;
    assert_eq!((field(&body, "host"), field(&body, "x-to")), (Some("own.example"), Some("b")), "{body}");
    assert_eq!(field(&named(Some("whole.example")).await, "host"), Some("whole.example"));
}

/// A client must not take away what a route sets by naming it in Connection.
#[tokio::test]
async fn header_rules_have_the_last_word() {
    let mut route = echoing("a").await;
    route.request_headers = HeaderRules { remove: vec![HeaderName::from_static("x-out")], ..set(&[("x-by", "route")]) };
    route.response_headers = HeaderRules { remove: vec![HeaderName::from_static("server")], ..add(&[("x-r", "1")]) };
    let to = &mut forward(&mut route).destinations[0];
    to.request_headers = HeaderRules { add: lines(&[("x-more", "to")]), ..set(&[("x-by", "to")]) };
    to.response_headers = add(&[("x-r", "2")]);
    let lab = Lab::routes(vec![route]).await;
    let (head, body) =
        lab.ask("GET /", "Connection: x-by, x-more\r\nx-by: client\r\nx-out: 1\r\nx-more: client\r\n").await;
    assert_eq!((field(&body, "x-by"), field(&body, "x-out")), (Some("to"), None), "{body}");
    assert_eq!(body.matches("x-more: ").count(), 1, "{body}");
    assert_eq!(field(&body, "x-more"), Some("to"));
    assert_eq!(field(&head, "server"), None);
    let values: Vec<_> = head.lines().filter(|line| line.starts_with("x-r: ")).collect();
    assert_eq!(values, ["x-r: 1", "x-r: 2"], "{head}");
    assert_eq!(
        lab.record().await.response_headers.get_all(&"x-r".parse().unwrap()).count(),
        2,
        "the log sees what the client sees"
    );
}

#[tokio::test]
async fn preflights_are_answered_here_and_responses_marked() {
    let mut route = echoing("a").await;
    route.cors = Some(Arc::new(Cors {
        allow_origins: vec![TextMatch::Exact("https://app".into())],
        allow_methods: "GET,PUT".into(),
        allow_headers: "x-one".into(),
        expose_headers: "x-sum".into(),
        max_age: Some(Duration::from_secs(60)),
        allow_credentials: true,
        forward_unmatched_preflights: true,
    }));
    let lab = Lab::routes(vec![route]).await;
    let asked = "Access-Control-Request-Method: PUT\r\n";
    let (head, body) = lab.ask("OPTIONS /", &format!("Origin: https://app\r\n{asked}")).await;
    assert!(head.starts_with("HTTP/1.1 200 ") && body.is_empty(), "{head}{body}");
    let field_of = |name| field(&head, name);
    assert_eq!(field_of("access-control-allow-origin"), Some("https://app"));
    assert_eq!(field_of("access-control-allow-methods"), Some("GET,PUT"));
    assert_eq!(field_of("access-control-max-age"), Some("60"));
    let (head, body) = lab.ask("OPTIONS /", &format!("Origin: https://other\r\n{asked}")).await;
    assert!(body.starts_with("OPTIONS / ") && field(&head, "access-control-allow-origin").is_none(), "{head}{body}");
    let (head, _) = lab.ask("GET /", "Origin: https://app\r\n").await;
    assert_eq!(field(&head, "access-control-allow-origin"), Some("https://app"));
    assert_eq!(field(&head, "access-control-expose-headers"), Some("x-sum"));
    let details = lab.records(3).await[0].response_code_details.clone();
    assert_eq!(details.as_deref(), Some("cors_response"));
}

#[tokio::test]
async fn faults_delay_and_abort() {
    let mut route = echoing("a").await;
    route.fault = Some(Fault {
        delay: Some((Duration::from_millis(150), 1_000_000)),
        abort: Some((Abort::Http(418), 1_000_000)),
    });
    let lab = Lab::routes(vec![route]).await;
    let (head, body) = lab.ask("GET /", "").await;
    assert!(head.starts_with("HTTP/1.1 418 ") && body == "fault filter abort", "{head}{body}");
    let record = lab.record().await;
    assert_eq!(record.flags, [Flag::DI, Flag::FI]);
    assert_eq!(record.response_code_details.as_deref(), Some("fault_filter_abort"));
    assert!(record.duration >= Duration::from_millis(150), "{record:?}");
    // A gRPC status is a status to a gRPC client, and the HTTP status of about that meaning to others.
    let mut route = echoing("a").await;
    route.fault = Some(Fault { delay: None, abort: Some((Abort::Grpc(14), 1_000_000)) });
    let lab = Lab::routes(vec![route]).await;
    assert!(lab.ask("GET /", "").await.0.starts_with("HTTP/1.1 503 "));
    let (head, _) = lab.ask("POST /", "Content-Type: application/grpc\r\nContent-Length: 0\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert_eq!((field(&head, "grpc-status"), field(&head, "grpc-message")), (Some("14"), Some("fault filter abort")));
    // A share of requests: 4.5 standard deviations are 10 %.
    let mut route = echoing("a").await;
    route.fault = Some(Fault { delay: None, abort: Some((Abort::Http(500), 500_000)) });
    let lab = Lab::routes(vec![route]).await;
    let mut client = lab.client().await;
    let mut aborted = 0;
    for _ in 0..500 {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        aborted += usize::from(client.response().await.0.starts_with("HTTP/1.1 500 "));
    }
    assert!((200..300).contains(&aborted), "{aborted} of 500");
}

/// The cookie that a client is given leads it back to where it was.
#[tokio::test]
async fn a_hash_cookie_is_given_once() {
    let mut hashed = cluster("a", Protocol::Http, &[mirror().await]);
    hashed.hash = Some(Box::new(ConsistentHash {
        key: HashKey::Cookie { name: "seat".into(), path: Some("/".into()), ttl: Some(Duration::from_secs(9)) },
        ring: HashRing::Ring { minimum: 1024 },
    }));
    let lab = Lab::with(hashed).await;
    let (head, _) = lab.ask("GET /", "").await;
    let cookie = field(&head, "set-cookie").unwrap();
    assert!(cookie.starts_with("seat=\"") && cookie.ends_with("\"; Max-Age=9; Path=/; HttpOnly"), "{cookie}");
    let pair = cookie.split(';').next().unwrap();
    let (head, body) = lab.ask("GET /", &format!("Cookie: {pair}\r\n")).await;
    assert_eq!(field(&head, "set-cookie"), None, "{head}");
    assert_eq!(field(&body, "cookie"), Some(pair));
}
