//! Access log, metrics and the agent's own log.

pub mod record;
