//! What a Gateway's servers take in and what they leave: redirects, raw connections, addresses, namespaces, conflicts, refusals.

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read, Write},
};

use anyhow::Result;
use egret_tests::{
    Agent, Lab, Pod, names,
    objects::{documents, entry, in_namespace, object},
};

/// A gateway pod `app: gw`, and a client that is not in the mesh.
struct Stage {
    agent: Agent,
    gateway: Pod,
    client: Pod,
    lab: Lab,
}

impl Stage {
    fn new(objects: &[String]) -> Result<Self> {
        let lab = Lab::new()?;
        let (gateway, client) = (lab.pod("gw")?, lab.pod("client")?);
        lab.write("pod.yaml", &gateway.document("app: gw"))?;
        lab.write("mesh.yaml", &documents(objects))?;
        let agent = Agent::start(&lab)?;
        Ok(Self { agent, gateway, client, lab })
    }

    /// A request to the gateway for any host.
    fn get(&self, url: &str) -> Result<egret_tests::Reply> {
        self.client.call(&self.gateway.v4.to_string(), url, &["-i"])
    }

    fn at(&self, port: u16) -> String {
        format!("{}:{port}", self.gateway.v4)
    }

    fn said(&self) -> String {
        format!("{}\n{}", self.agent.stdout(), self.agent.stderr())
    }
}

fn gateway(name: &str, servers: &str) -> String {
    object("Gateway", name, &format!("{{selector: {{app: gw}}, servers: [{servers}]}}"))
}

/// A VirtualService at a gateway that answers by itself.
fn answer(name: &str, gateway: &str, host: &str, body: &str) -> String {
    let spec = format!(
        "{{hosts: ['{host}'], gateways: [{gateway}], http: [{{directResponse: {{status: 200, body: {{string: {body}}}}}}}]}}"
    );
    object("VirtualService", name, &spec)
}

/// A host with a VirtualService or without is redirected; one that the server does not name is not.
#[test]
fn plain_servers_redirect_to_https() -> Result<()> {
    let stage = Stage::new(&[
        gateway(
            "gw",
            "{port: {number: 8080, name: http, protocol: HTTP}, hosts: [a.lab.test, b.lab.test], tls: {httpsRedirect: true}}",
        ),
        gateway("open", "{port: {number: 8081, name: http, protocol: HTTP}, hosts: ['*']}"),
        answer("a", "gw", "a.lab.test", "never"),
        answer("open", "open", "a.lab.test", "served"),
    ])?;
    for host in ["a.lab.test", "b.lab.test"] {
        let reply = stage.get(&format!("http://{host}:8080/x?y=1"))?;
        assert_eq!(reply.status, 301, "{host}: {reply:?}\n{}", stage.said());
        assert_eq!(reply.header("location"), Some(format!("https://{host}:8080/x?y=1").as_str()));
    }
    let stranger = stage.get("http://c.lab.test:8080/")?;
    assert_eq!(stranger.status, 404, "{stranger:?}\n{}", stage.said());
    assert!(stage.get("http://a.lab.test:8081/")?.body.ends_with("served"), "{}", stage.said());
    // A host of the server, and no VirtualService for it.
    let reply = stage.get("http://nobody.lab.test:8081/lost")?;
    assert_eq!((reply.status, reply.header("content-length")), (404, Some("0")), "{reply:?}");
    let line = stage.agent.log_line("/lost")?;
    assert!(line.contains(" 404 NR route_not_found ") && line.contains("default/gw"), "{line}");
    Ok(())
}

/// One connection to a server that speaks first, and a word that comes back in capitals.
fn speak(client: &Pod, to: &str) -> Result<()> {
    let mut stream = client.connect(to)?;
    let mut banner = [0; 11];
    stream.read_exact(&mut banner)?;
    assert_eq!(&banner, b"220 ready\r\n");
    stream.write_all(b"word\n")?;
    let mut word = [0; 5];
    stream.read_exact(&mut word)?;
    assert_eq!(&word, b"WORD\n");
    Ok(())
}

