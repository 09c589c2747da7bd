//! `egret check`: what the agent would say of a configuration, without one.

use std::{
    collections::HashSet,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use crate::{
    api::{
        Diagnostic, ObjectId, Objects, Severity,
        core::{ConfigMap, Secret},
    },
    identity,
    mesh::{self, Mesh, PodAddresses},
    source,
    telemetry::access_log,
    tls,
};

/// Prints one line for each finding to `out` and a summary to standard error; exit status 1 where one is an error.
pub fn run(paths: &[PathBuf], out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let (findings, objects) = findings(paths);
    for finding in findings.iter().filter(|finding| finding.severity != Severity::Info) {
        writeln!(out, "{finding}")?;
    }
    out.flush()?;
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    let mut err = io::stderr().lock();
    // Standard error may be closed; the exit status still tells.
    for finding in findings.iter().filter(|finding| finding.severity == Severity::Info) {
        let _ = writeln!(err, "{finding}");
    }
    let _ = writeln!(err, "{}", summary(objects, errors, warnings));
    Ok(if errors > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn summary(objects: usize, errors: usize, warnings: usize) -> String {
    let many = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    format!("{}: {}, {}", many(objects, "object"), many(errors, "error"), many(warnings, "warning"))
}

/// All findings, in order of file and line, and the number of objects read.
pub(super) fn findings(paths: &[PathBuf]) -> (Vec<Diagnostic>, usize) {
    let (objects, batch) = match source::load(paths) {
        Ok(loaded) => loaded,
        // The same, as findings.
        Err(_) => return (source::check(paths), 0),
    };
    let mesh = mesh::compile(&objects, &PodAddresses::new());
    let mut findings = batch.diagnostics;
    findings.extend(mesh.diagnostics.iter().cloned());
    access_log(&objects, &mesh, &mut findings);
    credentials(&objects, &mesh, &mut findings);
    mesh_authority(&objects, &mesh, &mut findings);
    findings.sort_by(|a, b| (&a.file, a.line, a.column, a.severity).cmp(&(&b.file, b.line, b.column, b.severity)));
    findings.dedup();
    (findings, objects.count())
}

/// Formats that cannot be used, and operators that never have a value.
fn access_log(objects: &Objects, mesh: &Mesh, findings: &mut Vec<Diagnostic>) {
    let format = &mesh.settings.access_log_format;
    // The object that the format in force is from.
    let Some(config) = objects.mesh_configs.values().find(|config| config.spec.access_log_format == *format) else {
        return;
    };
    let at = |severity, message: String| config.diagnostic(severity, "accessLogFormat", message);
    match access_log::Format::compile(&mesh.settings) {
        Ok(_) => findings
            .extend(access_log::warnings(&mesh.settings).into_iter().map(|message| at(Severity::Warning, message))),
        Err(error) => findings.push(at(Severity::Error, error.to_string())),
    }
}

/// Rules whose certificates, keys and CAs are there and cannot be used. What is on the host may differ between this
/// machine and the node, so of that it is a warning.
fn credentials(objects: &Objects, mesh: &Mesh, findings: &mut Vec<Diagnostic>) {
    let contexts = tls::Contexts::build(
        &tls::Contexts::default(),
        mesh.tls_settings().iter().cloned(),
        mesh.server_tls_settings(),
        &Offline(objects),
    );
    let refused: HashSet<ObjectId> = findings
        .iter()
        .filter(|finding| finding.severity == Severity::Error)
        .filter_map(|finding| finding.object.clone())
        .collect();
    for fault in tls::refused(mesh, &contexts) {
        // Said already, e.g. that the Secret is missing.
        if refused.contains(&fault.rule) {
            continue;
        }
        let severity = if fault.on_host { Severity::Warning } else { Severity::Error };
        findings.extend(fault.diagnostic(mesh, severity));
    }
    // Warnings about certificates name the Secret or file themselves and have no line of their own in the rules.
    for warning in contexts.warnings() {
        log::info!("{warning}");
    }
}

/// A plug-in CA of the mesh that cannot issue.
fn mesh_authority(objects: &Objects, mesh: &Mesh, findings: &mut Vec<Diagnostic>) {
    let namespace = &mesh.settings.root_namespace;
    let Some(secret) = objects.secrets.get(namespace, identity::PLUG_IN_SECRET) else { return };
    if let Err(error) = identity::check_plug_in(&secret.spec, namespace) {
        let severity = if error.is_warning() { Severity::Warning } else { Severity::Error };
        findings.push(secret.diagnostic(severity, "data", error.to_string()));
    }
}

/// Credentials as the objects have them, and files of this machine.
struct Offline<'a>(&'a Objects);

impl tls::MaterialReader for Offline<'_> {
    fn secret(&self, namespace: &str, name: &str) -> Option<Arc<Secret>> {
        let secret = self.0.secrets.get(namespace, name)?;
        Some(Arc::new(secret.spec.clone()))
    }

    fn config_map(&self, namespace: &str, name: &str) -> Option<Arc<ConfigMap>> {
        let config_map = self.0.config_maps.get(namespace, name)?;
        Some(Arc::new(config_map.spec.clone()))
    }

    fn file(&self, path: &Path) -> io::Result<Vec<u8>> {
        tls::read_host_file(path)
    }
}
