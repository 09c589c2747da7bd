//! One pod: its namespace, its listeners and its captures. Listeners first, captures last; the other way round at the end.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    sync::Arc,
};

use tokio::task::JoinHandle;

use super::listeners::Listeners;
use crate::{
    capture::{self, Capture},
    engine::{Engine, accept::Role, pod::Pod, resolve::Resolver},
    limits,
    mesh::{Workload, WorkloadId},
    netns::{Namespace, listener_sockets},
};

/// One pod whose namespace is open.
pub struct Member {
    pub netns: String,
    pub namespace: Arc<Namespace>,
    pub addresses: Vec<IpAddr>,
    serving: Option<Serving>,
    /// What keeps it from being served whole: one sentence for each thing, tried again at each check.
    in_the_way: Vec<String>,
}

struct Serving {
    pod: Arc<Pod>,
    /// Accept captured outbound connections.
    outbound: Vec<JoinHandle<()>>,
    gateway: Listeners,
    inbound: Option<InboundCapture>,
}

struct InboundCapture {
    /// Dropped before the listeners close.
    _capture: capture::Inbound,
    tasks: Vec<JoinHandle<()>>,
}

impl Member {
    pub fn open(netns: &str) -> Result<Self, String> {
        let namespace = Namespace::open(netns).map_err(|error| error.to_string())?;
        let addresses =
            namespace.addresses().map_err(|error| format!("cannot read the addresses of {netns}: {error}"))?;
        let netns = netns.to_owned();
        Ok(Self { netns, namespace: Arc::new(namespace), addresses, serving: None, in_the_way: Vec::new() })
    }

    /// Brings listeners and captures in line with the table; true where something is served now that was not, or is no
    /// more, or something else is in the way.
    pub fn settle(
        &mut self,
        capture: &Arc<Capture>,
        engine: &Arc<Engine>,
        id: &WorkloadId,
        workload: Option<&Workload>,
    ) -> bool {
        let before = (self.serving.is_some(), self.inbound());
        let known = std::mem::take(&mut self.in_the_way);
        if self.serving.is_none() {
            match start(capture, engine, id, self) {
                Ok(serving) => self.serving = Some(serving),
                Err(why) => self.in_the_way.push(why),
            }
        }
        if let Some(serving) = &mut self.serving {
            let wanted = workload.and_then(|workload| workload.inbound.as_ref());
            // What is no longer wanted goes before what is new comes: a pod that becomes a gateway, or ceases to be one.
            if wanted.is_none() {
                serving.release_inbound();
            }
            let table = workload.and_then(|workload| workload.gateway.as_ref());
            let wanted_listeners = table.into_iter().flat_map(|table| table.listeners.keys().copied());
            let serve = |listener, id| engine.serve(listener, serving.pod.clone(), Role::Gateway(id));
            let refused = serving.gateway.settle(wanted_listeners, &self.namespace, &self.addresses, serve);
            self.in_the_way.extend(refused);
            if wanted.is_some() && serving.inbound.is_none() {
                match capture_inbound(capture, engine, &serving.pod, &self.namespace) {
                    Ok(inbound) => serving.inbound = Some(inbound),
                    Err(why) => self.in_the_way.push(why),
                }
            }
        }
        for sentence in self.in_the_way.iter().filter(|sentence| !known.contains(sentence)) {
            log::error!("pod {id}: {sentence}");
        }
        let after = (self.serving.is_some(), self.inbound());
        if after.0 && after != before {
            let inbound = if after.1.is_empty() { "direct" } else { &after.1 };
            log::info!("pod {id}: enrolled ({}, {}; inbound {inbound})", self.netns, list(&self.addresses));
        }
        after != before || self.in_the_way != known
    }

    /// Serves and captures at the new addresses; connections that are open go on.
    pub fn readdress(&mut self, capture: &Capture, engine: &Arc<Engine>, addresses: Vec<IpAddr>) {
        let port = limits::OUTBOUND_PORT;
        if let Some(serving) = &mut self.serving {
            let known = listener_sockets(&self.addresses, port);
            for local in listener_sockets(&addresses, port).into_iter().filter(|local| !known.contains(local)) {
                match self.namespace.listener(local) {
                    Ok(listener) => {
                        serving.outbound.push(engine.serve(listener, serving.pod.clone(), Role::Outbound));
                    }
                    Err(error) => log::error!("pod {}: cannot listen on {local}: {error}", serving.pod.id),
                }
            }
            serving.pod.set_own_addresses(addresses.clone());
            if let Err(error) = capture.enrol(&self.namespace, port, &addresses) {
                log::error!("pod {}: {error}", serving.pod.id);
            }
        }
        self.addresses = addresses;
    }

    /// Lets the pod's connections go their own way, then ends everything of it.
    pub fn release(&mut self, capture: &Capture, id: &WorkloadId) {
        self.stop_listening();
        // Map entry first, then the listener: a connection on its way finds the one or the other.
        if let Err(error) = capture.unenrol(self.namespace.cookie()) {
            log::warn!("pod {id}: {error}");
        }
        self.stop();
    }

