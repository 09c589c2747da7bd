//! What comes back from an upstream, whichever client spoke to it.

use std::{
    error::Error,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::h1::client::{self, Conn};

/// The body of an upstream's response.
pub enum Answer {
    Hyper(Incoming),
    /// Read from the connection itself, which is back in the pool when it has ended well.
    Own(Box<Conn>),
}

/// Why a response did not come, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    #[error(transparent)]
    Hyper(#[from] hyper::Error),
    #[error(transparent)]
    Own(#[from] client::Error),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        match self.get_mut() {
            Self::Hyper(body) => Pin::new(body).poll_frame(cx).map_err(AnswerError::Hyper),
            Self::Own(body) => Pin::new(body).poll_frame(cx).map_err(AnswerError::Own),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Hyper(body) => body.is_end_stream(),
            Self::Own(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Hyper(body) => body.size_hint(),
            Self::Own(body) => body.size_hint(),
        }
    }
}

impl AnswerError {
    /// The connection ended under the request.
    pub fn closed(&self) -> bool {
        match self {
            Self::Hyper(error) => {
                let io = error.source().is_some_and(<dyn Error + 'static>::is::<io::Error>);
                error.is_incomplete_message() || error.is_canceled() || error.is_closed() || io
            }
            Self::Own(error) => error.closed(),
        }
    }

    /// h2 says that the stream was not processed: REFUSED_STREAM (RFC 9113 section 8.7), or a GOAWAY that left it out.
    pub fn unprocessed(&self) -> bool {
        self.h2().is_some_and(|error| {
            error.is_remote()
                && (error.reason() == Some(h2::Reason::REFUSED_STREAM)
                    || (error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR)))
        })
    }

    /// The upstream does not speak HTTP as it should.
    pub fn misread(&self) -> bool {
        let h2 = self.h2().is_some_and(|h2| h2.is_library() || h2.reason() == Some(h2::Reason::PROTOCOL_ERROR));
        h2 || match self {
            Self::Hyper(error) => error.is_parse(),
            Self::Own(error) => error.misread(),
        }
    }

    /// The upstream has reset the h2 stream.
    pub fn reset(&self) -> bool {
        self.h2().is_some_and(h2::Error::is_reset)
    }

    fn h2(&self) -> Option<&h2::Error> {
        match self {
            Self::Hyper(error) => error.source()?.downcast_ref(),
            Self::Own(_) => None,
        }
    }
}
