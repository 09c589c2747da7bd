//! Capture of what comes to a pod: one `sk_lookup` program for each pod. Its link is pinned under the cookie of the pod's
//! namespace, so that a pod in which something is forbidden stays refused while no agent runs.

use std::{
    ffi::OsString,
    fs, io,
    net::TcpListener,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, MapData, SockMap},
    programs::{ProgramError, SkLookup, links::FdLink},
};
use egret_ebpf::{InboundPod, inbound, maps};

use super::{CaptureError, pins::Pins};
use crate::{netns::Namespace, sys};

/// Built by `build.rs`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/egret-ebpf-inbound"));

/// The name of the hook in messages.
const HOOK: &str = "sk_lookup";

/// Loads the program once for each pod.
pub(super) struct Loader {
    pins: Pins,
    /// Whether programs are told the interface that a connection comes in by.
    has_ingress_ifindex: bool,
}

impl Loader {
    pub fn new(pins: &Pins) -> Self {
        let mut loader = Self { pins: pins.clone(), has_ingress_ifindex: true };
        // The verifier is asked, as distributions bring such fields to older kernels.
        loader.has_ingress_ifindex = match loader.load() {
            Ok(_) => true,
            Err(error) => {
                log::debug!("taken for a kernel before 5.17, without ingress_ifindex: {error}");
                false
            }
        };
        loader
    }

    pub fn has_ingress_ifindex(&self) -> bool {
        self.has_ingress_ifindex
    }

    fn load(&self) -> Result<Ebpf, CaptureError> {
        let has_ingress_ifindex = u8::from(self.has_ingress_ifindex);
        let mut loader = EbpfLoader::new();
        // Nothing in the object depends on the kernel's own types.
        loader.btf(None);
        loader.map_pin_path(maps::OWN, self.pins.map(maps::OWN));
        loader.override_global(inbound::HAS_INGRESS_IFINDEX, &has_ingress_ifindex, true);
        let mut ebpf = loader.load(OBJECT)?;
        program(&mut ebpf)?.load().map_err(failed)?;
        Ok(ebpf)
    }

    pub fn attach(
        &self,
        namespace: &Namespace,
        listeners: &[TcpListener],
        fail_closed: bool,
    ) -> Result<Inbound, CaptureError> {
        let mut ebpf = self.load()?;
        let mut take = |name| ebpf.take_map(name).ok_or(CaptureError::Object(name));
        let mut pod = Array::try_from(take(inbound::POD)?).map_err(map_error)?;
        let mut sockets = SockMap::try_from(take(inbound::SOCKETS)?).map_err(map_error)?;
        let cookie = namespace.cookie();
        set(&mut pod, InboundPod { cookie, fail_closed: fail_closed.into(), zero: 0 })?;
        for listener in listeners {
            let local = listener.local_addr().map_err(|error| CaptureError::Listener { error })?;
            let index = if local.is_ipv4() { inbound::V4 } else { inbound::V6 };
            sockets.set(index, listener, 0).map_err(map_error)?;
        }
        let link = self.put_in_place(program(&mut ebpf)?, namespace)?;
        Ok(Inbound { _link: link, cookie, pod, sockets })
    }

