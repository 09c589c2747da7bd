//! A request's body on its way from the connection, which the server reads, to the upstream, where another task may be the
//! one that sends it. One piece is between the two at a time: no faster is the client read than the upstream takes it.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::{Buf as _, Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;

use super::super::{
    super::{
        framing::{Framing, Piece},
        head_rules::Violation,
    },
    client,
};

/// Why a body breaks off.
#[derive(Debug, thiserror::Error)]
pub enum InletError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the connection ended before the request was complete")]
    Incomplete,
    #[error(transparent)]
    Framing(#[from] Violation),
    #[error("the trailers are malformed")]
    Trailers,
}

/// The server's end.
pub struct Inlet {
    framing: Framing,
    /// Trailer lines so far.
    trailers: Vec<u8>,
    shared: Arc<Mutex<Shared>>,
}

/// The pipeline's end.
pub struct InletBody {
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    piece: Option<Result<Frame<Bytes>, InletError>>,
    /// Nothing follows the piece.
    ended: bool,
    /// Bytes that the body has not handed on yet, where its length was told.
    left: Option<u64>,
    /// The body was asked for more than there was.
    wanted: bool,
    reader: Option<Waker>,
    server: Option<Waker>,
}

/// A body of which nothing was read.
pub fn inlet(framing: Framing) -> (Inlet, InletBody) {
    let left = framing.left();
    let shared = Shared { piece: None, ended: framing.ended(), left, wanted: false, reader: None, server: None };
    let shared = Arc::new(Mutex::new(shared));
    (Inlet { framing, trailers: Vec::new(), shared: shared.clone() }, InletBody { shared })
}

impl Inlet {
    /// All of the body was read from the connection, or nothing more of it ever will be.
    pub fn ended(&self) -> bool {
        self.shared.lock().ended
    }

    /// Ready once the next piece is wanted.
    pub fn poll_wanted(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut shared = self.shared.lock();
        if shared.piece.is_none() && shared.wanted {
            return Poll::Ready(());
        }
        shared.server = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Hands on the next piece of the body that `raw` holds. False: `raw` has none.
    ///
    /// # Errors
    /// It is not framed as it must be; the body has been told.
    pub fn feed(&mut self, raw: &mut BytesMut) -> Result<bool, Violation> {
        while !raw.is_empty() && !self.framing.ended() {
            let piece = self.framing.piece(raw).inspect_err(|violation| self.fail((*violation).into()))?;
            let frame = match piece {
                Piece::Frame(length) => {
                    raw.advance(length);
                    continue;
                }
                Piece::Data(length) => Some(Frame::data(raw.split_to(length).freeze())),
                Piece::Trailers(length) => {
                    self.trailers.extend_from_slice(&raw[..length]);
                    raw.advance(length);
                    if !self.framing.ended() {
                        continue;
                    }
                    match client::read_trailers(&self.trailers) {
                        Ok(fields) => fields.map(Frame::trailers),
                        Err(_) => {
                            self.fail(InletError::Trailers);
                            return Err(Violation::Chunk);
                        }
                    }
                }
            };
            let ended = self.framing.ended();
            if frame.is_some() || ended {
                self.tell(frame.map(Ok), ended);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Passes over what `raw` holds of a body that nobody reads. True: that was all of it.
    ///
    /// # Errors
    /// It is not framed as it must be.
    pub fn skip(&mut self, raw: &mut BytesMut) -> Result<bool, Violation> {
        let used = self.framing.advance(raw)?;
        raw.advance(used);
        Ok(self.framing.ended())
    }

    /// The rest will not come.
    pub fn fail(&self, error: InletError) {
        self.tell(Some(Err(error)), true);
    }

    fn tell(&self, piece: Option<Result<Frame<Bytes>, InletError>>, ended: bool) {
        let mut shared = self.shared.lock();
        (shared.piece, shared.ended, shared.wanted) = (piece, ended, false);
        if let Some(reader) = shared.reader.take() {
            reader.wake();
        }
    }
}

impl Body for InletBody {
    type Data = Bytes;
    type Error = InletError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, InletError>>> {
        let mut shared = self.shared.lock();
        if let Some(piece) = shared.piece.take() {
            let length = piece.as_ref().ok().and_then(Frame::data_ref).map_or(0, Bytes::len);
            shared.left = shared.left.map(|left| left.saturating_sub(length as u64));
            return Poll::Ready(Some(piece));
        }
        if shared.ended {
            return Poll::Ready(None);
        }
        shared.wanted = true;
        shared.reader = Some(cx.waker().clone());
        if let Some(server) = shared.server.take() {
            server.wake();
        }
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        let shared = self.shared.lock();
        shared.ended && shared.piece.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.shared.lock().left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
