//! Names to addresses, as the pod would resolve them: its resolv.conf and hosts file, asked from its namespace.
//!
//! Answers are kept for their TTL. Of those who ask for one name at once, one asks the server and the others wait.
//! Where no server answers, the last answer serves a while longer; where a server says that there is no such name, not.

use std::{
    collections::HashMap,
    fs::File,
    future::Future,
    io::{self, Read as _},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use hickory_resolver::{
    config::{
        ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
        ServerOrderingStrategy,
    },
    net::{
        DnsError, NetError,
        runtime::{RuntimeProvider, TokioHandle, TokioTime, iocompat::AsyncIoTokioAsStd},
    },
    proto::rr::Name,
};
use parking_lot::Mutex;
use tokio::{
    net::{TcpStream, UdpSocket},
    time::Instant,
};

use super::{
    ports::Sockets,
    resolv_conf::{ResolvConf, parse_hosts},
};
use crate::limits;

/// Where a pod's resolver configuration is. Of each list the first file that exists counts, so that a namespace
/// without its own falls back to the host's, as `ip netns exec` has it.
#[derive(Clone, Default)]
pub struct ResolverFiles {
    /// Opens `resolv.conf` or `hosts` as the pod sees it, in place of the lists.
    pub in_pod: Option<OpenFile>,
    pub resolv_conf: Vec<PathBuf>,
    pub hosts: Vec<PathBuf>,
    /// The port of the name servers instead of 53, which resolv.conf has no word for (tests).
    pub port: Option<u16>,
}

/// Opens a file of `/etc` by its name; None: there is none now.
pub type OpenFile = Arc<dyn Fn(&str) -> Option<File> + Send + Sync>;

/// Why a name has no address.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ResolveError {
    /// A server (or the syntax) says that the name does not exist, or has no address.
    #[error("{0} does not resolve: no such name")]
    NoSuchName(String),
    /// No server answered, or none usefully, and there is no answer of a short while ago.
    #[error("{name} does not resolve: {reason}")]
    Failed { name: String, reason: Arc<str> },
}

/// A pod's resolver.
pub struct Resolver {
    sockets: Arc<dyn Sockets>,
    files: ResolverFiles,
    config: Mutex<Config>,
    names: Mutex<HashMap<String, Arc<Slot>>>,
}

type HostsFile = HashMap<String, Vec<IpAddr>>;
type Hickory = hickory_resolver::Resolver<PodRuntime>;

/// What the files say, and what tells that they changed.
#[derive(Default)]
struct Config {
    looked: Option<Instant>,
    stamps: [Option<Stamp>; 2],
    hickory: Option<Arc<Hickory>>,
    hosts: Arc<HostsFile>,
}

/// Tells whether a file is another one than before.
#[derive(Clone, PartialEq)]
struct Stamp {
    path: PathBuf,
    size: u64,
    changed: Option<SystemTime>,
}

/// What is known of one name.
#[derive(Default)]
struct Slot {
    known: Mutex<Option<Known>>,
    /// Held by the one who asks.
    asking: tokio::sync::Mutex<()>,
}

struct Known {
    answer: Result<Arc<[IpAddr]>, ResolveError>,
    /// Until when the answer is given without asking.
    until: Instant,
    /// Until when it serves where no server answers.
    stale_until: Instant,
}

impl Slot {
    fn fresh(&self) -> Option<Result<Arc<[IpAddr]>, ResolveError>> {
        self.known.lock().as_ref().filter(|known| Instant::now() < known.until).map(|known| known.answer.clone())
    }
}

impl Resolver {
    pub fn new(sockets: Arc<dyn Sockets>, files: ResolverFiles) -> Self {
        Self { sockets, files, config: Mutex::default(), names: Mutex::default() }
    }

    /// Every address of `name` (A before AAAA), in the order of the answer; never empty.
    ///
    /// # Errors
    /// See [`ResolveError`]; after [`limits::RESOLVE_TIME`] at the latest.
    pub async fn lookup(&self, name: &str) -> Result<Arc<[IpAddr]>, ResolveError> {
        let (hickory, hosts) = self.config();
        let name = name.to_ascii_lowercase();
        if let Some(addresses) = hosts.get(name.trim_end_matches('.')) {
            return Ok(addresses.as_slice().into());
        }
        let slot = self.slot(&name);
        if let Some(answer) = slot.fresh() {
            return answer;
        }
        let _asking = match (slot.asking.try_lock(), slot.stale()) {
            (Ok(asking), _) => asking,
            // Somebody asks already: an answer that ran out just now is better than to wait for a server that may be gone.
            (Err(_), Some(stale)) => return Ok(stale),
            (Err(_), None) => slot.asking.lock().await,
        };
        if let Some(answer) = slot.fresh() {
            return answer;
        }
        let (answer, time) = match hickory {
            Some(hickory) => ask(&hickory, &name).await,
            None => (Err(failed(&name, "resolv.conf cannot be used")), limits::RESOLVE_AGAIN),
        };
        slot.learn(answer, time)
    }

