//! The request body on its way upstream: counted, held back where `100-continue` wants it, and kept as far as a retry
//! may need it again.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use bytes::{Bytes, BytesMut};
use futures_util::task::AtomicWaker;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use super::{
    client_cert,
    payload::{Payload, PayloadError},
};
use crate::limits;

/// What the two halves of one exchange tell each other.
#[derive(Debug, Default)]
pub struct Progress {
    /// Body bytes from the client.
    pub received: AtomicU64,
    /// The request body was passed on to its end.
    pub complete: AtomicBool,
    /// Reading the request body failed: the client is gone, or broke its framing.
    pub client_failed: AtomicBool,
    /// The client has sent all of its request.
    whole: AtomicBool,
    arrival: Notify,
    /// The request body may be read: nobody waits for a 100.
    open: AtomicBool,
    waker: AtomicWaker,
}

impl Progress {
    /// `held`: the body waits for [`Progress::open`].
    pub fn new(held: bool, empty: bool) -> Arc<Self> {
        Arc::new(Self { open: (!held).into(), complete: empty.into(), whole: empty.into(), ..Self::default() })
    }

    pub fn open(&self) {
        self.open.store(true, Ordering::Release);
        self.waker.wake();
    }

    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// Waits until the client has sent all of its request.
    pub async fn arrived(&self) {
        loop {
            let arrival = self.arrival.notified();
            if self.whole.load(Ordering::Acquire) {
                return;
            }
            arrival.await;
        }
    }

    fn arrive(&self) {
        self.whole.store(true, Ordering::Release);
        self.arrival.notify_waiters();
    }
}

/// The client's request body, which attempts read one after the other: the newest reader gets all that was kept and then
/// the rest, older ones an error.
#[derive(Clone)]
pub struct Upload {
    /// None: there is no body.
    shared: Option<Arc<Mutex<Shared>>>,
    progress: Arc<Progress>,
}

struct Shared {
    body: Payload,
    ended: bool,
    /// What was read is kept for another attempt.
    keep: bool,
    kept: Kept,
    /// Something was read and not kept: there is no other attempt.
    gone: bool,
    /// The attempt that may read.
    turn: u32,
    waker: Option<Waker>,
    copy: Option<Copied>,
}

/// A frame that can be sent again.
#[derive(Clone)]
enum Part {
    Data(Bytes),
    Trailers(HeaderMap),
}

/// What is kept of one body. Every part costs its own space besides its bytes: a body may come in pieces of a single byte.
struct Kept {
    parts: Vec<Part>,
    bytes: usize,
    budget: &'static Budget,
}

/// Bytes that all bodies together may keep.
struct Budget(AtomicUsize);

static RETRIES: Budget = Budget(AtomicUsize::new(limits::RETRY_BYTES));

impl Budget {
    /// False: there is not so much left.
    fn take(&self, bytes: usize) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes)).is_ok()
    }
}

impl Kept {
    fn new(budget: &'static Budget) -> Self {
        Self { parts: Vec::new(), bytes: 0, budget }
    }

    /// False: it is too much, of this body or of all.
    fn push(&mut self, part: Part) -> bool {
        // Vec doubles: half of its places may be empty.
        let bytes = part.bytes() + 2 * size_of::<Part>();
        if self.bytes + bytes > limits::RETRY_BODY_BYTES + 2 * size_of::<Part>() || !self.budget.take(bytes) {
            return false;
        }
        self.bytes += bytes;
        self.parts.push(part);
        true
    }

    fn clear(&mut self) {
        self.parts = Vec::new();
        self.budget.0.fetch_add(std::mem::take(&mut self.bytes), Ordering::Relaxed);
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.clear();
    }
}

/// What has passed so far, for whoever wants the body as a whole; told nothing where it is too long or breaks off.
struct Copied {
    passed: BytesMut,
    done: oneshot::Sender<Bytes>,
}

/// Why a body cannot be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error(transparent)]
    Client(#[from] PayloadError),
    /// Another attempt reads the body now, or the request was given up.
    #[error("this attempt was given up")]
    Superseded,
}

impl Upload {
    pub fn new(body: Payload, progress: Arc<Progress>) -> Self {
        let shared = (!body.is_end_stream()).then(|| {
            Arc::new(Mutex::new(Shared {
                body,
                ended: false,
                keep: false,
                kept: Kept::new(&RETRIES),
                gone: false,
                turn: 0,
                waker: None,
                copy: None,
            }))
        });
        Self { shared, progress }
    }

