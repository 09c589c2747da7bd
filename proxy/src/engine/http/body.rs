//! The response body on its way to the client: counted, within the route's timeout, and tied to what must end with it.

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};

pub use super::request_body::{Progress, RequestBody, Upload};
use super::{
    answer::{Answer, AnswerError},
    log::RequestLog,
    pool::{Lease, Sender},
};
use crate::{engine::balance::Observed, telemetry::record::Flag};

/// Ends when the route's timeout is over.
pub type Deadline = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What the client gets. The request's record is written when it ends, however it ends.
pub struct ResponseBody {
    source: Source,
    log: Option<Box<RequestLog>>,
    lease: Option<Lease>,
    progress: Option<Arc<Progress>>,
    deadline: Option<Deadline>,
    sent: u64,
}

enum Source {
    Empty,
    Text(Bytes),
    Upstream(Answer),
}

/// The client gets a part of the response only; its connection is cut, so that it cannot take the part for the whole.
#[derive(Debug, thiserror::Error)]
pub enum BrokenOff {
    #[error("the upstream's response broke off: {0}")]
    Upstream(AnswerError),
    #[error("the response took longer than the route's timeout")]
    TimedOut,
}

impl ResponseBody {
    /// A reply of our own.
    pub fn text(text: impl Into<Bytes>, log: Box<RequestLog>) -> Self {
        let text = text.into();
        let source = if text.is_empty() { Source::Empty } else { Source::Text(text) };
        Self { source, log: Some(log), lease: None, progress: None, deadline: None, sent: 0 }.settled()
    }

    /// The upstream's body; `lease` is the connection it comes from, and goes back to the pool after it.
    pub fn upstream(
        body: Answer,
        log: Box<RequestLog>,
        lease: Lease,
        progress: Arc<Progress>,
        deadline: Option<Deadline>,
    ) -> Self {
        let source = Source::Upstream(body);
        Self { source, log: Some(log), lease: Some(lease), progress: Some(progress), deadline, sent: 0 }.settled()
    }

    /// No body, and a record that somebody else writes (tunnels).
    pub fn none() -> Self {
        Self { source: Source::Empty, log: None, lease: None, progress: None, deadline: None, sent: 0 }
    }

    /// A body that is empty has ended: hyper will not ask for it.
    fn settled(mut self) -> Self {
        if self.source.ended() {
            self.end();
        }
        self
    }

    /// The rest will not come.
    fn cut(&mut self, flag: Flag, details: &'static str, observed: Observed) {
        self.source = Source::Empty;
        (self.lease, self.deadline) = (None, None);
        if let Some(mut log) = self.log.take() {
            log.observe(observed);
            log.flag(flag);
            log.details(details);
            log.cut();
            log.finish(self.sent);
        }
    }

    fn end(&mut self) {
        let source = std::mem::replace(&mut self.source, Source::Empty);
        self.deadline = None;
        if let Some(mut lease) = self.lease.take()
            && self.progress.as_ref().is_none_or(|progress| progress.complete.load(Ordering::Acquire))
        {
            if let Source::Upstream(Answer::Own(conn)) = source {
                lease.put(Sender::Own(conn));
            }
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
        if let Some(deadline) = &mut this.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            this.cut(Flag::UT, "response_timeout", Observed::TimedOut);
            return Poll::Ready(Some(Err(BrokenOff::TimedOut)));
        }
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
                // After trailers hyper drops an HTTP/1.1 body without asking for more.
                if frame.is_trailers() || this.source.ended() {
                    this.end();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            None => {
                this.end();
                Poll::Ready(None)
            }
            Some(Err(error)) => {
                let details = "upstream_reset_after_response_started{connection_termination}";
                this.cut(Flag::UC, details, Observed::Failed);
                Poll::Ready(Some(Err(BrokenOff::Upstream(error))))
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
    /// Dropped before its end: the client has gone. Or it has all that `Content-Length` announced: HTTP/1.1 has no place
    /// for trailers after that, and nobody asks for them (RFC 9112, section 6.3).
    fn drop(&mut self) {
        if matches!(&self.source, Source::Upstream(body) if body.size_hint().exact() == Some(0)) {
            self.end();
        }
        if let Some(mut log) = self.log.take() {
            log.client_gone();
            log.finish(self.sent);
        }
    }
}
