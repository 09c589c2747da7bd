//! The kernel half, seen from the agent: programs on the root cgroup that send enrolled pods' connections to the
//! listeners inside them, and maps that say which pods are enrolled and where each connection was going.
//!
//! Programs and maps are pinned and outlive the agent. While no agent runs, an enrolled pod's `connect` is still sent
//! to its listener, where nobody answers: refused, never in the clear. What comes to it from outside is refused too where
//! something is forbidden, and else goes straight to the application. A new agent adopts the maps and swaps the programs in
//! place; only [`uninstall`] takes them away.
//!
//! On a node of a cluster a pod's connections are refused from the creation of its cgroup until the agent has decided about
//! it, and so while no agent runs; pods that were enrolled or left alone before stay what they were.

mod cgroup;
mod error;
mod inbound;
mod load;
mod logs;
mod pins;
mod preflight;
mod uninstall;

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener},
    os::fd::BorrowedFd,
    sync::OnceLock,
};

use aya::maps::{Array, HashMap, MapData, MapError, PerCpuArray, SkStorage};
use egret_ebpf::{Config, Counter, Enrolment, MAX_KUBEPODS, Node, Original, OwnKey};
use parking_lot::Mutex;

pub use error::CaptureError;
pub use inbound::Inbound;
pub use uninstall::{Removed, uninstall};

use crate::{
    engine::ports::OriginalDestination,
    netns::{self, Namespace, host_cookie, listener_addresses},
    node::Kubepods,
};
use pins::Pins;

/// The name of an agent that is alone on its machine.
pub const DEFAULT_INSTANCE: &str = "default";

/// How to start.
#[derive(Clone, Debug)]
pub struct Options {
    /// Names the pins and the cgroup, so that agents on one machine can live side by side. Letters, digits, `-`, `_`, `.`.
    pub instance: String,
    /// Say every redirect and denial in the log, at debug level.
    pub debug: bool,
    /// Another agent serves: nothing is attached before [`Capture::attach`].
    pub takes_over: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { instance: DEFAULT_INSTANCE.into(), debug: false, takes_over: false }
    }
}

/// What the programs counted since the maps were made (it outlives agents), over all pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections sent to a pod's listener.
    pub redirected: u64,
    /// Connections refused because they could not be captured.
    pub denied: u64,
    /// Connections of the agent's own sockets inside pods.
    pub exempt: u64,
    /// Connections that went around the redirect and were dropped by the egress guard.
    pub guarded: u64,
}

/// The attached capture. Dropping it detaches nothing.
pub struct Capture {
    pins: Pins,
    enrolled: Mutex<HashMap<MapData, u64, Enrolment>>,
    own: Mutex<HashMap<MapData, OwnKey, u32>>,
    config: Mutex<Array<MapData, Config>>,
    node: Mutex<Array<MapData, Node>>,
    left_alone: Mutex<HashMap<MapData, u64, u32>>,
    original: SkStorage<MapData, Original>,
    counters: PerCpuArray<MapData, u64>,
    /// Once they are attached.
    programs: OnceLock<Vec<(&'static str, u32)>>,
    waiting: Mutex<Option<load::Waiting>>,
    guarded: bool,
    inbound: inbound::Loader,
    _logs: Option<logs::Drain>,
}

impl Capture {
    /// Whether this machine and this process have what capture needs; changes nothing but a missing BPF mount.
    ///
    /// # Errors
    /// One sentence that names the first thing missing.
    pub fn preflight() -> Result<(), CaptureError> {
        preflight::check()
    }

    /// Enters the instance's own cgroup (with all threads of this process: its sockets are exempt from here on), loads and
    /// attaches the programs, adopting what an earlier agent left. Within a tokio runtime the programs' own messages reach
    /// the log.
    ///
    /// # Errors
    /// One sentence that names what is missing. Pods that an earlier agent enrolled stay captured.
    pub fn start(options: &Options) -> Result<Self, CaptureError> {
        load::start(options)
    }

    /// Attaches the programs, in place of those of another agent that hands over. Nothing happens where they are attached.
    /// `former`: its sockets stay exempt, for it ends what it has under way, until [`Capture::forget_former`].
    pub fn attach(&self, former: bool) -> Result<(), CaptureError> {
        let Some(waiting) = self.waiting.lock().take() else { return Ok(()) };
        let programs = waiting.attach(self, former)?;
        let _ = self.programs.set(programs);
        Ok(())
    }

