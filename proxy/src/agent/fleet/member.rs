//! One pod: its namespace, its listeners and its captures. Listeners first, captures last; the other way round at the end.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    sync::Arc,
};

use tokio::task::JoinHandle;

use super::{
    super::handover::Listeners as Inherited,
    listeners::{Accepting, Listeners},
};
use crate::{
    capture::{self, Capture, CaptureError},
    engine::{
        Engine,
        accept::Role,
        pod::Pod,
        resolve::{Resolver, ResolverFiles},
    },
    limits,
    mesh::{InboundTable, Netns, Workload, WorkloadId},
    netns::{Namespace, listener_sockets},
    node::{Node, Sandbox},
};

/// One pod whose namespace is open.
pub struct Member {
    pub netns: Netns,
    pub namespace: Arc<Namespace>,
    /// Of a pod of the kubelet.
    sandbox: Option<Sandbox>,
    pub addresses: Vec<IpAddr>,
    serving: Option<Serving>,
    /// What keeps it from being served whole: one sentence for each thing, tried again at each check.
    in_the_way: Vec<String>,
}

struct Serving {
    pod: Arc<Pod>,
    /// Captured outbound connections.
    outbound: Vec<Accepting>,
    gateway: Listeners,
    inbound: Option<InboundCapture>,
    /// Why the application does not see its clients' addresses although it is to.
    original_source_refused: Option<String>,
}

struct InboundCapture {
    capture: capture::Inbound,
    listeners: Vec<Accepting>,
}

impl Member {
    pub fn open(netns: &Netns, node: Option<&Node>) -> Result<Self, String> {
        let (namespace, sandbox) = match netns {
            Netns::Named(name) => (Namespace::open(name).map_err(|error| error.to_string())?, None),
            Netns::OfPod { uid } => {
                let node = node.ok_or("this agent serves no node of a cluster")?;
                let (namespace, sandbox) = node.find(uid).map_err(|error| error.to_string())?;
                (namespace, Some(sandbox))
            }
        };
        let addresses = namespace
            .addresses()
            .map_err(|error| format!("cannot read the addresses of {}: {error}", namespace.name()))?;
        let (netns, namespace) = (netns.clone(), Arc::new(namespace));
        Ok(Self { netns, namespace, sandbox, addresses, serving: None, in_the_way: Vec::new() })
    }

    /// Whether the pod still lives in the namespace that is open. False: close it, or the kernel keeps it alive.
    pub fn is_current(&mut self, node: Option<&Node>) -> bool {
        match (&self.netns, &mut self.sandbox) {
            (Netns::OfPod { uid }, Some(sandbox)) => {
                node.is_some_and(|node| node.has(uid)) && sandbox.is_current(self.namespace.identity())
            }
            _ => self.namespace.is_current(),
        }
    }

    pub fn is_serving(&self) -> bool {
        self.serving.is_some()
    }

    /// Brings listeners and captures in line with the table; true where something is served now that was not, or is no
    /// more, or something else is in the way.
    pub fn settle(
        &mut self,
        capture: &Arc<Capture>,
        engine: &Arc<Engine>,
        id: &WorkloadId,
        workload: Option<&Workload>,
        inherited: &mut Inherited,
    ) -> bool {
        let before = (self.serving.is_some(), self.inbound());
        let known = std::mem::take(&mut self.in_the_way);
        if self.serving.is_none() {
            match start(capture, engine, id, self, inherited) {
                Ok(serving) => self.serving = Some(serving),
                Err(why) => self.in_the_way.push(why),
            }
        }
        if let Some(serving) = &mut self.serving {
            // What is no longer wanted goes before what is new comes: a pod that becomes a gateway, or ceases to be one.
            if workload.is_some_and(|workload| workload.inbound.is_none()) {
                serving.release_inbound(capture, &self.namespace);
            }
            let table = workload.and_then(|workload| workload.gateway.as_ref());
            let wanted_listeners = table.into_iter().flat_map(|table| table.listeners.keys().copied());
            let serve = |listener, id| engine.serve(listener, serving.pod.clone(), Role::Gateway(id));
            let refused = serving.gateway.settle(wanted_listeners, &self.namespace, inherited, &self.addresses, serve);
            self.in_the_way.extend(refused);
            if let Some(table) = workload.and_then(|workload| workload.inbound.as_deref()) {
                self.in_the_way
                    .extend(serving.settle_inbound(capture, engine, &self.namespace, inherited, table).err());
                serving.settle_original_source(capture, &self.namespace, &self.addresses, table.original_source);
            }
        }
        for sentence in self.in_the_way.iter().filter(|sentence| !known.contains(sentence)) {
            log::error!("pod {id}: {sentence}");
        }
        let after = (self.serving.is_some(), self.inbound());
        if after.0 && after != before {
            let inbound = if after.1.is_empty() { "direct" } else { &after.1 };
            log::info!("pod {id}: enrolled ({}, {}; inbound {inbound})", self.namespace.name(), list(&self.addresses));
        }
        after != before || self.in_the_way != known
    }

