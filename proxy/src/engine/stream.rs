//! The kinds of streams, upstream and downstream, each as one type, so that copying and HTTP need no type parameter.

use std::{
    io,
    net::SocketAddr,
    os::fd::AsFd as _,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::server;

use super::{prefixed::Prefixed, splice::Spliceable};
use crate::tls::TlsStream;

/// A connected socket.
#[derive(Debug)]
pub enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    /// Our own address of it; None for unix sockets.
    pub fn local(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(stream) => stream.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }

    /// Has the runtime of the calling task tell when it is ready, and no longer the one that it was opened on.
    ///
    /// # Errors
    /// The kernel gives no descriptor, or the runtime takes none.
    fn adopt(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => {
                let copy = std::net::TcpStream::from(stream.as_fd().try_clone_to_owned()?);
                *stream = TcpStream::from_std(copy)?;
            }
            Self::Unix(stream) => {
                let copy = std::os::unix::net::UnixStream::from(stream.as_fd().try_clone_to_owned()?);
                *stream = UnixStream::from_std(copy)?;
            }
        }
        Ok(())
    }

    /// Makes closing it a reset (RST) instead of an orderly end. Unix sockets have no such thing.
    pub fn reset_on_close(&self) {
        if let Self::Tcp(stream) = self {
            reset_on_close(stream);
        }
    }
}

/// SO_LINGER with zero seconds: close(2) then sends RST and drops what is queued.
pub fn reset_on_close(stream: &TcpStream) {
    if let Err(error) = socket2::SockRef::from(stream).set_linger(Some(std::time::Duration::ZERO)) {
        log::debug!("SO_LINGER: {error}");
    }
}

/// An upstream connection's byte stream.
#[derive(Debug)]
pub enum UpstreamIo {
    Plain(Socket),
    Tls(Box<TlsStream<Socket>>),
}

impl UpstreamIo {
    /// The socket below, TLS or not.
    pub fn socket(&self) -> &Socket {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }

    /// Goes on as a connection of the runtime that this is called on: what wakes its task then needs no other thread.
    ///
    /// # Errors
    /// The kernel gives no descriptor, or the runtime takes none.
    pub fn adopt(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.adopt(),
            Self::Tls(stream) => stream.io_mut().adopt(),
        }
    }
}

/// A downstream connection's byte stream, with what sniffing read put back. In TLS a close_notify ends one direction, as a
/// FIN does in TCP; an end without it is an error (RFC 8446 section 6.1), never the end of the data.
#[derive(Debug)]
pub enum ClientIo {
    Plain(Prefixed<TcpStream>),
    /// The outer prefix is decrypted, the inner one is the ClientHello.
    Tls(Box<Prefixed<server::TlsStream<Prefixed<TcpStream>>>>),
}

impl ClientIo {
    pub fn plain(first: Bytes, stream: TcpStream) -> Self {
        Self::Plain(Prefixed::new(first, stream))
    }

    pub fn tls(first: Bytes, stream: server::TlsStream<Prefixed<TcpStream>>) -> Self {
        Self::Tls(Box::new(Prefixed::new(first, stream)))
    }

    /// Puts back what was read, to be read again.
    pub fn put_back(&mut self, bytes: Bytes) {
        match self {
            Self::Plain(stream) => stream.put_back(bytes),
            Self::Tls(stream) => stream.put_back(bytes),
        }
    }

    /// There are bytes that were put back.
    pub fn has_read(&self) -> bool {
        match self {
            Self::Plain(stream) => !stream.is_spent(),
            Self::Tls(stream) => !stream.is_spent(),
        }
    }

    /// Closing it will be a reset: an orderly end would make what was sent look whole.
    pub fn reset_on_close(&self) {
        reset_on_close(match self {
            Self::Plain(stream) => stream.get_ref(),
            Self::Tls(stream) => stream.get_ref().get_ref().0.get_ref(),
        });
    }
}

impl Spliceable for ClientIo {
    fn socket(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(stream) if stream.is_spent() => Some(stream.get_ref()),
            Self::Plain(_) | Self::Tls(_) => None,
        }
    }
}

impl Spliceable for Prefixed<UpstreamIo> {
    fn socket(&self) -> Option<&TcpStream> {
        match self.get_ref() {
            UpstreamIo::Plain(Socket::Tcp(stream)) if self.is_spent() => Some(stream),
            UpstreamIo::Plain(_) | UpstreamIo::Tls(_) => None,
        }
    }
}

/// Hands every call on to whichever stream it is.
macro_rules! forward_reads {
    ($type:ty, $($variant:ident),+) => {
        impl AsyncRead for $type {
            fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() { $(Self::$variant(stream) => Pin::new(stream).poll_read(cx, buf)),+ }
            }
        }
    };
}

/// The same for writing.
macro_rules! forward_writes {
    ($type:ty, $($variant:ident),+) => {
        impl AsyncWrite for $type {
            fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
                match self.get_mut() { $(Self::$variant(stream) => Pin::new(stream).poll_write(cx, buf)),+ }
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() { $(Self::$variant(stream) => Pin::new(stream).poll_flush(cx)),+ }
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() { $(Self::$variant(stream) => Pin::new(stream).poll_shutdown(cx)),+ }
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &[io::IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() { $(Self::$variant(stream) => Pin::new(stream).poll_write_vectored(cx, bufs)),+ }
            }

            fn is_write_vectored(&self) -> bool {
                match self { $(Self::$variant(stream) => stream.is_write_vectored()),+ }
            }
        }
    };
}

forward_reads!(Socket, Tcp, Unix);
forward_writes!(Socket, Tcp, Unix);
forward_reads!(UpstreamIo, Plain, Tls);
forward_writes!(UpstreamIo, Plain, Tls);
forward_writes!(ClientIo, Plain, Tls);

impl AsyncRead for ClientIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => {
                let read = Pin::new(&mut **stream).poll_read(cx, buf);
                // What TLS itself has to answer (a renegotiation that is not done, a key update) goes out with our next bytes,
                // which a client that waits for it may never ask for.
                if read.is_pending() && stream.get_ref().get_ref().1.wants_write() {
                    let _ = Pin::new(&mut **stream).poll_flush(cx)?;
                }
                read
            }
        }
    }
}
