//! What stands between the socket and hyper's HTTP/1 server: it frames the request stream and lets only heads and
//! bodies through that have one reading (see [`super::head_rules`]).
//!
//! A head is held back until it is whole and judged. One that is refused is replaced by a minimal head whose method is a
//! secret of this connection; the service answers it with the verdict's status. So a refusal takes its turn behind the
//! answers to earlier (pipelined) requests, and is logged like any request. Nothing is read after it.
//!
//! The guard keeps time too: a head that has begun has [`limits::HEAD_TIME`], an idle connection the idle timeout.
//! hyper's own `header_read_timeout` cannot tell the two apart.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BufMut, BytesMut};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

use super::{
    framing::Framing,
    head_rules::{self, Violation},
    linger::Linger,
};
use crate::limits;

/// The transport that hyper gets. Shares its state with a [`Handle`] for the service.
pub struct Guard<IO> {
    core: Arc<Mutex<Core<IO>>>,
}

/// The service's side of a [`Guard`].
pub struct Handle<IO> {
    core: Arc<Mutex<Core<IO>>>,
    token: http::Method,
}

/// What was refused, as far as it could be read.
#[derive(Clone, Debug)]
pub struct Verdict {
    pub violation: Violation,
    pub method: Option<String>,
    pub target: Option<String>,
}

struct Core<IO> {
    io: IO,
    /// Read, not yet judged.
    raw: BytesMut,
    /// How much of `raw` was searched for the end of a head.
    scanned: usize,
    /// Judged, for hyper.
    ready: BytesMut,
    state: State,
    /// The last head said that no request follows: the client may close its half and still wait for the answer.
    last: bool,
    eof: bool,
    /// Heads handed on whose answer has not ended.
    busy: usize,
    idle: Duration,
    /// What a head that has begun may still take.
    head_time: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    timing: Timing,
    verdict: Option<Verdict>,
    token: http::Method,
    linger: Option<Linger>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Head,
    Body(Framing),
    /// Refused: nothing more is read.
    Refused,
    /// Upgraded: no HTTP any more.
    Tunnel,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Timing {
    Nothing,
    Head,
    Idle,
}

/// Makes the pair. `idle` is how long a connection without a request is kept; `head_time` how long the first head may take.
pub fn guard<IO: AsyncRead + AsyncWrite + Unpin>(
    io: IO,
    idle: Duration,
    head_time: Duration,
) -> (Guard<IO>, Handle<IO>) {
    let secret = format!("EGRET-{}", uuid::Uuid::new_v4().simple());
    let token = http::Method::from_bytes(secret.as_bytes()).unwrap_or(http::Method::CONNECT);
    let core = Arc::new(Mutex::new(Core {
        io,
        raw: BytesMut::new(),
        scanned: 0,
        ready: BytesMut::new(),
        state: State::Head,
        last: false,
        eof: false,
        busy: 0,
        idle,
        head_time,
        timer: None,
        timing: Timing::Nothing,
        verdict: None,
        token: token.clone(),
        linger: None,
    }));
    (Guard { core: core.clone() }, Handle { core, token })
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Handle<IO> {
    /// The verdict where `method` is this connection's secret, else None.
    pub fn refusal(&self, method: &http::Method) -> Option<Verdict> {
        if *method == self.token { self.core.lock().verdict.clone() } else { None }
    }

    /// What was wrong with the body in progress, once reading it has failed.
    pub fn body_violation(&self) -> Option<Violation> {
        self.core.lock().verdict.as_ref().map(|verdict| verdict.violation)
    }

    /// The answer to a request has ended: where it was the last one owed, the connection is idle again.
    pub fn end(&self) {
        let mut core = self.core.lock();
        core.busy = core.busy.saturating_sub(1);
    }

    /// Everything from here on is passed as it is: the upgrade was granted.
    pub fn tunnel(&self) {
        let mut core = self.core.lock();
        core.state = State::Tunnel;
        core.timing = Timing::Nothing;
        core.timer = None;
    }

    /// Waits until the client sends of its body without having been asked to. False: it has closed instead.
    pub async fn body_begun(&self) -> bool {
        std::future::poll_fn(|cx| {
            let mut core = self.core.lock();
            loop {
                if !core.ready.is_empty() || !core.raw.is_empty() {
                    return Poll::Ready(true);
                }
                if core.eof {
                    return Poll::Ready(false);
                }
                if ready!(core.poll_fill(cx)).is_err() {
                    return Poll::Ready(false);
                }
            }
        })
        .await
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Core<IO> {
    /// Reads into `raw` what there is; notes the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut chunk = [std::mem::MaybeUninit::<u8>::uninit(); 8192];
        let mut buffer = ReadBuf::uninit(&mut chunk);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer))?;
        if buffer.filled().is_empty() {
            self.eof = true;
        }
        self.raw.extend_from_slice(buffer.filled());
        Poll::Ready(Ok(()))
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if !self.ready.is_empty() {
                let step = self.ready.len().min(out.remaining());
                out.put_slice(&self.ready[..step]);
                self.ready.advance(step);
                if self.ready.is_empty() {
                    self.ready = BytesMut::new();
                }
                return Poll::Ready(Ok(()));
            }
            match self.state {
                State::Refused => return Poll::Pending,
                State::Tunnel => return self.poll_tunnel(cx, out),
                State::Body(framing) => return self.poll_body(cx, out, framing),
                State::Head => {
                    if !self.take_head() {
                        match ready!(self.poll_more_of_head(cx)) {
                            Ok(true) => {}
                            Ok(false) => return Poll::Ready(Ok(())),
                            Err(error) => return Poll::Ready(Err(error)),
                        }
                    }
                }
            }
        }
    }

