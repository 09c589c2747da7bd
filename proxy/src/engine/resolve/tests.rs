//! Against a real dnsmasq on a loopback port.

use std::{
    io::Write,
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use super::{super::host_sockets::HostSockets, *};

struct Dnsmasq {
    child: Child,
    log: PathBuf,
}

impl Dnsmasq {
    fn start(folder: &Path, port: u16, records: &[&str]) -> Self {
        let log = folder.join("dnsmasq.log");
        let child = Command::new("dnsmasq")
            .args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--pid-file="])
            .args(["--user=root", "--bind-interfaces", "--listen-address=127.0.0.1", "--local=/example/lan/"])
            .args([format!("--port={port}"), format!("--log-facility={}", log.display()), "--log-queries".into()])
            .args(records.iter().map(|record| format!("--host-record={record}")))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { child, log };
        for _ in 0..500 {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return server;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("dnsmasq did not start");
    }

    fn queries(&self, question: &str) -> usize {
        std::fs::read_to_string(&self.log).unwrap_or_default().matches(question).count()
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Lab {
    folder: tempfile::TempDir,
    port: u16,
    resolver: Resolver,
}

/// Free for UDP and TCP, and below the ports that the kernel gives to connections (`ip_local_port_range`): no other test
/// gets it before dnsmasq does.
fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id();
    let ports = std::iter::from_fn(|| Some(start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000 + 10_000));
    let mut ports = ports.take(20_000).filter_map(|port| u16::try_from(port).ok());
    let free = |port: &u16| {
        let address = ("127.0.0.1", *port);
        std::net::UdpSocket::bind(address).is_ok() && std::net::TcpListener::bind(address).is_ok()
    };
    ports.find(free).unwrap()
}

fn lab(resolv_conf: &str, hosts: &str) -> Lab {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let files = ["resolv.conf", "hosts"].map(|name| vec![folder.path().join("absent"), folder.path().join(name)]);
    std::fs::write(&files[0][1], resolv_conf).unwrap();
    std::fs::write(&files[1][1], hosts).unwrap();
    let [resolv_conf, hosts] = files;
    let files = ResolverFiles { resolv_conf, hosts, port: Some(port), ..ResolverFiles::default() };
    let resolver = Resolver::new(Arc::new(HostSockets), files);
    Lab { folder, port, resolver }
}

const CONF: &str = "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n";

fn ips<const N: usize>(texts: [&str; N]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[tokio::test]
async fn both_families_cached_for_their_ttl() {
    let lab = lab(CONF, "");
    let server = Dnsmasq::start(lab.folder.path(), lab.port, &["both.example,192.0.2.1,2001:db8::1,2"]);
    for name in ["both.example", "BOTH.Example", "both.example"] {
        assert_eq!(lab.resolver.lookup(name).await.unwrap().to_vec(), ips(["192.0.2.1", "2001:db8::1"]));
    }
    assert_eq!((server.queries("query[A] both"), server.queries("query[AAAA] both")), (1, 1));
    tokio::time::sleep(Duration::from_millis(2100)).await;
    lab.resolver.lookup("both.example").await.unwrap();
    assert_eq!(server.queries("query[A] both"), 2);
}

#[tokio::test]
async fn many_at_once_are_one_query() {
    let lab = lab(CONF, "");
    let server = Dnsmasq::start(lab.folder.path(), lab.port, &["one.example,192.0.2.1,60"]);
    let asked = futures_util::future::join_all((0..50).map(|_| lab.resolver.lookup("one.example"))).await;
    assert!(asked.iter().all(|answer| answer.as_ref().unwrap().len() == 1));
    assert_eq!(server.queries("query[A] one"), 1);
}

#[tokio::test]
async fn search_domains_ndots_and_hosts() {
    let conf = "nameserver 127.0.0.1\nsearch a.lan b.lan\noptions ndots:2 timeout:1 attempts:1\n";
    let lab = lab(conf, "192.0.2.9 pinned.example pinned\n");
    let records = ["x.b.lan,192.0.2.1,60", "x.y.b.lan,192.0.2.2,60", "x.y,192.0.2.3,60", "p.q.example,192.0.2.4,60"];
    let _server = Dnsmasq::start(lab.folder.path(), lab.port, &records);
    let first = async |name: &str| lab.resolver.lookup(name).await.unwrap()[0].to_string();
    assert_eq!(first("x").await, "192.0.2.1");
    // One dot is fewer than ndots: the search domains come first; a trailing dot rules them out.
    assert_eq!(first("x.y").await, "192.0.2.2");
    assert_eq!(first("x.y.").await, "192.0.2.3");
    assert_eq!(first("p.q.example").await, "192.0.2.4");
    assert_eq!(first("Pinned.Example").await, "192.0.2.9");
}

#[tokio::test]
async fn no_such_name_is_final_and_remembered() {
    let lab = lab(CONF, "");
    let server = Dnsmasq::start(lab.folder.path(), lab.port, &[]);
    for _ in 0..3 {
        let error = lab.resolver.lookup("none.example").await.unwrap_err();
        assert!(matches!(error, ResolveError::NoSuchName(_)), "{error}");
    }
    assert_eq!(server.queries("query[A] none"), 1);
    for bad in ["", "a..example", &"a".repeat(300)] {
        assert!(lab.resolver.lookup(bad).await.is_err());
    }
}

#[tokio::test]
async fn a_dead_server_is_an_error_in_time_and_old_answers_serve_on() {
    let lab = lab(CONF, "");
    let server = Dnsmasq::start(lab.folder.path(), lab.port, &["kept.example,192.0.2.1,1"]);
    lab.resolver.lookup("kept.example").await.unwrap();
    drop(server);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let begun = Instant::now();
    let (kept, other) = tokio::join!(lab.resolver.lookup("kept.example"), lab.resolver.lookup("other.example"));
    assert_eq!(kept.unwrap().to_vec(), ips(["192.0.2.1"]));
    assert!(matches!(other, Err(ResolveError::Failed { .. })));
    assert!(begun.elapsed() < limits::RESOLVE_TIME, "{:?}", begun.elapsed());
    let _server = Dnsmasq::start(lab.folder.path(), lab.port, &["kept.example,192.0.2.2,1"]);
    tokio::time::sleep(limits::RESOLVE_AGAIN + Duration::from_millis(100)).await;
    assert_eq!(lab.resolver.lookup("kept.example").await.unwrap().to_vec(), ips(["192.0.2.2"]));
}

#[tokio::test]
async fn changed_files_count() {
    let lab = lab("nameserver 127.0.0.2\noptions timeout:1 attempts:1\n", "");
    let _server = Dnsmasq::start(lab.folder.path(), lab.port, &["late.example,192.0.2.1,60"]);
    assert!(lab.resolver.lookup("late.example").await.is_err());
    std::fs::write(lab.folder.path().join("resolv.conf"), CONF).unwrap();
    let mut hosts = std::fs::File::create(lab.folder.path().join("hosts")).unwrap();
    writeln!(hosts, "192.0.2.50 written.example").unwrap();
    tokio::time::sleep(limits::RESOLVER_FILES_AGAIN + Duration::from_millis(50)).await;
    assert_eq!(lab.resolver.lookup("late.example").await.unwrap().to_vec(), ips(["192.0.2.1"]));
    assert_eq!(lab.resolver.lookup("written.example").await.unwrap().to_vec(), ips(["192.0.2.50"]));
}

#[tokio::test]
async fn a_long_answer_comes_over_tcp() {
    let lab = lab(CONF, "");
    let many: Vec<String> = (0..150).map(|i| format!("many.example,192.0.2.{i},60")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let _server = Dnsmasq::start(lab.folder.path(), lab.port, &many);
    assert_eq!(lab.resolver.lookup("many.example").await.unwrap().len(), 150);
}

#[tokio::test]
async fn names_do_not_pile_up() {
    let lab = lab(CONF, "");
    for i in 0..limits::RESOLVED_NAMES * 2 {
        drop(lab.resolver.slot(&format!("{i}.example")));
    }
    assert!(lab.resolver.names.lock().len() <= limits::RESOLVED_NAMES);
}
