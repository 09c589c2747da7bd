//! The configuration changes under a running agent: good changes count as one, bad documents are refused by themselves.

use std::os::unix::fs::symlink;

use anyhow::Result;
use egret_tests::{
    Agent, Lab,
    objects::{documents, entry, mesh, rule},
};

const CNN: &str = "edition.cnn.com";

/// The bad document's last good version stays, the rest of the batch applies, and the numbers tell.
#[test]
fn a_bad_document_is_refused_by_itself() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    let www = || [entry("www.lab.test", &["80 HTTP 443"]), rule("www.lab.test", "mode: SIMPLE")];
    lab.write("pod.yaml", &pod.document(""))?;
    lab.write("mesh.yaml", &documents(&[entry(CNN, &["80 HTTP 443"]), rule(CNN, "mode: SIMPLE")]))?;
    let agent = Agent::start(&lab)?;
    assert_eq!(agent.metric("egret_config_objects_rejected", &[])?, 0.0);
    let bad = rule(CNN, "mode: NOBODY_KNOWS");
    let batch = [&[entry(CNN, &["80 HTTP 443"]), bad][..], &www()[..]].concat();
    agent.reload(|| lab.write("mesh.yaml", &documents(&batch)))?;
    assert_eq!(pod.curl(&["http://edition.cnn.com/politics"])?.status, 200, "the last good rule is in force");
    assert_eq!(pod.curl(&["http://www.lab.test/politics"])?.status, 200, "its neighbours apply");
    assert_eq!(agent.metric("egret_config_objects_rejected", &[])?, 1.0);
    assert!(agent.metric("egret_config_reloads_total", &["result=\"rejected\""])? >= 1.0);
    let log = agent.stderr();
    assert!(log.contains("mesh.yaml:") && log.contains("DestinationRule default/edition-cnn-com"), "{log}");
    assert!(log.contains("NOBODY_KNOWS"), "{log}");
    let good = [&[entry(CNN, &["80 HTTP 443"]), rule(CNN, "mode: SIMPLE")][..], &www()[..]].concat();
    agent.reload(|| lab.write("mesh.yaml", &documents(&good)))?;
    assert_eq!(agent.metric("egret_config_objects_rejected", &[])?, 0.0);
    Ok(())
}

/// Text that is no YAML keeps what the file held; a file that goes takes its objects with it.
#[test]
fn broken_files_and_removed_files() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    lab.write("pod.yaml", &pod.document(""))?;
    lab.write("mesh.yaml", &documents(&[entry(CNN, &["80 HTTP 443"]), rule(CNN, "mode: SIMPLE")]))?;
    let agent = Agent::start(&lab)?;
    agent.reload(|| lab.write("mesh.yaml", "kind: [unclosed\n  {{{"))?;
    assert_eq!(pod.curl(&["http://edition.cnn.com/politics"])?.status, 200);
    assert!(agent.metric("egret_config_reloads_total", &["result=\"rejected\""])? >= 1.0);
    agent.reload(|| lab.remove("mesh.yaml"))?;
    assert_eq!(pod.curl(&["http://edition.cnn.com/politics"])?.status, 301, "no rule any more: as without egret");
    Ok(())
}

/// Kubernetes mounts change by swapping one symbolic link.
#[test]
fn a_swapped_symlink_is_seen() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    let config = lab.config_dir();
    for (version, tls) in [("..v1", "mode: DISABLE"), ("..v2", "mode: SIMPLE")] {
        std::fs::create_dir(config.join(version))?;
        let text = documents(&[entry(CNN, &["80 HTTP 443"]), rule(CNN, tls)]);
        std::fs::write(config.join(version).join("mesh.yaml"), text)?;
    }
    symlink("..v1", config.join("..data"))?;
    symlink("..data/mesh.yaml", config.join("mesh.yaml"))?;
    lab.write("pod.yaml", &pod.document(""))?;
    let agent = Agent::start(&lab)?;
    assert_eq!(pod.curl(&["http://edition.cnn.com/politics"])?.status, 400, "plain text to an HTTPS port");
    agent.reload(|| {
        symlink("..v2", config.join("..next"))?;
        Ok(std::fs::rename(config.join("..next"), config.join("..data"))?)
    })?;
    assert_eq!(pod.curl(&["http://edition.cnn.com/politics"])?.status, 200);
    Ok(())
}

/// A pod that comes and goes in the files is enrolled and let go; the mesh's settings change at run time.
#[test]
fn pods_and_settings_change() -> Result<()> {
    let lab = Lab::new()?;
    let (pod, late) = (lab.pod("sleep")?, lab.pod("late")?);
    lab.write("pod.yaml", &pod.document(""))?;
    lab.write("mesh.yaml", &documents(&[entry(CNN, &["80 HTTP 443"]), rule(CNN, "mode: SIMPLE")]))?;
    let mut agent = Agent::start(&lab)?;
    assert_eq!(late.curl(&["http://edition.cnn.com/politics"])?.status, 301, "not enrolled: left alone");
    agent.reload(|| lab.write("late.yaml", &late.document("")))?;
    agent.wait_ready()?;
    assert_eq!(late.curl(&["http://edition.cnn.com/politics"])?.status, 200);
    agent.reload(|| lab.remove("late.yaml"))?;
    assert_eq!(late.curl(&["http://edition.cnn.com/politics"])?.status, 301, "let go again");
    agent.reload(|| lab.write("settings.yaml", &mesh(&["accessLogEncoding: JSON"])))?;
    pod.curl(&["http://edition.cnn.com/politics?as-json"])?;
    let line: serde_json::Value = serde_json::from_str(&agent.log_line("as-json")?)?;
    assert_eq!(line["authority"], CNN);
    assert_eq!(line["response_code"], 200);
    assert_eq!(line["workload"], "default/sleep");
    agent.reload(|| lab.write("settings.yaml", &mesh(&["accessLogFile: \"\""])))?;
    pod.curl(&["http://edition.cnn.com/politics?unlogged"])?;
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(!agent.stdout().contains("unlogged"));
    Ok(())
}
