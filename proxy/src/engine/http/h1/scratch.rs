//! Each thread's own buffers, borrowed for the length of a call: what waits holds none.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, ReadBuf};

use crate::limits;

thread_local! {
    static READ: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static WRITE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Reads once; `take` gets what came, nothing at the end of the stream. A read that does not fill the buffer also tells
/// tokio that nothing more is there, so that no second one asks.
pub fn poll_read<T>(
    io: Pin<&mut impl AsyncRead>,
    cx: &mut Context<'_>,
    take: impl FnOnce(&[u8]) -> T,
) -> Poll<io::Result<T>> {
    READ.with_borrow_mut(|bytes| {
        bytes.resize(limits::H1_READ, 0);
        let mut buffer = ReadBuf::new(bytes);
        ready!(io.poll_read(cx, &mut buffer))?;
        Poll::Ready(Ok(take(buffer.filled())))
    })
}

/// An empty buffer for what is to be written; to be given back.
pub fn take() -> Vec<u8> {
    WRITE.take()
}

/// Keeps the buffer for the next one, unless something large has passed through it.
pub fn give_back(mut buffer: Vec<u8>) {
    if buffer.capacity() <= limits::H1_READ {
        buffer.clear();
        WRITE.set(buffer);
    }
}
