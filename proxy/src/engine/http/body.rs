//! Bodies on their way through: counted, held back where `100-continue` wants it, and tied to what must end with them.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::task::AtomicWaker;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::oneshot;

use super::{log::RequestLog, pool::Lease};
use crate::{limits, telemetry::record::Flag};

/// What the two halves of one exchange tell each other.
#[derive(Debug, Default)]
pub struct Progress {
    /// Body bytes from the client.
    pub received: AtomicU64,
    /// The request body was passed on to its end.
    pub complete: AtomicBool,
    /// Reading the request body failed: the client is gone, or broke its framing.
    pub client_failed: AtomicBool,
    /// The request body may be read: nobody waits for a 100.
    open: AtomicBool,
    waker: AtomicWaker,
}

impl Progress {
    /// `held`: the body waits for [`Progress::open`].
    pub fn new(held: bool, empty: bool) -> Arc<Self> {
        Arc::new(Self { open: (!held).into(), complete: empty.into(), ..Self::default() })
    }

    pub fn open(&self) {
        self.open.store(true, Ordering::Release);
        self.waker.wake();
    }

    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }
}

/// A request body as the upstream connection reads it.
pub struct RequestBody {
    content: Content,
    progress: Arc<Progress>,
    copy: Option<Kept>,
}

enum Content {
    None,
    /// The downstream's.
    Client(Incoming),
    /// A copy of it, for a mirror.
    Whole(Bytes),
}

/// What has passed so far, for whoever wants the body as a whole; told nothing where it is too long or breaks off.
struct Kept {
    passed: BytesMut,
    done: oneshot::Sender<Bytes>,
}

impl RequestBody {
    pub fn new(inner: Incoming, progress: Arc<Progress>) -> Self {
        let content = if inner.is_end_stream() { Content::None } else { Content::Client(inner) };
        Self { content, progress, copy: None }
    }

    /// The copy of a body that is at hand as a whole.
    pub fn whole(body: Bytes, progress: Arc<Progress>) -> Self {
        let content = if body.is_empty() { Content::None } else { Content::Whole(body) };
        Self { content, progress, copy: None }
    }

    /// Tells the body to the receiver when it has passed to its end, if that is within [`limits::MIRROR_BODY_BYTES`].
    pub fn copied(&mut self) -> oneshot::Receiver<Bytes> {
        let (done, copy) = oneshot::channel();
        if self.is_end_stream() {
            // The receiver may be gone: then nobody wants it.
            drop(done.send(Bytes::new()));
        } else {
            self.copy = Some(Kept { passed: BytesMut::new(), done });
        }
        copy
    }

    /// No body at all: what is sent again after a first attempt.
    pub fn empty(progress: Arc<Progress>) -> Self {
        Self { content: Content::None, progress, copy: None }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = &mut *self;
        if !this.progress.is_open() {
            this.progress.waker.register(cx.waker());
            if !this.progress.is_open() {
                return Poll::Pending;
            }
        }
        let frame = match &mut this.content {
            Content::None => None,
            Content::Whole(body) => {
                let body = std::mem::take(body);
                (!body.is_empty()).then(|| Ok(Frame::data(body)))
            }
            Content::Client(inner) => ready!(Pin::new(inner).poll_frame(cx)),
        };
        match &frame {
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, Buf::remaining);
                this.progress.received.fetch_add(bytes as u64, Ordering::Relaxed);
                this.copy = this.copy.take().and_then(|copy| copy.with(frame));
            }
            Some(Err(_)) => {
                this.progress.client_failed.store(true, Ordering::Release);
                this.copy = None;
            }
            None => {}
        }
        if frame.is_none() || this.is_end_stream() {
            this.progress.complete.store(true, Ordering::Release);
            if let Some(copy) = this.copy.take() {
                drop(copy.done.send(copy.passed.freeze()));
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::None => true,
            Content::Client(inner) => inner.is_end_stream(),
            Content::Whole(body) => body.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::None => SizeHint::with_exact(0),
            Content::Client(inner) => inner.size_hint(),
            Content::Whole(body) => SizeHint::with_exact(body.len() as u64),
        }
    }
}

