//! The benchmark suite works: its figures are there, and nothing of it stays behind.

use std::{
    cell::Cell,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result, bail};
use egret_tests::{
    agent_binary,
    bench::{
        self, Options,
        results::{Results, metrics},
    },
};

fn options(peers: &[&str]) -> Result<Options> {
    Ok(Options {
        quick: true,
        workloads: vec!["w1".to_owned()],
        peers: peers.iter().map(|name| (*name).to_owned()).collect(),
        runs: 1,
        egret: agent_binary()?,
        envoy: None,
    })
}

/// One at a time: each looks at what the process has left.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run(options: &Options) -> Result<Results> {
    bench::run(options, &|| Ok(()), &|line| println!("{line}"))
}

/// What this process has left that another would see.
fn left() -> Vec<PathBuf> {
    let mine = format!("egt-{}-", std::process::id());
    let places = [Path::new("/run/netns"), Path::new("/etc/netns"), &std::env::temp_dir()].map(Path::to_owned);
    let entries = places.iter().flat_map(|place| std::fs::read_dir(place).into_iter().flatten().flatten());
    entries.map(|entry| entry.path()).filter(|path| path.to_string_lossy().contains(&mine)).collect()
}

#[test]
fn egret_and_the_floors_get_their_figures() -> Result<()> {
    let _alone = alone();
    let results = run(&options(&["egret", "direct"])?)?;
    let rows = &results.workloads[0].rows;
    let labels: Vec<_> = rows.iter().map(|row| row.label.as_str()).collect();
    assert_eq!(labels, ["direct HTTP", "direct HTTPS", "egret, log"]);
    for row in rows {
        assert_eq!((row.errors, &row.failures), (0, &vec![]), "{}", row.label);
        for metric in [metrics::RATE, metrics::P50, metrics::P99, metrics::SUM] {
            let figure = row.figure(metric).with_context(|| format!("{} has no {}", row.label, metric.name))?;
            assert!(figure.median > 0.0, "{}: {figure:?}", row.label);
        }
        // A floor has no proxy.
        assert_eq!(row.figure(metrics::PROXY).is_some(), row.label.starts_with("egret"), "{}", row.label);
    }
    let proxy = rows[2].figure(metrics::PROXY).context("egret's CPU")?.median;
    let sum = rows[2].figure(metrics::SUM).context("CPU in all")?.median;
    assert!(proxy > 1.0 && proxy < sum, "{proxy} µs of {sum}");
    assert!(results.programs.contains_key("egret") && results.programs.contains_key("nginx"), "{:?}", results.programs);
    let text = bench::report::markdown(&results);
    assert!(text.contains("| egret, log |"), "{text}");
    assert_eq!(left(), Vec::<PathBuf>::new());
    Ok(())
}

/// The other kinds of workloads: each says of itself where its connections went another way than they should.
#[test]
fn churn_downloads_and_connects_get_their_figures() -> Result<()> {
    let _alone = alone();
    let workloads = ["W4-resumed", "W5-short", "W6", "W9"].map(str::to_owned).to_vec();
    let results = run(&Options { workloads, ..options(&["egret"])? })?;
    for (workload, row) in results.workloads.iter().flat_map(|w| w.rows.iter().map(move |row| (&w.name, row))) {
        assert_eq!((row.errors, &row.failures), (0, &vec![]), "{workload}: {}", row.label);
        assert!(row.figures.len() >= 3, "{workload}: {row:?}");
    }
    let rows: Vec<usize> = results.workloads.iter().map(|workload| workload.rows.len()).collect();
    assert_eq!(rows, [1, 1, 1, 3]);
    let figures = &results.workloads[0].rows[0].figures;
    let resumed = figures.iter().find(|figure| figure.name == "resumed").context("no share of resumed sessions")?;
    assert!(resumed.median > 50.0, "{resumed:?}");
    assert_eq!(left(), Vec::<PathBuf>::new());
    Ok(())
}

/// A peer that cannot be had is told, and the others have their turns.
#[test]
fn a_peer_that_fails_does_not_stop_the_others() -> Result<()> {
    let _alone = alone();
    let results = run(&options(&["envoy", "direct https"])?)?;
    let rows = &results.workloads[0].rows;
    let envoy = rows.iter().find(|row| row.label == "Envoy, log").context("Envoy's row")?;
    assert_eq!((envoy.failures.len(), envoy.figures.len()), (1, 0), "{envoy:?}");
    assert!(envoy.failures[0].contains("no Envoy"), "{envoy:?}");
    assert!(rows[0].figure(metrics::RATE).is_some(), "{:?}", rows[0]);
    assert!(bench::report::markdown(&results).contains("1 of Envoy, log's turns failed"));
    Ok(())
}

/// Ctrl-C in the middle of a load ends the suite soon, and leaves nothing.
#[test]
fn a_suite_that_is_stopped_tidies_up() -> Result<()> {
    let _alone = alone();
    let asked = Cell::new(0);
    let go_on = || {
        asked.set(asked.get() + 1);
        // The first load has begun by then.
        if asked.get() > 5 {
            bail!("interrupted");
        }
        Ok(())
    };
    let error = bench::run(&options(&["egret"])?, &go_on, &|_| ()).err().context("it should have stopped")?;
    assert!(format!("{error:#}").contains("interrupted"), "{error:#}");
    assert_eq!(left(), Vec::<PathBuf>::new());
    Ok(())
}

#[test]
fn names_that_nobody_bears_are_refused() -> Result<()> {
    let said = |options: &Options| run(options).err().map(|error| error.to_string()).unwrap_or_default();
    let wrong = Options { workloads: vec!["W99".to_owned()], ..options(&[])? };
    assert!(said(&wrong).contains("no workload W99; there are W1, "), "{}", said(&wrong));
    assert!(said(&options(&["traefik"])?).contains("no peer traefik; there are direct HTTP, "));
    Ok(())
}
