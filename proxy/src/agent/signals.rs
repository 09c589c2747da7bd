//! What an operator tells the agent by signals.

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

pub enum Event {
    /// SIGTERM or SIGINT.
    Stop,
    /// SIGUSR1: log files were rotated.
    Reopen,
}

pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    reopen: Signal,
    /// How often it was told to stop.
    stops: u32,
}

impl Signals {
    pub fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            reopen: listen(SignalKind::user_defined1())?,
            stops: 0,
        })
    }

    pub async fn next(&mut self) -> Event {
        let event = tokio::select! {
            _ = self.terminate.recv() => Event::Stop,
            _ = self.interrupt.recv() => Event::Stop,
            _ = self.reopen.recv() => Event::Reopen,
        };
        self.stops += u32::from(matches!(event, Event::Stop));
        event
    }

    pub fn stops(&self) -> u32 {
        self.stops
    }

    /// Returns once it was told to stop so often.
    pub async fn stopped(&mut self, times: u32) {
        while self.stops < times {
            self.next().await;
        }
    }
}
