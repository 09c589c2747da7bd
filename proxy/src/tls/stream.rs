//! The client's end of a TLS connection.
//!
//! rustls's buffered connections read their socket 4 KiB at a time, some five system calls a full record, and write the last
//! flight of a handshake apart from the request that follows it. Here records are read many at a time and deciphered where
//! they lie, and the last flight waits for the first bytes of the caller: it goes out with them, or once the caller reads or
//! flushes.

use std::{
    fmt,
    io::{self, IoSlice},
    ops::Deref,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use rustls::{
    ClientConfig, CommonState, HandshakeKind,
    client::{ClientConnectionData, UnbufferedClientConnection},
    unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus, WriteTraffic},
};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::buffer::Buffer;
use crate::limits::{TLS_MESSAGE, TLS_WRITE};

/// Payload of one record (RFC 8446 section 5.1).
const RECORD: usize = 16 * 1024;
/// What a record has around its payload, at most: header, content type, tag, and the explicit nonce of TLS 1.2.
const AROUND: usize = 64;

/// TLS over `IO`, its handshake done. A close_notify of the server is the end of what is read; an end without one is an
/// error (`UnexpectedEof`), as the data may have been cut off.
pub struct TlsStream<IO> {
    io: IO,
    tls: UnbufferedClientConnection,
    /// Records as they were received.
    incoming: Buffer,
    /// Deciphered and not yet read by the caller.
    plain: Buffer,
    /// Records to be sent.
    outgoing: Buffer,
    /// The socket was full when the caller wrote or flushed: it waits for the socket, and goes on.
    blocked: bool,
    /// The server has said close_notify.
    ended: bool,
    /// We have.
    closed: bool,
    /// What has ended the connection for good.
    fault: Option<rustls::Error>,
}

/// How far rustls has come with what there is.
enum Progress {
    /// It wants more from the server.
    Handshaking,
    /// The handshake is done and nothing is left to be deciphered, or the reader has no room for more.
    Ready,
}

/// What goes out once rustls is ready for it.
#[derive(Clone, Copy)]
enum Say<'a> {
    Nothing,
    Data(&'a [u8]),
    Goodbye,
}

impl<IO> TlsStream<IO> {
    /// The stream below, and what was agreed on.
    pub fn get_ref(&self) -> (&IO, &CommonState) {
        (&self.io, self.tls.deref())
    }

    /// The stream below, for what has nothing to do with its bytes.
    pub fn io_mut(&mut self) -> &mut IO {
        &mut self.io
    }

    /// For tests that go on below TLS.
    #[cfg(test)]
    pub fn into_io(self) -> IO {
        self.io
    }
}

