//! The threads of the data path: one for each CPU, each with a runtime of its own.
//!
//! A connection stays on its worker from its first byte to its last, and so does all that it starts: a task that wakes
//! another, or a socket that becomes ready, needs no other thread to be woken. What is CPU-heavy and not traffic (a reload)
//! runs elsewhere, and must never be spawned here.

use std::{
    cell::Cell,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
};

use tokio::{
    runtime::{Builder, Handle},
    task::JoinHandle,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::limits;

/// The workers of one agent. None of them, as in tests: everything runs on the runtime that it is called on.
#[derive(Clone, Default)]
pub struct Workers {
    all: Arc<[Worker]>,
    /// Whose turn it is to get a listener.
    next: Arc<AtomicUsize>,
}

struct Worker {
    runtime: Handle,
    /// Connections that are served here now.
    connections: AtomicUsize,
}

thread_local! {
    static CURRENT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Which worker the calling thread is, counted from 0; None outside the data path.
pub fn current() -> Option<usize> {
    CURRENT.get()
}

impl Workers {
    /// As many workers as there are CPUs for this process: `taskset` and the quota of its cgroup are heeded. They end, and
    /// with them what still runs on them, when the guard is dropped; nobody waits for that.
    ///
    /// # Errors
    /// A thread or its runtime cannot be had.
    pub fn start() -> io::Result<(Self, DropGuard)> {
        Self::start_some(thread::available_parallelism()?.get().min(limits::WORKERS_MOST))
    }

    fn start_some(count: usize) -> io::Result<(Self, DropGuard)> {
        let ending = CancellationToken::new();
        let guard = ending.clone().drop_guard();
        let all: Vec<Worker> =
            (0..count).map(|index| Worker::start(index, ending.clone())).collect::<io::Result<_>>()?;
        Ok((Self { all: all.into(), next: Arc::default() }, guard))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// Runs on one of them, whose turn it is; without workers, on the current runtime.
    pub fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        match self.all.len() {
            0 => tokio::spawn(task),
            count => self.all[self.next.fetch_add(1, Relaxed) % count].runtime.spawn(task),
        }
    }

    /// Serves a connection that this worker has accepted: here, unless another serves fewer.
    pub fn spawn_connection(&self, serve: impl Future<Output = ()> + Send + 'static) {
        let here = current().filter(|index| *index < self.all.len());
        let Some(index) = here.map(|here| self.least_busy(here)) else {
            tokio::spawn(serve);
            return;
        };
        let counted = Counted::on(self.all.clone(), index);
        let serve = async move {
            let _counted = counted;
            serve.await;
        };
        if here == Some(index) {
            tokio::spawn(serve);
        } else {
            self.all[index].runtime.spawn(serve);
        }
    }

    /// The one with the fewest connections; `here` where none has fewer, for handing over costs a wake-up.
    fn least_busy(&self, here: usize) -> usize {
        let load = |index: usize| self.all[index].connections.load(Relaxed);
        let least = (0..self.all.len()).min_by_key(|index| load(*index)).unwrap_or(here);
        if load(least) < load(here) { least } else { here }
    }
}

impl Worker {
    fn start(index: usize, ending: CancellationToken) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        thread::Builder::new().name(format!("egret-w{index}")).spawn(move || {
            CURRENT.set(Some(index));
            runtime.block_on(ending.cancelled());
        })?;
        Ok(Self { runtime: handle, connections: AtomicUsize::new(0) })
    }
}

/// A connection counts as its worker's until dropped.
struct Counted {
    workers: Arc<[Worker]>,
    index: usize,
}

impl Counted {
    fn on(workers: Arc<[Worker]>, index: usize) -> Self {
        workers[index].connections.fetch_add(1, Relaxed);
        Self { workers, index }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.workers[self.index].connections.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use super::*;

    const WAIT: Duration = Duration::from_secs(10);

    /// Accepts so many connections on worker 0; answers which worker serves each.
    fn serve(workers: &Workers, connections: usize) -> Vec<usize> {
        let (told, which) = mpsc::channel();
        let all = workers.clone();
        workers.all[0].runtime.spawn(async move {
            for _ in 0..connections {
                let told = told.clone();
                all.spawn_connection(async move {
                    let here = current();
                    // And what it starts, in its turn.
                    let task = tokio::spawn(async move { assert_eq!(current(), here) });
                    told.send((here, task.await.is_ok())).unwrap();
                    std::future::pending().await
                });
            }
        });
        let served = (0..connections).map(|_| which.recv_timeout(WAIT).unwrap());
        served.map(|(worker, stayed)| worker.filter(|_| stayed).unwrap()).collect()
    }

    #[test]
    fn connections_are_spread_evenly_and_stay() {
        let (workers, _guard) = Workers::start_some(3).unwrap();
        let served = serve(&workers, 9);
        for index in 0..3 {
            assert_eq!(served.iter().filter(|worker| **worker == index).count(), 3, "{served:?}");
        }
    }

    #[test]
    fn a_first_connection_stays_where_it_was_accepted_and_one_that_ended_no_longer_counts() {
        let (workers, _guard) = Workers::start_some(2).unwrap();
        let (told, which) = mpsc::channel();
        let all = workers.clone();
        workers.all[0].runtime.spawn(async move {
            for _ in 0..3 {
                let told = told.clone();
                let (ended, end) = tokio::sync::oneshot::channel::<()>();
                all.spawn_connection(async move {
                    told.send(current()).unwrap();
                    drop(ended);
                });
                let _ = end.await;
                // The count goes down right after.
                tokio::task::yield_now().await;
            }
        });
        for _ in 0..3 {
            assert_eq!(which.recv_timeout(WAIT).unwrap(), Some(0));
        }
    }

    #[test]
    fn a_panic_ends_one_connection_and_not_its_worker() {
        let (workers, _guard) = Workers::start_some(1).unwrap();
        let (told, which) = mpsc::channel();
        let all = workers.clone();
        workers.spawn(async move {
            all.spawn_connection(async { panic!("on purpose") });
            all.spawn_connection(async move { told.send(current()).unwrap() });
        });
        assert_eq!(which.recv_timeout(WAIT).unwrap(), Some(0));
        let idle = || workers.all[0].connections.load(Relaxed) == 0;
        let begun = std::time::Instant::now();
        while !idle() {
            assert!(begun.elapsed() < WAIT, "what panicked still counts");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn listeners_are_spread() {
        let (workers, _guard) = Workers::start_some(2).unwrap();
        let places: Vec<_> = (0..4)
            .map(|_| {
                let (told, which) = mpsc::channel();
                workers.spawn(async move { told.send(current()).unwrap() });
                which.recv_timeout(WAIT).unwrap()
            })
            .collect();
        assert_eq!(places, [Some(0), Some(1), Some(0), Some(1)]);
        assert_eq!(current(), None);
    }

    #[tokio::test]
    async fn without_workers_all_runs_here() {
        let workers = Workers::default();
        assert_eq!(workers.spawn(async { current() }).await.unwrap(), None);
        let (told, which) = tokio::sync::oneshot::channel();
        workers.spawn_connection(async move { told.send(current()).unwrap() });
        assert_eq!(which.await.unwrap(), None);
    }

    #[test]
    fn they_end_with_what_runs_on_them() {
        let (workers, guard) = Workers::start_some(2).unwrap();
        let (told, ended) = mpsc::channel::<()>();
        workers.spawn(async move {
            let _told = told;
            std::future::pending::<()>().await
        });
        drop(guard);
        assert_eq!(ended.recv_timeout(WAIT), Err(mpsc::RecvTimeoutError::Disconnected));
    }
}
