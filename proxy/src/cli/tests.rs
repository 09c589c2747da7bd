use std::time::Duration;

use clap::Parser as _;

use super::{
    args::{Args, Command, Output, What},
    client::{Agent, Ask as _},
    show,
};
use crate::admin::{
    rows::{ConditionRow, PodStatus, Status},
    tests::{Fake, serve},
};

fn parse(line: &str) -> Result<Args, clap::Error> {
    Args::try_parse_from(line.split(' '))
}

#[test]
fn the_definition_is_sound() {
    <Args as clap::CommandFactory>::command().debug_assert();
}

#[test]
fn run_takes_what_the_contract_says() {
    let args =
        parse("egret run --config a b --config c --admin 127.0.0.1:1 --state-dir /s --drain-timeout 500ms").unwrap();
    assert_eq!(args.admin, "127.0.0.1:1".parse().unwrap());
    let Command::Run(run) = args.command else { panic!("{args:?}") };
    assert_eq!(run.config, ["a", "b", "c"].map(std::path::PathBuf::from));
    assert_eq!(run.drain_timeout, Duration::from_millis(500));

    let Command::Run(run) = parse("egret run --config a").unwrap().command else { panic!() };
    assert_eq!((run.drain_timeout, run.state_dir.to_str()), (Duration::from_secs(30), Some("/var/lib/egret")));
    assert!(parse("egret run --kubernetes").is_ok());
    for bad in [
        "egret run",
        "egret run --config a --kubernetes",
        "egret run --config a --drain-timeout soon",
        "egret",
        "egret check",
    ] {
        assert!(parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn the_namespace_may_stand_before_or_after() {
    for line in ["egret -n shop pc secret cart -o json", "egret proxy-config secrets cart -n shop -o json"] {
        let args = parse(line).unwrap();
        assert_eq!(args.namespace.as_deref(), Some("shop"), "{line}");
        let Command::ProxyConfig(config) = args.command else { panic!("{line}") };
        assert_eq!((config.what, config.pod.as_deref(), config.output), (What::Secret, Some("cart"), Output::Json));
    }
    assert!(parse("egret pc nothing").is_err());
    assert!(parse("egret completion fish").is_ok());
    assert!(parse("egret completion elvish").is_err());
    assert_eq!(parse("egret --version").unwrap_err().kind(), clap::error::ErrorKind::DisplayVersion);
}

fn shown(what: What, pod: Option<&str>) -> String {
    let admin = serve(Fake::new());
    let mut out = Vec::new();
    show::proxy_config(&Agent { address: admin.address }, what, pod, None, Output::Table, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn tables_look_like_istioctls() {
    assert_eq!(
        shown(What::Cluster, Some("sleep")),
        "\
SERVICE FQDN           PORT     SUBSET     DIRECTION     TYPE             DESTINATION RULE
BlackHoleCluster       -        -          -             STATIC
PassthroughCluster     -        -          -             ORIGINAL_DST
db.example             3306     -          outbound      EDS
edition.cnn.com        80       -          outbound      STRICT_DNS       originate.default
edition.cnn.com        443      -          outbound      STRICT_DNS
"
    );
    assert_eq!(
        shown(What::Listener, Some("cart.shop")),
        "ADDRESSES     PORT      MATCH     DESTINATION\n0.0.0.0       15001     ALL       BlackHoleCluster\n"
    );
    let endpoints = shown(What::Endpoint, None);
    assert!(
        endpoints.contains("10.9.9.9:3306            HEALTHY     FAILED            outbound|3306||db.example\n"),
        "{endpoints}"
    );
    assert!(shown(What::Secret, Some("sleep")).starts_with("RESOURCE NAME     TYPE     STATUS     VALID CERT"));
}

#[test]
fn explain_and_status_are_for_people() {
    let admin = serve(Fake::new());
    let agent = Agent { address: admin.address };
    let mut out = Vec::new();
    show::explain(&agent, "sleep", None, "https://edition.cnn.com/x", Output::Table, &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    assert!(
        text.starts_with("https://edition.cnn.com:443/x from pod default/sleep\n  dials      151.101.3.5:443"),
        "{text}"
    );
    assert!(text.ends_with("\nPassed through untouched to edition.cnn.com.\n"), "{text}");

    let status = Status {
        version: "0.1.0".into(),
        pid: 7,
        uptime_seconds: 187,
        state: "starting".into(),
        awaited: vec!["capture".into()],
        capture: "attached".into(),
        generation: 2,
        rejected: vec!["a.yaml:1:1: error: x".into()],
        pods: vec![PodStatus {
            pod: "default/sleep".into(),
            netns: "sleep".into(),
            inbound: "gateway 8080, 8443".into(),
            state: "enrolled".into(),
            ..PodStatus::default()
        }],
        gateway_api: vec![
            ConditionRow {
                object: "Gateway default/gw".into(),
                condition: "Programmed".into(),
                status: "False".into(),
                reason: "Pending".into(),
                message: "no pod".into(),
                ..ConditionRow::default()
            },
            ConditionRow {
                object: "HTTPRoute default/r".into(),
                about: "parent Gateway default/gw".into(),
                condition: "Accepted".into(),
                status: "True".into(),
                reason: "Accepted".into(),
                message: "attached".into(),
            },
        ],
        ..Status::default()
    };
    let mut out = Vec::new();
    show::write_status(&status, &mut out).unwrap();
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "\
egret 0.1.0, process 7: starting, up 3m7s
  awaited: capture
capture: attached
connections: 0
configuration: generation 2, 1 document refused
  a.yaml:1:1: error: x

POD               NETNS     ADDRESSES     INBOUND                STATE
default/sleep     sleep     -             gateway 8080, 8443     enrolled

GATEWAY API
OBJECT                  ABOUT                         CONDITION      STATUS     REASON       MESSAGE
Gateway default/gw      -                             Programmed     False      Pending      no pod
HTTPRoute default/r     parent Gateway default/gw     Accepted       True       Accepted     attached
"
    );
}

#[test]
fn an_agent_that_is_absent_or_strange_is_one_sentence() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = Agent { address: free }.get("/status").unwrap_err();
    assert_eq!(
        format!("{error:#}"),
        format!(
            "no agent runs on {free}: start one with `egret run --config PATH`, or say with --admin where it listens"
        )
    );
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let stranger = std::thread::spawn(move || {
        use std::io::Write as _;
        let _ = listener.accept().unwrap().0.write_all(b"220 mail ready\r\n");
    });
    let error = format!("{:#}", Agent { address }.get("/status").unwrap_err());
    assert!(error.starts_with(&format!("what listens on {address} is no egret agent")), "{error}");
    stranger.join().unwrap();
    let admin = serve(Fake::new());
    let error = Agent { address: admin.address }.get("/proxy-config/route?pod=x").unwrap_err();
    assert_eq!(format!("{error}"), "no enrolled pod is called default/x; this agent has default/sleep, shop/cart");
}

const MESH: &str = "\
apiVersion: install.istio.io/v1alpha1
kind: IstioOperator
metadata: {name: mesh}
spec:
  meshConfig:
    accessLogFormat: \"%PROTOCOL% %NOPE%\"
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: cnn}
spec:
  hosts: [edition.cnn.com]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: DNS
";

#[test]
fn check_finds_formats_that_cannot_be_used() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mesh.yaml");
    std::fs::write(&file, MESH).unwrap();
    let (findings, objects) = super::check::findings(std::slice::from_ref(&file));
    assert_eq!(objects, 2, "{findings:?}");
    let errors: Vec<_> = findings.iter().filter(|f| f.severity == crate::api::Severity::Error).collect();
    assert_eq!(errors.len(), 1, "{findings:?}");
    assert_eq!(errors[0].line, 6, "{}", errors[0]);
    assert!(errors[0].to_string().contains("unknown operator %NOPE% at character 12"), "{}", errors[0]);

    let mut out = Vec::new();
    let code = super::check::run(std::slice::from_ref(&file), &mut out).unwrap();
    assert_eq!(format!("{code:?}"), format!("{:?}", std::process::ExitCode::FAILURE));
    assert!(String::from_utf8(out).unwrap().starts_with(&format!("{}:6:", file.display())));

    std::fs::write(&file, MESH.replace("%NOPE%", "")).unwrap();
    let code = super::check::run(&[file], &mut Vec::new()).unwrap();
    assert_eq!(format!("{code:?}"), format!("{:?}", std::process::ExitCode::SUCCESS));
    let (findings, _) = super::check::findings(&[folder.path().join("missing.yaml")]);
    assert_eq!(findings.len(), 1);
}

#[test]
fn check_finds_a_mesh_ca_that_cannot_issue() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cacerts.yaml");
    let plug_in = crate::identity::tests::lab::PlugIn::new("cluster", "730");
    let write = |parts: &[&str]| {
        use base64::Engine as _;
        let encode = |part| base64::engine::general_purpose::STANDARD.encode(plug_in.read(part));
        let data: String = parts.iter().map(|part| format!("  {part}: {}\n", encode(part))).collect();
        let head = "apiVersion: v1\nkind: Secret\nmetadata:\n  name: cacerts\n  namespace: istio-system\ndata:\n";
        std::fs::write(&file, format!("{head}{data}")).unwrap();
        super::check::findings(&[folder.path().to_owned()]).0
    };
    assert_eq!(write(&["ca-cert.pem", "ca-key.pem", "root-cert.pem", "cert-chain.pem"]), []);
    let findings = write(&["ca-cert.pem", "root-cert.pem", "cert-chain.pem"]);
    let message = "the mesh CA in secret istio-system/cacerts lacks ca-key.pem: put it there";
    assert_eq!(findings.iter().map(|finding| (finding.line, &*finding.message)).collect::<Vec<_>>(), [(6, message)]);
}
