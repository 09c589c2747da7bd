//! Exchanges run in futures that are made once and used again and again: one is some KiB large, and to allocate and fill
//! that much would cost each request more than parsing its head.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
};

use http::Request;

use super::{super::super::payload::Payload, Server};
use crate::limits;

/// One request of one connection under way. Dropping it gives the request up.
pub struct Runner(Pin<Box<dyn Future<Output = ()> + Send>>);

/// What passes between a connection and its runner, within one call of `poll`.
#[expect(clippy::large_enum_variant, reason = "there is one for each thread; a box would cost each request")]
enum Hand {
    Begin(Box<Server>, Request<Payload>),
    /// False: the connection is to be closed.
    Ended(Box<Server>, bool),
}

thread_local! {
    static HAND: Cell<Option<Hand>> = const { Cell::new(None) };
    /// Those that have nothing to do.
    static FREE: RefCell<Vec<Runner>> = const { RefCell::new(Vec::new()) };
}

impl Runner {
    /// Begins the exchange and goes on with it as far as it can go at once.
    pub fn begin(server: Box<Server>, request: Request<Payload>) -> Self {
        let runner = FREE.with_borrow_mut(Vec::pop).unwrap_or_else(|| Self(Box::pin(run())));
        HAND.set(Some(Hand::Begin(server, request)));
        runner
    }

    /// Ready with what it was given, once the request is answered. To be called at once after [`Runner::begin`].
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<(Box<Server>, bool)> {
        // It has no end: that it has nothing more to do shows in its hand.
        let _ = self.0.as_mut().poll(cx);
        match HAND.take() {
            Some(Hand::Ended(server, more)) => Poll::Ready((server, more)),
            Some(Hand::Begin(..)) | None => Poll::Pending,
        }
    }

    /// It has ended, and may run the next one.
    pub fn release(self) {
        FREE.with_borrow_mut(|free| {
            if free.len() < limits::H1_RUNNERS {
                free.push(self);
            }
        });
    }
}

async fn run() {
    loop {
        if let Some(Hand::Begin(mut server, request)) = HAND.take() {
            let more = server.exchange(request).await;
            HAND.set(Some(Hand::Ended(server, more)));
        }
        suspended().await;
    }
}

/// Ready when it is polled again.
async fn suspended() {
    let mut again = false;
    poll_fn(|_| if std::mem::replace(&mut again, true) { Poll::Ready(()) } else { Poll::Pending }).await;
}
