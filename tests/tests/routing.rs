//! VirtualServices and traffic policies over the real agent: what a caller of Istio's traffic management sees.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use egret_tests::{Agent, Backends, Lab, Pod, Reply, objects::documents};

const HOST: &str = "reviews.lab.test";
const ONE: (&str, &str) = ("one", "198.51.100.40:9101");
const TWO: (&str, &str) = ("two", "198.51.100.40:9102");
const THREE: (&str, &str) = ("three", "198.51.100.40:9103");

/// A pod, the agent, and instances of `reviews.lab.test`, each a subset by its own name.
struct Stage {
    agent: Agent,
    backends: Backends,
    pod: Pod,
    lab: Lab,
}

/// The service with these instances.
fn service(instances: &[(&str, &str)]) -> String {
    let mut text = format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: reviews}}\nspec:\n  hosts: [{HOST}]\n  \
         location: MESH_INTERNAL\n  resolution: STATIC\n  ports: [{{number: 80, name: http, protocol: HTTP}}]\n  endpoints:\n"
    );
    for (name, address) in instances {
        let (ip, port) = address.rsplit_once(':').unwrap_or((address, "80"));
        text.push_str(&format!("  - {{address: {ip}, ports: {{http: {port}}}, labels: {{version: {name}}}}}\n"));
    }
    text
}

fn rule(policy: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: reviews}}\nspec:\n  host: {HOST}\n{policy}  subsets:\n  \
         - {{name: one, labels: {{version: one}}}}\n  - {{name: two, labels: {{version: two}}}}\n"
    )
}

fn routes(http: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: reviews}}\nspec:\n  hosts: [{HOST}]\n  http:\n{http}"
    )
}

const TO_ONE: &str = "    route: [{destination: {host: reviews.lab.test, subset: one}}]\n";

impl Stage {
    fn new(instances: &[(&str, &str)], policy: &str, http: &str) -> Result<Self> {
        let lab = Lab::new()?;
        let pod = lab.pod("client")?;
        let backends = lab.backends(instances)?;
        let mut objects = vec![pod.document("app: client"), service(instances), rule(policy)];
        if !http.is_empty() {
            objects.push(routes(http));
        }
        lab.write("mesh.yaml", &documents(&objects))?;
        let agent = Agent::start(&lab)?;
        Ok(Self { agent, backends, pod, lab })
    }

    /// Any address leads to the agent; the Host decides.
    fn get(&self, path: &str, more: &[&str]) -> Result<Reply> {
        let url = format!("http://{HOST}{path}");
        let resolve = format!("{HOST}:80:192.0.2.80");
        self.pod.curl(&[&["-i", "--resolve", &resolve], more, &[&url]].concat())
    }
}

/// The value of a header of the answer; None where it is absent.
fn header<'r>(reply: &'r Reply, name: &str) -> Option<&'r str> {
    reply.body.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}

#[test]
fn requests_are_matched_in_order() -> Result<()> {
    let http = format!(
        "  - name: api\n    match:\n    - uri: {{prefix: /api}}\n      method: {{exact: GET}}\n      headers: {{x-user: {{regex: 'a.*'}}}}\n      \
         withoutHeaders: {{x-off: {{}}}}\n      queryParams: {{v: {{exact: \"2\"}}}}\n{TO_ONE}  - name: teapot\n    match: [{{uri: {{exact: /tea}}}}]\n    \
         directResponse: {{status: 418, body: {{string: \"short and stout\"}}}}\n  - name: rest\n    match: [{{uri: {{prefix: /rest}}}}]\n    \
         route: [{{destination: {{host: {HOST}, subset: two}}}}]\n"
    );
    let stage = Stage::new(&[ONE, TWO], "", &http)?;
    let reply = stage.get("/api/x?v=2", &["-H", "x-user: anna"])?;
    assert_eq!((reply.status, header(&reply, "x-instance")), (200, Some("one")), "{reply:?}\n{}", stage.agent.stderr());
    assert!(stage.agent.log_line("/api/x?v=2")?.contains(" api default/client"), "{}", stage.agent.stdout());
    for (path, more) in [
        ("/api/x?v=3", &["-H", "x-user: anna"][..]),
        ("/api/x?v=2", &["-H", "x-user: bea"]),
        ("/api/x?v=2", &["-H", "x-user: anna", "-H", "x-off: 1"]),
        ("/api/x?v=2", &["-H", "x-user: anna", "-X", "POST"]),
        ("/other", &[]),
    ] {
        assert_eq!(stage.get(path, more)?.status, 404, "{path} {more:?}");
    }
    let line = stage.agent.log_line("/other")?;
    assert!(line.contains(" 404 NR route_not_found "), "{line}");
    let tea = stage.get("/tea", &[])?;
    assert_eq!((tea.status, tea.body.ends_with("short and stout")), (418, true), "{tea:?}");
    assert_eq!(header(&stage.get("/rest/a", &[])?, "x-instance"), Some("two"));
    Ok(())
}

