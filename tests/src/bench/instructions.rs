//! How many instructions the pure parts of a request's way take: counted by callgrind, so that neither the machine nor
//! its other work changes them, and compared with the counts that were kept.
//!
//! They hold for one compiler and C library; another's are near, not equal. Hash tables with random seeds make a count
//! differ by some percent from run to run.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

/// How often each part is run: enough for its count to be a mean.
const TURNS: u32 = 500;
/// A part that takes so much more than what was kept is shown as grown.
const NOISE: f64 = 1.05;

/// One part's instructions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    pub part: String,
    /// For one turn.
    pub instructions: u64,
    /// What was kept; None: the part is new.
    pub kept: Option<u64>,
}

impl Count {
    /// To what was kept.
    #[expect(clippy::cast_precision_loss, reason = "a ratio for people to read")]
    pub fn ratio(&self) -> Option<f64> {
        self.kept.map(|kept| self.instructions as f64 / kept.max(1) as f64)
    }

    pub fn has_grown(&self) -> bool {
        self.ratio().is_some_and(|ratio| ratio > NOISE)
    }
}

/// Builds the parts, counts them, and sets each beside what was kept of it.
///
/// # Errors
/// They cannot be built, or valgrind is missing.
pub fn instructions() -> Result<Vec<Count>> {
    let kept = kept()?;
    let counts = count(&build()?)?;
    let beside = |(part, instructions)| Count { kept: kept.get(&part).copied(), part, instructions };
    Ok(counts.into_iter().map(beside).collect())
}

/// Keeps these counts for later runs to be compared with.
///
/// # Errors
/// The file cannot be written.
pub fn keep(counts: &[Count]) -> Result<()> {
    let parts: serde_json::Map<String, serde_json::Value> =
        counts.iter().map(|count| (count.part.clone(), count.instructions.into())).collect();
    let text = serde_json::to_string_pretty(&parts)? + "\n";
    std::fs::write(file(), text).with_context(|| file().display().to_string())
}

/// The counts as a table for people.
pub struct Table<'a>(pub &'a [Count]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<32} {:>12} {:>12} {:>7}", "PART", "INSTRUCTIONS", "KEPT", "RATIO")?;
        for count in self.0 {
            let kept = count.kept.map_or_else(|| "-".to_owned(), |kept| kept.to_string());
            let ratio = count.ratio().map_or_else(|| "new".to_owned(), |ratio| format!("{ratio:.2}"));
            let grown = if count.has_grown() { "  more than 5 % more" } else { "" };
            writeln!(f, "{:<32} {:>12} {kept:>12} {ratio:>7}{grown}", count.part, count.instructions)?;
        }
        Ok(())
    }
}

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/instructions.json")
}

fn kept() -> Result<BTreeMap<String, u64>> {
    match std::fs::read(file()) {
        Ok(text) => serde_json::from_slice(&text).with_context(|| file().display().to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(error).with_context(|| file().display().to_string()),
    }
}

/// The program that runs the parts. Optimised without LTO: what counts is the difference, and it is built sooner.
fn build() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(&root).args(["build", "--profile", "perf", "--package", "egret", "--example", "instructions"]);
    ensure!(command.status()?.success(), "{command:?} failed");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    Ok(target.join("perf/examples/instructions"))
}

/// Each part with the instructions of one turn, in the program's order.
fn count(program: &Path) -> Result<Vec<(String, u64)>> {
    let folder = tempfile::tempdir()?;
    let out = folder.path().join("count");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--toggle-collect=instructions::measured", "--dump-after=instructions::measured"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .arg(TURNS.to_string())
        .output()
        .context("valgrind (`apt-get install valgrind`)")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} under valgrind: {said}", program.display());
    let names = String::from_utf8(output.stdout)?;
    let part = |(at, name): (usize, &str)| {
        let dump = out.with_extension((at + 1).to_string());
        let text = std::fs::read_to_string(&dump).with_context(|| format!("what callgrind counted of {name}"))?;
        let sum = total(&text).with_context(|| format!("no sum in what callgrind counted of {name}"))?;
        Ok((name.to_owned(), sum / u64::from(TURNS)))
    };
    names.lines().enumerate().map(part).collect()
}

/// The sum of a dump of callgrind's.
fn total(dump: &str) -> Option<u64> {
    dump.lines().find_map(|line| line.strip_prefix("totals:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_takes_more_is_shown_as_grown() {
        let count = |instructions, kept| Count { part: "a".into(), instructions, kept };
        assert!(count(106, Some(100)).has_grown());
        assert!(!count(104, Some(100)).has_grown() && !count(50, Some(100)).has_grown() && !count(9, None).has_grown());
        let table = Table(&[count(106, Some(100)), count(9, None)]).to_string();
        let rows: Vec<Vec<_>> = table.lines().skip(1).map(|row| row.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["a", "106", "100", "1.06", "more", "than", "5", "%", "more"]);
        assert_eq!(rows[1], ["a", "9", "-", "new"]);
    }

    #[test]
    fn the_sum_is_read_from_a_dump() {
        assert_eq!(total("part: 3\nsummary: 12\n\nfn=(1) x\n2 12\ntotals: 12\n"), Some(12));
        assert_eq!(total("part: 3\n"), None);
    }
}
