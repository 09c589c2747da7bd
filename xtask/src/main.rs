//! `cargo xtask …`: everything that a developer or a CI does to this project, each with one command.

mod bench;
mod demo;
mod image;
mod lint;
mod setup;
mod show;
mod steps;
mod suite;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Set up, build, show and test egret.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what building and testing need and this machine lacks
    Setup,
    /// Build target/release/egret
    Build,
    /// Show plain HTTP leaving a pod as verified TLS, on this machine, in namespaces of its own
    Demo,
    /// Run lints, unit tests and end-to-end tests
    Test {
        /// Only the end-to-end tests whose name holds this
        filter: Option<String>,
    },
    /// Compare egret with Envoy, HAProxy and nginx on this machine
    Bench(bench::Arguments),
    /// Build an OCI image of egret, target/egret-image.tar
    Image(image::Arguments),
    /// Check formatting, clippy, and the licences and duplicates of dependencies
    Lint,
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    steps::catch_signals()?;
    std::env::set_current_dir(root())?;
    match task {
        Task::Setup => {
            setup::for_building()?;
            setup::for_testing()?;
            setup::for_linting()?;
            println!("Everything is there. Next: `cargo xtask demo`, or `cargo xtask test`.");
            Ok(())
        }
        Task::Build => {
            setup::for_building()?;
            steps::cargo(&["build", "--release", "-p", "egret"])?;
            println!("Built target/release/egret");
            Ok(())
        }
        Task::Demo => demo::run(),
        Task::Test { filter } => suite::run(filter.as_deref()),
        Task::Bench(arguments) => bench::run(arguments),
        Task::Image(arguments) => image::run(&arguments),
        Task::Lint => {
            setup::for_building()?;
            setup::for_linting()?;
            lint::run()
        }
    }
}

/// The folder of the workspace.
fn root() -> PathBuf {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().map_or(manifest.clone(), PathBuf::from)
}