/// 10,000 requests, split by weight within 3 %.
#[test]
fn weights_split_requests() -> Result<()> {
    let http = format!(
        "  - route:\n    - {{destination: {{host: {HOST}, subset: one}}, weight: 80}}\n    - {{destination: {{host: {HOST}, subset: two}}, weight: 20}}\n"
    );
    let stage = Stage::new(&[ONE, TWO], "", &http)?;
    let args = ["--h1", "-n", "10000", "-c", "8", "-t", "1", "--connect-to=192.0.2.80:80"];
    let output = stage.pod.run("h2load", &[&args[..], &[&format!("http://{HOST}/weights")]].concat(), b"")?;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("10000 succeeded, 0 failed") && said.contains("10000 2xx"), "{said}");
    let shares = stage.backends.shares("/weights", &["one", "two"]);
    assert_eq!(shares.iter().sum::<usize>(), 10_000);
    assert!(shares[0].abs_diff(8000) <= 300, "{shares:?}");
    Ok(())
}

#[test]
fn retries_go_where_the_policy_says_and_no_further() -> Result<()> {
    let http = format!(
        "  - match: [{{uri: {{prefix: /first}}}}]\n    retries: {{attempts: 3, retryOn: \"503\", backoff: 1ms}}\n{TO_ONE}  - match: [{{uri: {{prefix: /status}}}}]\n    \
         retries: {{attempts: 2, perTryTimeout: 2s, retryOn: 5xx, backoff: 1ms}}\n{TO_ONE}  - retries: {{attempts: 0}}\n{TO_ONE}"
    );
    let stage = Stage::new(&[ONE], "", &http)?;
    let reply = stage.get("/first/2/a", &["-d", "the body"])?;
    assert_eq!(reply.status, 200, "{reply:?}");
    let seen = stage.backends.with_path("/first/2/a");
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|one| one["body"] == "the body" && one["method"] == "POST"), "{seen:?}");
    assert_eq!(seen[2]["headers"]["x-envoy-attempt-count"], "3");
    let reply = stage.get("/first/9/b", &[])?;
    assert_eq!((reply.status, stage.backends.with_path("/first/9/b").len()), (503, 4));
    assert!(stage.agent.log_line("/first/9/b")?.contains(" URX "), "{}", stage.agent.stdout());
    assert_eq!((stage.get("/status/502", &[])?.status, stage.backends.with_path("/status/502").len()), (502, 3));
    assert_eq!((stage.get("/status/404", &[])?.status, stage.backends.with_path("/status/404").len()), (404, 1));
    assert_eq!((stage.get("/reset", &[])?.status, stage.backends.with_path("/reset").len()), (503, 1));
    Ok(())
}