impl<IO> fmt::Debug for TlsStream<IO> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let resumed = self.tls.handshake_kind() == Some(HandshakeKind::Resumed);
        f.debug_struct("TlsStream").field("resumed", &resumed).field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> TlsStream<IO> {
    /// The handshake, up to where the client has nothing more to wait for.
    pub(super) async fn connect(
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        alpn: Vec<Vec<u8>>,
        io: IO,
    ) -> io::Result<Self> {
        let tls = UnbufferedClientConnection::new_with_alpn(config, name, alpn).map_err(invalid)?;
        let mut stream = Self {
            io,
            tls,
            incoming: Buffer::default(),
            plain: Buffer::default(),
            outgoing: Buffer::default(),
            blocked: false,
            ended: false,
            closed: false,
            fault: None,
        };
        std::future::poll_fn(|cx| stream.poll_handshake(cx)).await?;
        stream.incoming.rest();
        Ok(stream)
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match self.advance(cx, None, Say::Nothing)? {
                Progress::Ready => return Poll::Ready(Ok(())),
                Progress::Handshaking => {}
            }
            ready!(self.poll_send(cx))?;
            if ready!(self.poll_receive(cx))? == 0 {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, "tls handshake eof")));
            }
        }
    }

    /// Lets rustls work on what was received, and then on what is to be said; plain text goes to `reader` as far as there is
    /// room in it. A fault is final, and the server is told of it.
    fn advance(
        &mut self,
        cx: &mut Context<'_>,
        reader: Option<&mut ReadBuf<'_>>,
        say: Say<'_>,
    ) -> io::Result<Progress> {
        if let Some(fault) = &self.fault {
            return Err(invalid(fault.clone()));
        }
        match self.work(reader, say) {
            Ok(progress) => progress,
            Err(fault) => {
                self.tell(cx);
                self.fault = Some(fault.clone());
                Err(invalid(fault))
            }
        }
    }

    fn work(
        &mut self,
        mut reader: Option<&mut ReadBuf<'_>>,
        say: Say<'_>,
    ) -> Result<io::Result<Progress>, rustls::Error> {
        let before = reader.as_ref().map_or(0, |reader| reader.filled().len());
        loop {
            let UnbufferedStatus { mut discard, state } = self.tls.process_tls_records(self.incoming.filled_mut());
            let mut progress = None;
            match state? {
                ConnectionState::ReadTraffic(mut traffic) => {
                    let room = reader.as_ref().map_or(0, |reader| reader.remaining());
                    let begun = reader.as_ref().is_some_and(|reader| reader.filled().len() > before);
                    if begun && traffic.peek_len().is_some_and(|len| len.get() > room) {
                        // It stays where it is until there is room for all of it.
                        progress = Some(Ok(Progress::Ready));
                    } else if let Some(record) = traffic.next_record() {
                        let record = record?;
                        discard += record.discard;
                        let (now, later) = record.payload.split_at(room.min(record.payload.len()));
                        if let Some(reader) = &mut reader {
                            reader.put_slice(now);
                        }
                        self.plain.push(later);
                        if reader.is_some() && !self.plain.is_empty() {
                            progress = Some(Ok(Progress::Ready));
                        }
                    }
                }
                ConnectionState::EncodeTlsData(data) => encode(data, &mut self.outgoing),
                // `outgoing` has it by now.
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::PeerClosed => self.ended = true,
                ConnectionState::BlockedHandshake => progress = Some(Ok(Progress::Handshaking)),
                ConnectionState::WriteTraffic(traffic) => {
                    let said = encrypt(traffic, say, &mut self.outgoing);
                    progress = Some(said.map(|()| Progress::Ready).map_err(io::Error::other));
                }
                // Both sides have ended; early data is for servers.
                _ if matches!(say, Say::Nothing) => progress = Some(Ok(Progress::Ready)),
                _ => progress = Some(Err(io::ErrorKind::BrokenPipe.into())),
            }
            self.incoming.consume(discard);
            if let Some(progress) = progress {
                return Ok(progress);
            }
        }
    }

    /// Sends the alert that rustls has left after a fault, as far as the socket takes it now.
    fn tell(&mut self, cx: &mut Context<'_>) {
        while self.tls.wants_write() {
            match self.tls.process_tls_records(&mut []).state {
                Ok(ConnectionState::EncodeTlsData(alert)) => encode(alert, &mut self.outgoing),
                // Plain text that nobody will read.
                Ok(ConnectionState::ReadTraffic(mut traffic)) => drop(traffic.next_record()),
                _ => break,
            }
        }
        let _ = self.poll_send(cx);
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.incoming.len() >= TLS_MESSAGE {
            let why = "the server sends a handshake message that is too long";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, why)));
        }
        // A record that has begun, and some more.
        let mut room = ReadBuf::new(self.incoming.room(RECORD + AROUND));
        match Pin::new(&mut self.io).poll_read(cx, &mut room) {
            Poll::Ready(Ok(())) => {
                let count = room.filled().len();
                self.incoming.added(count);
                Poll::Ready(Ok(count))
            }
            other => {
                self.incoming.rest();
                other.map_ok(|()| 0)
            }
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sent = self.poll_send_all(cx);
        self.blocked = sent.is_pending();
        sent
    }

    fn poll_send_all(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            let count = ready!(Pin::new(&mut self.io).poll_write(cx, self.outgoing.filled()))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.outgoing.consume(count);
        }
        Poll::Ready(Ok(()))
    }

    /// Enciphers some of `bytes`, and sends what the socket takes now.
    fn poll_say(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        // What waits is the last flight of a handshake, which goes with these bytes, or what the socket would not take.
        if self.outgoing.len() > RECORD {
            ready!(self.poll_send(cx))?;
        }
        let count = bytes.len().min(TLS_WRITE);
        self.advance(cx, None, Say::Data(&bytes[..count]))?;
        // A full socket is asked again by who flushes, or writes more.
        let _ = self.poll_send(cx)?;
        Poll::Ready(Ok(count))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if !this.plain.is_empty() {
            let count = this.plain.len().min(buf.remaining());
            buf.put_slice(&this.plain.filled()[..count]);
            this.plain.consume(count);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        loop {
            let advanced = this.advance(cx, Some(buf), Say::Nothing);
            if buf.filled().len() > before {
                // What was received before a fault is the caller's; the fault is met again.
                return Poll::Ready(Ok(()));
            }
            advanced?;
            if this.ended {
                return Poll::Ready(Ok(()));
            }
            // Whoever reads has said what it had to say: what waits goes out. That the server takes nothing any more does not
            // keep what it has sent from being read, and is met again by who writes.
            if !this.blocked {
                let _ = this.poll_send_all(cx);
            }
            if ready!(this.poll_receive(cx))? == 0 {
                let why = "peer closed connection without sending TLS close_notify";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, why)));
            }
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.get_mut().poll_say(cx, buf)
    }

    /// Small pieces, a head and a body say, share a record.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let mut pieces = bufs.iter().filter(|piece| !piece.is_empty());
        let Some(first) = pieces.next() else { return Poll::Ready(Ok(0)) };
        if first.len() >= RECORD || pieces.next().is_none() {
            return this.poll_say(cx, first);
        }
        let mut gathered = Buffer::default();
        for piece in bufs {
            let room = RECORD - gathered.len();
            gathered.push(&piece[..piece.len().min(room)]);
            if piece.len() >= room {
                break;
            }
        }
        this.poll_say(cx, gathered.filled())
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.closed {
            // One with a fault has said its alert instead.
            let _ = this.advance(cx, None, Say::Goodbye);
            this.closed = true;
        }
        ready!(this.poll_send(cx))?;
        match ready!(Pin::new(&mut this.io).poll_shutdown(cx)) {
            // The server was faster.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            done => Poll::Ready(done),
        }
    }
}

fn encode(mut data: EncodeTlsData<'_, ClientConnectionData>, into: &mut Buffer) {
    let mut least = RECORD + AROUND;
    loop {
        match data.encode(into.room(least)) {
            Ok(count) => return into.added(count),
            Err(EncodeError::InsufficientSize(more)) => least = more.required_size,
            Err(EncodeError::AlreadyEncoded) => return,
        }
    }
}

fn encrypt(
    mut traffic: WriteTraffic<'_, ClientConnectionData>,
    say: Say<'_>,
    into: &mut Buffer,
) -> Result<(), EncryptError> {
    let mut least = match say {
        Say::Nothing => return Ok(()),
        Say::Data(bytes) => bytes.len() + AROUND * (bytes.len() / RECORD + 1),
        Say::Goodbye => AROUND,
    };
    loop {
        let room = into.room(least);
        let count = match say {
            Say::Data(bytes) => traffic.encrypt(bytes, room),
            Say::Nothing | Say::Goodbye => traffic.queue_close_notify(room),
        };
        match count {
            Ok(count) => {
                into.added(count);
                return Ok(());
            }
            Err(EncryptError::InsufficientSize(more)) => least = more.required_size,
            Err(error) => return Err(error),
        }
    }
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
