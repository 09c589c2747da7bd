//! The agent's half of a test, in a process of its own: captures one pod and tells each client what it saw.
//!
//! A client of port 7 is relayed, all others get `captured <destination> from <client>`. With inbound capture, a client from
//! outside gets `inbound <destination> from <client>`, and is passed on to the pod's own server on port 80; port 8080 is passed on both ways. Commands come on stdin, one a
//! line, and each is answered by one line on stdout that begins with `@`. End of input ends the process.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use egret::{
    capture::{Capture, Inbound, Options},
    engine::ports::{OriginalDestination, Sockets},
    limits::{CLIENT_PORT_ATTEMPTS, INBOUND_PORT, OUTBOUND_PORT},
    netns::{Namespace, listener_sockets},
};
use std::os::fd::AsFd;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
    sync::Mutex,
    task::JoinHandle,
};

/// `instance pod`, for the child.
pub const ENVIRONMENT: &str = "EGRET_TEST_AGENT";
pub const RELAYED: u16 = 7;
/// Where the pods of these tests have a server of their own.
pub const SERVED: u16 = 80;
/// What comes to this port of the pod is passed on whole, both ways.
pub const PASSED_ON: u16 = 8080;

/// Not a test: what [`crate::lab::Agent`] runs the test binary for.
#[tokio::test]
#[ignore = "the child process of the other tests"]
async fn agent_process() {
    let Ok(setting) = std::env::var(ENVIRONMENT) else { return };
    let (instance, pod) = setting.split_once(' ').unwrap();
    let options = Options { instance: instance.to_owned(), debug: true, takes_over: false };
    log::set_logger(&Lines).unwrap();
    log::set_max_level(log::LevelFilter::Debug);
    let capture = match Capture::start(&options) {
        Ok(capture) => Arc::new(capture),
        Err(error) => return say(&format!("error {error}")),
    };
    // Before anything is enrolled by this process: what an earlier one left.
    say(&format!("started {:?}", capture.enrolled().unwrap()));
    let mut serving = Serving::start(&capture, pod);
    let mut commands = BufReader::new(tokio::io::stdin()).lines();
    while let Some(command) = commands.next_line().await.unwrap() {
        match command.as_str() {
            "cookie" => say(&serving.namespace.cookie().to_string()),
            "counters" => say(&format!("{:?}", capture.counters().unwrap())),
            "attached" => say(&capture.is_attached().to_string()),
            "guard" => say(&capture.has_guard().to_string()),
            "log" => say(&LOG.lock().await.join(" | ")),
            "release" => {
                capture.unenrol(serving.namespace.cookie()).unwrap();
                say(&format!("{:?}", capture.enrolled().unwrap()));
            }
            "inbound" => {
                serving.capture_inbound(&capture, false);
                say("inbound captured");
            }
            "strict" => {
                serving.capture_inbound(&capture, true);
                say("inbound captured, fail closed");
            }
            "open" | "closed" => {
                serving.inbound.as_mut().unwrap().set_fail_closed(command == "closed").unwrap();
                say(&command);
            }
            "direct" => {
                capture.release_inbound(serving.namespace.cookie()).unwrap();
                serving.inbound = None;
                say("inbound direct");
            }
            "original" => {
                assert!(capture.has_original_source());
                let own = serving.namespace.addresses().unwrap();
                serving.namespace.enable_original_source(&own).unwrap();
                serving.original_source.store(true, Ordering::Relaxed);
                say("original source");
            }
            // As at the end of the agent.
            "stop" => {
                serving.inbound.as_mut().unwrap().stop();
                serving.inbound_tasks.drain(..).for_each(|task| task.abort());
                say("stopped");
            }
            // The listeners first, so that for a while the program finds none.
            "deaf" => {
                serving.inbound_tasks.drain(..).for_each(|task| task.abort());
                say("deaf");
            }
            // What the agent does when it finds that a name leads to another namespace now.
            "renew" => {
                assert!(!serving.namespace.is_current());
                capture.unenrol(serving.namespace.cookie()).unwrap();
                drop(serving);
                serving = Serving::start(&capture, pod);
                say("renewed");
            }
            other => say(&format!("error: no command {other}")),
        }
    }
}

/// Messages of the programs, for the `log` command.
static LOG: Mutex<Vec<String>> = Mutex::const_new(Vec::new());

struct Lines;

impl log::Log for Lines {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target().starts_with("egret")
    }
    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata())
            && let Ok(mut lines) = LOG.try_lock()
        {
            lines.push(format!("{} {} {}", record.level(), record.target(), record.args()));
        }
    }
    fn flush(&self) {}
}

