//! Memory that processes hold at one moment.

use std::fs;

use anyhow::{Context, Result};

use super::cpu::family;

/// Resident memory of a process and all that descend from it, in KiB. What they share counts once: the whole of the largest,
/// and what the others have for themselves. What the kernel holds for them (sockets, maps) is nobody's.
pub fn resident(root: u32) -> Result<f64> {
    let each: Vec<Sizes> = family(root).into_iter().map(sizes).collect::<Result<_>>()?;
    let largest = each.iter().max_by_key(|sizes| sizes.resident).context("no process")?;
    let private: u64 = each.iter().map(|sizes| sizes.private).sum();
    Ok((largest.resident + private - largest.private) as f64)
}

/// KiB.
#[derive(Debug, PartialEq)]
struct Sizes {
    resident: u64,
    private: u64,
}

fn sizes(pid: u32) -> Result<Sizes> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    parse(&text).with_context(|| format!("unreadable: {path}"))
}

fn parse(text: &str) -> Option<Sizes> {
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    Some(Sizes { resident: value("Rss:")?, private: value("Private_Clean:")? + value("Private_Dirty:")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_rollup() {
        let text = "5500-7ffc ---p 00000000 00:00 0 [rollup]\nRss:    16000 kB\nPss:     9000 kB\nShared_Clean: 1 kB\n\
                    Private_Clean:  4000 kB\nPrivate_Dirty:  3000 kB\n";
        assert_eq!(parse(text), Some(Sizes { resident: 16000, private: 7000 }));
        assert_eq!(parse("Rss: 1 kB\n"), None);
    }

    #[test]
    fn memory_that_is_used_shows() {
        let before = resident(std::process::id()).unwrap();
        let block = std::hint::black_box(vec![1_u8; 32 << 20]);
        let grown = resident(std::process::id()).unwrap() - before;
        // Other tests of this process come and go meanwhile.
        assert!(grown > 16.0 * 1024.0, "{grown} KiB for {} bytes", block.len());
    }
}
