//! The listeners that a gateway's table wants inside one pod: opened and closed as the table changes.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener},
};

use socket2::SockRef;
use tokio::task::JoinHandle;

use super::{
    super::handover::Listeners as Inherited,
    member::{taken, unsupported},
};
use crate::{mesh::ListenerId, netns::Namespace};

/// A listening socket with the task that accepts from it. Dropped, both go on: see [`Accepting::stop`].
pub struct Accepting {
    /// The same socket as the task's.
    socket: TcpListener,
    task: JoinHandle<()>,
}

impl Accepting {
    pub fn start(socket: TcpListener, serve: impl FnOnce(TcpListener) -> JoinHandle<()>) -> io::Result<Self> {
        let task = serve(socket.try_clone()?);
        Ok(Self { socket, task })
    }

    /// Accepts no more; the socket closes once the task is gone.
    pub fn stop(self) {
        self.task.abort();
    }

    /// Accepts no more; the socket goes on listening, and what waits in its queue stays there.
    pub fn hand_over(self) -> TcpListener {
        self.task.abort();
        self.socket
    }
}

/// Open sockets.
#[derive(Default)]
pub struct Listeners {
    open: BTreeMap<SocketAddr, Listener>,
}

struct Listener {
    id: ListenerId,
    accepting: Accepting,
}

impl Listeners {
    /// Closes what is not wanted any more and opens what is new; the others notice nothing. Connections that were accepted
    /// go on.
    ///
    /// Answers what is in the way: one sentence for each listener that could not be opened, and that is to be tried again.
    pub fn settle(
        &mut self,
        wanted: impl IntoIterator<Item = ListenerId>,
        namespace: &Namespace,
        inherited: &mut Inherited,
        own: &[IpAddr],
        serve: impl Fn(TcpListener, ListenerId) -> JoinHandle<()>,
    ) -> Vec<String> {
        let wanted: BTreeMap<SocketAddr, ListenerId> =
            wanted.into_iter().flat_map(|id| sockets(id).into_iter().map(move |local| (local, id))).collect();
        self.close(|local, listener| wanted.get(local) != Some(&listener.id));
        let mut in_the_way = Vec::new();
        for (local, id) in wanted {
            if self.open.contains_key(&local) {
                continue;
            }
            let opened = open(namespace, inherited, own, local);
            match opened.and_then(|socket| Accepting::start(socket, |listener| serve(listener, id))) {
                Ok(accepting) => drop(self.open.insert(local, Listener { id, accepting })),
                Err(error) if id.bind.is_none() && local.is_ipv6() && unsupported(&error) => {}
                Err(error) => in_the_way.push(taken(&error, local, namespace.name(), "its gateway")),
            }
        }
        in_the_way
    }

    pub fn close_all(&mut self) {
        self.close(|_, _| true);
    }

    /// See [`Accepting::hand_over`].
    pub fn hand_over(&mut self) -> impl Iterator<Item = TcpListener> {
        std::mem::take(&mut self.open).into_values().map(|listener| listener.accepting.hand_over())
    }

    /// What is open, as `egret status` shows it: `8080`, or `10.0.0.2:8080` where a server has a `bind`.
    pub fn shown(&self) -> Vec<String> {
        let mut shown: Vec<_> = self.open.values().map(|listener| listener.id).collect();
        // The two families of one listener lie apart.
        shown.sort();
        shown.dedup();
        let show = |id: ListenerId| id.bind.map_or(id.port.to_string(), |ip| SocketAddr::new(ip, id.port).to_string());
        shown.into_iter().map(show).collect()
    }

    fn close(&mut self, unwanted: impl Fn(&SocketAddr, &Listener) -> bool) {
        self.open.retain(|local, listener| {
            let keep = !unwanted(local, listener);
            if !keep {
                listener.accepting.task.abort();
                // At once, and not when the task is gone: what is opened next may want the port on another address.
                if let Err(error) = SockRef::from(&listener.accepting.socket).shutdown(Shutdown::Both) {
                    log::debug!("closing the listener at {local}: {error}");
                }
            }
            keep
        });
    }
}

/// Without `bind`: all addresses, by one socket for each family.
fn sockets(id: ListenerId) -> Vec<SocketAddr> {
    let every = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    let ips = id.bind.map_or_else(|| every.to_vec(), |ip| vec![ip]);
    ips.into_iter().map(|ip| SocketAddr::new(ip, id.port)).collect()
}

fn open(
    namespace: &Namespace,
    inherited: &mut Inherited,
    own: &[IpAddr],
    local: SocketAddr,
) -> io::Result<TcpListener> {
    let ip = local.ip();
    // It could be bound all the same (IP_FREEBIND), and would wait for ever.
    if !ip.is_unspecified() && !ip.is_loopback() && !own.contains(&ip) {
        return Err(io::ErrorKind::AddrNotAvailable.into());
    }
    inherited.listener(namespace, local)
}

#[cfg(test)]
mod tests;