    /// Before a table that forbids something is in force: from here on, what comes while no agent runs is refused.
    pub fn harden(&mut self) {
        let inbound = self.serving.as_mut().and_then(|serving| Some((&serving.pod, serving.inbound.as_mut()?)));
        if let Some((pod, inbound)) = inbound
            && let Err(error) = inbound.capture.set_fail_closed(true)
        {
            log::error!("pod {}: {error}", pod.id);
        }
    }

    /// Serves and captures at the new addresses; connections that are open go on.
    pub fn readdress(&mut self, capture: &Capture, engine: &Arc<Engine>, addresses: Vec<IpAddr>) {
        let port = limits::OUTBOUND_PORT;
        if let Some(serving) = &mut self.serving {
            let known = listener_sockets(&self.addresses, port);
            for local in listener_sockets(&addresses, port).into_iter().filter(|local| !known.contains(local)) {
                let serve = |listener| engine.serve(listener, serving.pod.clone(), Role::Outbound);
                match self.namespace.listener(local).and_then(|socket| Accepting::start(socket, serve)) {
                    Ok(accepting) => serving.outbound.push(accepting),
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
        if let Some(serving) = &mut self.serving {
            serving.release_inbound(capture, &self.namespace);
        }
        // Map entry first, then the listener: a connection on its way finds the one or the other.
        if let Err(error) = capture.unenrol(self.namespace.cookie()) {
            log::warn!("pod {id}: {error}");
        }
        self.stop();
    }

    /// Takes no more connections to the pod's own ports; those that are open go on. Where the table forbids something, what
    /// comes is refused from here on, also after the agent's end; else it goes straight to the application.
    pub fn stop_inbound(&mut self) {
        if let Some(mut inbound) = self.serving.as_mut().and_then(|serving| serving.inbound.take()) {
            inbound.capture.stop();
            inbound.listeners.into_iter().for_each(Accepting::stop);
        }
    }

    /// What the pod dials from now on is refused.
    pub fn stop_outbound(&mut self) {
        if let Some(serving) = &mut self.serving {
            serving.outbound.drain(..).for_each(Accepting::stop);
        }
    }

    /// Its gateway's listeners close.
    pub fn stop_gateway(&mut self) {
        if let Some(serving) = &mut self.serving {
            serving.gateway.close_all();
        }
    }

    /// Ends every listener and connection. Capture stays: what the pod dials now is refused.
    pub fn stop(&mut self) {
        self.stop_inbound();
        self.stop_gateway();
        self.stop_outbound();
        if let Some(serving) = self.serving.take() {
            serving.pod.closed.cancel();
        }
    }

    /// Accepts nothing more. Answers its listening sockets as they are, for the next agent; captures stay, and lead to them.
    pub fn hand_over(&mut self) -> Vec<TcpListener> {
        let Some(serving) = &mut self.serving else { return Vec::new() };
        let inbound = serving.inbound.take().map(|inbound| inbound.listeners).unwrap_or_default();
        let own = serving.outbound.drain(..).chain(inbound).map(Accepting::hand_over);
        own.chain(serving.gateway.hand_over()).collect()
    }

    fn resolver_files(&self) -> ResolverFiles {
        self.sandbox.as_ref().map_or_else(|| self.namespace.resolver_files(), Sandbox::resolver_files)
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

    /// What becomes of connections from outside: `captured` (`captured, original source` where the application sees its
    /// clients' addresses), `gateway 8080, 8443`, or empty where they go straight to the application.
    pub fn inbound(&self) -> String {
        let Some(serving) = &self.serving else { return String::new() };
        let listeners = serving.gateway.shown();
        match (&serving.inbound, listeners.is_empty()) {
            (Some(_), _) if serving.pod.original_source() => "captured, original source".to_owned(),
            (Some(_), _) => "captured".to_owned(),
            (None, false) => format!("gateway {}", listeners.join(", ")),
            (None, true) => String::new(),
        }
    }
}

impl Serving {
    /// Captured where it was not. Where that fails, what comes is refused if the table forbids something, and else goes
    /// straight to the application.
    fn settle_inbound(
        &mut self,
        capture: &Capture,
        engine: &Arc<Engine>,
        namespace: &Namespace,
        inherited: &mut Inherited,
        table: &InboundTable,
    ) -> Result<(), String> {
        let fail_closed = table.fail_closed();
        let failed = |error: CaptureError| error.to_string();
        if let Some(inbound) = &mut self.inbound {
            return inbound.capture.set_fail_closed(fail_closed).map_err(failed);
        }
        let listeners = match inbound_listeners(namespace, inherited) {
            Ok(listeners) => listeners,
            Err(why) => {
                let instead = if fail_closed {
                    capture.capture_inbound(namespace, &[], true).map(drop)
                } else {
                    capture.release_inbound(namespace.cookie())
                };
                return Err(instead.err().map_or(why, failed));
            }
        };
        let capture = capture.capture_inbound(namespace, &listeners, fail_closed).map_err(failed)?;
        // An earlier agent may have left it.
        if !table.original_source
            && let Err(error) = namespace.disable_original_source()
        {
            log::warn!("pod {}: the rules by which its application saw its clients stay: {error}", self.pod.id);
        }
        let serve = |listener| engine.serve(listener, self.pod.clone(), Role::Inbound);
        let listeners = accepting(listeners, serve, namespace)?;
        self.inbound = Some(InboundCapture { capture, listeners });
        Ok(())
    }

    /// Capture first, then the listeners. What comes then goes to the application.
    fn release_inbound(&mut self, capture: &Capture, namespace: &Namespace) {
        if let Err(error) = capture.release_inbound(namespace.cookie()) {
            log::warn!("pod {}: {error}", self.pod.id);
        }
        if let Some(InboundCapture { capture, listeners }) = self.inbound.take() {
            drop(capture);
            listeners.into_iter().for_each(Accepting::stop);
        }
    }

    /// Whether the application sees its clients' addresses. What cannot be had is said, and the pod's own is seen instead.
    fn settle_original_source(&mut self, capture: &Capture, namespace: &Namespace, own: &[IpAddr], wanted: bool) {
        if !wanted {
            // The rules stay as long as connections may use them, and are removed with the capture.
            return self.pod.set_original_source(false);
        }
        // Again each time: who is root in the pod may have removed it, and a first IPv6 address wants rules of its own.
        let enabled = if capture.has_original_source() {
            namespace.enable_original_source(own).map_err(|error| error.to_string())
        } else {
            Err("Linux 5.17 or later is needed".to_owned())
        };
        if let Err(why) = &enabled
            && self.original_source_refused.as_ref() != Some(why)
        {
            log::warn!(
                "pod {}: its application sees the pod's own address instead of its clients' ({why})",
                self.pod.id
            );
        }
        self.pod.set_original_source(enabled.is_ok());
        self.original_source_refused = enabled.err();
    }
}

fn start(
    capture: &Arc<Capture>,
    engine: &Arc<Engine>,
    id: &WorkloadId,
    member: &Member,
    inherited: &mut Inherited,
) -> Result<Serving, String> {
    let port = limits::OUTBOUND_PORT;
    let pod = Arc::new(Pod::new(
        Arc::new(id.clone()),
        member.namespace.clone(),
        capture.clone(),
        Resolver::new(member.namespace.clone(), member.resolver_files()),
        member.addresses.clone(),
        port,
    ));
    let listeners = listener_sockets(&member.addresses, port).into_iter().map(|local| {
        let listener = inherited.listener(&member.namespace, local);
        listener.map_err(|error| taken(&error, local, member.namespace.name(), "egret"))
    });
    let listeners: Vec<_> = listeners.collect::<Result<_, _>>()?;
    if listeners.is_empty() {
        let whose = if member.sandbox.is_some() { "waiting for the CNI" } else { "bring an interface up in it" };
        return Err(format!("its namespace {} bears no address yet: {whose}", member.namespace.name()));
    }
    capture.enrol(&member.namespace, port, &member.addresses).map_err(|error| error.to_string())?;
    let serve = |listener| engine.serve(listener, pod.clone(), Role::Outbound);
    let outbound = accepting(listeners, serve, &member.namespace)?;
    let gateway = Listeners::default();
    Ok(Serving { pod, outbound, gateway, inbound: None, original_source_refused: None })
}

fn accepting(
    listeners: Vec<TcpListener>,
    serve: impl Fn(TcpListener) -> JoinHandle<()>,
    namespace: &Namespace,
) -> Result<Vec<Accepting>, String> {
    let start = |listener| Accepting::start(listener, &serve);
    let all: io::Result<_> = listeners.into_iter().map(start).collect();
    all.map_err(|error| format!("cannot listen in {}: {error}", namespace.name()))
}

/// On the loopback addresses: the kernel program finds them wherever they are, and nobody else should.
fn inbound_listeners(namespace: &Namespace, inherited: &mut Inherited) -> Result<Vec<TcpListener>, String> {
    let mut listeners: Vec<TcpListener> = Vec::new();
    for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        let local = SocketAddr::new(ip, limits::INBOUND_PORT);
        match inherited.listener(namespace, local) {
            Ok(listener) => listeners.push(listener),
            Err(error) if local.is_ipv6() && unsupported(&error) => {}
            Err(error) => return Err(taken(&error, local, namespace.name(), "egret")),
        }
    }
    Ok(listeners)
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
