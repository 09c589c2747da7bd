//! The agent's own log: one line a message on standard error, its level changeable at run time.

use std::{
    io::Write as _,
    sync::atomic::{AtomicBool, Ordering},
};

use log::{LevelFilter, Log, Metadata, Record};

use super::access_log::escape;

struct Logger;

static LOGGER: Logger = Logger;
static STARTED: AtomicBool = AtomicBool::new(false);

/// Starts the log at `level`. A second call only changes the level.
pub fn start(level: LevelFilter) {
    if !STARTED.swap(true, Ordering::AcqRel) {
        // Fails only where a test has installed another logger: then that one stays.
        let _ = log::set_logger(&LOGGER);
    }
    log::set_max_level(level);
}

/// Changes the level: `off`, `error`, `warn` (`warning`), `info`, `debug` or `trace`.
pub fn set_level(name: &str) -> Result<LevelFilter, UnknownLevel> {
    let level = parse_level(name)?;
    log::set_max_level(level);
    Ok(level)
}

/// Reads the name of a level.
pub fn parse_level(name: &str) -> Result<LevelFilter, UnknownLevel> {
    let name = name.trim().to_ascii_lowercase();
    match name.as_str() {
        "warning" => Ok(LevelFilter::Warn),
        other => other.parse().map_err(|_| UnknownLevel(name)),
    }
}

/// No such level.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no log level: use off, error, warn, info, debug or trace")]
pub struct UnknownLevel(String);

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let max = log::max_level();
        // The libraries' own messages are for who debugs egret itself.
        let ours = metadata.target().starts_with("egret");
        metadata.level() <= if ours || max == LevelFilter::Trace { max } else { max.min(LevelFilter::Warn) }
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = line(record, jiff::Timestamp::now());
            // Nobody is left to tell where standard error is closed.
            let _ = std::io::stderr().lock().write_all(&line);
        }
    }

    fn flush(&self) {}
}

/// `2026-01-02T03:04:05.678901Z  info  message`; the module follows the level for debug and trace.
fn line(record: &Record<'_>, now: jiff::Timestamp) -> Vec<u8> {
    let level = match record.level() {
        log::Level::Error => "error",
        log::Level::Warn => "warn ",
        log::Level::Info => "info ",
        log::Level::Debug => "debug",
        log::Level::Trace => "trace",
    };
    let mut line = format!("{now:.6}  {level}  ").into_bytes();
    if record.level() >= log::Level::Debug {
        line.extend_from_slice(record.target().as_bytes());
        line.extend_from_slice(b": ");
    }
    // A message may repeat what a peer sent: it stays one line, and speaks to no terminal. Its quotes stay readable.
    let message = record.args().to_string();
    for (index, part) in message.split('"').enumerate() {
        if index > 0 {
            line.push(b'"');
        }
        escape(part.as_bytes(), &mut line);
    }
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_whatever_it_holds() {
        let args = format_args!("peer said \"a\nb\u{1b}[31m\"");
        let record = Record::builder().level(log::Level::Info).target("egret::tls").args(args).build();
        let now = "2026-01-02T03:04:05.678901Z".parse().unwrap();
        let line = String::from_utf8(line(&record, now)).unwrap();
        assert_eq!(line, "2026-01-02T03:04:05.678901Z  info   peer said \"a\\x0ab\\x1b[31m\"\n");
    }

    #[test]
    fn levels_are_read_as_people_write_them() {
        assert_eq!(parse_level("Warning").unwrap(), LevelFilter::Warn);
        assert_eq!(parse_level(" debug").unwrap(), LevelFilter::Debug);
        let error = parse_level("loud").unwrap_err().to_string();
        assert_eq!(error, "`loud` is no log level: use off, error, warn, info, debug or trace");
    }
}
