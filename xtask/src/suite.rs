//! `cargo xtask test`: lints, unit tests, end-to-end tests, with the time that each took.

use std::time::Instant;

use anyhow::{Result, bail};

use crate::{
    lint::LINTS,
    root, setup,
    steps::{cargo, cargo_with, go_on},
};

pub fn run(filter: Option<&str>) -> Result<()> {
    setup::need_root("testing")?;
    setup::for_building()?;
    setup::for_testing()?;
    let mut report = Report::default();
    if filter.is_none() {
        setup::for_linting()?;
        for (name, args) in LINTS {
            report.stage(name, || cargo(args))?;
        }
    }
    if !report.stage("build", || cargo(&["build", "-p", "egret"]))? {
        return report.close();
    }
    if filter.is_none() {
        report.stage("unit tests", || cargo(&["test", "--workspace", "--exclude", "egret-tests"]))?;
    }
    let binary = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), Into::into);
    let binary = binary.join("debug/egret");
    let mut args = vec!["test", "-p", "egret-tests", "--no-fail-fast"];
    args.extend(filter);
    let end_to_end = report.stage("end-to-end tests", || cargo_with(&args, &[("EGRET_BIN", binary.as_os_str())]));
    // Tests that were killed could not tidy up after themselves.
    egret_tests::sweep();
    end_to_end?;
    report.close()
}

/// What has run so far, and how it went.
#[derive(Default)]
struct Report {
    lines: Vec<String>,
    failed: Vec<String>,
}

impl Report {
    /// Runs one stage; true where it went well. An error only where somebody wants to stop.
    fn stage(&mut self, name: &str, run: impl FnOnce() -> Result<()>) -> Result<bool> {
        println!("\n=== {name} ===");
        let start = Instant::now();
        let outcome = run();
        go_on()?;
        let mark = if outcome.is_ok() { "ok" } else { "FAILED" };
        self.lines.push(format!("  {name:<18} {mark:<7} {:6.1} s", start.elapsed().as_secs_f64()));
        if let Err(error) = &outcome {
            eprintln!("{error:#}");
            self.failed.push(name.to_owned());
        }
        Ok(outcome.is_ok())
    }

    fn close(self) -> Result<()> {
        println!("\n{}", self.lines.join("\n"));
        if !self.failed.is_empty() {
            bail!("failed: {}", self.failed.join(", "));
        }
        println!("\nAll is well.");
        Ok(())
    }
}
