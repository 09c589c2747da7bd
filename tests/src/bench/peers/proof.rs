//! That everybody does the same work: before a turn is measured, the server itself is asked what it was called with. A peer
//! that passed plain text on, left the server's name out or showed no certificate would be fast, and compared with nobody.

use std::io::{Read, Write};

use anyhow::{Context, Result, ensure};

use crate::bench::{
    hosts::{Host, PLAIN, hosts},
    stage::Stage,
    upstream,
};

/// Asks for every host of the stage that speaks HTTP/1.1, on the port of plain HTTP, as the workloads' clients do.
pub fn originates_tls(stage: &Stage) -> Result<()> {
    for host in hosts().iter().filter(|host| !host.h2) {
        let (told, name) = (ask(stage, host)?, &host.name);
        let certificate = if host.mutual { "CN=client.bench.test" } else { "" };
        let wanted = format!("TLSv1.3 {name} {certificate};");
        ensure!(
            told.ends_with(&wanted),
            "the server of {name} should have been called with {wanted:?}, it says: {told}"
        );
    }
    Ok(())
}

fn ask(stage: &Stage, host: &Host) -> Result<String> {
    let mut stream = stage.pod.connect(format!("{}:{PLAIN}", host.address).parse()?)?;
    write!(stream, "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", upstream::TOLD, host.name)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("no answer for {}", host.name))?;
    Ok(answer)
}
