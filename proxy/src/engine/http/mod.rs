//! HTTP proxying: a downstream connection's requests, each decided on what is in force now, to pooled upstream
//! connections.
//!
//! [`serve`] runs hyper's server over the [`head_guard`] (HTTP/1) or as it is (h2). [`service`] decides a request,
//! [`forward`] exchanges it with an upstream, [`connect`] and [`pool`] find the connection, [`body`] and [`log`] go along
//! to the last byte.

mod answer;
mod body;
mod client_cert;
mod connect;
mod forward;
mod framing;
mod h1;
mod head_guard;
mod head_rules;
mod headers;
mod linger;
mod log;
#[doc(hidden)]
pub mod parts;
mod payload;
mod pool;
mod reply;
mod request_body;
mod routes;
mod service;
mod tunnel;

#[cfg(test)]
mod tests;

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use http::HeaderValue;
use hyper::{
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use head_rules::Violation;
pub use pool::Pools;
pub use routes::redirect;

use super::{
    Engine, Snapshot,
    accept::{Arrival, ConnectionInfo},
    pod::Pod,
    stream::ClientIo,
};
use crate::limits;

type Handle = head_guard::Handle<Downstream>;

/// A downstream connection, as its requests see it.
pub struct Connection {
    pub engine: Arc<Engine>,
    pub pod: Arc<Pod>,
    pub info: ConnectionInfo,
    /// None on h2.
    guard: Option<Handle>,
    /// Close with a reset: an orderly end would make a broken response look whole.
    reset: Arc<AtomicBool>,
    busy: AtomicUsize,
    /// What was wrong with a request's body, where no guard knows it; the last request, then.
    broken: OnceLock<Violation>,
    /// What the next hop is told of the client's certificate, once it was asked for.
    client_cert: OnceLock<Option<HeaderValue>>,
}

impl Connection {
    /// No more requests are wanted.
    fn ending(&self) -> bool {
        self.engine.ends(matches!(self.info.arrival, Arrival::Outbound))
    }

    /// A request has begun; until its [`Connection::end`] the connection is not idle.
    fn begin(&self) {
        self.busy.fetch_add(1, Ordering::AcqRel);
    }

    /// The same for all requests: the client shows its certificate once.
    fn client_cert(&self, snapshot: &Snapshot) -> Option<&HeaderValue> {
        let element = || {
            let own = snapshot.mesh.workloads.get(&self.pod.id).map(|workload| &workload.identity);
            client_cert::element(&self.info, own)
        };
        self.client_cert.get_or_init(element).as_ref()
    }

    /// What was wrong with the body in progress, once reading it has failed.
    fn body_violation(&self) -> Option<Violation> {
        match &self.guard {
            Some(guard) => guard.body_violation(),
            None => self.broken.get().copied(),
        }
    }

    fn end(&self) {
        self.busy.fetch_sub(1, Ordering::AcqRel);
        if let Some(guard) = &self.guard {
            guard.end();
        }
    }
}

/// Serves the HTTP connection to its end: the client's, the idle timeout's, a drain's (after the requests in flight),
/// or the pod's. Boxed here, each kind by itself: what one keeps for its requests, thousands that idle have no room for.
pub fn serve(
    engine: Arc<Engine>,
    pod: Arc<Pod>,
    io: ClientIo,
    info: ConnectionInfo,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    let reset = Arc::new(AtomicBool::new(false));
    if info.h2 {
        return Box::pin(serve_h2(engine, pod, io, info));
    }
    let io = Downstream { io, reset: reset.clone() };
    if !engine.own_http1() {
        return Box::pin(serve_hyper((engine, pod, info), io, limits::HEAD_TIME));
    }
    Box::pin(serve_own(Arc::new(Connection::new(engine, pod, info, None, reset)), io))
}

async fn serve_own(connection: Arc<Connection>, io: Downstream) {
    match h1::server::serve(&connection, io).await {
        h1::server::Ended::Closed => {}
        h1::server::Ended::Unusual { io, head_time } => {
            let of = (connection.engine.clone(), connection.pod.clone(), connection.info.clone());
            drop(connection);
            // Boxed: few connections need the room.
            Box::pin(serve_hyper(of, io, head_time)).await;
        }
    }
}

/// Serves HTTP/1 by hyper. A head that has begun has `head_time`, later ones their own.
async fn serve_hyper(of: (Arc<Engine>, Arc<Pod>, ConnectionInfo), io: Downstream, head_time: Duration) {
    let (engine, pod, info) = of;
    let reset = io.reset.clone();
    let (io, guard) = head_guard::guard(io, limits::IDLE_TIMEOUT, head_time);
    let connection = Arc::new(Connection::new(engine, pod, info, Some(guard), reset));
    let service = service_fn({
        let connection = connection.clone();
        move |request| {
            let connection = connection.clone();
            async move { Ok::<_, Infallible>(service::answer(connection, request.map(Into::into)).await) }
        }
    });
    let mut serving = std::pin::pin!(
        http1::Builder::new()
            .auto_date_header(false)
            .max_headers(limits::HEAD_FIELDS)
            .serve_connection(TokioIo::new(io), service)
            .with_upgrades()
    );
    let outbound = matches!(connection.info.arrival, Arrival::Outbound);
    let (draining, closed) = (connection.engine.ending(outbound), &connection.pod.closed);
    let mut drained = false;
    loop {
        tokio::select! {
            // First: a request that was read already is answered, whatever begins meanwhile.
            biased;
            result = &mut serving => return note(result),
            () = closed.cancelled() => return,
            () = draining.cancelled(), if !drained => {
                drained = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
}

async fn serve_h2(engine: Arc<Engine>, pod: Arc<Pod>, io: ClientIo, info: ConnectionInfo) {
    let reset = Arc::new(AtomicBool::new(false));
    let connection = Arc::new(Connection::new(engine, pod, info, None, reset.clone()));
    let service = service_fn({
        let connection = connection.clone();
        move |request| {
            let connection = connection.clone();
            async move { Ok::<_, Infallible>(service::answer(connection, request.map(Into::into)).await) }
        }
    });
    let mut serving = std::pin::pin!(
        http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .auto_date_header(false)
            .max_concurrent_streams(limits::H2_STREAMS)
            .max_header_list_size(limits::HEAD_BYTES as u32)
            .serve_connection(TokioIo::new(Downstream { io, reset }), service)
    );
    let outbound = matches!(connection.info.arrival, Arrival::Outbound);
    let (draining, closed) = (connection.engine.ending(outbound), &connection.pod.closed);
    let mut ending = false;
    loop {
        tokio::select! {
            result = &mut serving => return note(result),
            () = closed.cancelled() => return,
            () = draining.cancelled(), if !ending => {
                ending = true;
                serving.as_mut().graceful_shutdown();
            }
            () = idle(&connection), if !ending => {
                ending = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Ends when the connection has had no stream for the idle timeout, seen twice in between.
async fn idle(connection: &Connection) {
    let mut quiet = false;
    loop {
        tokio::time::sleep(limits::IDLE_TIMEOUT / 2).await;
        let now = connection.busy.load(Ordering::Acquire) == 0;
        if quiet && now {
            return;
        }
        quiet = now;
    }
}

fn note(result: hyper::Result<()>) {
    if let Err(error) = result {
        ::log::debug!("downstream connection: {error}");
    }
}

impl Connection {
    fn new(
        engine: Arc<Engine>,
        pod: Arc<Pod>,
        info: ConnectionInfo,
        guard: Option<Handle>,
        reset: Arc<AtomicBool>,
    ) -> Self {
        Self {
            engine,
            pod,
            info,
            guard,
            reset,
            busy: AtomicUsize::new(0),
            broken: OnceLock::new(),
            client_cert: OnceLock::new(),
        }
    }
}

/// The client's stream; closed with a reset where told so.
struct Downstream {
    io: ClientIo,
    reset: Arc<AtomicBool>,
}

impl Drop for Downstream {
    fn drop(&mut self) {
        if self.reset.load(Ordering::Acquire) {
            self.io.reset_on_close();
        }
    }
}

impl AsyncRead for Downstream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Downstream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod size {
    use super::*;

    fn size<A, F: Future>(_: impl FnOnce(A) -> F) -> usize {
        size_of::<F>()
    }

    /// Thousands of connections idle: what one takes, [`Connection`] and future together.
    #[test]
    fn an_idle_connection_is_small() {
        let all = [size(|(connection, io)| serve_own(connection, io)), size_of::<Connection>()];
        assert!(all.iter().sum::<usize>() <= 1536, "{all:?}");
    }
}