fn say(line: &str) {
    // Past the test harness, which has its own idea of stdout.
    let mut out = io::stdout().lock();
    writeln!(out, "@{line}").unwrap();
    out.flush().unwrap();
}

struct Serving {
    namespace: Arc<Namespace>,
    tasks: Vec<JoinHandle<()>>,
    inbound: Option<Inbound>,
    inbound_tasks: Vec<JoinHandle<()>>,
    original_source: Arc<AtomicBool>,
}

impl Serving {
    fn start(capture: &Arc<Capture>, pod: &str) -> Self {
        let namespace = Arc::new(Namespace::open(pod).unwrap());
        let addresses = namespace.addresses().unwrap();
        let listeners = listener_sockets(&addresses, OUTBOUND_PORT);
        let listeners: Vec<_> = listeners.into_iter().map(|address| namespace.listener(address).unwrap()).collect();
        capture.enrol(&namespace, OUTBOUND_PORT, &addresses).unwrap();
        let serve = |listener| tokio::spawn(serve(listener, capture.clone(), namespace.clone()));
        let tasks = listeners.into_iter().map(serve).collect();
        say("enrolled");
        Self { namespace, tasks, inbound: None, inbound_tasks: Vec::new(), original_source: Arc::default() }
    }

    fn capture_inbound(&mut self, capture: &Capture, fail_closed: bool) {
        let loopback = [format!("127.0.0.1:{INBOUND_PORT}"), format!("[::1]:{INBOUND_PORT}")];
        let listen = |address: String| self.namespace.listener(address.parse().unwrap()).unwrap();
        let listeners = loopback.map(listen);
        self.inbound = Some(capture.capture_inbound(&self.namespace, &listeners, fail_closed).unwrap());
        let serve =
            |listener| tokio::spawn(serve_inbound(listener, self.namespace.clone(), self.original_source.clone()));
        self.inbound_tasks = listeners.into_iter().map(serve).collect();
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.tasks.iter().chain(&self.inbound_tasks).for_each(JoinHandle::abort);
    }
}

async fn serve(listener: std::net::TcpListener, capture: Arc<Capture>, namespace: Arc<Namespace>) {
    let listener = TcpListener::from_std(listener).unwrap();
    loop {
        let (mut stream, peer) = listener.accept().await.unwrap();
        let original = capture.original_destination(stream.as_fd()).unwrap();
        // The accepted end must see the client, whatever getpeername tells the client itself.
        // (Unless it has reset the connection meanwhile.)
        assert!(stream.peer_addr().is_ok_and(|seen| seen == peer) || stream.peer_addr().is_err());
        let namespace = namespace.clone();
        tokio::spawn(async move {
            let Some(original) = original else { return };
            let mut answer = format!("captured {original} from {peer}");
            if original.port() == RELAYED {
                let mut upstream = namespace.tcp(original).unwrap().connect(original).await.unwrap();
                answer = "relayed ".into();
                upstream.read_to_string(&mut answer).await.unwrap();
            }
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
            // The client's bytes are read, or the close would be a reset that overtakes the answer.
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        });
    }
}

async fn serve_inbound(listener: std::net::TcpListener, namespace: Arc<Namespace>, original_source: Arc<AtomicBool>) {
    let listener = TcpListener::from_std(listener).unwrap();
    loop {
        let (mut stream, peer) = listener.accept().await.unwrap();
        let namespace = namespace.clone();
        let original_source = original_source.load(Ordering::Relaxed);
        tokio::spawn(async move {
            let original = stream.local_addr().unwrap();
            let dial =
                || if original_source { namespace.tcp_from(original, peer.ip()) } else { namespace.tcp(original) };
            if original.port() == PASSED_ON {
                // Its server may not listen yet.
                let Ok(mut application) = dial().unwrap().connect(original).await else { return };
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut application).await;
                return;
            }
            let mut answer = format!("inbound {original} from {peer}");
            if original.port() == SERVED {
                let mut connected = dial().unwrap().connect(original).await;
                // As the engine does it: the port that was drawn may lead to the application already.
                for _ in 1..CLIENT_PORT_ATTEMPTS {
                    match &connected {
                        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                            connected = dial().unwrap().connect(original).await;
                        }
                        _ => break,
                    }
                }
                let mut application = connected.unwrap();
                answer.push_str(" -> ");
                application.read_to_string(&mut answer).await.unwrap();
            }
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        });
    }
}
