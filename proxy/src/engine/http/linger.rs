//! The end of a connection on which the client may still be sending.
//!
//! Closing with unread bytes makes the kernel send a reset, which can overtake the answer and destroy it: after our own end
//! has been sent, what comes is read and dropped for a moment (RFC 9112 section 9.6).

use std::{
    future::Future,
    io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};

use crate::limits;

/// A connection being closed.
pub struct Linger {
    unread: bool,
    shut: bool,
    dropped: usize,
    /// Set once there is nothing more to read.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Linger {
    /// `unread`: the client may have sent what nobody will read.
    pub fn new(unread: bool) -> Self {
        Self { unread, shut: false, dropped: 0, timer: None }
    }

    /// Ready once the connection can be closed.
    ///
    /// # Errors
    /// Our own end could not be sent.
    pub fn poll<IO: AsyncRead + AsyncWrite>(
        &mut self,
        mut io: Pin<&mut IO>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.shut {
            ready!(io.as_mut().poll_shutdown(cx))?;
            self.shut = true;
        }
        let mut chunk = [MaybeUninit::<u8>::uninit(); 8192];
        while self.unread {
            let mut buffer = ReadBuf::uninit(&mut chunk);
            match io.as_mut().poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    self.dropped += buffer.filled().len();
                    self.unread = self.dropped <= limits::LINGER_BYTES;
                }
                Poll::Ready(_) => self.unread = false,
                Poll::Pending => {
                    let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(limits::LINGER_TIME)));
                    ready!(timer.as_mut().poll(cx));
                    self.unread = false;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}
