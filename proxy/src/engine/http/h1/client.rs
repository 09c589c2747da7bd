//! An upstream connection that the request's own task writes and reads.

mod body;
#[cfg(test)]
mod tests;

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Response};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use self::body::State;
pub(super) use self::body::read_trailers;
use super::head::{self, Extent, Head, HeadError};
use crate::{
    engine::{balance::Counted, http::head_rules::Violation, stream::UpstreamIo, workers},
    limits,
};

/// An upstream connection. While it idles it owns no buffer.
pub struct Conn {
    /// None once it was handed on.
    io: Option<UpstreamIo>,
    /// Whose runtime tells when it is ready.
    worker: Option<usize>,
    /// Counts against `maxConnections`.
    guard: Option<Counted>,
    /// What of the request head the socket had no room for.
    unsent: Vec<u8>,
    /// Read, and not looked at yet.
    rest: Bytes,
    /// Where the body is read to.
    buffer: BytesMut,
    /// How much a read of the body asks for.
    appetite: usize,
    state: State,
    /// What the body broke off with, until it is told.
    broken: Option<Error>,
    keep_alive: bool,
}

/// Why there is no response, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the connection ended before the message was complete")]
    Incomplete,
    #[error("not a response: {0}")]
    Head(#[from] HeadError),
    #[error("{0}")]
    Chunk(#[from] Violation),
    #[error("the trailers are malformed")]
    Trailers,
}

/// Why an exchange came to nothing, and whether a byte of an answer came before.
#[derive(Debug)]
pub struct Lost {
    pub error: Error,
    pub silent: bool,
}

thread_local! {
    /// Where heads are written, and first bytes read: most messages are here and gone within one call each.
    static OUT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static IN: RefCell<Vec<u8>> = RefCell::new(vec![0; limits::H1_READ_FIRST]);
}

impl Conn {
    pub fn new(io: UpstreamIo, guard: Counted) -> Box<Self> {
        Box::new(Self {
            io: Some(io),
            worker: workers::current(),
            guard: Some(guard),
            unsent: Vec::new(),
            rest: Bytes::new(),
            buffer: BytesMut::new(),
            appetite: limits::H1_READ_FIRST,
            state: State::Ended,
            broken: None,
            keep_alive: true,
        })
    }

    /// Sends a request without body and waits for the head of the response; the body is then read from the connection.
    /// `target` is in origin-form, `host` for a request without Host.
    pub async fn exchange(
        &mut self,
        method: &Method,
        target: &str,
        headers: &HeaderMap,
        host: &str,
    ) -> Result<Response<()>, Lost> {
        self.keep_alive = false;
        let begun = poll_fn(|cx| {
            Poll::Ready(OUT.with_borrow_mut(|out| {
                out.clear();
                head::write_request(out, method, target, headers, host);
                let written = self.poll_write(cx, out);
                out.shrink_to(limits::H1_WRITE_KEPT);
                written
            }))
        });
        begun.await.map_err(|error| Lost { error: error.into(), silent: true })?;
        let mut silent = true;
        let head = poll_fn(|cx| self.poll_head(cx, method, &mut silent)).await;
        let Head { response, extent, keep_alive } = head.map_err(|error| Lost { error, silent })?;
        self.keep_alive = keep_alive;
        self.state = match extent {
            Extent::Length(0) => State::Ended,
            Extent::Length(left) => State::Length(left),
            Extent::Chunked(framing) => State::Chunked { framing, trailers: Vec::new() },
            Extent::UntilClose => State::UntilClose,
        };
        Ok(response)
    }

    /// Writes what the socket takes now; the rest is kept.
    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> io::Result<()> {
        let mut at = 0;
        while at < bytes.len() {
            match Pin::new(self.io()?).poll_write(cx, &bytes[at..]) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(written)) => at += written,
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => break,
            }
        }
        self.unsent = bytes[at..].to_vec();
        Ok(())
    }

    /// Sees to it that everything written goes out.
    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let unsent = std::mem::take(&mut self.unsent);
            let before = unsent.len();
            self.poll_write(cx, &unsent)?;
            if self.unsent.len() == before {
                return Poll::Pending;
            }
        }
        Pin::new(self.io()?).poll_flush(cx)
    }

    fn poll_head(&mut self, cx: &mut Context<'_>, method: &Method, silent: &mut bool) -> Poll<Result<Head, Error>> {
        // An upstream may answer before it has read everything.
        if let Poll::Ready(Err(error)) = self.poll_sent(cx) {
            return Poll::Ready(Err(error.into()));
        }
        loop {
            let read = IN.with_borrow_mut(|buffer| {
                let mut buffer = ReadBuf::new(buffer);
                ready!(Pin::new(self.io()?).poll_read(cx, &mut buffer))?;
                let read = buffer.filled();
                if self.rest.is_empty() {
                    self.rest = Bytes::copy_from_slice(read);
                } else {
                    self.rest = [&self.rest, read].concat().into();
                }
                Poll::Ready(io::Result::Ok(read.len()))
            });
            if ready!(read)? == 0 {
                return Poll::Ready(Err(Error::Incomplete));
            }
            *silent = false;
            if let Some((head, length)) = head::read_response(&self.rest, method)? {
                self.rest = self.rest.split_off(length);
                return Poll::Ready(Ok(head));
            }
        }
    }

    /// True while the other side neither ended the connection nor sent what nobody asked for. Costs a system call only where
    /// something has come.
    pub fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        let Ok(io) = self.io() else { return false };
        // Nobody waits; TLS may have session tickets to read.
        let mut cx = Context::from_waker(Waker::noop());
        Pin::new(io).poll_read(&mut cx, &mut ReadBuf::new(&mut byte)).is_pending()
    }

    /// Whether it was opened, or last used, by this worker.
    pub fn is_local(&self) -> bool {
        self.worker == workers::current()
    }

    /// True where the next request may go out on it: it is quiet, and this worker's.
    pub fn is_ready(&mut self) -> bool {
        if !self.is_quiet() {
            return false;
        }
        if !self.is_local() {
            // A few system calls once, instead of waking another thread for each answer.
            if let Err(error) = self.io().and_then(UpstreamIo::adopt) {
                log::debug!("an upstream connection stays behind: {error}");
                return false;
            }
            self.worker = workers::current();
        }
        true
    }

    /// The response was read to its exact end, and both sides want to go on.
    pub fn is_reusable(&self) -> bool {
        self.keep_alive && self.ended() && self.rest.is_empty() && self.unsent.is_empty()
    }

    /// For hyper, which goes on with it.
    pub fn into_parts(mut self) -> Option<(UpstreamIo, Counted)> {
        self.io.take().zip(self.guard.take())
    }

    fn io(&mut self) -> io::Result<&mut UpstreamIo> {
        self.io.as_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for Conn {
    /// TLS wants to be told of the end (RFC 8446 section 6.1), as far as that is to be had without waiting.
    fn drop(&mut self) {
        if let Some(io) = &mut self.io {
            let _ = Pin::new(io).poll_shutdown(&mut Context::from_waker(Waker::noop()));
        }
    }
}

impl Error {
    /// The connection ended under the request.
    pub fn closed(&self) -> bool {
        matches!(self, Self::Io(_) | Self::Incomplete)
    }

    /// The upstream does not speak HTTP as it should.
    pub fn misread(&self) -> bool {
        matches!(self, Self::Head(_))
    }
}
