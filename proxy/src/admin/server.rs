//! The HTTP server of the admin endpoints.

use std::{
    convert::Infallible,
    fmt, io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::sync::{Semaphore, oneshot};

use super::{AdminState, HealthState, Later, dump, explain, inbound, listeners, routes, tables};
use crate::{
    limits::{ADMIN_CONNECTIONS, ADMIN_HEAD_BYTES, ADMIN_TIME},
    mesh::{Mesh, Workload, WorkloadId},
    telemetry::{logging, metrics},
};

/// Why there are no admin endpoints.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error(
        "the admin address {0} is taken, most likely by another egret: stop that one, or choose another address with --admin"
    )]
    Taken(SocketAddr),
    #[error("cannot listen on the admin address {0}: {1}")]
    Bind(SocketAddr, io::Error),
    #[error("cannot start the admin thread: {0}")]
    Thread(io::Error),
}

/// The running endpoints; dropping it ends them.
#[derive(Debug)]
pub struct Admin {
    /// Where they listen: the port that was found where 0 was asked for.
    pub address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Admin {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there was reported when it happened.
            let _ = thread.join();
        }
    }
}

/// Listens, before anything is changed that a taken port would leave half-made. [`start`] serves.
pub fn listen(address: SocketAddr) -> Result<TcpListener, AdminError> {
    let listener = TcpListener::bind(address).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => AdminError::Taken(address),
        _ => AdminError::Bind(address, error),
    })?;
    listener.set_nonblocking(true).map_err(|error| AdminError::Bind(address, error))?;
    Ok(listener)
}

/// The same on every address of the machine, of both families where it has both.
pub fn listen_everywhere(port: u16) -> Result<TcpListener, AdminError> {
    match listen((Ipv6Addr::UNSPECIFIED, port).into()) {
        Err(AdminError::Bind(_, error)) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            listen((Ipv4Addr::UNSPECIFIED, port).into())
        }
        other => other,
    }
}

/// Who may do what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everything.
    Full,
    /// Look and change nothing: for an address that others than this machine reach.
    Read,
}

/// Serves an agent's endpoints on a thread of its own.
pub fn start(listener: TcpListener, access: Access, state: Arc<dyn AdminState>) -> Result<Admin, AdminError> {
    spawn(listener, move |request| {
        let state = state.clone();
        Box::pin(async move { answer(state.as_ref(), access, request).await })
    })
}

/// Serves `/healthz/ready`, `/healthz/live` and `/metrics` and nothing else, on a thread of its own.
pub fn start_health(listener: TcpListener, state: Arc<dyn HealthState>) -> Result<Admin, AdminError> {
    spawn(listener, move |request| {
        let answer = match (request.method(), request.uri().path()) {
            (&Method::GET | &Method::HEAD, path @ ("/healthz/ready" | "/healthz/live")) => {
                health(path, || state.readiness())
            }
            (&Method::GET | &Method::HEAD, "/metrics" | "/stats/prometheus") => {
                measured(state.metrics()).unwrap_or_else(|Refusal(status, reason)| text(status, reason))
            }
            _ => text(StatusCode::NOT_FOUND, "there are GET /healthz/ready, /healthz/live and /metrics\n".to_owned()),
        };
        Box::pin(std::future::ready(answer))
    })
}

fn spawn(
    listener: TcpListener,
    respond: impl Fn(Request<Incoming>) -> Later<'static, Answer> + Send + Sync + 'static,
) -> Result<Admin, AdminError> {
    let bound = listener.local_addr().map_err(AdminError::Thread)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(AdminError::Thread)?;
    let (stop, stopped) = oneshot::channel::<()>();
    let serve = move || {
        runtime.block_on(async move {
            tokio::select! {
                () = accept(listener, Arc::new(respond)) => {}
                _ = stopped => {}
            }
        });
    };
    let thread = std::thread::Builder::new().name("admin".to_owned()).spawn(serve).map_err(AdminError::Thread)?;
    Ok(Admin { address: bound, stop: Some(stop), thread: Some(thread) })
}

