//! The access log: lines are made on the thread that ends a request, and written by a thread of their own.

pub mod format;
mod json;
mod output;
mod plain;
mod text;
mod values;

#[cfg(test)]
pub(crate) mod tests;

use std::{
    path::Path,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

pub use format::FormatError;
use http::HeaderName;
pub use output::Output;
pub use text::escape;

use super::record::Record;
use crate::mesh::Settings;

/// A compiled format.
#[derive(Clone, Debug)]
pub enum Format {
    Text(format::Template),
    Json(json::Node),
}

impl Format {
    /// The format that the mesh settings ask for: `accessLogFormat` in `accessLogEncoding`, or the encoding's default.
    pub fn compile(settings: &Settings) -> Result<Self, FormatError> {
        let custom = settings.access_log_format.as_deref().filter(|format| !format.trim().is_empty());
        Ok(match (settings.access_log_json, custom) {
            (true, Some(format)) => Self::Json(json::parse(format)?),
            (true, None) => Self::Json(json::default()?),
            // Every line gets its end, whether the format has one (as Istio's examples do) or not.
            (false, Some(format)) => {
                Self::Text(format::parse(format.trim_end_matches(['\n', '\r']), &format::Place::default())?)
            }
            (false, None) => Self::Text(format::parse(text::DEFAULT, &format::Place::default())?),
        })
    }

    /// Appends the line of `record`, with its end, to `line`.
    pub fn line(&self, record: &Record, line: &mut Vec<u8>) {
        match self {
            Self::Text(template) => text::write(template, record, line),
            Self::Json(node) => json::write(node, record, line),
        }
        line.push(b'\n');
    }

    /// The headers that the lines want values of.
    pub fn headers(&self) -> Headers {
        let mut headers = Headers::default();
        match self {
            Self::Text(pieces) => headers.add_template(pieces),
            Self::Json(value) => headers.add_node(value),
        }
        headers
    }
}

/// Names of headers that a format shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    pub request: Vec<HeaderName>,
    pub response: Vec<HeaderName>,
}

impl Headers {
    fn add_node(&mut self, value: &json::Node) {
        match value {
            json::Node::Object(members) => members.iter().for_each(|(_, member)| self.add_node(member)),
            json::Node::Array(items) => items.iter().for_each(|item| self.add_node(item)),
            json::Node::Operator(found) => self.add(found),
            json::Node::Template(pieces) => self.add_template(pieces),
            json::Node::Constant(_) => {}
        }
    }

    fn add_template(&mut self, pieces: &format::Template) {
        for piece in pieces {
            if let format::Piece::Operator(found) = piece {
                self.add(found);
            }
        }
    }

    fn add(&mut self, operator: &format::Operator) {
        match &operator.field {
            format::Field::Request(first, second) => {
                for header in std::iter::once(first).chain(second) {
                    if let format::Header::Name(name) = header {
                        add(&mut self.request, name);
                    }
                }
            }
            format::Field::Response(first, second) => {
                std::iter::once(first).chain(second).for_each(|name| add(&mut self.response, name));
            }
            _ => {}
        }
    }
}

fn add(names: &mut Vec<HeaderName>, name: &HeaderName) {
    if !names.contains(name) {
        names.push(name.clone());
    }
}

/// What `egret check` says of settings that compile: operators that will always print as missing.
pub fn warnings(settings: &Settings) -> Vec<String> {
    let format = settings.access_log_format.as_deref().unwrap_or_default();
    format::absent(format)
        .into_iter()
        .map(|name| format!("operator %{name}% is known and never has a value in egret: it prints as missing"))
        .collect()
}

/// A format and the place its lines go to.
pub struct AccessLog {
    format: Format,
    headers: Headers,
    output: Arc<Output>,
}

impl AccessLog {
    /// Starts the writing thread. `dropped` counts lines that were not written.
    pub fn start(format: Format, file: &Path, dropped: Arc<AtomicU64>) -> std::io::Result<Self> {
        Ok(Self { headers: format.headers(), format, output: Arc::new(Output::start(file, dropped)?) })
    }

    /// The same output with another format.
    #[must_use]
    pub fn with_format(&self, format: Format) -> Self {
        Self { headers: format.headers(), format, output: self.output.clone() }
    }

    pub fn format(&self) -> &Format {
        &self.format
    }

    /// The headers that its lines show.
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    pub fn output(&self) -> &Output {
        &self.output
    }

    /// Makes the line of `record` and hands it to the writing thread. Never waits: where that thread lags too far
    /// behind, the line is dropped and counted.
    pub fn write(&self, record: &Record) {
        thread_local! {
            static LINE: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
        }
        LINE.with_borrow_mut(|line| {
            line.clear();
            self.format.line(record, line);
            self.output.push(line);
            // One monstrous line must not stay with its thread for ever.
            line.shrink_to(crate::limits::ACCESS_LOG_LINE_KEPT);
        });
    }

    /// Waits until every line handed over so far is written, `limit` at most; answers whether that came about.
    pub fn flush(&self, limit: Duration) -> bool {
        self.output.flush(limit)
    }
}