/// Raw connections: the server speaks first, and destinations get connections by weight.
#[test]
fn raw_connections_are_split_by_weight() -> Result<()> {
    let backend = |host: &str| {
        egret_tests::objects::entry_with(
            host,
            &["2525 TCP 9001"],
            &format!("  resolution: STATIC\n  endpoints: [{{address: {}}}]\n", names::ODD),
        )
    };
    let route = object(
        "VirtualService",
        "mail",
        "{hosts: ['*'], gateways: [gw], tcp: [{match: [{port: 2525}], route: [\
         {destination: {host: one.lab.test, port: {number: 2525}}, weight: 75}, \
         {destination: {host: two.lab.test, port: {number: 2525}}, weight: 25}]}]}",
    );
    let stage = Stage::new(&[
        gateway(
            "gw",
            "{port: {number: 2525, name: tcp, protocol: TCP}, hosts: ['*']}, {port: {number: 2526, name: tcp2, protocol: TCP}, hosts: ['*']}",
        ),
        backend("one.lab.test"),
        backend("two.lab.test"),
        route,
    ])?;
    for _ in 0..80 {
        speak(&stage.client, &stage.at(2525))?;
    }
    let mut shares = BTreeMap::new();
    egret_tests::until("80 lines", std::time::Duration::from_secs(5), || {
        shares.clear();
        for line in stage.agent.stdout().lines() {
            let cluster = line.split_whitespace().find(|word| word.starts_with("outbound|"))?;
            *shares.entry(cluster.to_owned()).or_insert(0) += 1;
        }
        (shares.values().sum::<usize>() == 80).then_some(())
    })?;
    let share = |host: &str| shares.get(&format!("outbound|2525||{host}")).copied().unwrap_or(0);
    // Five standard deviations of a binomial of 80 with 3/4.
    assert!((41..=79).contains(&share("one.lab.test")) && share("two.lab.test") > 0, "{shares:?}");
    // A listener without a route takes nothing in.
    assert!(stage.client.exchange(&stage.at(2526), b"hello\n").unwrap_or_default().is_empty(), "{}", stage.said());
    Ok(())
}

/// Bytes of any kind inside mesh mTLS: from the pod to the gateway nothing is readable, nor is plain text taken.
#[test]
fn raw_connections_travel_in_mesh_mtls() -> Result<()> {
    for protocol in ["TLS", "TCP"] {
        let lab = Lab::new()?;
        let (client, pod) = (lab.pod("client")?, lab.pod("gw")?);
        let route = |port: u16| {
            format!(
                "route: [{{destination: {{host: {}, port: {{number: {port}}}}}}}]",
                if port == 15443 { "gw" } else { "odd.lab.test" }
            )
        };
        let objects = [
            client.document(""),
            pod.document("app: gw"),
            entry("odd.lab.test", &["9001 TCP"]),
            object("Service", "gw", "{clusterIP: 10.97.0.30, selector: {app: gw}, ports: [{name: tls, port: 15443}]}"),
            gateway(
                "gw",
                &format!(
                    "{{port: {{number: 15443, name: tls, protocol: {protocol}}}, hosts: [odd.lab.test], tls: {{mode: ISTIO_MUTUAL}}}}"
                ),
            ),
            object(
                "DestinationRule",
                "gw",
                "{host: gw, trafficPolicy: {tls: {mode: ISTIO_MUTUAL, sni: odd.lab.test}}}",
            ),
            object(
                "VirtualService",
                "odd",
                &format!(
                    "{{hosts: [odd.lab.test], gateways: [mesh, gw], tcp: [{{match: [{{gateways: [mesh], port: 9001}}], {}}}, {{match: [{{gateways: [gw], port: 15443}}], {}}}]}}",
                    route(15443),
                    route(9001)
                ),
            ),
        ];
        lab.write("mesh.yaml", &documents(&objects))?;
        let agent = Agent::start(&lab)?;
        let said = || format!("{protocol}\n{}\n{}", agent.stdout(), agent.stderr());
        let odd = format!("{}:9001", names::ODD);
        speak(&client, &odd).map_err(|error| error.context(said()))?;
        let line = agent.log_line("outbound|15443||gw.default.svc.cluster.local")?;
        assert!(line.contains("default/client"), "{line}");
        let line = agent.log_line("outbound|9001||odd.lab.test")?;
        assert!(line.contains("default/gw") && line.contains(&format!("\"{odd}\"")), "{line}");
        let mut plain = lab.outside().connect(format!("{}:15443", pod.v4).parse()?)?;
        plain.write_all(b"hello\n")?;
        let mut answer = Vec::new();
        let end = plain.read_to_end(&mut answer);
        assert_eq!((answer.len(), end.map_err(|error| error.kind()).err()), (0, Some(ErrorKind::ConnectionReset)));
    }
    Ok(())
}

