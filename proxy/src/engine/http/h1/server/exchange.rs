//! One request and its answer.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request};
use http_body::Body;
use tokio::io::AsyncWrite;

use super::{
    super::{
        super::{body::ResponseBody, linger::Linger, payload::Payload, service},
        scratch,
    },
    Server,
    encode::{self, Asked, Encoder},
    inlet::InletError,
    request,
};
use crate::{engine::stream::ClientIo, limits};

/// The client has left, or broken off.
struct Gone;

/// A piece of an answer on its way out.
enum Piece {
    Data(Bytes),
    End(Option<HeaderMap>),
    /// Nothing is there yet.
    Later,
}

impl Server {
    /// Answers the request. False: the connection is to be closed.
    pub(super) async fn exchange(&mut self, request: Request<Payload>) -> bool {
        let mut asked = Asked::new(request.method(), request::takes_trailers(request.headers()), self.last);
        let response = {
            // It is dropped, and with it all that is under way upstream, where the client leaves.
            let mut answer = pin!(service::answer(self.of.clone(), request));
            let answered = poll_fn(|cx| match answer.as_mut().poll(cx) {
                Poll::Ready(response) => Poll::Ready(Some(response)),
                Poll::Pending => self.poll_client(cx).map(|Gone| None),
            });
            match answered.await {
                Some(response) => response,
                None => return false,
            }
        };
        asked.last |= self.of.ending() || self.broken_body();
        let (parts, body) = response.into_parts();
        let mut out = scratch::take();
        let encoder = encode::head(&mut out, &parts, &body, &mut asked);
        drop(parts);
        let sent = self.send(&mut out, body, encoder).await;
        scratch::give_back(out);
        if sent.is_err() {
            return false;
        }
        let more = !self.skip_body();
        let last = asked.last || more;
        if last {
            self.close((more || !self.raw.is_empty()) && !self.eof).await;
        }
        !last
    }

    /// Ends our side, as far as closing alone would not do it. `unread`: the client may have sent what nobody will read.
    async fn close(&mut self, unread: bool) {
        if unread || matches!(self.io.io, ClientIo::Tls(_)) {
            let mut linger = Linger::new(unread);
            let ended = poll_fn(|cx| linger.poll(Pin::new(&mut self.io), cx)).await;
            ended.unwrap_or_else(|error| ::log::debug!("downstream connection: {error}"));
        }
    }

    /// Sends what is in `out` and then the body, no faster than the client takes it.
    async fn send(&mut self, out: &mut Vec<u8>, mut body: ResponseBody, mut encoder: Encoder) -> Result<(), Gone> {
        while !encoder.ended() {
            match self.piece(&mut body, !out.is_empty()).await? {
                Piece::Later => self.write(out, &[], b"").await?,
                Piece::End(trailers) => {
                    let whole = encoder.end(out, trailers.as_ref());
                    self.write(out, &[], b"").await?;
                    return if whole { Ok(()) } else { Err(Gone) };
                }
                Piece::Data(data) if data.is_empty() => {}
                Piece::Data(data) => {
                    let (step, tail) = encoder.piece(out, data.len());
                    let data = &data[..step];
                    // With a small piece there may soon be another, or the end.
                    if data.len() <= limits::H1_COPIED && out.len() <= limits::H1_COPIED {
                        out.extend_from_slice(data);
                        out.extend_from_slice(tail);
                    } else {
                        self.write(out, data, tail).await?;
                    }
                }
            }
        }
        // What is left of a body that nobody asks for is dropped first: it may be of use to others.
        drop(body);
        self.write(out, &[], b"").await
    }

