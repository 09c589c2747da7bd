//! The maps, and the few lookups that every program makes. All are pinned by the agent.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, SkStorage},
    helpers::generated::{bpf_sk_storage_delete, bpf_sk_storage_get},
    macros::btf_map,
};
use core::ptr;
use egret_ebpf::{
    Address, Config, Counter, Enrolment, KUBEPODS_LEVELS, MAX_ENROLLED, MAX_KUBEPODS, MAX_LEFT_ALONE, MAX_OWN,
    MAX_PENDING, Node, Original, OwnKey, PendingKey,
};

/// Network namespace cookie → where its connections go. A namespace that is absent is none of our business.
#[btf_map]
pub static ENROLLED: HashMap<u64, Enrolment, MAX_ENROLLED, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// The addresses that enrolled pods bear: traffic to them stays inside the pod.
#[btf_map]
pub static OWN: HashMap<OwnKey, u32, MAX_OWN, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// For each socket, where its connection was going: the client's since `connect`, the accepted one's since the handshake.
#[btf_map]
pub static ORIGINAL_DST: SkStorage<Original> = SkStorage::new();

/// Bridges the two ends while the handshake is under way.
#[btf_map]
pub static PENDING: LruHashMap<PendingKey, Original, MAX_PENDING> = LruHashMap::new();

#[btf_map]
pub static CONFIG: Array<Config, 1> = Array::new();

#[btf_map]
pub static COUNTERS: PerCpuArray<u64, { Counter::COUNT }> = PerCpuArray::new();

/// Where the pods of a cluster's node are.
#[btf_map]
pub static NODE: Array<Node, 1> = Array::new();

/// Ids of pods' cgroups which the agent has decided to leave alone. A pod that is neither here nor enrolled has just been
/// created.
#[btf_map]
pub static LEFT_ALONE: HashMap<u64, u32, MAX_LEFT_ALONE, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the pointer is to this CPU's slot. A program interrupted between load and store may lose one count.
        unsafe { *value += 1 }
    }
}

#[inline(always)]
pub fn enrolment(cookie: u64) -> Option<&'static Enrolment> {
    // SAFETY: entries are freed after an RCU grace period only, and the program runs inside one.
    unsafe { ENROLLED.get(&cookie) }
}

#[inline(always)]
pub fn is_proxy(cgroup: u64) -> bool {
    CONFIG.get(0).is_some_and(|config| cgroup == config.proxy_cgroup || cgroup == config.former_cgroup)
}

#[inline(always)]
pub fn debug_wanted() -> bool {
    CONFIG.get(0).is_some_and(|config| config.debug != 0)
}

/// Whether a connection to `address` stays inside the pod.
#[inline(always)]
pub fn is_local(cookie: u64, address: Address) -> bool {
    let key = OwnKey { cookie, address };
    // SAFETY: as in `enrolment`; the value is not read.
    address.is_loopback() || unsafe { OWN.get(&key) }.is_some()
}

/// What a socket remembers, if it does.
#[inline(always)]
pub fn original_of(socket: *mut bpf_sock) -> Option<Original> {
    // SAFETY: the verifier checks that `socket` is a socket of the context; without CREATE the value may be null.
    let stored = unsafe {
        bpf_sk_storage_get(ptr::from_ref(&ORIGINAL_DST).cast_mut().cast(), socket.cast(), ptr::null_mut(), 0)
    };
    // SAFETY: not null: the storage of a live socket, which holds an `Original`.
    unsafe { stored.cast::<Original>().as_ref() }.copied()
}

/// Makes a socket remember; false: the kernel has no memory for it.
#[inline(always)]
pub fn remember(socket: *mut bpf_sock, mut original: Original) -> bool {
    // SAFETY: as above; the initial value is read before the helper returns.
    let stored = unsafe {
        bpf_sk_storage_get(
            ptr::from_ref(&ORIGINAL_DST).cast_mut().cast(),
            socket.cast(),
            ptr::from_mut(&mut original).cast(),
            u64::from(BPF_SK_STORAGE_GET_F_CREATE),
        )
    };
    // SAFETY: as above. Written again because an older value (an earlier connect of this socket) is kept by the helper.
    match unsafe { stored.cast::<Original>().as_mut() } {
        Some(stored) => {
            *stored = original;
            true
        }
        None => false,
    }
}

/// A socket that goes somewhere uncaptured forgets an earlier connection, or `getpeername` would lie.
#[inline(always)]
pub fn forget(socket: *mut bpf_sock) {
    // SAFETY: the verifier checks `socket`; a socket without storage is left as it is.
    unsafe { bpf_sk_storage_delete(ptr::from_ref(&ORIGINAL_DST).cast_mut().cast(), socket.cast()) };
}

#[inline(always)]
pub fn set_pending(key: &PendingKey, original: &Original) {
    // A failure leaves the accepted socket without a destination, and the agent closes it.
    let _ = PENDING.insert(key, original, u64::from(BPF_ANY));
}

#[inline(always)]
pub fn take_pending(key: &PendingKey) -> Option<Original> {
    // SAFETY: copied out before the entry is removed.
    let original = unsafe { PENDING.get(key) }.copied();
    if original.is_some() {
        let _ = PENDING.remove(key);
    }
    original
}

/// At which level below the root of the tree the folder of all pods is that something is in, for a socket outside the
/// machine's own namespace. `ancestor` gives the id of its ancestor at a level, 0 where it has none.
#[inline(always)]
pub fn level_of_pods(cookie: u64, ancestor: impl Fn(u32) -> u64) -> Option<u32> {
    let node = NODE.get(0)?;
    if node.kubepods[0].cgroup == 0 || cookie == node.host {
        return None;
    }
    for at in 0..MAX_KUBEPODS {
        let kubepods = node.kubepods[at];
        if kubepods.cgroup == 0 {
            break;
        }
        if kubepods.level != 0 {
            if ancestor(kubepods.level) == kubepods.cgroup {
                return Some(kubepods.level);
            }
            continue;
        }
        for level in 1..KUBEPODS_LEVELS {
            if ancestor(level) == kubepods.cgroup {
                return Some(level);
            }
        }
    }
    None
}

/// Whether something below the folder of all pods, which is at `level`, is of a pod that is left alone: guaranteed pods are
/// one level further down, the others two.
#[inline(always)]
pub fn is_left_alone(level: u32, ancestor: impl Fn(u32) -> u64) -> bool {
    let (class, pod) = (ancestor(level + 1), ancestor(level + 2));
    // SAFETY: as in `enrolment`; the values are not read.
    unsafe { LEFT_ALONE.get(&pod) }.is_some() || unsafe { LEFT_ALONE.get(&class) }.is_some()
}