/// A server with `bind` is on that address only.
#[test]
fn a_server_is_bound_to_its_address() -> Result<()> {
    let lab = Lab::new()?;
    let (pod, client) = (lab.pod("gw")?, lab.pod("client")?);
    let servers = format!(
        "{{port: {{number: 8080, name: a, protocol: HTTP}}, bind: {}, hosts: ['*']}}, {{port: {{number: 8081, name: b, protocol: HTTP}}, bind: 127.0.0.1, hosts: ['*']}}, \
         {{port: {{number: 8082, name: c, protocol: HTTP}}, bind: 192.0.2.77, hosts: ['*']}}",
        pod.v4
    );
    let objects = [pod.document("app: gw"), gateway("gw", &servers), answer("all", "gw", "*", "served")];
    lab.write("mesh.yaml", &documents(&objects))?;
    let mut agent = Agent::spawn(&lab, &[])?;
    // One address is not the pod's: told, and the others serve.
    egret_tests::until("the reason", std::time::Duration::from_secs(10), || {
        let (_, body) = agent.admin("GET", "/healthz/ready").ok()?;
        body.contains("192.0.2.77").then_some(())
    })
    .map_err(|error| error.context(agent.stderr()))?;
    let status =
        |from: &Pod, to: String| from.curl(&[&format!("http://{to}/")]).map(|reply| (reply.status, reply.exit));
    assert_eq!(status(&client, format!("{}:8080", pod.v4))?, (200, 0), "{}", agent.stderr());
    assert_eq!(status(&client, format!("[{}]:8080", pod.v6))?, (0, 7));
    assert_eq!(status(&client, format!("{}:8081", pod.v4))?, (0, 7));
    assert_eq!(status(&pod, "127.0.0.1:8081".to_owned())?, (200, 0), "{}", agent.stderr());
    lab.write("mesh.yaml", &documents(&objects).replace("192.0.2.77", "127.0.0.3"))?;
    agent.wait_ready()?;
    assert_eq!(status(&pod, "127.0.0.3:8082".to_owned())?, (200, 0), "{}", agent.stderr());
    Ok(())
}

/// `namespace/host`, `./host`, `*/host`: whose VirtualServices a server lets in.
#[test]
fn servers_take_virtual_services_of_their_namespaces() -> Result<()> {
    let shop = |host: &str, body: &str| in_namespace(&answer(body, "default/gw", host, body), "shop");
    let stage = Stage::new(&[
        gateway(
            "gw",
            "{port: {number: 8080, name: http, protocol: HTTP}, hosts: [shop/a.lab.test, ./b.lab.test, '*/c.lab.test', 'shop/*.d.lab.test']}",
        ),
        answer("a", "gw", "a.lab.test", "wrong-a"),
        shop("a.lab.test", "right-a"),
        shop("b.lab.test", "wrong-b"),
        answer("right-b", "gw", "b.lab.test", "right-b"),
        shop("c.lab.test", "right-c"),
        shop("x.d.lab.test", "right-d"),
        answer("y", "gw", "y.d.lab.test", "wrong-d"),
    ])?;
    for name in ["a", "b", "c", "x.d"] {
        let reply = stage.get(&format!("http://{name}.lab.test:8080/"))?;
        let body = format!("right-{}", name.trim_start_matches("x."));
        assert!(reply.status == 200 && reply.body.ends_with(&body), "{name}: {reply:?}\n{}", stage.said());
    }
    assert_eq!(stage.get("http://y.d.lab.test:8080/")?.status, 404);
    Ok(())
}

