//! `cargo xtask bench`: the benchmark suite of `egret_tests::bench`, with all that it needs installed and built.

use std::{path::PathBuf, time::Instant};

use anyhow::{Context, Result};
use egret_tests::bench::{self, Options, instructions, plot, report, results::Results};

use crate::{
    root, setup,
    steps::{self, go_on},
};

#[derive(clap::Args)]
pub struct Arguments {
    /// One short turn for each row of the main workloads: less than 3 minutes
    #[arg(long)]
    quick: bool,
    /// Only these workloads, W1 for one
    #[arg(long, num_args = 1.., value_name = "NAME")]
    workload: Vec<String>,
    /// Only these peers, by the beginning of their names; `direct` for the floors
    #[arg(long, num_args = 1.., value_name = "NAME")]
    peer: Vec<String>,
    /// Turns of each row, of which the median counts [default: 3, and 1 with --quick]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    runs: Option<u32>,
    /// Only count the instructions of a request's pure parts, and compare them with what was kept
    #[arg(long, conflicts_with_all = ["quick", "workload", "peer", "runs"])]
    instructions: bool,
    /// Keep these counts for later runs to be compared with
    #[arg(long, requires = "instructions")]
    keep: bool,
}

pub fn run(arguments: Arguments) -> Result<()> {
    if arguments.instructions {
        return count(arguments.keep);
    }
    setup::need_root("benchmarking")?;
    let runs = arguments.runs.unwrap_or(if arguments.quick { 1 } else { 3 });
    let mut options = Options {
        quick: arguments.quick,
        workloads: arguments.workload,
        peers: arguments.peer,
        runs: runs as usize,
        egret: PathBuf::new(),
        envoy: None,
    };
    bench::check(&options)?;
    setup::for_building()?;
    options.envoy = setup::for_bench()?;
    options.egret = egret()?;
    let start = Instant::now();
    let outcome = bench::run(&options, &go_on, &|line| println!("{line}"));
    // What a turn left that was killed; each turn tidies up after itself.
    egret_tests::sweep();
    let mut results = outcome?;
    if !options.quick && options.workloads.is_empty() && options.peers.is_empty() {
        println!("instructions: a request's pure parts, counted by callgrind");
        match instructions::instructions() {
            Ok(counts) => results.instructions = counts.into_iter().map(|one| (one.part, one.instructions)).collect(),
            Err(error) => eprintln!("{error:#}"),
        }
    }
    let text = report::markdown(&results);
    println!("\n{text}");
    let file = keep(&results, &text)?;
    println!("Written to {}.json, .md and .svg ({:.0} s).", file.display(), start.elapsed().as_secs_f64());
    Ok(())
}

fn count(keep: bool) -> Result<()> {
    setup::for_building()?;
    setup::for_counting()?;
    let counts = instructions::instructions()?;
    println!("\n{}", instructions::Table(&counts));
    if keep {
        instructions::keep(&counts)?;
    }
    Ok(())
}

/// The binary that `EGRET_BIN` names, else a release build.
fn egret() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("EGRET_BIN") {
        return std::path::absolute(path).context("EGRET_BIN");
    }
    steps::cargo(&["build", "--release", "-p", "egret"])?;
    Ok(target().join("release/egret"))
}

fn keep(results: &Results, text: &str) -> Result<PathBuf> {
    let folder = target().join("bench");
    std::fs::create_dir_all(&folder)?;
    // Colons are a trouble in names of files.
    let file = folder.join(results.date.replace(':', ""));
    std::fs::write(file.with_extension("json"), serde_json::to_vec_pretty(results)?)?;
    std::fs::write(file.with_extension("md"), text)?;
    std::fs::write(file.with_extension("svg"), plot::svg(results))?;
    Ok(file)
}

fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}
