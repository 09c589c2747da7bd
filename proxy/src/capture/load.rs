//! Loading and attaching: first start and restart are one path, which looks at each pin and makes or adopts it.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::OnceLock,
};

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Map, MapData, MapInfo, MapType},
    programs::{
        CgroupAttachMode, CgroupSkbAttachType, Program, ProgramError, ProgramType,
        links::{FdLink, LinkError},
    },
    sys::{BpfHelper, is_helper_supported},
};
use egret_ebpf::{
    Config, Counter, Enrolment, LAYOUT, MAX_ENROLLED, MAX_LEFT_ALONE, MAX_OWN, MAX_PENDING, Node, Original, OwnKey,
    PendingKey, maps,
};
use parking_lot::Mutex;

use super::{
    Capture, CaptureError, Options, cgroup, inbound, logs,
    pins::{HOOKS, Pins},
    preflight,
};
use crate::sys;

/// Built by `build.rs`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/egret-ebpf"));

/// The function of each hook.
fn program_of(hook: &'static str) -> &'static str {
    match hook {
        "sockops" => "egret_sockops",
        "getpeername4" => "egret_peername4",
        "getpeername6" => "egret_peername6",
        "guard" => "egret_guard",
        "connect6" => "egret_connect6",
        _ => "egret_connect4",
    }
}

pub(super) fn start(options: &Options) -> Result<Capture, CaptureError> {
    let pins = Pins::of(&options.instance)?;
    preflight::check()?;
    cgroup::join_host_namespace();
    let root = cgroup::root()?;
    let (proxy_cgroup, _lock) = cgroup::enter(&root, &options.instance)?;
    let root = File::open(&root).map_err(|error| CaptureError::Cgroup { path: root, error })?;

    pins.create()?;
    adoptable(&pins)?;
    let mut ebpf = load(&pins)?;
    let logs = logs::Drain::start(&mut ebpf);
    let guarded = guard_supported();
    if !guarded {
        log::warn!(
            "this kernel cannot run the egress guard (Linux 6.15 or later is needed): a pod with CAP_NET_ADMIN or CAP_NET_RAW \
             could get around the capture"
        );
    }
    inbound::sweep(&pins)?;
    let open = |error| CaptureError::map("open a map", error);
    let capture = Capture {
        enrolled: Mutex::new(take(&mut ebpf, maps::ENROLLED)?.try_into().map_err(open)?),
        own: Mutex::new(take(&mut ebpf, maps::OWN)?.try_into().map_err(open)?),
        config: Mutex::new(take(&mut ebpf, maps::CONFIG)?.try_into().map_err(open)?),
        node: Mutex::new(take(&mut ebpf, maps::NODE)?.try_into().map_err(open)?),
        left_alone: Mutex::new(take(&mut ebpf, maps::LEFT_ALONE)?.try_into().map_err(open)?),
        original: take(&mut ebpf, maps::ORIGINAL_DST)?.try_into().map_err(open)?,
        counters: take(&mut ebpf, maps::COUNTERS)?.try_into().map_err(open)?,
        inbound: inbound::Loader::new(&pins),
        programs: OnceLock::new(),
        waiting: Mutex::new(Some(Waiting { ebpf, root, proxy_cgroup, debug: options.debug })),
        pins,
        guarded,
        _logs: logs,
    };
    if !options.takes_over {
        capture.attach(false)?;
    }
    Ok(capture)
}

/// Programs that are loaded and not attached yet.
pub(super) struct Waiting {
    ebpf: Ebpf,
    root: File,
    proxy_cgroup: u64,
    debug: bool,
}

impl Waiting {
    /// The programs' ids. `former`: the agent before goes on with what it has under way.
    pub fn attach(mut self, capture: &Capture, former: bool) -> Result<Vec<(&'static str, u32)>, CaptureError> {
        let Self { proxy_cgroup, debug, .. } = self;
        capture.configure(|config| {
            let former_cgroup = if former { config.proxy_cgroup } else { 0 };
            *config = Config { proxy_cgroup, former_cgroup, debug: debug.into(), layout: LAYOUT };
        })?;
        let hooks = HOOKS.into_iter().filter(|hook| *hook != "guard" || capture.guarded);
        hooks.map(|hook| Ok((hook, attach(&mut self.ebpf, &self.root, &capture.pins, hook)?))).collect()
    }
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, CaptureError> {
    ebpf.take_map(name).ok_or(CaptureError::Object(name))
}

/// Refuses pinned maps of another shape: programs that read them wrongly could let a pod through in the clear.
fn adoptable(pins: &Pins) -> Result<(), CaptureError> {
    let other = |what: String| CaptureError::OtherVersion { path: pins.maps(), what };
    for (name, expected) in shapes() {
        let path = pins.map(name);
        if !path.exists() {
            continue;
        }
        let info = MapInfo::from_pin(&path).map_err(|error| other(format!("{name}: {error}")))?;
        let found = (info.map_type().ok(), info.key_size(), info.value_size(), info.max_entries());
        if found != (Some(expected.0), expected.1, expected.2, expected.3) {
            return Err(other(format!("{name} has another shape")));
        }
    }
    let path = pins.map(maps::CONFIG);
    if path.exists() {
        let failed = |error| CaptureError::map("read the configuration that an earlier agent left", error);
        let map = Map::Array(MapData::from_pin(&path).map_err(failed)?);
        let config = aya::maps::Array::<_, Config>::try_from(map).map_err(failed)?.get(&0, 0).map_err(failed)?;
        // 0: an agent that ended between making the map and writing to it; nothing was attached then.
        if config.layout != LAYOUT && config.layout != 0 {
            return Err(other(format!("layout {} and not {LAYOUT}", config.layout)));
        }
    }
    Ok(())
}

type Shape = (MapType, u32, u32, u32);

fn shapes() -> [(&'static str, Shape); 8] {
    fn shape<K: Pod, V: Pod>(kind: MapType, entries: usize) -> Shape {
        (kind, size_of::<K>() as u32, size_of::<V>() as u32, entries as u32)
    }
    [
        (maps::ENROLLED, shape::<u64, Enrolment>(MapType::Hash, MAX_ENROLLED)),
        (maps::OWN, shape::<OwnKey, u32>(MapType::Hash, MAX_OWN)),
        (maps::ORIGINAL_DST, shape::<i32, Original>(MapType::SkStorage, 0)),
        (maps::PENDING, shape::<PendingKey, Original>(MapType::LruHash, MAX_PENDING)),
        (maps::CONFIG, shape::<u32, Config>(MapType::Array, 1)),
        (maps::COUNTERS, shape::<u32, u64>(MapType::PerCpuArray, Counter::COUNT)),
        (maps::NODE, shape::<u32, Node>(MapType::Array, 1)),
        (maps::LEFT_ALONE, shape::<u64, u32>(MapType::Hash, MAX_LEFT_ALONE)),
    ]
}

fn load(pins: &Pins) -> Result<Ebpf, CaptureError> {
    let has_set_retval = u8::from(supports(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval));
    let mut loader = EbpfLoader::new();
    loader.override_global("HAS_SET_RETVAL", &has_set_retval, true);
    for name in maps::ALL {
        loader.map_pin_path(name, pins.map(name));
    }
    Ok(loader.load(OBJECT)?)
}

/// Linux 6.15 gave cgroup_skb programs `bpf_get_netns_cookie`.
fn guard_supported() -> bool {
    supports(ProgramType::CgroupSkb, BpfHelper::BPF_FUNC_get_netns_cookie)
}

fn supports(kind: ProgramType, helper: BpfHelper) -> bool {
    is_helper_supported(kind, helper).unwrap_or_else(|error| {
        log::debug!("probing a BPF helper failed, taken as absent: {error}");
        false
    })
}

/// Loads a hook's program and puts it in place: into the pinned link where there is one, else by a new one. Returns the
/// program's id.
fn attach(ebpf: &mut Ebpf, root: &File, pins: &Pins, hook: &'static str) -> Result<u32, CaptureError> {
    let name = program_of(hook);
    let program = ebpf.program_mut(name).ok_or(CaptureError::Object(name))?;
    let failed = |error| CaptureError::Program { program: hook, error: Box::new(error) };
    match program {
        Program::SockOps(program) => program.load(),
        Program::CgroupSkb(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        _ => return Err(CaptureError::Object(name)),
    }
    .map_err(failed)?;
    let id = program.info().map_err(failed)?.id();
    let path = pins.link(hook);
    match sys::bpf_obj_get(&path) {
        Ok(link) => {
            let fd = program.fd().map_err(failed)?;
            sys::bpf_link_update(link.as_fd(), fd.as_fd())
                .map_err(|error| CaptureError::Swap { program: hook, error })?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let pin = |error| CaptureError::Pin { what: "pin", path: path.clone(), error };
            if let Some(link) = first(program, root, hook) {
                sys::bpf_obj_pin(link.as_fd(), &path).map_err(pin)?;
                return Ok(id);
            }
            let link = new_link(program, root).map_err(|error| match &error {
                // EPERM with all rights: the hook was taken by a program that allows neither override nor company.
                ProgramError::SyscallError(system) if system.io_error.raw_os_error() == Some(libc::EPERM) => {
                    CaptureError::HookTaken(hook)
                }
                _ => failed(error),
            })?;
            link.pin(&path).map_err(|error| pin(io::Error::other(error)))?;
        }
        Err(error) => return Err(CaptureError::Pin { what: "open", path, error }),
    }
    Ok(id)
}

/// Before the programs of others that rewrite destinations (Cilium's socket load balancer): what a pod has dialled is what its
/// rules speak of. None: not for this hook, or not by this kernel, where the order is that of attaching.
fn first(program: &Program, root: &File, hook: &str) -> Option<OwnedFd> {
    let kind = match hook {
        "connect4" => sys::INET4_CONNECT,
        "connect6" => sys::INET6_CONNECT,
        _ => return None,
    };
    let program = program.fd().ok()?;
    let link = sys::bpf_link_create_first(program.as_fd(), root.as_fd(), kind);
    link.inspect_err(|error| log::debug!("{hook} is not put before the programs of others: {error}")).ok()
}

fn new_link(program: &mut Program, root: &File) -> Result<FdLink, ProgramError> {
    // Links are always "multi": the kernel refuses the flag that says so.
    let mode = CgroupAttachMode::Single;
    let link = match program {
        Program::SockOps(program) => {
            let id = program.attach(root, mode)?;
            program.take_link(id)?.try_into()
        }
        Program::CgroupSkb(program) => {
            let id = program.attach(root, CgroupSkbAttachType::Egress, mode)?;
            program.take_link(id)?.try_into()
        }
        Program::CgroupSockAddr(program) => {
            let id = program.attach(root, mode)?;
            program.take_link(id)?.try_into()
        }
        _ => return Err(ProgramError::UnexpectedProgramType),
    };
    // Kernels before 5.7 have no cgroup links, and preflight refused those.
    link.map_err(|_: LinkError| ProgramError::NotAttached)
}