    fn slot(&self, name: &str) -> Arc<Slot> {
        let mut names = self.names.lock();
        if let Some(slot) = names.get(name) {
            return slot.clone();
        }
        if names.len() >= limits::RESOLVED_NAMES {
            let now = Instant::now();
            let keep = |slot: &Arc<Slot>| {
                Arc::strong_count(slot) > 1 || slot.known.lock().as_ref().is_some_and(|known| now < known.until)
            };
            names.retain(|_, slot| keep(slot));
            if names.len() >= limits::RESOLVED_NAMES {
                // All are fresh: a flood of names. Start anew rather than grow.
                names.clear();
            }
        }
        names.entry(name.to_owned()).or_default().clone()
    }

    /// The configuration in force; the files are looked at again once a while.
    fn config(&self) -> (Option<Arc<Hickory>>, Arc<HostsFile>) {
        let mut config = self.config.lock();
        if config.looked.is_none_or(|looked| looked.elapsed() >= limits::RESOLVER_FILES_AGAIN) {
            config.looked = Some(Instant::now());
            let looked = [
                look(&self.files.resolv_conf, self.files.in_pod.as_ref(), "resolv.conf"),
                look(&self.files.hosts, self.files.in_pod.as_ref(), "hosts"),
            ];
            let [conf, hosts] =
                looked.each_ref().map(|looked| looked.as_ref().map(|(stamp, file)| (&stamp.path, file)));
            let stamps = looked.each_ref().map(|looked| looked.as_ref().map(|(stamp, _)| stamp.clone()));
            // A pod whose containers are all away for a moment has none: what it said last holds.
            let keep = self.files.in_pod.is_some() && stamps[0].is_none();
            if config.hickory.is_none() || (config.stamps[0] != stamps[0] && !keep) {
                let parsed = ResolvConf::parse(&read(conf));
                match build(&parsed, self.files.port, self.sockets.clone()) {
                    Ok(hickory) => config.hickory = Some(Arc::new(hickory)),
                    Err(error) => log::warn!("{:?} cannot be used: {error}", conf.map(|(path, _)| path)),
                }
                // What another server said need not hold with this one.
                self.names.lock().clear();
            }
            if config.stamps[1] != stamps[1] {
                config.hosts = Arc::new(parse_hosts(&read(hosts)));
            }
            config.stamps = stamps;
        }
        (config.hickory.clone(), config.hosts.clone())
    }
}

impl Slot {
    fn stale(&self) -> Option<Arc<[IpAddr]>> {
        let known = self.known.lock();
        let known = known.as_ref().filter(|known| Instant::now() < known.stale_until)?;
        known.answer.as_ref().ok().cloned()
    }

    /// Keeps what was learned; falls back on an answer of before where nothing was.
    fn learn(
        &self,
        answer: Result<Arc<[IpAddr]>, ResolveError>,
        time: Duration,
    ) -> Result<Arc<[IpAddr]>, ResolveError> {
        let now = Instant::now();
        let mut known = self.known.lock();
        if let Err(ResolveError::Failed { name, reason }) = &answer
            && let Some(Known { answer: Ok(addresses), until, stale_until }) = known.as_mut()
            && now < *stale_until
        {
            log::warn!("{name}: {reason}; its last answer serves on");
            *until = now + limits::RESOLVE_AGAIN;
            return Ok(addresses.clone());
        }
        let until = now + time;
        *known = Some(Known { answer: answer.clone(), until, stale_until: until + limits::RESOLVED_STALE });
        answer
    }
}

fn failed(name: &str, reason: impl ToString) -> ResolveError {
    ResolveError::Failed { name: name.to_owned(), reason: reason.to_string().into() }
}

