//! A client that says nothing: it waits for a server that speaks first, or it connects early (browsers, connection
//! pools) and will send its request later.
//!
//! To call the second kind TCP would let its request past the rules in plain text. So the upstream is dialled and
//! nothing is sent: whoever speaks first decides. No HTTP server speaks before it is asked.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::{io::AsyncReadExt, net::TcpStream, time::timeout};

use super::{
    Engine, Snapshot,
    accept::ConnectionInfo,
    authorize,
    dial::{self, DialError, Target},
    pod::Pod,
    raw::{self, Connected},
    stream::{ClientIo, UpstreamIo},
};
use crate::{
    limits,
    mesh::{Cluster, Decision, Verdict},
};

/// Who spoke first.
pub enum First {
    /// The client: look at what it says. The upstream, if it was reached, is there for bytes that are neither.
    Client(Option<Connected>),
    /// The upstream, or it ended: a raw connection. Or it cannot be reached and the client stayed silent all the same.
    Server(Result<Connected, DialError>),
    /// Nobody, and nobody is there who could: nothing was dialled, or the connection was idle too long.
    Nobody,
}

/// Waits until one side speaks. `decision` is the one for raw bytes to where the client wanted to go.
pub async fn first_to_speak(
    engine: &Engine,
    snapshot: &Snapshot,
    pod: &Pod,
    client: &TcpStream,
    info: &ConnectionInfo,
    decision: &Decision,
) -> First {
    let mut byte = [0];
    let cluster = match decision {
        Decision::Passthrough => dial::passthrough(),
        // A policy forbids it to raw bytes.
        Decision::Cluster(cluster) if denied(snapshot, pod, info, cluster) => {
            return late(client).await.unwrap_or(First::Nobody);
        }
        Decision::Cluster(cluster) => cluster,
        // Not to be dialled; but a request may still have a route.
        Decision::Block | Decision::Refuse(_) | Decision::Route(_) => {
            return late(client).await.unwrap_or(First::Nobody);
        }
    };
    let hash = dial::source_hash(cluster, info.peer);
    let target = Target { cluster, original: info.original, host: None, hash, client: None };
    let connected = tokio::select! {
        biased;
        _ = client.peek(&mut byte) => return First::Client(None),
        connected = raw::dial_any(engine, snapshot, pod, &target) => connected,
    };
    let mut connected = match connected {
        Ok(connected) => connected,
        // The address may lead nowhere and the request to come have a route of its own.
        Err(error) => return late(client).await.unwrap_or(First::Server(Err(error))),
    };
    let idle = cluster.pool.tcp_idle_timeout;
    let idle = if idle.is_zero() { limits::IDLE_TIMEOUT } else { idle };
    match first_of(&mut &*client, &mut connected.upstream.io, idle).await {
        Spoke::Client => First::Client(Some(connected)),
        Spoke::Server(first) => {
            connected.first = first;
            First::Server(Ok(connected))
        }
        Spoke::Nobody => First::Nobody,
    }
}

/// A client's connection on which one can wait without taking anything from it.
pub trait Hears {
    /// Waits until the client says something, or ends.
    fn hears(&mut self) -> impl Future<Output = ()> + Send;
}

impl Hears for &TcpStream {
    async fn hears(&mut self) {
        let _ = self.peek(&mut [0]).await;
    }
}

impl Hears for ClientIo {
    /// What comes is read and put back; an end, and an error, are met again.
    async fn hears(&mut self) {
        if self.has_read() {
            return;
        }
        let mut first = BytesMut::with_capacity(2048);
        if let Ok(1..) = self.read_buf(&mut first).await {
            self.put_back(first.freeze());
        }
    }
}

/// A policy about the service lets no raw bytes from here pass.
pub fn denied(snapshot: &Snapshot, pod: &Pod, info: &ConnectionInfo, cluster: &Cluster) -> bool {
    authorize::leaving(snapshot, &pod.id, info, cluster, None) != Verdict::Allowed
}

/// Who spoke first on two connections that are there.
pub enum Spoke {
    /// The client, or it ended.
    Client,
    /// The server, and what it said; nothing where it ended.
    Server(Bytes),
    /// Nobody for the time given.
    Nobody,
}

/// Waits until one side speaks. Nothing is taken from what the client says.
pub async fn first_of(client: &mut impl Hears, server: &mut UpstreamIo, idle: Duration) -> Spoke {
    let mut first = vec![0; 2048];
    let read = tokio::select! {
        biased;
        () = client.hears() => return Spoke::Client,
        read = timeout(idle, server.read(&mut first)) => read,
    };
    match read {
        Err(_) => Spoke::Nobody,
        // The end, and an error, are met again by who copies.
        Ok(read) => {
            first.truncate(read.unwrap_or(0));
            Spoke::Server(Bytes::from(first))
        }
    }
}

/// Gives the client as long as a request head may take to begin.
async fn late(client: &TcpStream) -> Option<First> {
    timeout(limits::HEAD_TIME, client.peek(&mut [0])).await.ok().map(|_| First::Client(None))
}
