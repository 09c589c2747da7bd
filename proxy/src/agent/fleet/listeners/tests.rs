//! In a real namespace: these tests need root, as the product does.

use std::{
    cell::RefCell,
    net::TcpStream,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use super::*;

/// A namespace with the addresses 10.1.2.3 and fd00::3, gone when the test is.
struct Pod {
    name: String,
    namespace: Namespace,
    own: Vec<IpAddr>,
}

impl Pod {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("egret-f{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        ip(&format!("netns add {name}"));
        for command in ["link set lo up", "addr add 10.1.2.3/32 dev lo", "addr add fd00::3/128 dev lo"] {
            ip(&format!("-n {name} {command}"));
        }
        let namespace = Namespace::open(&name).unwrap();
        let own = namespace.addresses().unwrap();
        Self { name, namespace, own }
    }

    fn settle(&self, listeners: &mut Listeners, wanted: &[ListenerId]) -> Vec<String> {
        // As the engine does: the task owns the socket.
        let serve = |listener: TcpListener, _| {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            tokio::spawn(async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    tokio::spawn(async move {
                        let _stream = stream;
                        std::future::pending::<()>().await;
                    });
                }
            })
        };
        listeners.settle(wanted.iter().copied(), &self.namespace, &mut Inherited::default(), &self.own, serve)
    }

    fn dial(&self, address: &str) -> io::Result<TcpStream> {
        let address = address.parse().unwrap();
        self.namespace.run(|| TcpStream::connect_timeout(&address, Duration::from_secs(5))).unwrap()
    }

    fn refuses(&self, address: &str) -> bool {
        self.dial(address).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

fn id(bind: &str, port: u16) -> ListenerId {
    ListenerId { bind: (!bind.is_empty()).then(|| bind.parse().unwrap()), port }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listeners_come_and_go_with_the_table() {
    let pod = Pod::new();
    let mut listeners = Listeners::default();
    assert!(pod.settle(&mut listeners, &[id("", 8080), id("10.1.2.3", 8443)]).is_empty());
    assert_eq!(listeners.shown(), ["8080", "10.1.2.3:8443"]);
    for address in ["10.1.2.3:8080", "[fd00::3]:8080", "127.0.0.1:8080", "10.1.2.3:8443"] {
        pod.dial(address).unwrap();
    }
    assert!(pod.refuses("127.0.0.1:8443"), "bound to one address");
    let mut open = pod.dial("10.1.2.3:8080").unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;

    assert!(pod.settle(&mut listeners, &[id("10.1.2.3", 8443), id("", 9090)]).is_empty());
    assert!(pod.refuses("10.1.2.3:8080") && pod.refuses("[fd00::3]:8080"));
    pod.dial("10.1.2.3:8443").unwrap();
    pod.dial("[fd00::3]:9090").unwrap();
    // What was accepted before goes on: no end, no reset.
    open.set_nonblocking(true).unwrap();
    let error = io::Read::read(&mut open, &mut [0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);

    listeners.close_all();
    assert!(pod.refuses("10.1.2.3:8443") && pod.refuses("[fd00::3]:9090"));
    assert!(listeners.shown().is_empty());
}

/// The kernel has no room for both at once, so the old one must be closed before the new one opens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_moves_to_another_address() {
    let pod = Pod::new();
    let mut listeners = Listeners::default();
    for _ in 0..10 {
        assert_eq!(pod.settle(&mut listeners, &[id("", 8080)]), [""; 0]);
        assert_eq!(pod.settle(&mut listeners, &[id("10.1.2.3", 8080)]), [""; 0]);
    }
    assert!(pod.refuses("127.0.0.1:8080"));
    pod.dial("10.1.2.3:8080").unwrap();
}

/// Connections come without pause while the table changes around their listener: none is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unchanged_listener_notices_nothing() {
    let pod = Pod::new();
    let listeners = RefCell::new(Listeners::default());
    let settle = |wanted: &[ListenerId]| pod.settle(&mut listeners.borrow_mut(), wanted);
    assert!(settle(&[id("", 8080)]).is_empty());
    for round in 0..50 {
        let wanted = [id("", 8080), id("", 9000 + round % 3)];
        assert!(settle(&wanted).is_empty());
        pod.dial("10.1.2.3:8080").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_is_taken_is_told_and_tried_again_and_the_others_serve() {
    let pod = Pod::new();
    let taken = pod.namespace.run(|| TcpListener::bind("10.1.2.3:8080")).unwrap().unwrap();
    let mut listeners = Listeners::default();
    let wanted = [id("", 8080), id("", 9090), id("10.9.9.9", 7070)];
    let said = pod.settle(&mut listeners, &wanted);
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[0].starts_with(&format!("port 8080 is taken in its namespace {}: its gateway", pod.name)), "{said:?}");
    assert!(
        said[1].contains("cannot listen on 10.9.9.9:7070") && said[1].contains("bears no such address"),
        "{said:?}"
    );
    pod.dial("10.1.2.3:9090").unwrap();
    assert_eq!(pod.settle(&mut listeners, &wanted), said, "again");
    drop(taken);
    // A process that another test is starting may hold the socket until it runs a program of its own.
    let mut told = said.clone();
    for _ in 0..200 {
        told = pod.settle(&mut listeners, &wanted);
        if told.len() == 1 {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(told, said[1..]);
    pod.dial("10.1.2.3:8080").unwrap();
}
