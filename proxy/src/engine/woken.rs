//! A future that is polled only when something has woken it.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::task::AtomicWaker;

/// In a `select!` every branch is polled whatever woke the task. Where that takes a lock which all connections of a pod share,
/// each request of each of them would pay for an event that comes once. This costs a look at a flag of its own.
pub async fn when_woken<F: Future>(inner: F) -> F::Output {
    let mut inner = pin!(inner);
    let bell = Arc::new(Bell { rung: AtomicBool::new(true), task: AtomicWaker::new() });
    let waker = Waker::from(bell.clone());
    let mut task: Option<Waker> = None;
    poll_fn(|cx| {
        if task.as_ref().is_none_or(|task| !task.will_wake(cx.waker())) {
            bell.task.register(cx.waker());
            task = Some(cx.waker().clone());
        }
        if !bell.rung.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        // Before it is polled: what rings meanwhile is not missed.
        bell.rung.store(false, Ordering::Release);
        inner.as_mut().poll(&mut Context::from_waker(&waker))
    })
    .await
}

struct Bell {
    rung: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        self.task.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, time::Duration};

    use tokio::{
        sync::Notify,
        time::{sleep, timeout},
    };

    use super::*;

    #[tokio::test]
    async fn it_is_polled_once_for_each_time_it_was_woken() {
        let (polls, event) = (Cell::new(0), Notify::new());
        let counted = async {
            let mut notified = pin!(event.notified());
            poll_fn(|cx| {
                polls.set(polls.get() + 1);
                notified.as_mut().poll(cx)
            })
            .await;
        };
        let others = async {
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            event.notify_one();
            std::future::pending::<()>().await
        };
        let both = async {
            tokio::select! {
                biased;
                () = when_woken(counted) => {}
                () = others => {}
            }
        };
        timeout(Duration::from_secs(10), both).await.unwrap();
        assert_eq!(polls.get(), 2);
    }

    /// From another thread, at any moment.
    #[tokio::test]
    async fn no_event_is_missed() {
        for round in 0..200 {
            let event = Arc::new(Notify::new());
            let other = event.clone();
            let thread = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_micros(round % 7 * 20));
                other.notify_one();
            });
            let busy = async {
                loop {
                    sleep(Duration::from_secs(60)).await;
                }
            };
            let both = async {
                tokio::select! {
                    biased;
                    () = when_woken(event.notified()) => {}
                    () = busy => {}
                }
            };
            timeout(Duration::from_secs(10), both).await.unwrap();
            thread.join().unwrap();
        }
    }

    #[tokio::test]
    async fn what_is_ready_at_once_is_had_at_once() {
        assert_eq!(when_woken(async { 7 }).await, 7);
    }
}
