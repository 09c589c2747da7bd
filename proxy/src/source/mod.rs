//! Where objects come from: files and folders, read, checked, kept and watched.
//!
//! [`files`] tells which files changed, [`documents`] reads their text (with [`yaml`], [`decode`] and one reader for each
//! of [`kinds`]), and [`store`] keeps the last good version of every object.

pub mod decode;
pub mod documents;
pub mod kinds;
pub mod store;
pub mod values;
pub mod yaml;
