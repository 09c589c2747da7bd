//! Capture of what comes to a pod: one `sk_lookup` program for each pod, held by this process alone.

use std::net::TcpListener;

use aya::{
    EbpfLoader,
    maps::{Array, SockMap},
    programs::{SkLookup, sk_lookup::SkLookupLink},
};
use egret_ebpf::{inbound, maps};
use parking_lot::Mutex;

use super::{CaptureError, pins::Pins};
use crate::netns::Namespace;

/// Built by `build.rs`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/egret-ebpf-inbound"));

/// The name of the hook in messages.
const HOOK: &str = "sk_lookup";

/// Loads the program once for each pod.
pub(super) struct Loader(Mutex<EbpfLoader<'static>>);

impl Loader {
    pub fn new(pins: &Pins) -> Self {
        let mut loader = EbpfLoader::new();
        // Nothing in the object depends on the kernel's own types.
        loader.btf(None);
        loader.map_pin_path(maps::OWN, pins.map(maps::OWN));
        Self(Mutex::new(loader))
    }

    pub fn attach(&self, namespace: &Namespace, listeners: &[TcpListener]) -> Result<Inbound, CaptureError> {
        let mut ebpf = self.0.lock().load(OBJECT)?;
        let map = |error| CaptureError::map("prepare the capture of a pod's inbound connections", error);
        let cookie = ebpf.map_mut(inbound::COOKIE).ok_or(CaptureError::Object(inbound::COOKIE))?;
        let mut cookie = Array::<_, u64>::try_from(cookie).map_err(map)?;
        cookie.set(0, namespace.cookie(), 0).map_err(map)?;
        let sockets = ebpf.map_mut(inbound::SOCKETS).ok_or(CaptureError::Object(inbound::SOCKETS))?;
        let mut sockets = SockMap::try_from(sockets).map_err(map)?;
        for listener in listeners {
            let local = listener.local_addr().map_err(|error| CaptureError::Listener { error })?;
            let index = if local.is_ipv4() { inbound::V4 } else { inbound::V6 };
            sockets.set(index, listener, 0).map_err(map)?;
        }
        let failed = |error| CaptureError::Program { program: HOOK, error: Box::new(error) };
        let program = ebpf.program_mut(inbound::PROGRAM).ok_or(CaptureError::Object(inbound::PROGRAM))?;
        let program: &mut SkLookup = program.try_into().map_err(failed)?;
        program.load().map_err(failed)?;
        let id = program.attach(namespace).map_err(failed)?;
        // The link keeps the program, and the program its maps.
        Ok(Inbound { _link: program.take_link(id).map_err(failed)? })
    }
}

/// A pod whose inbound connections come to the agent. Dropped (or with the process): they go to the application again;
/// those accepted before go on.
#[derive(Debug)]
pub struct Inbound {
    _link: SkLookupLink,
}
