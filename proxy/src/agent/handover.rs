//! From one agent to the next on the same state folder, without a moment in which nobody listens.
//!
//! An agent waits at a Unix socket in its state folder. The next one connects as it starts, prepares its first table while the
//! other serves on, and then asks for its place. The other lets go of its listening sockets, gives them with the folder's lock
//! (`SCM_RIGHTS`, unix(7)), and drains; what waits in their queues meanwhile is accepted by the next one. The connection stays
//! open until the other has ended.
//!
//! Which pod and which address a socket belongs to, it says itself. No side says more than one byte at a time, so that messages
//! cannot run into each other.

use std::{
    collections::HashMap,
    fs,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::{IpAddr, SocketAddr, TcpListener},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::{UnixListener, UnixStream},
    time::timeout,
};

use super::state_dir::StateDir;
use crate::{limits, netns::Namespace, sys};

/// The socket's name in the state folder. Agents of one name understand each other.
const SOCKET: &str = "handover-1";
/// Asks for the place.
const ASK: u8 = b'?';
/// Comes with listening sockets; more follow.
const SOCKETS: u8 = b'+';
/// Comes with the lock: that was all.
const LOCK: u8 = b'.';
/// Descriptors in one message; the kernel takes up to 253 (`SCM_MAX_FD`).
const BATCH: usize = 128;

#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    #[error("cannot wait for a next agent at {}: {error}", path.display())]
    Listen { path: PathBuf, error: io::Error },
    #[error("the other agent is gone: {0}")]
    Gone(io::Error),
    #[error("the other agent did not hand over within {} s", limits::HANDOVER_TIME.as_secs())]
    Late,
    #[error("the other agent said something that is not understood")]
    Strange,
}

/// The place of an agent that serves, which the next one may ask for.
pub struct Offer {
    path: PathBuf,
    listener: UnixListener,
    /// Prepares itself.
    next: Option<UnixStream>,
}

/// What happens to the place of an agent.
pub enum Wish {
    /// An agent has come that will ask for it, or is gone again.
    Changed,
    /// It is asked for.
    Asked(UnixStream),
}

impl Offer {
    /// The folder must be locked. Must be called within a tokio runtime.
    pub fn open(state_dir: &Path) -> Result<Self, HandoverError> {
        let path = state_dir.join(SOCKET);
        let listener = match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => UnixListener::bind(&path),
        };
        match listener {
            Ok(listener) => Ok(Self { path, listener, next: None }),
            Err(error) => Err(HandoverError::Listen { path, error }),
        }
    }

    /// A next agent prepares itself.
    pub fn is_wanted(&self) -> bool {
        self.next.is_some()
    }

    /// Cancelled, it has lost nothing.
    pub async fn wish(&mut self) -> Wish {
        let Some(next) = &mut self.next else {
            self.next = self.listener.accept().await.ok().map(|(next, _)| next);
            return Wish::Changed;
        };
        let mut said = [0];
        match (next.read(&mut said).await, self.next.take()) {
            (Ok(1), Some(next)) if said == [ASK] => Wish::Asked(next),
            _ => Wish::Changed,
        }
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        // Gone where the folder is.
        let _ = fs::remove_file(&self.path);
    }
}

/// Gives listening sockets and the lock to who has asked for them. The answer is to be kept until this agent ends.
pub async fn give(next: UnixStream, sockets: &[TcpListener], lock: StateDir) -> Result<UnixStream, HandoverError> {
    let all = async {
        for batch in sockets.chunks(BATCH) {
            let batch: Vec<_> = batch.iter().map(AsFd::as_fd).collect();
            send(&next, SOCKETS, &batch).await?;
        }
        send(&next, LOCK, &[lock.as_fd()]).await
    };
    match timeout(limits::HANDOVER_TIME, all).await {
        Ok(Ok(())) => Ok(next),
        Ok(Err(error)) => Err(HandoverError::Gone(error)),
        Err(_) => Err(HandoverError::Late),
    }
}

async fn send(to: &UnixStream, kind: u8, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    to.async_io(Interest::WRITABLE, || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(descriptors));
        sendmsg(to, &[IoSlice::new(&[kind])], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    })
    .await
}

/// The agent that serves while this one prepares itself.
pub struct Predecessor {
    stream: UnixStream,
}

impl Predecessor {
    /// None: nobody waits there.
    pub async fn find(state_dir: &Path) -> Option<Self> {
        let stream = UnixStream::connect(state_dir.join(SOCKET)).await.ok()?;
        Some(Self { stream })
    }

