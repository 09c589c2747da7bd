//! Which VirtualServices a client hears of.

use std::collections::{BTreeMap, BTreeSet};

/// VirtualServices of the mesh, by their index, in the order in which they count.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Heard {
    pub all: Vec<usize>,
    /// Under a Sidecar: which of them count on a port. None: all on every port.
    by_port: Option<ByPort>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ByPort {
    /// Ports with listeners of their own.
    ports: BTreeMap<u16, BTreeSet<usize>>,
    others: BTreeSet<usize>,
}

impl Heard {
    pub fn everything(all: Vec<usize>) -> Self {
        Self { all, by_port: None }
    }

    pub fn narrowed(all: Vec<usize>, ports: BTreeMap<u16, BTreeSet<usize>>, others: BTreeSet<usize>) -> Self {
        Self { all, by_port: Some(ByPort { ports, others }) }
    }

    pub fn counts(&self, at: usize, port: u16) -> bool {
        let counting = self.by_port.as_ref().map(|by| by.ports.get(&port).unwrap_or(&by.others));
        counting.is_none_or(|counting| counting.contains(&at))
    }
}