    /// Captures a pod's connections: to its own addresses, `port`, where listeners must be bound already (see
    /// [`crate::netns::listener_sockets`]). Again for a pod that is enrolled: replaces what was said before.
    pub fn enrol(&self, namespace: &Namespace, port: u16, addresses: &[IpAddr]) -> Result<(), CaptureError> {
        let (v4, v6) = listener_addresses(addresses);
        if v4.is_none() && v6.is_none() {
            return Err(CaptureError::NoAddress { namespace: namespace.name().to_owned() });
        }
        let cookie = namespace.cookie();
        let map = |error| CaptureError::map("enrol a pod", error);
        let keep: Vec<OwnKey> = addresses.iter().map(|ip| OwnKey { cookie, address: (*ip).into() }).collect();
        {
            let mut own = self.own.lock();
            for key in &keep {
                own.insert(key, 1, 0).map_err(map)?;
            }
        }
        // Last: from here on the pod is captured.
        self.enrolled.lock().insert(cookie, Enrolment::new(v4, v6, port), 0).map_err(map)?;
        self.remove_own(cookie, &keep).map_err(map)
    }

    /// Captures the connections that come to a pod from outside, on all of its TCP ports but the outbound listener's: they
    /// are accepted by these listeners of the pod, at most one of each family, whose accepted sockets bear the address dialled
    /// as their own. Connections of the pod to itself, over the loopback or its own addresses (see [`Capture::enrol`]), are
    /// left alone, and so are those of the agent from inside the pod: it can pass on what it accepted to the same address.
    ///
    /// A port on which the application does not listen is accepted too: the agent learns it only when it passes the
    /// connection on, and resets it then. UDP and ICMP are left alone.
    ///
    /// `fail_closed`: while nobody listens (no agent runs, the listeners are closed, a family has none) what comes is refused;
    /// else it goes straight to the application.
    ///
    /// What an earlier agent left for the pod is adopted, without a moment between.
    pub fn capture_inbound(
        &self,
        namespace: &Namespace,
        listeners: &[TcpListener],
        fail_closed: bool,
    ) -> Result<Inbound, CaptureError> {
        self.inbound.attach(namespace, listeners, fail_closed)
    }

    /// Lets the connections that come to a pod go straight to the application again, once its [`Inbound`] is dropped too; those
    /// accepted before go on. Nothing happens where they were not captured.
    pub fn release_inbound(&self, cookie: u64) -> Result<(), CaptureError> {
        inbound::release(&self.pins, cookie).map(drop)
    }

    /// Whether an application can be given its client's address: the kernel must tell the programs by which interface a
    /// connection comes in (Linux 5.17).
    pub fn has_original_source(&self) -> bool {
        self.inbound.has_ingress_ifindex()
    }

    /// Lets a pod's connections, in both directions, go their own way again. A pod that is not enrolled: nothing happens.
    pub fn unenrol(&self, cookie: u64) -> Result<(), CaptureError> {
        self.release_inbound(cookie)?;
        let map = |error| CaptureError::map("release a pod", error);
        absent_is_fine(self.enrolled.lock().remove(&cookie)).map_err(map)?;
        self.remove_own(cookie, &[]).map_err(map)
    }

    fn remove_own(&self, cookie: u64, keep: &[OwnKey]) -> Result<(), MapError> {
        let mut own = self.own.lock();
        let stale: Vec<OwnKey> = own
            .keys()
            .filter(|key| key.as_ref().is_ok_and(|key| key.cookie == cookie && !keep.contains(key)))
            .collect::<Result<_, _>>()?;
        stale.iter().try_for_each(|key| absent_is_fine(own.remove(key)))
    }

    /// Cookies of the namespaces that are enrolled or whose inbound connections are captured, those that an earlier agent
    /// left included.
    pub fn enrolled(&self) -> Result<Vec<u64>, CaptureError> {
        let map = |error| CaptureError::map("list the enrolled pods", error);
        let mut cookies: Vec<u64> = self.enrolled.lock().keys().collect::<Result<_, _>>().map_err(map)?;
        cookies.extend(inbound::pinned(&self.pins)?);
        cookies.sort_unstable();
        cookies.dedup();
        Ok(cookies)
    }