    /// Into the link that an earlier agent left, so that there is no moment without a program, or by a new one.
    fn put_in_place(&self, program: &mut SkLookup, namespace: &Namespace) -> Result<OwnedFd, CaptureError> {
        let path = self.pins.inbound(namespace.cookie());
        match sys::bpf_obj_get(&path) {
            Ok(link) => {
                let fd = program.fd().map_err(failed)?;
                sys::bpf_link_update(link.as_fd(), fd.as_fd())
                    .map_err(|error| CaptureError::Swap { program: HOOK, error })?;
                return Ok(link);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(CaptureError::Pin { what: "open", path, error }),
        }
        let id = program.attach(namespace).map_err(failed)?;
        let link = FdLink::from(program.take_link(id).map_err(failed)?);
        let pin = |error| CaptureError::Pin { what: "pin", path: path.clone(), error };
        link.pin(&path).map_err(|error| pin(io::Error::other(error)))?;
        sys::bpf_obj_get(&path).map_err(pin)
    }
}

fn program(ebpf: &mut Ebpf) -> Result<&mut SkLookup, CaptureError> {
    let program = ebpf.program_mut(inbound::PROGRAM).ok_or(CaptureError::Object(inbound::PROGRAM))?;
    program.try_into().map_err(failed)
}

fn failed(error: ProgramError) -> CaptureError {
    CaptureError::Program { program: HOOK, error: Box::new(error) }
}

fn map_error(error: aya::maps::MapError) -> CaptureError {
    CaptureError::map("prepare the capture of a pod's inbound connections", error)
}

fn set(pod: &mut Array<MapData, InboundPod>, value: InboundPod) -> Result<(), CaptureError> {
    pod.set(0, value, 0).map_err(map_error)
}

/// A pod whose inbound connections come to the agent. Dropping it changes nothing, as long as the pin is there: see
/// [`super::Capture::release_inbound`].
pub struct Inbound {
    /// Held besides the pin, which somebody may remove.
    _link: OwnedFd,
    cookie: u64,
    pod: Array<MapData, InboundPod>,
    sockets: SockMap<MapData>,
}

impl Inbound {
    /// What becomes of connections while nobody listens: refused, or straight to the application.
    pub fn set_fail_closed(&mut self, fail_closed: bool) -> Result<(), CaptureError> {
        set(&mut self.pod, InboundPod { cookie: self.cookie, fail_closed: fail_closed.into(), zero: 0 })
    }

    /// Steers no more connections to the listeners, which are about to close: for what comes it is as if no agent ran.
    pub fn stop(&mut self) {
        for index in [inbound::V4, inbound::V6] {
            // Fails where there is none.
            let _ = self.sockets.clear_index(&index);
        }
    }
}

/// The cookies of the namespaces to which a program is attached.
pub(super) fn pinned(pins: &Pins) -> Result<Vec<u64>, CaptureError> {
    let path = pins.inbounds();
    let listed = fs::read_dir(&path).and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect());
    match listed {
        Ok(names) => {
            let names: Vec<OsString> = names;
            Ok(names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(CaptureError::Pin { what: "list", path, error }),
    }
}

/// Detaches the program of a namespace, once nobody holds an [`Inbound`] of it, and takes away what was made in the namespace.
/// Whether there was one.
pub(super) fn release(pins: &Pins, cookie: u64) -> Result<bool, CaptureError> {
    let path = pins.inbound(cookie);
    if let Some(namespace) = namespace_of(&path)?.and_then(Namespace::find)
        && let Err(error) = namespace.disable_original_source()
    {
        log::warn!("{}: the rules by which its application saw its clients stay: {error}", namespace.name());
    }
    super::uninstall::remove(&path, "detach")
}

/// Removes the links of namespaces that are gone: an earlier agent left them, and nobody will ask for them again.
pub(super) fn sweep(pins: &Pins) -> Result<(), CaptureError> {
    for cookie in pinned(pins)? {
        if namespace_of(&pins.inbound(cookie))?.is_none() {
            release(pins, cookie)?;
        }
    }
    Ok(())
}

/// The inode of the namespace that a link is attached to, if there is one and the namespace still exists.
fn namespace_of(path: &Path) -> Result<Option<u32>, CaptureError> {
    match sys::bpf_obj_get(path).and_then(|link| sys::bpf_link_netns(link.as_fd())) {
        Ok(inode) => Ok(Some(inode).filter(|inode| *inode != 0)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(CaptureError::Pin { what: "inspect", path: path.to_owned(), error }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The program without the field that kernels before 5.17 lack passes the verifier too.
    #[test]
    fn the_program_for_older_kernels_is_loaded_too() {
        let pins = Pins::of(&format!("egret-u{}-older", std::process::id())).unwrap();
        pins.create().unwrap();
        let mut loader = Loader::new(&pins);
        let found = loader.has_ingress_ifindex();
        loader.has_ingress_ifindex = false;
        let loaded = loader.load();
        std::fs::remove_file(pins.map(maps::OWN)).unwrap();
        for folder in [pins.maps(), pins.links(), pins.inbounds(), pins.folder().to_owned()] {
            std::fs::remove_dir(folder).unwrap();
        }
        loaded.unwrap();
        assert!(found, "kernels that the tests run on have it");
    }
}
