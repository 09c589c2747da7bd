//! Steps that take long, and tell that they live; Ctrl-C ends the step, and what was made is tidied up.

use std::{
    io::{BufRead, BufReader, IsTerminal, Read},
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

/// Lines of a failed step that are shown.
const SHOWN_LINES: usize = 40;

static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From now on SIGINT, SIGTERM and SIGHUP do not end this process: [`go_on`] tells of them.
pub fn catch_signals() -> Result<()> {
    let flag = STOP.get_or_init(Arc::default);
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register(signal, flag.clone())?;
    }
    Ok(())
}

/// An error once somebody has pressed Ctrl-C.
pub fn go_on() -> Result<()> {
    ensure!(!STOP.get().is_some_and(|flag| flag.load(Ordering::Relaxed)), "interrupted");
    Ok(())
}

/// Runs cargo, its own progress shown as it is.
pub fn cargo(args: &[&str]) -> Result<()> {
    cargo_with(args, &[])
}

/// The same with environment variables set.
pub fn cargo_with(args: &[&str], environment: &[(&str, &std::ffi::OsStr)]) -> Result<()> {
    go_on()?;
    println!("$ cargo {}", args.join(" "));
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).envs(environment.iter().copied());
    let status = command.status().context("cannot run cargo")?;
    go_on()?;
    ensure!(status.success(), "`cargo {}` failed", args.join(" "));
    Ok(())
}

/// Runs a command that may take minutes, and tells every few seconds how far it is; its whole output is shown only
/// where it fails.
pub fn long(title: &str, mut command: Command) -> Result<()> {
    go_on()?;
    println!("  {title} …");
    let mut child = command
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {command:?}"))?;
    let said = Arc::new(Mutex::new(Vec::new()));
    let readers =
        [child.stdout.take().map(|pipe| follow(pipe, &said)), child.stderr.take().map(|pipe| follow(pipe, &said))];
    let start = Instant::now();
    let pause = if std::io::stdout().is_terminal() { Duration::from_secs(3) } else { Duration::from_secs(15) };
    let mut next = pause;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if let Err(stopped) = go_on() {
            let _ = Command::new("kill").args(["-TERM", "--", &format!("-{}", child.id())]).status();
            let _ = child.wait();
            return Err(stopped);
        }
        if start.elapsed() >= next {
            next += pause;
            let last = said.lock().ok().and_then(|lines| lines.last().cloned()).unwrap_or_default();
            println!("    {:3} s  {}", start.elapsed().as_secs(), last.chars().take(100).collect::<String>());
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    for reader in readers.into_iter().flatten() {
        let _ = reader.join();
    }
    if !status.success() {
        let lines = said.lock().map(|lines| lines.clone()).unwrap_or_default();
        for line in lines.iter().skip(lines.len().saturating_sub(SHOWN_LINES)) {
            eprintln!("    {line}");
        }
        bail!("{title}: {status}");
    }
    Ok(())
}

fn follow(pipe: impl Read + Send + 'static, said: &Arc<Mutex<Vec<String>>>) -> std::thread::JoinHandle<()> {
    let said = said.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim().to_owned();
            if let Ok(mut lines) = said.lock()
                && !line.is_empty()
            {
                lines.push(line);
            }
        }
    })
}