    /// Refuses the TCP connections of pods that are neither enrolled nor left alone, once they leave the pod. `kubepods`: where
    /// pods are; empty: no such thing, as on a single host.
    pub fn hold_pods(&self, kubepods: &[Kubepods]) -> Result<(), CaptureError> {
        let mut node = Node::default();
        if !kubepods.is_empty() {
            node.host = host_cookie().map_err(|error| CaptureError::Home { error })?;
        }
        for (to, from) in node.kubepods.iter_mut().zip(kubepods.iter().take(MAX_KUBEPODS)) {
            *to = egret_ebpf::Kubepods { cgroup: from.cgroup, level: from.level.unwrap_or(0), zero: 0 };
        }
        self.node.lock().set(0, node, 0).map_err(|error| CaptureError::map("tell the programs where pods are", error))
    }

    /// Whether pods are refused until it is decided about them.
    pub fn holds_pods(&self) -> bool {
        self.node.lock().get(&0, 0).is_ok_and(|node| node.kubepods[0].cgroup != 0)
    }

    /// Lets the connections of a pod that is not enrolled go their own way. `cgroup`: its id.
    pub fn leave_alone(&self, cgroup: u64) -> Result<(), CaptureError> {
        self.left_alone.lock().insert(cgroup, 1, 0).map_err(|error| CaptureError::map("leave a pod alone", error))
    }

    /// The opposite; nothing happens where it was not left alone.
    pub fn hold(&self, cgroup: u64) -> Result<(), CaptureError> {
        absent_is_fine(self.left_alone.lock().remove(&cgroup)).map_err(|error| CaptureError::map("hold a pod", error))
    }

    /// Ids of the cgroups of pods that are left alone, by an earlier agent too.
    pub fn left_alone(&self) -> Result<Vec<u64>, CaptureError> {
        let map = |error| CaptureError::map("list the pods that are left alone", error);
        self.left_alone.lock().keys().collect::<Result<_, _>>().map_err(map)
    }

    pub fn counters(&self) -> Result<Counters, CaptureError> {
        let sum = |counter: Counter| -> Result<u64, CaptureError> {
            let map = |error| CaptureError::map("read the counters", error);
            let values = self.counters.get(&(counter as u32), 0).map_err(map)?;
            Ok(values.iter().sum())
        };
        Ok(Counters {
            redirected: sum(Counter::Redirected)?,
            denied: sum(Counter::Denied)?,
            exempt: sum(Counter::Exempt)?,
            guarded: sum(Counter::Guarded)?,
        })
    }

    /// Whether every link is in place and runs the program that this agent loaded.
    pub fn is_attached(&self) -> bool {
        let in_place = |(hook, program): &(&str, u32)| self.pins.linked_program(hook) == Some(*program);
        self.programs.get().is_some_and(|programs| programs.iter().all(in_place))
    }

    /// Whether SYNs that go around the redirect are dropped (about Linux 6.15 and later).
    pub fn has_guard(&self) -> bool {
        self.guarded
    }

    /// Whether the programs say every redirect and denial.
    pub fn set_debug(&self, debug: bool) -> Result<(), CaptureError> {
        self.configure(|config| config.debug = debug.into())
    }

    /// The agent before has ended: nobody but this one is exempt.
    pub fn forget_former(&self) -> Result<(), CaptureError> {
        self.configure(|config| config.former_cgroup = 0)
    }

    fn configure(&self, change: impl FnOnce(&mut Config)) -> Result<(), CaptureError> {
        let map = |error| CaptureError::map("configure the programs", error);
        let mut array = self.config.lock();
        let mut config = array.get(&0, 0).map_err(map)?;
        change(&mut config);
        array.set(0, config, 0).map_err(map)
    }
}

impl OriginalDestination for Capture {
    fn original_destination(&self, accepted: BorrowedFd<'_>) -> io::Result<Option<SocketAddr>> {
        match self.original.get(&accepted, 0) {
            Ok(original) if original.side == Original::ACCEPTED => Ok(Some(original.to_socket_addr())),
            Ok(_) | Err(MapError::KeyNotFound) => Ok(None),
            Err(MapError::SyscallError(error)) => Err(error.io_error),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    fn is_of_node(&self, accepted: BorrowedFd<'_>) -> io::Result<bool> {
        netns::is_of_node(accepted)
    }
}

fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
