//! What ends a connection between two requests: a drain, and time. Both are set up once and woken by; a request costs no more
//! than a look at a flag and at the clock.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::time::{Instant, Sleep};
use tokio_util::sync::WaitForCancellationFuture;

use super::super::super::Connection;
use crate::limits;

pub struct Quiet<'e, 'p> {
    of: &'e Connection,
    drain: Pin<&'p mut WaitForCancellationFuture<'e>>,
    /// The drain will wake the task.
    watched: bool,
    timer: Pin<&'p mut Sleep>,
    /// The timer will wake the task.
    armed: bool,
    /// The last request ended then.
    since: Instant,
    /// The head that is not whole yet began then.
    head: Option<Instant>,
}

impl<'e, 'p> Quiet<'e, 'p> {
    pub fn new(
        of: &'e Connection,
        drain: Pin<&'p mut WaitForCancellationFuture<'e>>,
        timer: Pin<&'p mut Sleep>,
    ) -> Self {
        let (since, head) = (Instant::now(), None);
        Self { of, drain, watched: false, timer, armed: false, since, head }
    }

    /// A request has ended: the connection idles from now on.
    pub fn begin(&mut self) {
        (self.since, self.head) = (Instant::now(), None);
    }

    /// Ready once the idle connection is to end.
    pub fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.head = None;
        if self.of.ending() {
            return Poll::Ready(());
        }
        if !self.watched {
            self.watched = true;
            if self.drain.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
        }
        self.poll_timer(cx, self.since + limits::IDLE_TIMEOUT)
    }

    /// Ready once a head has taken too long.
    pub fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let begun = *self.head.get_or_insert_with(Instant::now);
        self.poll_timer(cx, begun + limits::HEAD_TIME)
    }

    /// A timer that goes off too early costs less than one that is set anew for each request.
    fn poll_timer(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        loop {
            if self.armed && !self.timer.is_elapsed() && self.timer.deadline() <= deadline {
                return Poll::Pending;
            }
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            self.armed = true;
            self.timer.as_mut().reset(deadline);
            ready!(self.timer.as_mut().poll(cx));
        }
    }
}
