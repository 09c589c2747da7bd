//! Whether an agent is the one of its state folder, or becomes it when the one before hands over.

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use tokio::time::{Instant, sleep};

use super::{
    Options,
    handover::{Ending, Inherited, Listeners, Predecessor},
    state_dir::StateDir,
};
use crate::limits;

/// How often it looks whether the place is free.
const LOOK: Duration = Duration::from_millis(50);

pub enum Place {
    /// The folder is locked by this agent.
    Own(StateDir),
    /// Another agent serves there.
    After(Predecessor, PathBuf),
}

impl Place {
    /// Waits for an agent that runs already only with `take_over`, and then [`limits::HANDOVER_LOCK`] at most.
    pub async fn find(options: &Options) -> anyhow::Result<Self> {
        let folder = &options.state_dir;
        if !options.take_over {
            return Ok(Self::Own(StateDir::lock(folder)?));
        }
        let deadline = Instant::now() + limits::HANDOVER_LOCK;
        let mut told = false;
        loop {
            if let Some(lock) = StateDir::try_lock(folder)? {
                return Ok(Self::Own(lock));
            }
            if let Some(predecessor) = Predecessor::find(folder).await {
                log::info!("taking the place of the agent that runs on {}", folder.display());
                return Ok(Self::After(predecessor, folder.clone()));
            }
            if Instant::now() > deadline {
                return Ok(Self::Own(StateDir::lock(folder)?));
            }
            if !told {
                log::info!("waiting for the agent that runs on {} to end", folder.display());
                told = true;
            }
            sleep(LOOK).await;
        }
    }

    /// Makes it this agent's own, and answers what the agent before had. Where that one ended before its time there is nothing,
    /// as after any end.
    pub async fn take(self) -> anyhow::Result<(StateDir, Option<(Listeners, Ending)>)> {
        let (predecessor, folder) = match self {
            Self::Own(lock) => return Ok((lock, None)),
            Self::After(predecessor, folder) => (predecessor, folder),
        };
        let error = match predecessor.take_over().await {
            Ok(Inherited { listeners, lock, predecessor }) => return Ok((lock, Some((listeners, predecessor)))),
            Err(error) => error,
        };
        log::warn!("{error}: taking its place without its sockets");
        let deadline = Instant::now() + limits::HANDOVER_TIME;
        loop {
            match StateDir::try_lock(&folder)? {
                Some(lock) => return Ok((lock, None)),
                None if Instant::now() > deadline => return Err(error).context("it still runs"),
                None => sleep(LOOK).await,
            }
        }
    }
}
