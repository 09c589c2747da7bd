//! Pods as a kubelet makes them: what an agent finds on a node, and that nothing is left of it.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use egret_tests::{
    Lab,
    kube::{ApiServer, Driver, Node, Runtime},
};

const SECOND: Duration = Duration::from_secs(1);

/// The pod's processes are in its cgroup and namespace, resolve names as the pod does, and reach the outside; the object
/// tells the address. In the end nothing is left.
#[test]
fn a_pod_is_real() -> Result<()> {
    let lab = Lab::new()?;
    let server = ApiServer::start()?;
    let drivers = [
        (Driver::Systemd, Runtime::Containerd, "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod"),
        (Driver::Cgroupfs, Runtime::CriO, "kubepods/besteffort/pod"),
    ];
    for (driver, runtime, folder) in drivers {
        let node = Node::with(&lab, &server, "node-1", driver, runtime)?;
        let pod = node.pod("default", "sleep", "metadata: {labels: {app: sleep}}")?;
        let cgroup = pod.cgroup().to_owned();
        assert!(cgroup.to_string_lossy().contains(&format!("{}/{folder}", node.cgroup_root())), "{}", cgroup.display());
        let object = server.get("Pod", "default", "sleep")?.context("the object")?;
        assert_eq!(object["status"]["podIP"], pod.net()?.v4.to_string());
        assert_eq!(object["spec"]["nodeName"], "node-1");
        for pid in pod.pids() {
            let told = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
            assert!(told.lines().any(|line| line.starts_with("0::") && line.contains(folder)), "{told}");
        }
        assert_eq!(pod.curl(&["http://edition.cnn.com/politics"])?.status, 301);
        // The pod's own resolv.conf is seen through its process, and its namespace is not the host's.
        let pid = pod.pids()[0];
        let resolver = std::fs::read_to_string(format!("/proc/{pid}/root/etc/resolv.conf"))?;
        assert!(resolver.contains(egret_tests::names::ROUTER), "{resolver}");
        assert_ne!(std::fs::read_link(format!("/proc/{pid}/ns/net"))?, std::fs::read_link("/proc/self/ns/net")?);
        let (tree, netns) = (node.cgroup_root().to_owned(), pod.net()?.netns.name().to_owned());
        pod.delete()?;
        assert_eq!(server.get("Pod", "default", "sleep")?, None);
        assert!(!cgroup.exists() && !Path::new("/run/netns").join(netns).exists());
        drop(node);
        let cgroups = cgroup.ancestors().find(|path| path.ends_with(&tree)).context("the node's folder")?;
        assert!(!cgroups.exists(), "{} is left", cgroups.display());
    }
    Ok(())
}

/// A container's command runs at once, before the status tells an address; an address is used again by the next pod; a
/// sandbox can be made again in the same pod.
#[test]
fn the_life_of_pods() -> Result<()> {
    let lab = Lab::new()?;
    let server = ApiServer::start()?;
    let node = Node::new(&lab, &server, "node-1")?;
    let command = "spec: {containers: [{name: app, image: curl, resources: {requests: {cpu: 10m}}, \
                   command: [curl, -s, -i], args: [\"http://edition.cnn.com/first\"]}]}";
    let mut first = node.pod("default", "first", command)?;
    assert_eq!(first.wait(10 * SECOND)?, Some(0), "{}", first.log());
    assert!(first.log().starts_with("HTTP/1.1 301"), "{}", first.log());
    assert!(first.cgroup().to_string_lossy().contains("burstable"));
    let address = first.net()?.v4;
    first.delete()?;
    let mut second = node.pod("default", "second", "")?;
    assert_eq!(second.net()?.v4, address);
    assert_eq!(second.curl(&["http://edition.cnn.com/second"])?.status, 301);
    let (before, uid) = (second.pids(), second.uid().to_owned());
    second.recreate_sandbox()?;
    assert!(second.pids().iter().all(|pid| !before.contains(pid)));
    assert_eq!(second.curl(&["http://edition.cnn.com/again"])?.status, 301);
    let object = server.get("Pod", "default", "second")?.context("the object")?;
    assert_eq!(object["metadata"]["uid"], uid.as_str());
    // Also with a server that is gone, and by a drop.
    server.stop();
    let cgroup = second.cgroup().to_owned();
    drop(second);
    assert!(!cgroup.exists());
    Ok(())
}

/// The API server reaches a pod of the host's network, and says so where nobody listens.
#[test]
fn the_pod_proxy_forwards() -> Result<()> {
    let lab = Lab::new()?;
    let server = ApiServer::start()?;
    let node = Node::new(&lab, &server, "node-1")?;
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let dir = lab.dir().join("www").to_string_lossy().into_owned();
    let rest = format!(
        "spec: {{hostNetwork: true, containers: [{{name: web, image: web, command: [/usr/bin/python3, -m, http.server, \
         \"{port}\", --bind, 127.0.0.1, --directory, \"{dir}\"]}}]}}"
    );
    let pod = node.pod("default", "agent", &rest)?;
    let ask = |port: u16| {
        let path = format!("/api/v1/namespaces/default/pods/agent:{port}/proxy/politics?x=1");
        let request = http::Request::get(path).body(Vec::new()).unwrap();
        server.block_on(server.kube().request_text(request))
    };
    let body = egret_tests::until("the pod's web server", 10 * SECOND, || ask(port).ok())?;
    assert_eq!(body, "politics page\n");
    let refused = ask(1).unwrap_err();
    assert!(matches!(&refused, kube::Error::Api(status) if status.code == 503), "{refused}");
    drop(pod);
    Ok(())
}