/// Asks the servers; answers with how long the result holds.
async fn ask(hickory: &Hickory, name: &str) -> (Result<Arc<[IpAddr]>, ResolveError>, Duration) {
    let least = |time: Duration| time.max(limits::TTL_LEAST);
    // A single wildcard or an underscore alone is no host, but it is for DNS to say so; syntax errors are final.
    if Name::from_utf8(name).is_err() {
        return (Err(ResolveError::NoSuchName(name.to_owned())), limits::NEGATIVE_TTL_MOST);
    }
    match tokio::time::timeout(limits::RESOLVE_TIME, hickory.lookup_ip(name)).await {
        Err(_) => (Err(failed(name, "no name server answered in time")), limits::RESOLVE_AGAIN),
        Ok(Ok(answer)) => {
            let addresses: Arc<[IpAddr]> = answer.iter().take(limits::ADDRESSES_OF_A_NAME).collect();
            let time = answer.valid_until().saturating_duration_since(std::time::Instant::now());
            if addresses.is_empty() {
                return (Err(ResolveError::NoSuchName(name.to_owned())), least(time).min(limits::NEGATIVE_TTL_MOST));
            }
            (Ok(addresses), least(time))
        }
        Ok(Err(NetError::Dns(DnsError::NoRecordsFound(none)))) => {
            use hickory_resolver::proto::op::ResponseCode;
            match none.response_code {
                ResponseCode::NXDomain | ResponseCode::NoError => {
                    let time = Duration::from_secs(none.negative_ttl.unwrap_or(0).into());
                    let time = least(time).min(limits::NEGATIVE_TTL_MOST);
                    (Err(ResolveError::NoSuchName(name.to_owned())), time)
                }
                code => (Err(failed(name, format!("the name server answered {code}"))), limits::RESOLVE_AGAIN),
            }
        }
        Ok(Err(error)) => (Err(failed(name, error)), limits::RESOLVE_AGAIN),
    }
}

fn build(conf: &ResolvConf, port: Option<u16>, sockets: Arc<dyn Sockets>) -> Result<Hickory, NetError> {
    let server = |ip: &IpAddr| {
        let mut connections = vec![ConnectionConfig::tcp()];
        if !conf.tcp {
            connections.insert(0, ConnectionConfig::udp());
        }
        for connection in &mut connections {
            connection.port = port.unwrap_or(53);
        }
        NameServerConfig::new(*ip, true, connections)
    };
    let servers = conf.name_servers.iter().map(server).collect();
    let search = conf.search.iter().filter_map(|name| Name::from_str_relaxed(name).ok()).collect();
    let mut options = ResolverOpts::default();
    options.ndots = conf.ndots;
    options.timeout = conf.timeout;
    options.attempts = conf.attempts;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.use_hosts_file = ResolveHosts::Never;
    // Answers are kept here, in `Slot`, where stale ones can serve too.
    options.cache_size = 0;
    options.num_concurrent_reqs = 1;
    options.server_ordering_strategy = ServerOrderingStrategy::UserProvidedOrder;
    let config = ResolverConfig::from_parts(None, search, servers);
    let runtime = PodRuntime { sockets, handle: TokioHandle::default() };
    Hickory::builder_with_config(config, runtime).with_options(options).build()
}

/// The pod's file, or the first of the list that exists.
fn look(paths: &[PathBuf], in_pod: Option<&OpenFile>, name: &str) -> Option<(Stamp, File)> {
    let of_pod = || Some((PathBuf::from(name), in_pod?(name)?));
    let listed = || paths.iter().find_map(|path| Some((path.clone(), File::open(path).ok()?)));
    let (path, file) = of_pod().or_else(listed)?;
    let metadata = file.metadata().ok()?;
    Some((Stamp { path, size: metadata.len(), changed: metadata.modified().ok() }, file))
}

fn read(file: Option<(&PathBuf, &File)>) -> String {
    let Some((path, file)) = file else { return String::new() };
    let mut bytes = Vec::new();
    if let Err(error) = file.take(limits::RESOLVER_FILE_BYTES).read_to_end(&mut bytes) {
        log::warn!("{}: {error}", path.display());
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// hickory's view of the runtime: tokio's, but every socket is the pod's.
#[derive(Clone)]
struct PodRuntime {
    sockets: Arc<dyn Sockets>,
    handle: TokioHandle,
}

type BoxFuture<T> = Pin<Box<dyn Send + Future<Output = io::Result<T>>>>;

impl RuntimeProvider for PodRuntime {
    type Handle = TokioHandle;
    type Timer = TokioTime;
    type Udp = UdpSocket;
    type Tcp = AsyncIoTokioAsStd<TcpStream>;

    fn create_handle(&self) -> Self::Handle {
        self.handle.clone()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        _bind: Option<SocketAddr>,
        timeout: Option<Duration>,
    ) -> BoxFuture<Self::Tcp> {
        let socket = self.sockets.tcp(server);
        let time = timeout.unwrap_or(limits::RESOLVE_TIME);
        Box::pin(async move { Ok(AsyncIoTokioAsStd(tokio::time::timeout(time, socket?.connect(server)).await??)) })
    }

    fn bind_udp(&self, local: SocketAddr, _server: SocketAddr) -> BoxFuture<Self::Udp> {
        let socket = self.sockets.udp(local);
        Box::pin(async move { socket })
    }
}

#[cfg(test)]
mod tests;
