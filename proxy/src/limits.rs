//! Every limit of the product, in one place: its value and why.

use std::time::Duration;

/// Bytes of a first flight (ClientHello, or what is neither TLS nor HTTP) that sniffing will hold. A ClientHello with
/// post-quantum key shares and ECH is some 2 to 3 KiB; 16 KiB is one full TLS record.
pub const SNIFF_BYTES: usize = 16 * 1024;
/// How long a silent client on a port of unknown protocol is waited for before it counts as TCP (server-first).
pub const SNIFF_SILENCE: Duration = Duration::from_millis(300);
/// How long a ClientHello or request head that has begun may take to become whole.
pub const HEAD_TIME: Duration = Duration::from_secs(5);
/// A client's ClientHello and TLS handshake together: what we give servers (`connectTimeout`), we give clients.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// Bytes of an HTTP/1 request head; more is answered 431. Envoy's default is 60 KiB.
pub const HEAD_BYTES: usize = 64 * 1024;
/// Fields of a request head; more is answered 431. Envoy's default is 100.
pub const HEAD_FIELDS: usize = 100;
/// Bytes of the buffer into which a thread reads heads and bodies of HTTP/1.1: a window of what the kernel has, at one call.
pub const H1_READ: usize = 64 * 1024;
/// Futures of HTTP/1.1 requests that a thread keeps for the next ones, some 6 KiB each: as many as are mostly
/// under way.
pub const H1_RUNNERS: usize = 64;
/// Pieces of an HTTP/1.1 body up to this size are copied behind the head or the piece before, so that they go out with it
/// in one write: a copy of so much costs less than a second slice.
pub const H1_COPIED: usize = 8 * 1024;
/// At a drain, how long gateways and pods' own ports still take what pods of this node have under way: a request that has
/// come to its first hop is at its second within milliseconds, and only a tunnel stays for longer.
pub const DRAIN_HOPS: Duration = Duration::from_secs(1);
/// TCP connect and TLS handshake together, for each attempt (Istio `connectTimeout`).
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Idle time of an upstream connection or a tunnel (Istio `idleTimeout`).
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// First and smallest size of a copy buffer: one connection of small messages needs no more. Two a connection.
pub const COPY_BUFFER_LEAST: usize = 8 * 1024;
/// A buffer that reads keep filling doubles up to this; beyond it throughput no longer rises.
pub const COPY_BUFFER_MOST: usize = 256 * 1024;
/// From this size of the buffer on, bytes between two bare sockets are moved by the kernel through a pipe instead: below it the
/// second system call costs more than the copy.
pub const COPY_SPLICE: usize = 64 * 1024;
/// Bytes for which a pipe has slots, the most that the kernel allows by default (`fs.pipe-max-size`). A slot of 4 KiB holds as
/// little as one packet, so this is more than the bytes that are moved at one time (`COPY_BUFFER_MOST`).
pub const COPY_PIPE: i32 = 1024 * 1024;
/// Pipes that a thread keeps for the next connection with much to move.
pub const COPY_PIPES_SPARE: usize = 8;
/// Reads of one direction before the other gets its turn.
pub const COPY_ROUNDS: usize = 16;
/// Copy buffers are let go this long after the last byte.
pub const COPY_REST: Duration = Duration::from_secs(5);
/// Threads that serve traffic, one for each CPU that the agent may use; beyond this a node agent gains nothing, and each
/// holds memory.
pub const WORKERS_MOST: usize = 64;
/// Connections that an accept loop takes before others get their turn on its worker.
pub const ACCEPT_ROUND: usize = 32;
/// Pause of an accept loop after the process ran out of descriptors or memory: accept(2) would fail again at once.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// A connection from another machine or pod that is silent for so long is asked for a sign of life (`SO_KEEPALIVE`; ztunnel: 180 s):
/// of a peer that went with its network nothing is heard, and connections of a churn of pods would stay for [`IDLE_TIMEOUT`] …
pub const PEER_SILENCE: Duration = Duration::from_secs(60);
/// … again after this time …
pub const PEER_PROBE: Duration = Duration::from_secs(10);
/// … and so many times, before it is closed.
pub const PEER_PROBES: u32 = 3;
/// Ports that are tried for a connection to an application that is to see its client's address: one that leads from that
/// address to the same port already cannot be had, and several in a row are not met by chance.
pub const CLIENT_PORT_ATTEMPTS: u32 = 8;
/// A whole name lookup, all servers, attempts and search domains together.
pub const RESOLVE_TIME: Duration = Duration::from_secs(10);
/// After a lookup that failed, no server is asked for the name for this long.
pub const RESOLVE_AGAIN: Duration = Duration::from_secs(1);
/// Least time an answer is kept: a TTL of 0 must not mean one query for each request.
pub const TTL_LEAST: Duration = Duration::from_secs(1);
/// Most time a "no such name" is kept, whatever the SOA says: a name that was just made should be found soon.
pub const NEGATIVE_TTL_MOST: Duration = Duration::from_secs(30);
/// How long past its TTL an answer serves where no server answers (RFC 8767 calls for days at most; a sidecar's
/// endpoints live as long as nothing better is known).
pub const RESOLVED_STALE: Duration = Duration::from_secs(300);
/// Names whose addresses one pod's resolver keeps.
pub const RESOLVED_NAMES: usize = 4096;
/// Addresses of one name that are used.
pub const ADDRESSES_OF_A_NAME: usize = 256;
/// How often a pod's resolv.conf and hosts are looked at for changes, when names are asked for.
pub const RESOLVER_FILES_AGAIN: Duration = Duration::from_secs(1);
/// Bytes read of a resolv.conf or hosts file.
pub const RESOLVER_FILE_BYTES: u64 = 1 << 20;
/// Retries of a request that provably was not processed (Istio's default policy).
pub const RETRIES: u32 = 2;
/// First pause between two attempts, doubled with each (Envoy's `base_interval`).
pub const RETRY_PAUSE: Duration = Duration::from_millis(25);
/// Pauses between attempts grow to this many times the first one (Envoy's `max_interval`).
pub const RETRY_PAUSE_GROWTH: u32 = 10;
/// Bytes of a request body that are kept while the request may have to be sent again (Envoy's default connection buffer
/// limit); what is longer is sent once.
pub const RETRY_BODY_BYTES: usize = 1024 * 1024;
/// The same of all requests together, for a pod can send many: what does not fit is sent once.
pub const RETRY_BYTES: usize = 64 * 1024 * 1024;
/// How long requests in flight have after SIGTERM.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long one agent gives another its sockets, from being asked: milliseconds on a machine that is well.
pub const HANDOVER_TIME: Duration = Duration::from_secs(5);
/// How long an agent that was told to stop serves on for a next one that prepares itself: it lists a large cluster in seconds,
/// and asks again within seconds where the API server did not answer. The chart's grace period counts with it.
pub const HANDOVER_WAIT: Duration = Duration::from_secs(20);
/// How long a next agent waits, before it takes over, for the mesh certificates that its pods need.
pub const HANDOVER_CERTIFICATES: Duration = Duration::from_secs(5);
/// How long `--take-over` waits for an agent that gives nothing over, because it drains already or is of another version:
/// longer than [`DRAIN_TIMEOUT`].
pub const HANDOVER_LOCK: Duration = Duration::from_secs(60);
/// The port of the in-pod outbound listener (Istio's own number for it).
pub const OUTBOUND_PORT: u16 = egret_ebpf::OUTBOUND_PORT;
/// The port of the in-pod inbound listeners, on the loopback addresses (Istio's own number for it).
pub const INBOUND_PORT: u16 = 15006;
/// Connections that may wait for `accept` in a pod. The kernel's own ceiling (`net.core.somaxconn`) is 4096; a shorter
/// queue drops SYNs when many pods start at once.
pub const LISTEN_BACKLOG: i32 = 4096;
/// Changes of files within this time are one reload; an editor's rename-and-replace or a symlink swap is some events.
pub const RELOAD_QUIET: Duration = Duration::from_millis(100);
/// The same where files that were there before were written whole or replaced by a rename, and nothing else, nor other files
/// just before: one program that changes several does so within microseconds.
pub const RELOAD_WRITTEN: Duration = Duration::from_millis(2);
/// Shortest pause after a reload; one that took longer is followed by a pause as long, up to [`RELOAD_QUIET`].
pub const RELOAD_PAUSE: Duration = Duration::from_millis(10);
/// Objects that may change, or meet at the hosts of those that change, for a reload to compile them alone: with more, compiling
/// all costs no more.
pub const AMENDED_OBJECTS: usize = 64;
/// A stream of changes that never rests is applied after this time all the same.
pub const RELOAD_LONGEST: Duration = Duration::from_secs(1);
/// Longest DNS name in text (RFC 1035 2.3.4); of a longer Host only this much of its end is matched with wildcards.
pub const HOST_NAME_BYTES: usize = 253;
/// Endpoints of a cluster whose counters are kept; beyond this, those not in use are forgotten (names that resolve to
/// ever new addresses must not fill the memory).
pub const ENDPOINTS_REMEMBERED: usize = 1024;
/// How long an address family for which the kernel had no route is left alone where another is at hand.
pub const FAMILY_UNREACHABLE: Duration = Duration::from_secs(10);
/// Bytes of access-log lines that wait for the writing thread; beyond it lines are dropped and counted. Some 20,000 lines.
pub const ACCESS_LOG_BUFFER: usize = 8 * 1024 * 1024;
/// How long access-log lines gather between two writes, unless half of the buffer is full: to wake the writing thread for
/// each line costs more than the line. A person who watches the log sees no delay.
pub const ACCESS_LOG_PAUSE: Duration = Duration::from_millis(20);
/// Bytes of line buffer that a thread keeps between two access-log lines; a line is 300 to 600 bytes.
pub const ACCESS_LOG_LINE_KEPT: usize = 4 * 1024;
/// How often, at most, the access-log file is compared with its path, to see that it was rotated away.
pub const ACCESS_LOG_FILE_CHECK: Duration = Duration::from_secs(1);
/// Label sets of the `istio_*` metrics. Beyond it the series of pods that are gone are dropped, then new label sets are
/// counted under `unknown`. One HTTP series costs some 2 KiB here and 60 lines of a scrape, some 50 KiB of a text that is
/// made as a whole: 10,000 of them could take the gigabyte that the DaemonSet may have.
pub const METRIC_SERIES: usize = 3_000;
/// Of these, how many a thread finds without looking their labels up: 100 bytes each. What a pod calls gives one or two
/// series in a hundred requests.
pub const METRIC_SERIES_AT_HAND: usize = 256;
/// Request head of the admin endpoints; what is longer is refused.
pub const ADMIN_HEAD_BYTES: usize = 16 * 1024;
/// Connections to the admin endpoints at one time; more wait.
pub const ADMIN_CONNECTIONS: usize = 64;
/// How long a request to the admin endpoints may take to arrive, and its answer to be fetched.
pub const ADMIN_TIME: Duration = Duration::from_secs(30);
/// Names that the admin endpoints resolve side by side for one table.
pub const ADMIN_LOOKUPS: usize = 32;
/// How long the command line waits for a running agent's answer.
pub const CLI_TIME: Duration = Duration::from_secs(15);
/// Bytes of an answer that the command line takes: the table of some 10,000 services.
pub const CLI_ANSWER_BYTES: usize = 64 * 1024 * 1024;
/// Bytes of one credential (certificate chain, key, CA bundle, CRL). The system's CA bundle is some 220 KiB and CRLs of
/// large CAs a few MiB; a Secret holds 1 MiB at most.
pub const CREDENTIAL_BYTES: usize = 8 * 1024 * 1024;
/// Servers (by name) whose TLS sessions one client context remembers for resumption. Rules that differ in the name only share a
/// context, so these are most servers that the node speaks with; one is a few KiB, mostly its certificates.
pub const TLS_SESSIONS: usize = 1024;
/// Tickets of TLS 1.3 that are kept for one server. Each opens one connection, so it takes as many as connections are dialled
/// side by side; one is some 300 bytes and shares its server's certificates.
pub const TLS_TICKETS: usize = 128;
/// Tickets of all servers of one context together; beyond it the servers that were met first are forgotten.
pub const TLS_TICKETS_IN_ALL: usize = 4096;
/// Bytes that are read from a TLS connection, or enciphered for it, at one time. Four full records: fewer cost a system call
/// more each, more win nothing.
pub const TLS_BUFFER: usize = 64 * 1024;
/// Plain text that one write turns into records: three full ones, which fit into a buffer together with what goes before.
pub const TLS_WRITE: usize = 48 * 1024;
/// Buffers that a thread keeps for its TLS connections.
pub const TLS_BUFFERS_SPARE: usize = 16;
/// Bytes of one handshake message (a server's chain of certificates, as a rule); rustls's own limit where it holds the buffer.
pub const TLS_MESSAGE: usize = 64 * 1024;
/// Certificates between a server's own and a configured root, where a chain with X.509 v1 in it is built by hand. webpki
/// allows 6.
pub const CHAIN_DEPTH: usize = 6;
/// Certificates of a server's chain that are looked at; real chains have 2 to 4.
pub const CHAIN_CERTIFICATES: usize = 16;
/// Signatures checked while a chain is built by hand, so that a forged maze of same-named certificates costs little.
pub const CHAIN_SIGNATURES: usize = 64;
/// Certificates about which a warning was said are remembered up to this number, then warnings may repeat.
pub const WARNED_CERTIFICATES: usize = 1024;
/// A certificate of ours that ends within this time is warned about.
pub const EXPIRY_WARNING: Duration = Duration::from_secs(7 * 24 * 3600);
/// Bytes of one configuration file. An object of Kubernetes has 1.5 MiB at most; ten thousand ServiceEntries have some 10 MiB.
pub const CONFIG_FILE_BYTES: u64 = 64 * 1024 * 1024;
/// Levels of nesting in a document: Kubernetes objects have some 20; each level costs stack where trees are walked.
pub const YAML_DEPTH: usize = 100;
/// Bytes that the anchors and aliases of one document may copy ("billion laughs" would be terabytes).
pub const YAML_ALIAS_BYTES: usize = 8 * 1024 * 1024;
/// How often files are looked at where inotify cannot be had (its limits are used up, or events were lost).
pub const RELOAD_POLL: Duration = Duration::from_secs(2);
/// `idleTimeout: 0s` means never; this is what never is, short of overflowing a clock.
pub const NEVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Bytes of the trailers of one request; hyper's own limit for them is the same.
pub const TRAILER_BYTES: usize = 16 * 1024;
/// After a refusal the rest of what the client sends is read and dropped this long, and so many bytes, so that the
/// answer is not destroyed by a reset.
pub const LINGER_TIME: Duration = Duration::from_secs(1);
pub const LINGER_BYTES: usize = 1024 * 1024;
/// Concurrent streams of one downstream h2 connection; hyper's default is 200, Envoy's is unbounded.
pub const H2_STREAMS: u32 = 256;
/// First read of an HTTP/1.1 message, into a buffer of the thread: most responses are within it. Also the least that is
/// read of a body at a time.
pub const H1_READ_FIRST: usize = 16 * 1024;
/// Bytes of buffer for request heads that a thread keeps; a head is some hundreds.
pub const H1_WRITE_KEPT: usize = 16 * 1024;
/// How often idle upstream connections are looked at: some may be old, and some closed by the upstream.
pub const IDLE_CHECK: Duration = Duration::from_secs(1);
/// Idle connections among which one is searched that the worker itself has opened; another's takes some system calls more.
pub const LOCAL_SEARCH: usize = 16;
/// How long a pooled connection that has just answered may take to be ready again before a new one is dialled.
pub const REUSE_WAIT: Duration = Duration::from_millis(50);
/// h2 windows towards upstreams: one stream may have this much unread, all of a connection together the second.
pub const H2_WINDOW: u32 = 1024 * 1024;
pub const H2_CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// Bytes of a request body that are kept to be mirrored; requests with longer ones are not mirrored. Together with the
/// number of mirrored requests at one time (each waits for its body and its answer) this bounds their memory to 32 MiB.
pub const MIRROR_BODY_BYTES: usize = 256 * 1024;
pub const MIRRORED_REQUESTS: usize = 128;
/// How long a mirrored request may take, its answer included, where its route has no timeout (Envoy's default timeout).
pub const MIRROR_TIME: Duration = Duration::from_secs(15);
/// How often enrolled namespaces are looked at: removed, made again, other addresses. Kernel calls of microseconds each.
pub const POD_CHECK: Duration = Duration::from_millis(500);
/// How often a pod of the kubelet that was just created is looked at for its first process and its first address: neither
/// wakes anybody, and until both are there its connections are refused. A look is some tens of microseconds.
pub const POD_START_CHECK: Duration = Duration::from_millis(10);
/// After this time a pod whose first process has not come is looked for no more often than the others are looked at: its
/// sandbox cannot be made, and the kubelet tries again in tens of seconds.
pub const POD_START_TIME: Duration = Duration::from_secs(30);
/// Processes of one pod among which its oldest is searched. Which of so many comes first hardly matters.
pub const POD_PROCESSES: usize = 4096;
/// Processes of a pod whose view of a file is asked for: it may have more containers, but their files are the same.
pub const POD_FILE_PROCESSES: usize = 16;
/// How long the last access-log lines may take to be written before the process ends.
pub const LOG_FLUSH: Duration = Duration::from_secs(1);
/// Bytes of a `directResponse` body; Istio's limit is 1 MB, and an object of Kubernetes has 1.5 MiB at most.
pub const DIRECT_RESPONSE_BYTES: usize = 1_000_000;
/// Entries of a consistent-hash ring or Maglev table; Envoy's limit for rings (8 Mi) would be some 100 MiB a cluster.
pub const HASH_TABLE_MOST: u32 = 1024 * 1024;
/// Longest ejection of an endpoint (Envoy's `max_ejection_time`), unless `baseEjectionTime` is longer.
pub const EJECTION_LONGEST: Duration = Duration::from_secs(300);
/// How long a mesh certificate of a workload is valid, as Istio's (`DEFAULT_WORKLOAD_CERT_TTL`): a stolen key is of no use
/// after a day.
pub const LEAF_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Age at which a mesh certificate is renewed: half its life, so that half a day remains for whatever stands in the way
/// (Istio's `SECRET_GRACE_PERIOD_RATIO`).
pub const LEAF_RENEW_AT: Duration = Duration::from_secs(12 * 3600);
/// Renewals are earlier by a random part of this, so that the certificates of all pods, issued together at start, are not
/// renewed together for ever.
pub const LEAF_RENEW_JITTER: Duration = Duration::from_secs(3600);
/// A mesh certificate is valid from so long before it was issued: the clocks of nodes differ (Istio: two minutes).
pub const CLOCK_SKEW: Duration = Duration::from_secs(120);
/// How long the built-in mesh CA's root is valid, as that of istiod.
pub const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How long a root that is no longer configured stays trusted: the last certificate issued under it, by an agent that heard of
/// the change late, has run out by then.
pub const FORMER_ROOT_TRUST: Duration = Duration::from_secs(48 * 3600);
/// How often mesh certificates are looked at for renewal. Looking costs a comparison for each identity.
pub const IDENTITY_CHECK: Duration = Duration::from_secs(15);
/// One request to the API server for one object, its answer included.
pub const API_TIME: Duration = Duration::from_secs(15);
/// How long the controller may take to answer a request for a mesh certificate: longer than another one needs to take a dead
/// one's place (`LEASE_TIME`), and [`TRUST_SPREAD`].
pub const CERTIFICATE_WAIT: Duration = Duration::from_secs(45);
/// Requests for mesh certificates that one agent has under way; more wait. A new agent on a full node has some 100 to ask for.
pub const CERTIFICATE_REQUESTS: usize = 8;
/// First pause after a request for a mesh certificate that failed, doubled with each up to the second.
pub const CERTIFICATE_PAUSE: Duration = Duration::from_secs(1);
pub const CERTIFICATE_PAUSE_MOST: Duration = Duration::from_secs(60);
/// Bytes of a request for a certificate; one of ours is some 500, one with an RSA key of 8192 bits 3,000.
pub const CERTIFICATE_REQUEST_BYTES: usize = 16 * 1024;
/// How long a controller that is heard of no more keeps its Lease, how long it tries to renew it before it gives up its work,
/// and the pause between two attempts (client-go's defaults for leader election).
pub const LEASE_TIME: Duration = Duration::from_secs(15);
pub const LEASE_RENEWAL: Duration = Duration::from_secs(10);
pub const LEASE_RETRY: Duration = Duration::from_secs(2);
/// How often the controller looks at the mesh's CA and the trust bundle.
pub const AUTHORITY_CHECK: Duration = Duration::from_secs(5);
/// How long agents have to hear of a new root before something is issued under it; they watch it, so seconds are plenty.
pub const TRUST_SPREAD: Duration = Duration::from_secs(10);
/// How often the controller looks at all requests for certificates: some failed to be answered, and some are old.
pub const SIGNER_CHECK: Duration = Duration::from_secs(5);
/// Requests for certificates that the controller works on at one time; each is three or four requests to the API server.
pub const SIGNER_REQUESTS: usize = 16;
/// How long an answered request for a certificate stays: its author reads it within a second, a person who looks for the
/// reason of a refusal has some minutes.
pub const SIGNED_KEPT: Duration = Duration::from_secs(180);
/// TLS contexts for mesh mTLS (own identity, rule, expected peer) that are kept; beyond it those of rules that are no more
/// make room. One costs some KiB.
pub const MESH_CONTEXTS: usize = 8192;
/// Gateways that `egret explain` follows a request through; more of them are a circle.
pub const EXPLAINED_HOPS: usize = 8;
/// TCP connect to the API server. A load balancer in front of a dead one takes the SYN and is silent.
pub const API_CONNECT: Duration = Duration::from_secs(10);
/// A connection to the API server that is silent so long is pinged (client-go: 30 s) …
pub const API_PING: Duration = Duration::from_secs(15);
/// … and is dead where no answer comes within this time.
pub const API_PONG: Duration = Duration::from_secs(10);
/// An answer of the API server begins within this time: it gives requests 60 s itself.
pub const API_ANSWER: Duration = Duration::from_secs(70);
/// Nothing of a list for so long: it is asked for anew.
pub const API_SILENCE: Duration = Duration::from_secs(30);
/// The first wait before a failed request to the API server is made again; it doubles …
pub const API_RETRY: Duration = Duration::from_millis(200);
/// … up to this (client-go's reflectors: 30 s).
pub const API_RETRY_MOST: Duration = Duration::from_secs(30);
/// How long an API server that has too much to do may have a watch wait (`Retry-After` of 429 and 503). Priority and Fairness
/// asks for a second or so; a proxy in front of it that asks for a day must not keep changes from a node.
pub const API_RETRY_AFTER_MOST: Duration = Duration::from_secs(60);
/// How often the kinds that the API server has are asked for: one request, mostly answered by "not modified".
pub const API_DISCOVERY: Duration = Duration::from_secs(10);
/// Objects of a kind that the API server does not know any more stay in force for this time: a server that has only just
/// started may know a kind late.
pub const API_KIND_GONE: Duration = Duration::from_secs(120);
/// Changes in a cluster within this time are one reload: `kubectl apply` sends its objects one by one …
pub const API_QUIET: Duration = Duration::from_millis(30);
/// … and a stream of changes that never rests is applied after this time all the same.
pub const API_LONGEST: Duration = Duration::from_millis(150);
/// Between two reloads there is as much time as the first one took, up to this: a churn of pods leaves half of a processor.
pub const API_PAUSE: Duration = Duration::from_secs(1);
/// How long a table waits for Secrets that it is the first to name. Without them its rules would refuse traffic.
pub const API_CREDENTIALS: Duration = Duration::from_secs(2);
/// How often the controller tries again what it could not make or write for Gateways; and where somebody else's object bears the
/// name of one that it wants, how often it looks whether that is gone.
pub const GATEWAY_CHECK: Duration = Duration::from_secs(5);
/// Statuses that the controller writes at one time.
pub const GATEWAY_REQUESTS: usize = 16;
/// Characters of a condition's message (metav1.Condition).
pub const CONDITION_MESSAGE: usize = 32_768;