    /// The next piece of the body. `flush`: something waits to be sent, so that there is no waiting for more.
    async fn piece(&mut self, body: &mut ResponseBody, flush: bool) -> Result<Piece, Gone> {
        let both = self.inlet.is_some();
        poll_fn(|cx| {
            // Neither direction waits for the other one's end.
            if both && let Poll::Ready(gone) = self.poll_client(cx) {
                return Poll::Ready(Err(gone));
            }
            match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Ready(None) => Poll::Ready(Ok(Piece::End(None))),
                Poll::Ready(Some(Err(error))) => {
                    ::log::debug!("downstream connection: {error}");
                    Poll::Ready(Err(Gone))
                }
                Poll::Ready(Some(Ok(frame))) => Poll::Ready(Ok(match frame.into_data() {
                    Ok(data) => Piece::Data(data),
                    Err(frame) => Piece::End(frame.into_trailers().ok()),
                })),
                Poll::Pending if flush => Poll::Ready(Ok(Piece::Later)),
                Poll::Pending => self.poll_client(cx).map(Err),
            }
        })
        .await
    }

    /// Writes all three, and empties the first.
    async fn write(&mut self, out: &mut Vec<u8>, data: &[u8], tail: &[u8]) -> Result<(), Gone> {
        let (mut done, total) = (0, out.len() + data.len() + tail.len());
        poll_fn(|cx| {
            while done < total {
                match self.poll_write(cx, [out, data, tail], done) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(Gone)),
                    Poll::Ready(Ok(step)) => done += step,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(failed(&error))),
                    Poll::Pending => return self.poll_client(cx).map(Err),
                }
            }
            match Pin::new(&mut self.io).poll_flush(cx) {
                Poll::Ready(result) => Poll::Ready(result.map_err(|error| failed(&error))),
                Poll::Pending => self.poll_client(cx).map(Err),
            }
        })
        .await?;
        out.clear();
        Ok(())
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, parts: [&[u8]; 3], mut skip: usize) -> Poll<io::Result<usize>> {
        let rest = parts.map(|part| {
            let step = skip.min(part.len());
            skip -= step;
            IoSlice::new(&part[step..])
        });
        let io = Pin::new(&mut self.io);
        match rest.iter().filter(|part| !part.is_empty()).count() {
            1 => rest.iter().find(|part| !part.is_empty()).map_or(Poll::Ready(Ok(0)), |part| io.poll_write(cx, part)),
            _ => io.poll_write_vectored(cx, &rest),
        }
    }

    /// Ready once the client has gone; reads the request's body on the way there.
    fn poll_client(&mut self, cx: &mut Context<'_>) -> Poll<Gone> {
        while let Some(inlet) = &mut self.inlet {
            if inlet.ended() {
                break;
            }
            ready!(inlet.poll_wanted(cx));
            match inlet.feed(&mut self.raw) {
                Ok(true) => continue,
                Ok(false) => {}
                Err(violation) => {
                    // The client is told so; whoever comes second knew it already.
                    let _ = self.of.broken.set(violation);
                    return Poll::Pending;
                }
            }
            if let Err(error) = ready!(self.poll_fill(cx)) {
                self.fail(error.into());
            } else if self.eof {
                self.fail(InletError::Incomplete);
            }
        }
        self.poll_gone(cx)
    }

    fn fail(&mut self, error: InletError) {
        self.eof = true;
        if let Some(inlet) = &self.inlet {
            inlet.fail(error);
        }
    }

    /// Nothing can follow the request.
    fn broken_body(&self) -> bool {
        self.inlet.is_some() && (self.eof || self.of.broken.get().is_some())
    }

    /// The answer is complete: what came of a body that nobody has read is passed over. False: more of it is to come, or it is
    /// broken, and nothing can follow it.
    fn skip_body(&mut self) -> bool {
        let Some(mut inlet) = self.inlet.take() else { return true };
        let whole = self.of.broken.get().is_none() && inlet.skip(&mut self.raw) == Ok(true);
        if self.raw.is_empty() {
            self.raw = BytesMut::new();
        }
        whole
    }

    /// Ready once the client has closed its side without having said that it would. What it sends before it was asked to is
    /// kept, and then nothing more is read.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Gone> {
        if !self.raw.is_empty() || self.eof {
            return Poll::Pending;
        }
        if let Err(error) = ready!(self.poll_fill(cx)) {
            return Poll::Ready(failed(&error));
        }
        if self.eof && !self.last { Poll::Ready(Gone) } else { Poll::Pending }
    }
}

fn failed(error: &io::Error) -> Gone {
    ::log::debug!("downstream connection: {error}");
    Gone
}