    /// Keeps what is read from now on, [`limits::RETRY_BODY_BYTES`] at most.
    pub fn keep(&self) {
        if let Some(shared) = &self.shared {
            shared.lock().keep = true;
        }
    }

    /// No other attempt will be made.
    pub fn settle(&self) {
        if let Some(shared) = &self.shared {
            shared.lock().keep = false;
        }
    }

    pub fn is_empty(&self) -> bool {
        self.shared.is_none()
    }

    /// True while the body can be sent from its beginning.
    pub fn is_whole(&self) -> bool {
        self.shared.as_ref().is_none_or(|shared| !shared.lock().gone)
    }

    /// The body for one more attempt; ends what an earlier attempt still reads.
    pub fn reader(&self) -> RequestBody {
        let content = match &self.shared {
            None => Content::None,
            Some(shared) => Content::Client { shared: shared.clone(), turn: turn(shared), at: 0 },
        };
        self.progress.complete.store(self.shared.is_none(), Ordering::Release);
        RequestBody { content, progress: self.progress.clone() }
    }

    /// Ends what an attempt still reads: the request is answered without the upstream.
    pub fn abandon(&self) {
        if let Some(shared) = &self.shared {
            turn(shared);
        }
    }

    /// Tells the body to the receiver when it has passed to its end, if that is within [`limits::MIRROR_BODY_BYTES`].
    pub fn copied(&self) -> oneshot::Receiver<Bytes> {
        let (done, copy) = oneshot::channel();
        match &self.shared {
            // The receiver may be gone: then nobody wants it.
            None => drop(done.send(Bytes::new())),
            Some(shared) => shared.lock().copy = Some(Copied { passed: BytesMut::new(), done }),
        }
        copy
    }
}

/// Servers that merge trailers into the head must not find there what is ours alone to say of the client.
fn without_claims(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(mut trailers) => {
            trailers.remove(client_cert::HEADER);
            Frame::trailers(trailers)
        }
        Err(frame) => frame,
    }
}

/// Begins the next turn.
fn turn(shared: &Mutex<Shared>) -> u32 {
    let mut shared = shared.lock();
    shared.turn += 1;
    if let Some(waker) = shared.waker.take() {
        waker.wake();
    }
    shared.turn
}

/// A request body as one upstream connection reads it.
pub struct RequestBody {
    content: Content,
    progress: Arc<Progress>,
}

enum Content {
    None,
    /// The client's; `at`: how many of the kept parts were read.
    Client {
        shared: Arc<Mutex<Shared>>,
        turn: u32,
        at: usize,
    },
    /// A copy of it, for a mirror.
    Whole(Bytes),
}

impl RequestBody {
    /// The copy of a body that is at hand as a whole.
    pub fn whole(body: Bytes, progress: Arc<Progress>) -> Self {
        let content = if body.is_empty() { Content::None } else { Content::Whole(body) };
        Self { content, progress }
    }
}