async fn accept<R>(listener: TcpListener, respond: Arc<R>)
where
    R: Fn(Request<Incoming>) -> Later<'static, Answer> + Send + Sync + 'static,
{
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return log::error!("admin: {error}: its endpoints are not served"),
    };
    let room = Arc::new(Semaphore::new(ADMIN_CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let Ok(place) = room.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: others may give some back.
                log::warn!("admin: cannot accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let respond = respond.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let answer = respond(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(ADMIN_TIME)
                .max_buf_size(ADMIN_HEAD_BYTES)
                // One request a connection: so the time limit below bounds each, and nobody holds a place for ever.
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // Both errors are the client's: it is gone, or too slow.
            let _ = tokio::time::timeout(ADMIN_TIME, connection).await;
            drop(place);
        });
    }
}

type Answer = Response<Full<Bytes>>;

/// A request that gets no answer: status and the sentence why.
struct Refusal(StatusCode, String);

/// Everything there is, for 404 and for people who look.
const ENDPOINTS: &[(&str, Method, &str)] = &[
    ("/healthz/ready", Method::GET, "200 once ready, else 503 and what is awaited"),
    ("/healthz/live", Method::GET, "200"),
    ("/metrics", Method::GET, "metrics (OpenMetrics text)"),
    ("/stats/prometheus", Method::GET, "the same"),
    ("/status", Method::GET, "the agent and its pods at a glance (JSON)"),
    ("/config_dump", Method::GET, "everything in force (JSON, no key material)"),
    ("/certs", Method::GET, "certificates and CAs in use (JSON)"),
    ("/proxy-config/listener", Method::GET, "?pod=NAME&namespace=NS (JSON)"),
    ("/proxy-config/route", Method::GET, "?pod=NAME&namespace=NS (JSON)"),
    ("/proxy-config/cluster", Method::GET, "?pod=NAME&namespace=NS (JSON)"),
    ("/proxy-config/endpoint", Method::GET, "?pod=NAME&namespace=NS (JSON)"),
    ("/proxy-config/secret", Method::GET, "?pod=NAME&namespace=NS (JSON)"),
    ("/explain", Method::GET, "?pod=NAME&namespace=NS&url=URL (JSON)"),
    ("/logging", Method::POST, "?level=off|error|warn|info|debug|trace"),
    ("/drain", Method::POST, "stop accepting, finish what is in flight, exit"),
];

async fn answer(state: &dyn AdminState, access: Access, request: Request<Incoming>) -> Answer {
    let path = request.uri().path();
    let Some((_, method, _)) = ENDPOINTS.iter().find(|(known, ..)| *known == path) else {
        let list: String =
            ENDPOINTS.iter().map(|(path, method, what)| format!("{:4} {path:24} {what}\n", method.as_str())).collect();
        let (status, head) = match path {
            "/" => (StatusCode::OK, String::new()),
            _ => (StatusCode::NOT_FOUND, "no such endpoint; there are:\n".to_owned()),
        };
        return text(status, head + &list);
    };
    if request.method() != method && !(request.method() == Method::HEAD && method == Method::GET) {
        let mut refusal = text(StatusCode::METHOD_NOT_ALLOWED, format!("{path} wants {method}\n"));
        refusal.headers_mut().insert(header::ALLOW, allow(method));
        return refusal;
    }
    if method == Method::POST && access == Access::Read {
        return text(StatusCode::FORBIDDEN, format!("{path} is served on the agent's own admin address only\n"));
    }
    // A page in somebody's browser must not drain the node.
    if request.method() == Method::POST && request.headers().contains_key(header::ORIGIN) {
        return text(StatusCode::FORBIDDEN, "not for browsers\n".to_owned());
    }
    let query = Query::new(request.uri().query().unwrap_or_default());
    route(state, path, &query).await.unwrap_or_else(|Refusal(status, reason)| text(status, reason))
}

