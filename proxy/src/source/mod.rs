//! Where objects come from: files and folders, read, checked, kept and watched.
//!
//! [`files`] tells which files changed, [`documents`] reads their text (with [`yaml`], [`decode`] and one reader for each
//! of [`kinds`]), and [`store`] keeps the last good version of every object.

pub mod decode;
pub mod documents;
pub mod files;
pub mod json;
pub mod kinds;
pub mod kubernetes;
pub mod scan;
pub mod store;
pub mod values;
pub mod watch;
pub mod yaml;

use std::path::PathBuf;

pub use files::{Changes, Files, FilesError};
pub use store::{Batch, Changed, Content, FileChange, Store};

use crate::api::{Diagnostic, Objects, Severity};

/// Reads files and folders once, without watching.
///
/// # Errors
/// A path that is missing or cannot be looked at.
pub fn load(paths: &[PathBuf]) -> Result<(Objects, Batch), FilesError> {
    let mut store = Store::default();
    let batch = store.apply(scan::load(paths)?);
    Ok((store.into_objects(), batch))
}

/// What `egret check` has to say about files and folders by themselves; a missing path is an error like the others.
#[must_use]
pub fn check(paths: &[PathBuf]) -> Vec<Diagnostic> {
    match load(paths) {
        Ok((_, batch)) => batch.diagnostics,
        Err(error) => {
            let (path, message) = match error {
                FilesError::Missing { path } => (path, "no such file or folder".to_owned()),
                FilesError::Unreadable { path, source } => (path, source.to_string()),
            };
            let (severity, file, field) = (Severity::Error, path.into(), String::new());
            vec![Diagnostic { severity, object: None, file, line: 1, column: 1, field, message }]
        }
    }
}
