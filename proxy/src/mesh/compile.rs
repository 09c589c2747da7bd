//! Objects to table.

use super::table::{Mesh, PodAddresses};
use crate::api::Objects;

/// Compiles every object in force into the table. Never fails: what is wrong is a diagnostic, and a rule that cannot
/// be honoured refuses its traffic.
#[must_use]
pub fn compile(_objects: &Objects, _addresses: &PodAddresses) -> Mesh {
    Mesh::default()
}
