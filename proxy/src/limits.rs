//! Every limit of the product, in one place: its value and why.

use std::time::Duration;

/// Bytes of a first flight (ClientHello, or what is neither TLS nor HTTP) that sniffing will hold. A ClientHello with
/// post-quantum key shares and ECH is some 2 to 3 KiB; 16 KiB is one full TLS record.
pub const SNIFF_BYTES: usize = 16 * 1024;
/// How long a silent client on a port of unknown protocol is waited for before it counts as TCP (server-first).
pub const SNIFF_SILENCE: Duration = Duration::from_millis(300);
/// How long a ClientHello or request head that has begun may take to become whole.
pub const HEAD_TIME: Duration = Duration::from_secs(5);
/// Bytes of an HTTP/1 request head; more is answered 431. Envoy's default is 60 KiB.
pub const HEAD_BYTES: usize = 64 * 1024;
/// Fields of a request head; more is answered 431. Envoy's default is 100.
pub const HEAD_FIELDS: usize = 100;
/// TCP connect and TLS handshake together, for each attempt (Istio `connectTimeout`).
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Idle time of an upstream connection or a tunnel (Istio `idleTimeout`).
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// Retries of a request that provably was not processed (Istio's default policy).
pub const RETRIES: u32 = 2;
/// First pause between two attempts, doubled with each (Envoy's `base_interval`).
pub const RETRY_PAUSE: Duration = Duration::from_millis(25);
/// How long requests in flight have after SIGTERM.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// The port of the in-pod outbound listener (Istio's own number for it).
pub const OUTBOUND_PORT: u16 = 15001;
/// Changes of files within this time are one reload; an editor's rename-and-replace or a symlink swap is some events.
pub const RELOAD_QUIET: Duration = Duration::from_millis(100);
/// A stream of changes that never rests is applied after this time all the same.
pub const RELOAD_LONGEST: Duration = Duration::from_secs(1);
/// Longest DNS name in text (RFC 1035 2.3.4); of a longer Host only this much of its end is matched with wildcards.
pub const HOST_NAME_BYTES: usize = 253;
/// Endpoints of a cluster whose counters are kept; beyond this, those not in use are forgotten (names that resolve to
/// ever new addresses must not fill the memory).
pub const ENDPOINTS_REMEMBERED: usize = 1024;
/// How long an address family for which the kernel had no route is left alone where another is at hand.
pub const FAMILY_UNREACHABLE: Duration = Duration::from_secs(10);