impl Shared {
    /// The next frame for a reader that has read `at` of the kept parts.
    fn poll(
        &mut self,
        at: &mut usize,
        progress: &Progress,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(part) = self.kept.parts.get(*at) {
            *at += 1;
            return Poll::Ready(Some(Ok(part.clone().into())));
        }
        if !self.keep && !self.kept.parts.is_empty() {
            (self.gone, *at) = (true, 0);
            self.kept.clear();
        }
        if self.ended {
            return Poll::Ready(None);
        }
        let frame = match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Pending => {
                self.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(frame) => frame.map(|frame| frame.map(without_claims)),
        };
        match &frame {
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                progress.received.fetch_add(bytes as u64, Ordering::Relaxed);
                self.copy = self.copy.take().and_then(|copy| copy.with(frame));
                self.remember(frame, at);
                // After trailers hyper drops an HTTP/1.1 body without asking for more.
                self.ended = frame.is_trailers() || self.body.is_end_stream();
            }
            Some(Err(_)) => {
                progress.client_failed.store(true, Ordering::Release);
                (self.gone, self.copy) = (true, None);
            }
            None => self.ended = true,
        }
        if self.ended {
            progress.arrive();
            if let Some(copy) = self.copy.take() {
                drop(copy.done.send(copy.passed.freeze()));
            }
        }
        Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Client)))
    }

    fn remember(&mut self, frame: &Frame<Bytes>, at: &mut usize) {
        if self.gone {
            return;
        }
        let part = match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => Part::Data(data.clone()),
            (None, Some(trailers)) => Part::Trailers(trailers.clone()),
            (None, None) => return,
        };
        if self.keep && self.kept.push(part) {
            *at += 1;
        } else {
            (self.gone, *at) = (true, 0);
            self.kept.clear();
        }
    }

    /// Nothing is left for a reader that has read `at` of the kept parts.
    fn is_end(&self, at: usize) -> bool {
        at >= self.kept.parts.len() && (self.ended || self.body.is_end_stream())
    }

    fn size_hint(&self, at: usize) -> SizeHint {
        let again: u64 = self.kept.parts.iter().skip(at).map(|part| part.bytes() as u64).sum();
        let rest = if self.ended { SizeHint::with_exact(0) } else { self.body.size_hint() };
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(again));
        if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(again)) {
            hint.set_upper(upper);
        }
        hint
    }
}

impl Part {
    /// Of data.
    fn bytes(&self) -> usize {
        match self {
            Self::Data(data) => data.len(),
            Self::Trailers(_) => 0,
        }
    }
}

impl From<Part> for Frame<Bytes> {
    fn from(part: Part) -> Self {
        match part {
            Part::Data(data) => Self::data(data),
            Part::Trailers(trailers) => Self::trailers(trailers),
        }
    }
}

impl Copied {
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

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self { content, progress } = &mut *self;
        let frame = match content {
            Content::None => None,
            Content::Whole(body) => {
                let body = std::mem::take(body);
                (!body.is_empty()).then(|| Ok(Frame::data(body)))
            }
            Content::Client { shared, turn, at } => {
                let mut shared = shared.lock();
                if shared.turn != *turn {
                    return Poll::Ready(Some(Err(BodyError::Superseded)));
                }
                if !progress.is_open() {
                    progress.waker.register(cx.waker());
                    if !progress.is_open() {
                        shared.waker = Some(cx.waker().clone());
                        return Poll::Pending;
                    }
                }
                std::task::ready!(shared.poll(at, progress, cx))
            }
        };
        if frame.is_none() || self.is_end_stream() {
            self.progress.complete.store(true, Ordering::Release);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::None => true,
            Content::Whole(body) => body.is_empty(),
            Content::Client { shared, at, .. } => shared.lock().is_end(*at),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::None => SizeHint::with_exact(0),
            Content::Whole(body) => SizeHint::with_exact(body.len() as u64),
            Content::Client { shared, at, .. } => shared.lock().size_hint(*at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(bytes: usize) -> &'static Budget {
        Box::leak(Box::new(Budget(AtomicUsize::new(bytes))))
    }

    fn pushed(kept: &mut Kept, length: usize) -> usize {
        let part = Bytes::from(vec![0; length]);
        (0..2_000_000).take_while(|_| kept.push(Part::Data(part.clone()))).count()
    }

    /// A MiB in pieces of one byte would be some 100 MiB of pieces.
    #[test]
    fn small_pieces_cost_their_own_space() {
        let mut kept = Kept::new(budget(usize::MAX));
        let pieces = pushed(&mut kept, 1);
        assert!(pieces * size_of::<Part>() <= limits::RETRY_BODY_BYTES, "{pieces} pieces");
        assert!(kept.parts.capacity() * size_of::<Part>() <= 2 * limits::RETRY_BODY_BYTES);
        assert_eq!(pushed(&mut Kept::new(budget(usize::MAX)), limits::RETRY_BODY_BYTES), 1);
    }

    #[test]
    fn all_bodies_share_what_there_is() {
        let budget = budget(100_000);
        let (mut first, mut second) = (Kept::new(budget), Kept::new(budget));
        assert_eq!(pushed(&mut first, 60_000), 1);
        assert_eq!(pushed(&mut second, 60_000), 0);
        drop(first);
        assert_eq!(pushed(&mut second, 60_000), 1);
        second.clear();
        assert_eq!(budget.0.load(Ordering::Relaxed), 100_000);
    }
}