impl Kept {
    /// With one more frame; None where it grows too long. Trailers are left out.
    fn with(mut self, frame: &Frame<Bytes>) -> Option<Self> {
        let Some(data) = frame.data_ref() else { return Some(self) };
        let fits = self.passed.len() + data.len() <= limits::MIRROR_BODY_BYTES;
        fits.then(|| {
            self.passed.extend_from_slice(data);
            self
        })
    }
}

/// What the client gets. The request's record is written when it ends, however it ends.
pub struct ResponseBody {
    source: Source,
    log: Option<Box<RequestLog>>,
    lease: Option<Lease>,
    progress: Option<Arc<Progress>>,
    sent: u64,
}

enum Source {
    Empty,
    Text(Bytes),
    Upstream(Incoming),
}

/// The upstream's body broke off; the client's connection is cut, too, so that it cannot take the part for the whole.
#[derive(Debug, thiserror::Error)]
#[error("the upstream's response broke off: {0}")]
pub struct BrokenOff(hyper::Error);

impl ResponseBody {
    /// A reply of our own.
    pub fn text(text: impl Into<Bytes>, log: Box<RequestLog>) -> Self {
        let text = text.into();
        let source = if text.is_empty() { Source::Empty } else { Source::Text(text) };
        Self { source, log: Some(log), lease: None, progress: None, sent: 0 }.settled()
    }

    /// The upstream's body; `lease` is the connection it comes from, and goes back to the pool after it.
    pub fn upstream(body: Incoming, log: Box<RequestLog>, lease: Lease, progress: Arc<Progress>) -> Self {
        let source = if body.is_end_stream() { Source::Empty } else { Source::Upstream(body) };
        Self { source, log: Some(log), lease: Some(lease), progress: Some(progress), sent: 0 }.settled()
    }

    /// No body, and a record that somebody else writes (tunnels).
    pub fn none() -> Self {
        Self { source: Source::Empty, log: None, lease: None, progress: None, sent: 0 }
    }

    /// A body that is empty has ended: hyper will not ask for it.
    fn settled(mut self) -> Self {
        if matches!(self.source, Source::Empty) {
            self.end();
        }
        self
    }

    fn end(&mut self) {
        self.source = Source::Empty;
        if let Some(mut lease) = self.lease.take()
            && self.progress.as_ref().is_none_or(|progress| progress.complete.load(Ordering::Acquire))
        {
            lease.give_back();
        }
        if let Some(log) = self.log.take() {
            log.finish(self.sent);
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let this = &mut *self;
        let frame = match &mut this.source {
            Source::Empty => None,
            Source::Text(text) => Some(Ok(Frame::data(std::mem::take(text)))),
            Source::Upstream(body) => ready!(Pin::new(body).poll_frame(cx)),
        };
        match frame {
            Some(Ok(frame)) => {
                this.sent += frame.data_ref().map_or(0, |data| data.remaining() as u64);
                if let (Some(trailers), Some(log)) = (frame.trailers_ref(), &mut this.log) {
                    log.trailers(trailers);
                }
                if this.source.ended() {
                    this.end();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            None => {
                this.end();
                Poll::Ready(None)
            }
            Some(Err(error)) => {
                this.source = Source::Empty;
                this.lease = None;
                if let Some(mut log) = this.log.take() {
                    log.flag(Flag::UC);
                    log.details("upstream_reset_after_response_started{connection_termination}");
                    log.cut();
                    log.finish(this.sent);
                }
                Poll::Ready(Some(Err(BrokenOff(error))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.source.ended()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty => SizeHint::with_exact(0),
            Source::Text(text) => SizeHint::with_exact(text.len() as u64),
            Source::Upstream(body) => body.size_hint(),
        }
    }
}

impl Source {
    fn ended(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Text(text) => text.is_empty(),
            Self::Upstream(body) => body.is_end_stream(),
        }
    }
}

impl Drop for ResponseBody {
    /// Dropped before its end: the client has gone.
    fn drop(&mut self) {
        if let Some(mut log) = self.log.take() {
            log.client_gone();
            log.finish(self.sent);
        }
    }
}
