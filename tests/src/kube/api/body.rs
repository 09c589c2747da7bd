//! Bodies of answers: whole, or written bit by bit.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Response, header::CONTENT_TYPE};
use http_body::{Frame, SizeHint};
use serde_json::Value;
use tokio::sync::mpsc;

use super::failure::Failure;

pub type Answer = Response<Body>;

pub enum Body {
    Whole(Option<Bytes>),
    /// What comes through the channel; an error cuts the connection.
    Written(mpsc::Receiver<io::Result<Bytes>>),
}

/// The other end of [`Body::Written`].
pub type Writer = mpsc::Sender<io::Result<Bytes>>;

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Written(chunks) => chunks.poll_recv(context).map(|chunk| chunk.map(|chunk| chunk.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Written(_) => SizeHint::default(),
        }
    }
}

pub fn answer(code: u16, content_type: &str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Body::Whole(Some(body.into())));
    *answer.status_mut() = http::StatusCode::from_u16(code).unwrap_or_default();
    if let Ok(value) = content_type.parse() {
        answer.headers_mut().insert(CONTENT_TYPE, value);
    }
    answer
}

pub fn json(code: u16, value: &Value) -> Answer {
    answer(code, "application/json", value.to_string())
}

pub fn text(code: u16, text: &str) -> Answer {
    answer(code, "text/plain; charset=utf-8", text.to_owned())
}

/// 200, and a body that the writer's holder writes.
pub fn written() -> (Writer, Answer) {
    let (writer, chunks) = mpsc::channel(64);
    let mut answer = Response::new(Body::Written(chunks));
    answer.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    (writer, answer)
}

pub fn failed(failure: &Failure) -> Answer {
    let mut answer = json(failure.code, &failure.status());
    if let Some(seconds) = failure.retry_after {
        answer.headers_mut().insert(http::header::RETRY_AFTER, seconds.into());
    }
    answer
}