fn health(path: &str, readiness: impl Fn() -> Vec<String>) -> Answer {
    if path == "/healthz/live" {
        return text(StatusCode::OK, "LIVE\n".to_owned());
    }
    let awaited = readiness();
    if awaited.is_empty() {
        return text(StatusCode::OK, "READY\n".to_owned());
    }
    let lines: String = awaited.iter().map(|what| format!("{what}\n")).collect();
    text(StatusCode::SERVICE_UNAVAILABLE, lines)
}

fn measured(metrics: Result<String, fmt::Error>) -> Result<Answer, Refusal> {
    match metrics {
        Ok(metrics) => Ok(with_type(StatusCode::OK, metrics::CONTENT_TYPE, metrics)),
        Err(_) => Err(Refusal(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written\n".to_owned())),
    }
}

fn allow(method: &Method) -> HeaderValue {
    HeaderValue::from_static(if method == Method::POST { "POST" } else { "GET, HEAD" })
}

async fn route(state: &dyn AdminState, path: &str, query: &Query) -> Result<Answer, Refusal> {
    match path {
        "/healthz/live" | "/healthz/ready" => Ok(health(path, || state.readiness())),
        "/metrics" | "/stats/prometheus" => measured(state.metrics()),
        "/status" => json(&state.status()),
        "/config_dump" => json(&dump::config(state).map_err(|error| internal(&error))?),
        "/certs" => json(&tables::secrets(&state.snapshot(), None)),
        "/logging" => match logging::set_level(query.get("level").unwrap_or_default()) {
            Ok(level) => {
                log::info!("log level is {level} now");
                Ok(text(StatusCode::OK, format!("level: {}\n", level.as_str().to_lowercase())))
            }
            Err(error) => Err(Refusal(StatusCode::BAD_REQUEST, format!("{error}\n"))),
        },
        "/drain" => {
            state.drain();
            Ok(text(StatusCode::OK, "draining\n".to_owned()))
        }
        "/explain" => explain_url(state, query).await,
        _ => proxy_config(state, path, query).await,
    }
}

async fn explain_url(state: &dyn AdminState, query: &Query) -> Result<Answer, Refusal> {
    let bad = |message: String| Refusal(StatusCode::BAD_REQUEST, message + "\n");
    let target = explain::Target::parse(query.get("url").unwrap_or_default()).map_err(bad)?;
    let snapshot = state.snapshot();
    let found = workloads(&snapshot.mesh, query)?;
    let [workload] = found.as_slice() else { return Err(bad("pod= is missing".to_owned())) };
    json(&explain::explain(state, &snapshot, workload, &target).await)
}

/// Without `pod=` the rows of all pods, each once.
async fn proxy_config(state: &dyn AdminState, path: &str, query: &Query) -> Result<Answer, Refusal> {
    let snapshot = state.snapshot();
    let found = workloads(&snapshot.mesh, query)?;
    match path.rsplit('/').next().unwrap_or_default() {
        "listener" => json(&distinct(found.iter().flat_map(|workload| listeners::listeners(workload)))),
        "route" => json(&distinct(found.iter().flat_map(|workload| routes::routes(workload)))),
        "cluster" => json(&distinct(found.iter().flat_map(|workload| tables::clusters(workload)))),
        "endpoint" => {
            let mut rows = Vec::new();
            for workload in &found {
                rows.extend(tables::endpoints(state, workload).await);
                rows.extend(inbound::endpoints(state, workload));
            }
            json(&distinct(rows.into_iter()))
        }
        _ => {
            let one = query.get("pod").and(found.first()).map(|workload| &**workload);
            json(&tables::secrets(&snapshot, one))
        }
    }
}

/// Each row once; in a stable order, rows of several pods as they come.
fn distinct<T: PartialEq>(rows: impl Iterator<Item = T>) -> Vec<T> {
    rows.fold(Vec::new(), |mut kept, row| {
        if !kept.contains(&row) {
            kept.push(row);
        }
        kept
    })
}

/// The pod that is asked for, or all.
fn workloads(mesh: &Mesh, query: &Query) -> Result<Vec<Arc<Workload>>, Refusal> {
    let Some(pod) = query.get("pod") else { return Ok(mesh.workloads.values().cloned().collect()) };
    let ids = candidates(pod, query.get("namespace"));
    if let Some(found) = ids.iter().find_map(|id| mesh.workloads.get(id)) {
        return Ok(vec![found.clone()]);
    }
    let known: Vec<_> = mesh.workloads.keys().map(ToString::to_string).collect();
    let known = if known.is_empty() { "no pod".to_owned() } else { known.join(", ") };
    let names: Vec<_> = ids.iter().map(ToString::to_string).collect();
    let names = names.join(" or ");
    Err(Refusal(StatusCode::NOT_FOUND, format!("no enrolled pod is called {names}; this agent has {known}\n")))
}

/// Which pods `NAMESPACE/NAME`, `NAME` or `NAME.NAMESPACE` may mean, the likeliest first: a pod's name may hold dots.
pub fn candidates(pod: &str, namespace: Option<&str>) -> Vec<WorkloadId> {
    let id = |namespace: &str, name: &str| WorkloadId { namespace: namespace.into(), name: name.into() };
    if let Some((namespace, name)) = pod.split_once('/') {
        return vec![id(namespace, name)];
    }
    let whole = id(namespace.unwrap_or("default"), pod);
    match pod.rsplit_once('.') {
        Some((name, own)) if !name.is_empty() && !own.is_empty() => vec![whole, id(own, name)],
        _ => vec![whole],
    }
}

/// The parameters of a query string.
struct Query(Vec<(String, String)>);

impl Query {
    fn new(query: &str) -> Self {
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(k, v)| (decode(k), decode(v))).collect(),
        )
    }

    /// None where it is absent or empty.
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, value)| key == name && !value.is_empty()).map(|(_, value)| value.as_str())
    }
}