    /// Asks for its place, and returns once it has let go of it.
    pub async fn take_over(self) -> Result<Inherited, HandoverError> {
        let mut stream = self.stream;
        let take = async {
            stream.write_all(&[ASK]).await.map_err(HandoverError::Gone)?;
            let mut listeners = Vec::new();
            loop {
                let (kind, mut descriptors) = receive(&stream).await.map_err(HandoverError::Gone)?;
                match kind {
                    Some(SOCKETS) => listeners.extend(descriptors.into_iter().map(TcpListener::from)),
                    Some(LOCK) => {
                        let lock = descriptors.pop().ok_or(HandoverError::Strange)?;
                        return Ok((listeners, StateDir::from(lock)));
                    }
                    Some(_) => return Err(HandoverError::Strange),
                    None => return Err(HandoverError::Gone(io::ErrorKind::UnexpectedEof.into())),
                }
            }
        };
        let (listeners, lock) = timeout(limits::HANDOVER_TIME, take).await.map_err(|_| HandoverError::Late)??;
        Ok(Inherited { listeners: Listeners::of(listeners), lock, predecessor: Ending(stream) })
    }
}

/// What one message brought: its byte (none at the end) and its descriptors.
async fn receive(from: &UnixStream) -> io::Result<(Option<u8>, Vec<OwnedFd>)> {
    from.async_io(Interest::READABLE, || {
        let mut kind = [0];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = recvmsg(from, &mut [IoSliceMut::new(&mut kind)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        if got.flags.contains(ReturnFlags::CTRUNC) {
            // Of this process there may be no more.
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(some) = message {
                descriptors.extend(some);
            }
        }
        Ok(((got.bytes == 1).then_some(kind[0]), descriptors))
    })
    .await
}

/// What an agent got from the one before.
pub struct Inherited {
    pub listeners: Listeners,
    pub lock: StateDir,
    pub predecessor: Ending,
}

/// The agent before, which drains.
pub struct Ending(UnixStream);

impl Ending {
    /// Returns when it has ended. It says nothing more.
    pub async fn ended(mut self) {
        let _ = self.0.read(&mut [0]).await;
    }
}

/// Sockets that listen in pods already, by the cookie of the namespace and the address.
#[derive(Default)]
pub struct Listeners(HashMap<(u64, IpAddr, u16), TcpListener>);

impl Listeners {
    fn of(all: Vec<TcpListener>) -> Self {
        let key = |listener: &TcpListener| -> io::Result<_> {
            let local = listener.local_addr()?;
            Ok((sys::netns_cookie(listener.as_fd())?, local.ip(), local.port()))
        };
        // What cannot be asked is closed.
        Self(all.into_iter().filter_map(|listener| Some((key(&listener).ok()?, listener))).collect())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The one that listens there already, else a new one: see [`Namespace::listener`].
    pub fn listener(&mut self, namespace: &Namespace, local: SocketAddr) -> io::Result<TcpListener> {
        match self.0.remove(&(namespace.cookie(), local.ip(), local.port())) {
            Some(listener) => Ok(listener),
            None => namespace.listener(local),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More sockets than one message holds, and the lock, which nobody else gets before both agents are gone.
    #[tokio::test]
    async fn sockets_and_the_lock_come_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let lock = StateDir::try_lock(&path).unwrap().unwrap();
        assert!(Predecessor::find(&path).await.is_none());
        let mut offer = Offer::open(&path).unwrap();
        let sockets: Vec<_> = (0..BATCH + 3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let waiting = std::net::TcpStream::connect(sockets[BATCH + 1].local_addr().unwrap()).unwrap();

        let next = Predecessor::find(&path).await.unwrap();
        assert!(matches!(offer.wish().await, Wish::Changed) && offer.is_wanted());
        drop(next);
        assert!(matches!(offer.wish().await, Wish::Changed) && !offer.is_wanted());

        let next = Predecessor::find(&path).await.unwrap();
        assert!(matches!(offer.wish().await, Wish::Changed) && offer.is_wanted());
        let gives = async {
            let Wish::Asked(stream) = offer.wish().await else { panic!("nobody asked") };
            give(stream, &sockets, lock).await.unwrap()
        };
        let (taken, kept) = tokio::join!(next.take_over(), gives);
        let Inherited { mut listeners, lock, predecessor } = taken.unwrap();
        assert_eq!(listeners.len(), sockets.len());
        let cookie = sys::netns_cookie(sockets[0].as_fd()).unwrap();
        let local = sockets[BATCH + 1].local_addr().unwrap();
        drop(sockets);
        let listener = listeners.0.remove(&(cookie, local.ip(), local.port())).unwrap();
        assert_eq!(listener.accept().unwrap().1, waiting.local_addr().unwrap(), "it waited in the queue");
        assert!(StateDir::try_lock(&path).unwrap().is_none());
        drop(kept);
        predecessor.ended().await;
        drop(lock);
        drop(offer);
        assert!(Predecessor::find(&path).await.is_none());
    }
}
