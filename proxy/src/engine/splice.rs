//! Bytes moved from one socket to another by the kernel, through a pipe: splice(2). They are never copied to user space and
//! back, which is a third of what it costs to pass them on.
//!
//! What is in the pipe has left one socket and not reached the other, as what is in a copy buffer; the pipe is only filled
//! when it is empty, so that no more waits there than in a buffer.

use std::{
    cell::RefCell,
    io,
    os::fd::OwnedFd,
    task::{Context, Poll, ready},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice},
    unistd::pipe2,
};
use tokio::{io::Interest, net::TcpStream};

use crate::limits;

/// A stream that may be nothing but a socket.
pub trait Spliceable {
    /// The socket, where it has exactly the bytes that reading and writing the stream would give and take, from now on.
    fn socket(&self) -> Option<&TcpStream> {
        None
    }
}

/// A pipe of this thread's, which goes back to it when it is dropped empty.
#[derive(Debug)]
pub struct Pipe {
    /// None only while it is dropped.
    ends: Option<Ends>,
    /// Bytes in it.
    held: usize,
}

#[derive(Debug)]
struct Ends {
    read: OwnedFd,
    write: OwnedFd,
}

thread_local! {
    static SPARE: RefCell<Vec<Ends>> = const { RefCell::new(Vec::new()) };
}

impl Pipe {
    /// # Errors
    /// No more descriptors, or pipes of that size are not allowed: a smaller one is slower than copying.
    pub fn new() -> io::Result<Self> {
        let spare = SPARE.try_with(|spare| spare.borrow_mut().pop()).ok().flatten();
        let ends = match spare {
            Some(ends) => ends,
            None => {
                let (read, write) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
                fcntl(&write, FcntlArg::F_SETPIPE_SZ(limits::COPY_PIPE))?;
                Ends { read, write }
            }
        };
        Ok(Self { ends: Some(ends), held: 0 })
    }

    pub fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Fills the pipe, which is empty, from a socket; 0: it has ended.
    ///
    /// # Errors
    /// What reading the socket gives.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>, from: &TcpStream) -> Poll<io::Result<usize>> {
        let Some(ends) = &self.ends else { return Poll::Ready(Ok(0)) };
        loop {
            ready!(from.poll_read_ready(cx))?;
            // The pipe has room, so it is the socket that would block.
            match from.try_io(Interest::READABLE, || move_bytes(from, &ends.write, limits::COPY_BUFFER_MOST)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(count) => {
                    self.held = count;
                    return Poll::Ready(Ok(count));
                }
            }
        }
    }

    /// Empties some of the pipe into a socket.
    ///
    /// # Errors
    /// What writing to the socket gives.
    pub fn poll_drain(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<io::Result<usize>> {
        let Some(ends) = &self.ends else { return Poll::Ready(Ok(0)) };
        loop {
            ready!(to.poll_write_ready(cx))?;
            match to.try_io(Interest::WRITABLE, || move_bytes(&ends.read, to, self.held)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(count) => {
                    self.held -= count.min(self.held);
                    return Poll::Ready(Ok(count));
                }
            }
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let Some(ends) = self.ends.take().filter(|_| self.held == 0) else { return };
        // Not there any more while the thread ends.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < limits::COPY_PIPES_SPARE {
                spare.push(ends);
            }
        });
    }
}

fn move_bytes(from: impl std::os::fd::AsFd, to: impl std::os::fd::AsFd, most: usize) -> io::Result<usize> {
    loop {
        match splice(&from, None, &to, None, most, SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE) {
            Err(Errno::EINTR) => {}
            other => return Ok(other?),
        }
    }
}