/// Percent-decoding; what is no escape stays as it is.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        let digit = |at: usize| after.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.extend(u8::try_from(high * 16 + low));
                rest = &after[2..];
            }
            (b'+', ..) => bytes.push(b' '),
            _ => bytes.push(*first),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The counterpart, for the command line.
pub fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

fn text(status: StatusCode, body: String) -> Answer {
    with_type(status, "text/plain; charset=utf-8", body)
}

fn json(value: &impl Serialize) -> Result<Answer, Refusal> {
    let mut body = serde_json::to_string_pretty(value).map_err(|error| internal(&error))?;
    body.push('\n');
    Ok(with_type(StatusCode::OK, "application/json", body))
}

fn internal(error: &serde_json::Error) -> Refusal {
    Refusal(StatusCode::INTERNAL_SERVER_ERROR, format!("the answer cannot be written: {error}\n"))
}

fn with_type(status: StatusCode, kind: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_named_in_three_ways() {
        let names = |pod, namespace| candidates(pod, namespace).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(names("sleep", None), ["default/sleep"]);
        assert_eq!(names("sleep", Some("foo")), ["foo/sleep"]);
        assert_eq!(names("foo/sleep", Some("bar")), ["foo/sleep"]);
        assert_eq!(names("sleep.foo", None), ["default/sleep.foo", "foo/sleep"]);
    }

    #[test]
    fn query_strings_round_trip() {
        let url = "http://a.com:80/x?y=1&z=é %+";
        let query = Query::new(&format!("pod=sleep&namespace=&url={}", encode(url)));
        assert_eq!(query.get("url"), Some(url));
        assert_eq!(query.get("pod"), Some("sleep"));
        assert_eq!(query.get("namespace"), None);
        assert_eq!(decode("%zz%4"), "%zz%4");
    }
}