    /// Takes no more connections from outside; those that are open go on.
    pub fn stop_listening(&mut self) {
        if let Some(serving) = &mut self.serving {
            serving.release_inbound();
            serving.gateway.close_all();
        }
    }

    /// Ends every listener and connection. Outbound capture stays: what the pod dials now is refused.
    pub fn stop(&mut self) {
        self.stop_listening();
        if let Some(serving) = self.serving.take() {
            serving.pod.closed.cancel();
            serving.outbound.iter().for_each(JoinHandle::abort);
        }
    }

    /// The pod at run time, once its outbound connections are captured.
    pub fn pod(&self) -> Option<&Arc<Pod>> {
        Some(&self.serving.as_ref()?.pod)
    }

    /// `enrolled`, or what is in the way.
    pub fn state(&self) -> String {
        match (self.in_the_way.as_slice(), &self.serving) {
            ([], Some(_)) => "enrolled".to_owned(),
            ([], None) => "starting".to_owned(),
            (sentences, _) => sentences.join("; "),
        }
    }

    /// What becomes of connections from outside: `captured`, `gateway 8080, 8443`, or empty where they go straight to the
    /// application.
    pub fn inbound(&self) -> String {
        let Some(serving) = &self.serving else { return String::new() };
        let listeners = serving.gateway.shown();
        match (&serving.inbound, listeners.is_empty()) {
            (Some(_), _) => "captured".to_owned(),
            (None, false) => format!("gateway {}", listeners.join(", ")),
            (None, true) => String::new(),
        }
    }
}

impl Serving {
    /// Capture first, then the listeners. What comes then goes to the application.
    fn release_inbound(&mut self) {
        if let Some(InboundCapture { _capture, tasks }) = self.inbound.take() {
            drop(_capture);
            tasks.iter().for_each(JoinHandle::abort);
        }
    }
}

fn start(capture: &Arc<Capture>, engine: &Arc<Engine>, id: &WorkloadId, member: &Member) -> Result<Serving, String> {
    let port = limits::OUTBOUND_PORT;
    let pod = Arc::new(Pod::new(
        Arc::new(id.clone()),
        member.namespace.clone(),
        capture.clone(),
        Resolver::new(member.namespace.clone(), member.namespace.resolver_files()),
        member.addresses.clone(),
        port,
    ));
    let listeners = listener_sockets(&member.addresses, port)
        .into_iter()
        .map(|local| member.namespace.listener(local).map_err(|error| taken(&error, local, &member.netns, "egret")));
    let listeners: Vec<_> = listeners.collect::<Result<_, _>>()?;
    if listeners.is_empty() {
        return Err(format!("its namespace {} bears no address yet: bring an interface up in it", member.netns));
    }
    capture.enrol(&member.namespace, port, &member.addresses).map_err(|error| error.to_string())?;
    let serve = |listener| engine.serve(listener, pod.clone(), Role::Outbound);
    let outbound = listeners.into_iter().map(serve).collect();
    Ok(Serving { pod, outbound, gateway: Listeners::default(), inbound: None })
}

/// The listeners are on the loopback addresses: the kernel program finds them wherever they are, and nobody else should.
fn capture_inbound(
    capture: &Capture,
    engine: &Arc<Engine>,
    pod: &Arc<Pod>,
    namespace: &Namespace,
) -> Result<InboundCapture, String> {
    let mut listeners: Vec<TcpListener> = Vec::new();
    for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        let local = SocketAddr::new(ip, limits::INBOUND_PORT);
        match namespace.listener(local) {
            Ok(listener) => listeners.push(listener),
            Err(error) if local.is_ipv6() && unsupported(&error) => {}
            Err(error) => return Err(taken(&error, local, namespace.name(), "egret")),
        }
    }
    let _capture = capture.capture_inbound(namespace, &listeners).map_err(|error| error.to_string())?;
    let serve = |listener| engine.serve(listener, pod.clone(), Role::Inbound);
    Ok(InboundCapture { _capture, tasks: listeners.into_iter().map(serve).collect() })
}

/// A kernel without IPv6.
pub(super) fn unsupported(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

/// Why a port could not be listened on, and what to do about it.
pub(super) fn taken(error: &io::Error, local: SocketAddr, netns: &str, who: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "port {} is taken in its namespace {netns}: {who} listens there; stop what uses it (ss -tlnp)",
            local.port()
        ),
        io::ErrorKind::AddrNotAvailable => {
            format!("{who} cannot listen on {local}: its namespace {netns} bears no such address")
        }
        _ => format!("{who} cannot listen on {local} in {netns}: {error}"),
    }
}

pub(super) fn list(addresses: &[IpAddr]) -> String {
    let texts: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    texts.join(", ")
}
