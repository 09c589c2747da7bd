//! A request's body, whichever server has read its head.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::h1::server::{InletBody, InletError};

/// The body of a request on its way through the pipeline.
pub enum Payload {
    /// There is none.
    Empty,
    /// From hyper's server.
    Hyper(Incoming),
    /// From our own.
    Own(InletBody),
}

/// Why a request's body breaks off.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    #[error(transparent)]
    Hyper(#[from] hyper::Error),
    #[error(transparent)]
    Own(#[from] InletError),
}

impl From<Incoming> for Payload {
    fn from(body: Incoming) -> Self {
        Self::Hyper(body)
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = PayloadError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, PayloadError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Hyper(body) => Pin::new(body).poll_frame(cx).map_err(PayloadError::Hyper),
            Self::Own(body) => Pin::new(body).poll_frame(cx).map_err(PayloadError::Own),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Hyper(body) => body.is_end_stream(),
            Self::Own(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Hyper(body) => body.size_hint(),
            Self::Own(body) => body.size_hint(),
        }
    }
}