#[test]
fn timeouts_are_answered_504() -> Result<()> {
    let http = format!(
        "  - match: [{{uri: {{prefix: /delay}}}}]\n    timeout: 300ms\n{TO_ONE}  - timeout: 1s\n    retries: {{attempts: 1, perTryTimeout: 200ms, retryOn: reset}}\n{TO_ONE}"
    );
    let stage = Stage::new(&[ONE], "", &http)?;
    let start = Instant::now();
    let reply = stage.get("/delay/5000", &[])?;
    assert_eq!((reply.status, reply.body.ends_with("upstream request timeout")), (504, true), "{reply:?}");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    let line = stage.agent.log_line("/delay/5000")?;
    assert!(line.contains(" 504 UT ") && line.contains("response_timeout"), "{line}");
    assert_eq!(stage.get("/delay/50", &[])?.status, 200);
    // The head has come, the rest does not: the client must not take the part for the whole.
    let start = Instant::now();
    let reply = stage.get("/stall", &[])?;
    assert!(reply.exit != 0 && start.elapsed() < Duration::from_secs(3), "{reply:?} after {:?}", start.elapsed());
    Ok(())
}

#[test]
fn faults_are_injected() -> Result<()> {
    let http = format!(
        "  - match: [{{uri: {{prefix: /abort}}}}]\n    fault: {{abort: {{httpStatus: 418, percentage: {{value: 100}}}}}}\n{TO_ONE}  - match: [{{uri: {{prefix: /slow}}}}]\n    \
         fault: {{delay: {{fixedDelay: 700ms, percentage: {{value: 100}}}}}}\n{TO_ONE}  - match: [{{uri: {{prefix: /half}}}}]\n    fault: {{abort: {{httpStatus: 555, percentage: {{value: 50}}}}}}\n{TO_ONE}"
    );
    let stage = Stage::new(&[ONE], "", &http)?;
    let reply = stage.get("/abort", &[])?;
    assert_eq!((reply.status, reply.body.ends_with("fault filter abort")), (418, true), "{reply:?}");
    assert!(stage.agent.log_line("/abort")?.contains(" 418 FI fault_filter_abort "), "{}", stage.agent.stdout());
    assert!(stage.backends.with_path("/abort").is_empty());
    let start = Instant::now();
    assert_eq!(stage.get("/slow", &[])?.status, 200);
    assert!((700..3000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    assert!(stage.agent.log_line("/slow")?.contains(" 200 DI "), "{}", stage.agent.stdout());
    let args = ["--h1", "-n", "1000", "-c", "4", "-t", "1", "--connect-to=192.0.2.80:80"];
    stage.pod.run("h2load", &[&args[..], &[&format!("http://{HOST}/half")]].concat(), b"")?;
    let through = stage.backends.with_path("/half").len();
    assert!((420..580).contains(&through), "{through} of 1000 came through a fault of 50 %");
    Ok(())
}

#[test]
fn mirrors_get_a_copy_and_nobody_waits_for_them() -> Result<()> {
    let http =
        format!("  - mirrors: [{{destination: {{host: {HOST}, subset: two}}, percentage: {{value: 100}}}}]\n{TO_ONE}");
    let stage = Stage::new(&[ONE, TWO], "", &http)?;
    let reply = stage.get("/mirrored", &["-d", "for both"])?;
    assert_eq!((reply.status, header(&reply, "x-instance")), (200, Some("one")), "{reply:?}");
    egret_tests::until("the mirror's copy", Duration::from_secs(3), || {
        (stage.backends.shares("/mirrored", &["one", "two"]) == [1, 1]).then_some(())
    })?;
    let copy = stage.backends.with_path("/mirrored").into_iter().find(|seen| seen["instance"] == "two");
    let copy = copy.context("no copy")?;
    assert_eq!(
        (&copy["body"], &copy["headers"]["host"]),
        (&"for both".into(), &format!("{HOST}-shadow").into()),
        "{copy}"
    );
    // The mirror takes its time; the client does not notice.
    let start = Instant::now();
    assert_eq!(stage.get("/status/200", &[])?.status, 200);
    assert!(start.elapsed() < Duration::from_secs(1));
    Ok(())
}

#[test]
fn redirects_rewrites_and_headers() -> Result<()> {
    let http = format!(
        "  - match: [{{uri: {{prefix: /old}}}}]\n    redirect: {{uri: /new, authority: other.lab.test, redirectCode: 302}}\n  - match: [{{uri: {{prefix: /shop/}}}}]\n    \
         rewrite: {{uri: /v2/, authority: inner.lab.test}}\n    headers: {{request: {{set: {{x-set: a}}, add: {{x-add: b}}, remove: [x-gone]}}, response: {{remove: [server], set: {{x-by: egret}}}}}}\n    \
         route:\n    - destination: {{host: {HOST}, subset: one}}\n      headers: {{request: {{set: {{x-to: one}}}}}}\n  - match: [{{uri: {{regex: '/user/[0-9]+'}}}}]\n    \
         rewrite: {{uriRegexRewrite: {{match: '^/user/([0-9]+)$', rewrite: '/u?id=\\1'}}}}\n{TO_ONE}"
    );
    let stage = Stage::new(&[ONE], "", &http)?;
    let reply = stage.get("/old/page?q=1", &[])?;
    assert_eq!((reply.status, header(&reply, "location")), (302, Some("http://other.lab.test/new?q=1")), "{reply:?}");
    let reply = stage.get("/shop/cart?q=1", &["-H", "x-gone: 1", "-H", "x-add: a"])?;
    assert_eq!(
        (reply.status, header(&reply, "server"), header(&reply, "x-by")),
        (200, None, Some("egret")),
        "{reply:?}"
    );
    let seen = stage.backends.with_path("/v2/cart?q=1");
    let headers = &seen.first().context("the rewritten request did not come")?["headers"];
    assert_eq!(
        (&headers["host"], &headers["x-set"], &headers["x-to"]),
        (&"inner.lab.test".into(), &"a".into(), &"one".into()),
        "{headers}"
    );
    assert!(headers.get("x-gone").is_none(), "{headers}");
    assert!(
        stage.agent.log_line("/shop/cart?q=1")?.contains("\"GET /shop/cart?q=1 HTTP/1.1\" 200"),
        "{}",
        stage.agent.stdout()
    );
    assert_eq!(stage.get("/user/42", &[])?.status, 200);
    assert_eq!(stage.backends.with_path("/u?id=42").len(), 1);
    Ok(())
}

#[test]
fn cors_is_answered_at_the_proxy() -> Result<()> {
    let http = format!(
        "  - corsPolicy:\n      allowOrigins: [{{exact: \"https://a.test\"}}, {{regex: 'https://.*\\.b\\.test'}}]\n      allowMethods: [GET, PUT]\n      allowHeaders: [x-token]\n      \
         maxAge: 1h\n      allowCredentials: true\n{TO_ONE}"
    );
    let stage = Stage::new(&[ONE], "", &http)?;
    let preflight = ["-X", "OPTIONS", "-H", "access-control-request-method: PUT", "-H"];
    let reply = stage.get("/x", &[&preflight[..], &["origin: https://x.b.test"]].concat())?;
    assert_eq!(reply.status, 200, "{reply:?}");
    for (name, value) in [
        ("access-control-allow-origin", "https://x.b.test"),
        ("access-control-allow-methods", "GET,PUT"),
        ("access-control-allow-headers", "x-token"),
        ("access-control-max-age", "3600"),
        ("access-control-allow-credentials", "true"),
    ] {
        assert_eq!(header(&reply, name), Some(value), "{reply:?}");
    }
    assert!(stage.backends.seen().is_empty(), "a preflight is not for the service");
    let reply = stage.get("/x", &["-H", "origin: https://a.test"])?;
    assert_eq!(
        (reply.status, header(&reply, "access-control-allow-origin")),
        (200, Some("https://a.test")),
        "{reply:?}"
    );
    let reply = stage.get("/x", &["-H", "origin: https://evil.test"])?;
    assert_eq!((reply.status, header(&reply, "access-control-allow-origin")), (200, None), "{reply:?}");
    Ok(())
}

#[test]
fn an_instance_that_fails_is_ejected_and_comes_back() -> Result<()> {
    let policy = "  trafficPolicy:\n    loadBalancer: {simple: ROUND_ROBIN}\n    outlierDetection: {consecutive5xxErrors: 3, interval: 200ms, baseEjectionTime: 3s, maxEjectionPercent: 100}\n";
    let stage = Stage::new(&[ONE, TWO], policy, "")?;
    let mut failed = 0;
    for _ in 0..20 {
        failed += usize::from(stage.get("/sick/two", &[])?.status == 500);
    }
    assert_eq!(failed, 3, "after three failures in a row nothing goes there");
    let (_, endpoints, _) = stage.agent.egret(&["pc", "endpoint", "client"])?;
    let row = endpoints
        .lines()
        .find(|row| row.contains(TWO.1) && row.contains("outbound|80||"))
        .context(endpoints.clone())?;
    assert!(row.contains("FAILED"), "{endpoints}");
    egret_tests::until("the ejected instance to be back", Duration::from_secs(8), || {
        let reply = stage.get("/healed", &[]).ok()?;
        (header(&reply, "x-instance") == Some("two")).then_some(())
    })
}

#[test]
fn the_same_key_goes_to_the_same_instance() -> Result<()> {
    let policy = "  trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user}}}\n";
    let stage = Stage::new(&[ONE, TWO, THREE], policy, "")?;
    let mut reached = std::collections::BTreeSet::new();
    for user in 0..12 {
        let name = format!("x-user: user-{user}");
        let instances: std::collections::BTreeSet<_> = (0..4)
            .map(|_| Ok(header(&stage.get("/hash", &["-H", &name])?, "x-instance").unwrap_or_default().to_owned()))
            .collect::<Result<_>>()?;
        assert_eq!(instances.len(), 1, "{name}: {instances:?}");
        reached.extend(instances);
    }
    assert!(reached.len() >= 2, "twelve users, and all at {reached:?}");
    let cookie = "  trafficPolicy: {loadBalancer: {consistentHash: {httpCookie: {name: session, ttl: 60s}}}}\n";
    stage.agent.reload(|| {
        let objects = [stage.pod.document("app: client"), service(&[ONE, TWO, THREE]), rule(cookie)];
        stage.lab.write("mesh.yaml", &documents(&objects))
    })?;
    let reply = stage.get("/hash", &[])?;
    let set = header(&reply, "set-cookie").context("no cookie was made")?;
    assert!(set.starts_with("session=") && set.contains("Max-Age=60"), "{set}");
    let value = set.split(';').next().unwrap_or_default();
    for _ in 0..4 {
        let again = stage.get("/hash", &["-b", value])?;
        assert_eq!(header(&again, "x-instance"), header(&reply, "x-instance"));
    }
    Ok(())
}

/// What leads nowhere says so: 503 with the right flag, and `egret check` names the place.
#[test]
fn routes_that_lead_nowhere() -> Result<()> {
    let http = format!(
        "  - match: [{{uri: {{prefix: /subset}}}}]\n    route: [{{destination: {{host: {HOST}, subset: nine}}}}]\n  - match: [{{uri: {{prefix: /host}}}}]\n    route: [{{destination: {{host: nobody.lab.test}}}}]\n{TO_ONE}"
    );
    let http = http.replacen(
        "    route: [{destination: {host: reviews.lab.test, subset: one}}]\n",
        "  - route: [{destination: {host: reviews.lab.test, subset: one}}]\n",
        1,
    );
    let stage = Stage::new(&[ONE], "", &http)?;
    for path in ["/subset", "/host"] {
        let reply = stage.get(path, &[])?;
        assert_eq!(reply.status, 503, "{reply:?}");
        let line = stage.agent.log_line(path)?;
        assert!(line.contains(" 503 NC cluster_not_found "), "{line}");
    }
    assert_eq!(stage.get("/else", &[])?.status, 200);
    assert_eq!(stage.backends.seen().len(), 1);
    let (code, said, found) = egret_tests::egret(&["check", &stage.lab.config_dir().to_string_lossy()])?;
    let all = format!("{said}{found}");
    assert_eq!(code, 1, "{all}");
    for word in ["nine", "nobody.lab.test"] {
        let line = all.lines().find(|line| line.contains(word)).with_context(|| all.clone())?;
        assert!(
            line.contains("mesh.yaml:")
                && line.contains("VirtualService default/reviews")
                && line.contains("spec.http["),
            "{line}"
        );
    }
    Ok(())
}
