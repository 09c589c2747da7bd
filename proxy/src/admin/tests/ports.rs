//! The ports that others than this program know: the chart, whose rendered form is the manifest (the test of which is among the
//! end-to-end tests), and the README.

use crate::admin::{ADDRESS, read_only_port};

const MANIFEST: &str = include_str!("../../../../config/kubernetes/egret.yaml");
const README: &str = include_str!("../../../../README.md");

/// The numbers that come after `before`, in one object of the manifest.
fn ports(kind: &str, before: &str) -> Vec<u16> {
    let objects: Vec<_> = MANIFEST.split("\n---\n").filter(|one| one.contains(&format!("\nkind: {kind}\n"))).collect();
    let [object] = objects[..] else { panic!("{} objects of kind {kind}", objects.len()) };
    let found = object.split(before).skip(1).map(|rest| rest.trim_start_matches('"'));
    found.map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()).collect()
}

#[test]
fn chart_and_readme_name_the_ports_of_the_program() {
    let (admin, status) = (ADDRESS.port(), read_only_port(ADDRESS));
    assert_eq!(ports("DaemonSet", " port: "), [admin; 3], "probes of the agent");
    assert_eq!(ports("DaemonSet", "prometheus.io/port: "), [status]);
    assert_eq!(ports("Deployment", " port: "), [0_u16; 0], "none by a name of its own");
    assert_eq!(ports("Deployment", "{port: "), [admin; 2], "probes of the controller");
    assert_eq!(ports("Deployment", "--admin=0.0.0.0:"), [admin]);
    assert_eq!(ports("Deployment", "prometheus.io/port: "), [admin]);
    assert!(README.contains(&format!("curl {ADDRESS}/metrics")));
    assert!(README.contains(&format!("({status})")));
}
