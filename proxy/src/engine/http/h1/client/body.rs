//! A response's body, read from the connection when it is asked for.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use tokio_util::io::poll_read_buf;

use super::{Conn, Error};
use crate::{
    engine::http::framing::{Framing, Piece},
    limits,
};

/// What of the body is still to come.
pub(super) enum State {
    Ended,
    Length(u64),
    Chunked {
        framing: Framing,
        /// Trailer lines so far.
        trailers: Vec<u8>,
    },
    UntilClose,
}

impl Conn {
    pub(super) fn ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// Reads more of the body. False: the connection has ended.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Error>> {
        let Self { io: Some(io), buffer, .. } = self else { return Poll::Ready(Ok(false)) };
        if buffer.capacity() < self.appetite / 4 {
            // What was read before is mostly written by now: then its space is used again.
            buffer.reserve(self.appetite);
        }
        let room = buffer.capacity();
        let read = ready!(poll_read_buf(Pin::new(io), cx, buffer))?;
        if read == room && self.appetite < limits::COPY_BUFFER_MOST {
            self.appetite *= 2;
        }
        self.rest = self.buffer.split().freeze();
        Poll::Ready(Ok(read > 0))
    }

    fn end(&mut self) {
        self.state = State::Ended;
        (self.buffer, self.appetite) = (Default::default(), limits::H1_READ_FIRST);
    }

    fn take(&mut self, most: u64) -> Bytes {
        let length = usize::try_from(most).unwrap_or(usize::MAX).min(self.rest.len());
        self.rest.split_to(length)
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame<Bytes>>, Error>> {
        loop {
            match &mut self.state {
                State::Ended => return Poll::Ready(Ok(None)),
                State::Length(left) if !self.rest.is_empty() => {
                    let left = *left;
                    let data = self.take(left);
                    match left - data.len() as u64 {
                        0 => self.end(),
                        left => self.state = State::Length(left),
                    }
                    return Poll::Ready(Ok(Some(Frame::data(data))));
                }
                State::UntilClose if !self.rest.is_empty() => {
                    return Poll::Ready(Ok(Some(Frame::data(std::mem::take(&mut self.rest)))));
                }
                State::Chunked { framing, trailers } if !self.rest.is_empty() => {
                    let piece = framing.piece(&self.rest)?;
                    let ended = framing.ended();
                    match piece {
                        Piece::Frame(length) => self.rest.advance(length),
                        Piece::Data(length) => {
                            let data = self.rest.split_to(length);
                            self.look_ahead();
                            return Poll::Ready(Ok(Some(Frame::data(data))));
                        }
                        Piece::Trailers(length) => {
                            trailers.extend_from_slice(&self.rest[..length]);
                            self.rest.advance(length);
                            if ended {
                                let fields = read_trailers(trailers)?;
                                self.end();
                                return Poll::Ready(Ok(fields.map(Frame::trailers)));
                            }
                        }
                    }
                }
                _ => {
                    if !ready!(self.poll_fill(cx))? {
                        let whole = matches!(self.state, State::UntilClose);
                        self.end();
                        return Poll::Ready(if whole { Ok(None) } else { Err(Error::Incomplete) });
                    }
                }
            }
        }
    }

    /// Where the last chunk is at hand together with the data, nobody need ask for more to learn that this was all.
    fn look_ahead(&mut self) {
        let State::Chunked { framing, .. } = &self.state else { return };
        let (mut framing, mut at) = (*framing, 0);
        while !framing.ended() {
            match framing.piece(&self.rest[at..]) {
                Ok(Piece::Frame(length)) if length > 0 => at += length,
                Ok(Piece::Trailers(2)) if framing.ended() => {
                    self.rest.advance(at + 2);
                    return self.end();
                }
                _ => return,
            }
        }
    }
}

/// The fields of trailer lines; None where there are none.
pub(in super::super) fn read_trailers(lines: &[u8]) -> Result<Option<HeaderMap>, Error> {
    if lines == b"\r\n" {
        return Ok(None);
    }
    let mut fields = [httparse::EMPTY_HEADER; limits::HEAD_FIELDS];
    let parsed = httparse::parse_headers(lines, &mut fields);
    let Ok(httparse::Status::Complete((_, fields))) = parsed else { return Err(Error::Trailers) };
    let mut trailers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Error::Trailers)?;
        trailers.append(name, HeaderValue::from_bytes(field.value).map_err(|_| Error::Trailers)?);
    }
    Ok(Some(trailers))
}

impl Body for Conn {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        if let Some(error) = this.broken.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let frame = ready!(this.poll_data(cx));
        if let Err(error) = frame {
            // Told next time: a server writes what came before only when there is nothing more at hand.
            (this.broken, this.keep_alive) = (Some(error), false);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(frame.transpose())
    }

    fn is_end_stream(&self) -> bool {
        self.ended() && self.broken.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match self.state {
            State::Ended if self.broken.is_none() => SizeHint::with_exact(0),
            State::Length(left) => SizeHint::with_exact(left),
            State::Ended | State::Chunked { .. } | State::UntilClose => SizeHint::default(),
        }
    }
}