/// Two Gateways want one port for different things: the later one is told so and left out, the earlier one serves on.
#[test]
fn the_later_of_two_gateways_gives_way() -> Result<()> {
    let later = "{port: {number: 8080, name: tcp, protocol: TCP}, hosts: ['*']}, {port: {number: 8081, name: http, protocol: HTTP}, hosts: ['*']}";
    let stage = Stage::new(&[
        gateway("first", "{port: {number: 8080, name: http, protocol: HTTP}, hosts: [a.lab.test]}"),
        gateway("second", later),
        gateway("third", "{port: {number: 8080, name: http, protocol: HTTP}, hosts: [b.lab.test]}"),
        answer("a", "first", "a.lab.test", "of-first"),
        answer("all", "second", "*", "of-second"),
        answer("b", "third", "b.lab.test", "of-third"),
    ])?;
    for (url, body) in
        [("a.lab.test:8080", "of-first"), ("c.lab.test:8081", "of-second"), ("b.lab.test:8080", "of-third")]
    {
        let reply = stage.get(&format!("http://{url}/"))?;
        assert!(reply.status == 200 && reply.body.ends_with(body), "{url}: {reply:?}\n{}", stage.said());
    }
    assert_eq!(stage.get("http://c.lab.test:8080/")?.status, 404, "{}", stage.said());
    let told = stage.agent.stderr();
    assert!(told.contains("second") && told.contains("this server is skipped"), "{told}");
    let (_, found, _) = egret_tests::egret(&["check", &stage.lab.config_dir().to_string_lossy()])?;
    let line = found.lines().find(|line| line.contains("this server is skipped")).unwrap_or_default();
    assert!(line.contains("mesh.yaml:") && line.contains("plain HTTP"), "{found}");
    Ok(())
}

/// A server whose TLS cannot be done is not done without: no answer to TLS, none to plain text, and the reason is said.
#[test]
fn a_server_that_cannot_do_its_tls_serves_nobody() -> Result<()> {
    let server = |port: u16, mode: &str| {
        format!(
            "{{port: {{number: {port}, name: s-{port}, protocol: HTTPS}}, hosts: ['*'], tls: {{mode: {mode}, credentialName: nowhere}}}}"
        )
    };
    let stage = Stage::new(&[
        gateway("gw", &format!("{}, {}", server(8443, "SIMPLE"), server(8444, "MUTUAL"))),
        answer("all", "gw", "*", "must-not-be-served"),
    ])?;
    for port in [8443, 8444] {
        let plain = stage.client.exchange(&stage.at(port), b"GET / HTTP/1.1\r\nHost: a.lab.test\r\n\r\n")?;
        assert!(plain.is_empty(), "{}", String::from_utf8_lossy(&plain));
        let reply =
            stage.client.call(&stage.gateway.v4.to_string(), &format!("https://a.lab.test:{port}/"), &["-k"])?;
        assert_eq!((reply.status, reply.exit), (0, 35), "{reply:?}\n{}", stage.said());
    }
    let told = stage.agent.stderr();
    assert!(told.contains("default/gw") && told.contains("spec.servers[0].tls"), "{told}");
    Ok(())
}

/// A server name that no server has: no handshake, whoever asks.
#[test]
fn an_unknown_server_name_gets_no_handshake() -> Result<()> {
    let stage = Stage::new(&[
        gateway(
            "gw",
            "{port: {number: 8443, name: https, protocol: HTTPS}, hosts: [a.lab.test], tls: {mode: ISTIO_MUTUAL}}",
        ),
        answer("all", "gw", "*", "never"),
    ])?;
    for name in [Some("other.lab.test"), None] {
        let (before, at) = (stage.agent.stdout().lines().count(), stage.at(8443));
        let mut args = vec!["s_client", "-connect", &at, "-alpn", "istio"];
        args.extend(name.map_or(vec!["-noservername"], |name| vec!["-servername", name]));
        let output = stage.client.run("openssl", &args, b"")?;
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("no peer certificate available"), "{name:?}: {said}");
        egret_tests::until("a line", std::time::Duration::from_secs(3), || {
            stage
                .agent
                .stdout()
                .lines()
                .skip(before)
                .find(|line| line.contains("NR filter_chain_not_found"))
                .map(|_| ())
        })
        .map_err(|error| error.context(stage.said()))?;
    }
    Ok(())
}
