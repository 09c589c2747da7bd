//! The downstream side: heads are read, judged by the same rules as everywhere ([`super::super::head_rules`]) and answered
//! by the pipeline that hyper's requests go through too. What is unusual (an upgrade, HTTP/1.0, a violation, …) is
//! put back before anything of it was answered, and hyper has the connection from there to its end.

mod encode;
mod exchange;
mod inlet;
mod quiet;
mod request;
mod runner;

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::Request;

pub use self::inlet::{InletBody, InletError};
use self::{inlet::Inlet, quiet::Quiet, runner::Runner};
use super::{
    super::{Connection, Downstream, framing::Framing, head_rules, payload::Payload},
    scratch,
};
use crate::{engine::accept::Arrival, limits};

/// What became of the connection.
pub enum Ended {
    Closed,
    /// The next head, which was put back, is hyper's to answer, and what follows it; it has so long to become whole.
    Unusual {
        io: Downstream,
        head_time: Duration,
    },
}

struct Server {
    of: Arc<Connection>,
    io: Downstream,
    /// Read and not yet used: part of a head, or what was sent before it was asked for.
    raw: BytesMut,
    /// How much of `raw` was searched for the end of a head.
    scanned: usize,
    eof: bool,
    /// The last head said that no request follows: the client may close its half and still wait for the answer.
    last: bool,
    /// The body of the request in progress, where it has one.
    inlet: Option<Inlet>,
}

/// What comes next on the connection.
#[expect(clippy::large_enum_variant, reason = "it is there for the length of a call; a box would cost each request")]
enum Next {
    Request(Request<Payload>),
    Unusual(Duration),
    Closed,
}

/// Serves the connection while it is plain HTTP/1.1. Idle, it holds no buffer.
pub async fn serve(of: &Arc<Connection>, io: Downstream) -> Ended {
    let outbound = matches!(of.info.arrival, Arrival::Outbound);
    let drain = pin!(of.engine.ending(outbound).cancelled());
    let timer = pin!(tokio::time::sleep(limits::IDLE_TIMEOUT));
    let mut quiet = Quiet::new(of, drain, timer);
    let (of, raw) = (of.clone(), BytesMut::new());
    let server = Box::new(Server { of, io, raw, scanned: 0, eof: false, last: false, inlet: None });
    // The one or the other: an exchange is large, and idle connections are many.
    let (mut idle, mut busy) = (Some(server), None::<Runner>);
    poll_fn(|cx| {
        loop {
            if let Some(runner) = &mut busy {
                let (server, more) = ready!(runner.poll(cx));
                busy.take().into_iter().for_each(Runner::release);
                if !more {
                    return Poll::Ready(Ended::Closed);
                }
                idle = Some(server);
                quiet.begin();
            }
            let Some(mut server) = idle.take() else { return Poll::Ready(Ended::Closed) };
            match server.poll_next(cx, &mut quiet) {
                Poll::Pending => {
                    idle = Some(server);
                    return Poll::Pending;
                }
                Poll::Ready(Next::Request(request)) => busy = Some(Runner::begin(server, request)),
                Poll::Ready(Next::Unusual(head_time)) => {
                    let Server { mut io, raw, .. } = *server;
                    io.io.put_back(raw.freeze());
                    return Poll::Ready(Ended::Unusual { io, head_time });
                }
                Poll::Ready(Next::Closed) => return Poll::Ready(Ended::Closed),
            }
        }
    })
    .await
}

impl Server {
    fn poll_next(&mut self, cx: &mut Context<'_>, quiet: &mut Quiet<'_, '_>) -> Poll<Next> {
        loop {
            if let Some(next) = self.take_head() {
                return Poll::Ready(next);
            }
            if self.eof {
                return Poll::Ready(Next::Closed);
            }
            match self.poll_fill(cx) {
                Poll::Ready(Ok(())) => continue,
                Poll::Ready(Err(error)) => {
                    ::log::debug!("downstream connection: {error}");
                    return Poll::Ready(Next::Closed);
                }
                Poll::Pending => {}
            }
            if self.raw.is_empty() || self.raw[..] == *b"\r" {
                ready!(quiet.poll_over(cx));
                return Poll::Ready(Next::Closed);
            }
            ready!(quiet.poll_late(cx));
            return Poll::Ready(Next::Unusual(Duration::ZERO));
        }
    }

    /// Reads what there is; notes the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let (raw, eof) = (&mut self.raw, &mut self.eof);
        scratch::poll_read(Pin::new(&mut self.io), cx, |bytes| {
            *eof = bytes.is_empty();
            raw.extend_from_slice(bytes);
        })
    }

    /// The head that `raw` begins with; None: more bytes are needed.
    fn take_head(&mut self) -> Option<Next> {
        let Some(length) = head_rules::find_head(&mut self.raw, &mut self.scanned) else {
            let vain = self.raw.len() > limits::HEAD_BYTES || head_rules::is_hopeless(&self.raw);
            return vain.then_some(Next::Unusual(limits::HEAD_TIME));
        };
        let head = self.raw.split_to(length).freeze();
        match request::parse(&head) {
            Ok((request, judged)) if !judged.special => {
                self.last = judged.last;
                if self.raw.is_empty() {
                    self.raw = BytesMut::new();
                }
                Some(Next::Request(self.with_body(request, judged.framing)))
            }
            _ => {
                self.put_back(head);
                Some(Next::Unusual(limits::HEAD_TIME))
            }
        }
    }

    fn with_body(&mut self, request: Request<Payload>, framing: Framing) -> Request<Payload> {
        if framing.ended() {
            return request;
        }
        let (inlet, body) = inlet::inlet(framing);
        self.inlet = Some(inlet);
        request.map(|_| Payload::Own(body))
    }

    fn put_back(&mut self, head: Bytes) {
        let rest = std::mem::replace(&mut self.raw, BytesMut::from(&head[..]));
        self.raw.unsplit(rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<A, F: Future>(_: impl FnOnce(A) -> F) -> usize {
        size_of::<F>()
    }

    /// Pods keep thousands of connections that idle; what only a request needs lives as long as a request.
    #[test]
    fn an_idle_connection_is_small() {
        let size = size(|(of, io): (&'static Arc<Connection>, Downstream)| serve(of, io));
        assert!(size <= 640, "{size} bytes");
    }
}