    /// Judges what `raw` begins with, where it is a whole head or already too long. False: more bytes are needed.
    fn take_head(&mut self) -> bool {
        let Some(length) = head_rules::find_head(&mut self.raw, &mut self.scanned) else {
            if self.raw.len() > limits::HEAD_BYTES {
                self.refuse(Violation::TooLarge);
                return true;
            }
            if head_rules::is_hopeless(&self.raw) {
                self.refuse(Violation::RequestLine);
                return true;
            }
            return false;
        };
        self.timing = Timing::Nothing;
        self.head_time = limits::HEAD_TIME;
        match head_rules::check(&self.raw[..length]) {
            Err(violation) => self.refuse(violation),
            Ok(head) => {
                self.last = head.last;
                self.state = if head.framing.ended() { State::Head } else { State::Body(head.framing) };
                self.ready = self.raw.split_to(length);
                self.busy += 1;
                if self.raw.is_empty() {
                    // An idle connection holds no buffer.
                    self.raw = BytesMut::new();
                }
            }
        }
        true
    }

    fn refuse(&mut self, violation: Violation) {
        let line = self.raw[..].split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
        let mut words = line.split(|byte| *byte == b' ').map(|word| {
            let fit = !word.is_empty() && word.iter().all(u8::is_ascii_graphic);
            fit.then(|| String::from_utf8_lossy(word).into_owned())
        });
        let method = words.next().flatten().filter(|method| method.len() <= 32);
        let target = words.next().flatten().filter(|target| target.len() <= 2048);
        self.verdict = Some(Verdict { violation, method, target });
        self.state = State::Refused;
        self.busy += 1;
        self.raw = BytesMut::new();
        self.ready = BytesMut::new();
        self.ready.put_slice(self.token.as_str().as_bytes());
        self.ready.put_slice(b" / HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n");
    }

    /// False: the end, to be passed on.
    fn poll_more_of_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.eof {
            // A client that has said its last may close its half; the answer still goes out.
            return if self.last && self.busy > 0 && self.raw.is_empty() {
                Poll::Pending
            } else {
                Poll::Ready(Ok(false))
            };
        }
        match self.poll_fill(cx) {
            Poll::Ready(result) => return Poll::Ready(result.map(|()| true)),
            Poll::Pending => {}
        }
        let (timing, span) = if self.raw.is_empty() || self.raw[..] == *b"\r" {
            (Timing::Idle, self.idle)
        } else {
            (Timing::Head, self.head_time)
        };
        ready!(self.poll_timer(cx, timing, span));
        if timing == Timing::Head {
            self.refuse(Violation::TooSlow);
            return Poll::Ready(Ok(true));
        }
        if self.busy > 0 {
            // Not idle: it waits for us. Ask again after the same time.
            ready!(self.poll_timer(cx, timing, span));
        }
        self.eof = true;
        Poll::Ready(Ok(true))
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>, timing: Timing, span: Duration) -> Poll<()> {
        if self.timing != timing {
            self.timing = timing;
            let until = Instant::now() + span;
            match &mut self.timer {
                Some(timer) => timer.as_mut().reset(until),
                None => self.timer = Some(Box::pin(tokio::time::sleep_until(until))),
            }
        }
        let Some(timer) = &mut self.timer else { return Poll::Pending };
        ready!(timer.as_mut().poll(cx));
        self.timing = Timing::Nothing;
        Poll::Ready(())
    }

    fn poll_body(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>, mut framing: Framing) -> Poll<io::Result<()>> {
        let start = out.filled().len();
        if self.raw.is_empty() {
            if self.eof {
                return Poll::Ready(Ok(()));
            }
            ready!(Pin::new(&mut self.io).poll_read(cx, out))?;
            if out.filled().len() == start {
                self.eof = true;
                return Poll::Ready(Ok(()));
            }
        } else {
            let step = self.raw.len().min(out.remaining());
            out.put_slice(&self.raw[..step]);
            self.raw.advance(step);
        }
        match framing.advance(&out.filled()[start..]) {
            Ok(used) => {
                if start + used < out.filled().len() {
                    // What follows the body is the next request: not for hyper yet.
                    let rest = std::mem::take(&mut self.raw);
                    self.raw = BytesMut::from(&out.filled()[start + used..]);
                    self.raw.unsplit(rest);
                    out.set_filled(start + used);
                }
                self.state = if framing.ended() { State::Head } else { State::Body(framing) };
                self.scanned = 0;
                Poll::Ready(Ok(()))
            }
            Err(violation) => {
                out.set_filled(start);
                self.verdict = Some(Verdict { violation, method: None, target: None });
                self.state = State::Refused;
                Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, violation)))
            }
        }
    }

    fn poll_tunnel(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.raw.is_empty() {
            return if self.eof { Poll::Ready(Ok(())) } else { Pin::new(&mut self.io).poll_read(cx, out) };
        }
        let step = self.raw.len().min(out.remaining());
        out.put_slice(&self.raw[..step]);
        self.raw.advance(step);
        Poll::Ready(Ok(()))
    }

    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let unread = matches!(self.state, State::Refused | State::Body(_)) || !self.raw.is_empty();
        self.timer = None;
        let linger = self.linger.get_or_insert_with(|| Linger::new(unread && !self.eof));
        linger.poll(Pin::new(&mut self.io), cx)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for Guard<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.core.lock().poll_read(cx, out)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guard<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.core.lock().io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.core.lock().io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.core.lock().io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.core.lock().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut core = self.core.lock();
        if core.state == State::Tunnel {
            return Pin::new(&mut core.io).poll_shutdown(cx);
        }
        core.poll_linger(cx)
    }
}
