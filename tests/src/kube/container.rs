//! A container as its Pod describes it, for an OCI runtime: `config.json` as containerd's CRI plugin writes it for a kubelet
//! (`internal/cri/server/container_create_linux.go`, `pkg/oci`).

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::image::{ENTRYPOINT, SECCOMP};

/// The tag that `cargo xtask image` gives the image.
const IMAGE: &str = concat!("egret:", env!("CARGO_PKG_VERSION"));
/// Where a pod finds its service account's token.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// What no container is shown, and what none may write (`oci.WithDefaultSpec`).
const MASKED: [&str; 9] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What the container finds that its Pod does not name.
pub struct Surroundings<'a> {
    /// The image's file system.
    pub rootfs: &'a Path,
    /// A folder with the service account's files.
    pub account: &'a Path,
    /// Host and port of the API server.
    pub server: (String, u16),
    /// Files and folders of the machine that are put over those of the image.
    pub over: &'a [(&'a Path, &'a str)],
}

/// The configuration of one container of a pod.
///
/// # Errors
/// The Pod asks for what is not done here: another image than egret's, capabilities without `drop: [ALL]`, another profile than
/// RuntimeDefault, volumes that are no hostPath.
pub fn config(pod: &Value, container: &Value, around: &Surroundings<'_>) -> Result<Value> {
    let name = container["name"].as_str().unwrap_or_default();
    ensure!(
        container["image"] == IMAGE,
        "container {name}: `cargo xtask image` makes {IMAGE}, not {}",
        container["image"]
    );
    let security = &container["securityContext"];
    ensure!(security["privileged"] != true, "container {name}: nothing here is run privileged");
    let capabilities = capabilities(security).with_context(|| format!("container {name}"))?;
    let user = security["runAsUser"].as_u64().unwrap_or(0);
    ensure!(security["runAsNonRoot"] != true || user != 0, "container {name}: runAsNonRoot, and its user is root");
    ensure!(security["seccompProfile"]["type"] == "RuntimeDefault", "container {name}: no seccomp profile");
    let command = match container["command"].as_array() {
        Some(command) => command.clone(),
        None => vec![ENTRYPOINT.into()],
    };
    let args = [command, container["args"].as_array().cloned().unwrap_or_default()].concat();
    // Only root's capabilities are in force from the start; nobody inherits any.
    let permitted = if user == 0 { capabilities.clone() } else { Vec::new() };
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": user, "gid": security["runAsGroup"].as_u64().unwrap_or(0)},
            "args": args,
            "env": environment(pod, container, around)?,
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "permitted": permitted, "effective": permitted},
            "noNewPrivileges": security["allowPrivilegeEscalation"] == false,
        },
        "root": {"path": around.rootfs, "readonly": security["readOnlyRootFilesystem"] == true},
        "mounts": mounts(pod, container, around)?,
        "linux": {
            "namespaces": namespaces(pod),
            "seccomp": seccomp(&capabilities)?,
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
        },
    }))
}

/// As the runtime names them.
fn capabilities(security: &Value) -> Result<Vec<String>> {
    ensure!(security["capabilities"]["drop"] == json!(["ALL"]), "it keeps the runtime's own capabilities");
    let added = security["capabilities"]["add"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let added: Vec<_> = added.map(|name| format!("CAP_{name}")).collect();
    // Kubernetes refuses what contradicts itself.
    let escalates = security["allowPrivilegeEscalation"] != false;
    ensure!(
        escalates || !added.iter().any(|name| name == "CAP_SYS_ADMIN"),
        "SYS_ADMIN without allowPrivilegeEscalation"
    );
    Ok(added)
}

fn environment(pod: &Value, container: &Value, around: &Surroundings<'_>) -> Result<Vec<String>> {
    let (host, port) = &around.server;
    let mut all = BTreeMap::from([
        ("PATH".to_owned(), "/usr/bin".to_owned()),
        ("KUBERNETES_SERVICE_HOST".to_owned(), host.clone()),
        ("KUBERNETES_SERVICE_PORT".to_owned(), port.to_string()),
    ]);
    for variable in container["env"].as_array().into_iter().flatten() {
        let value = match (variable["value"].as_str(), variable["valueFrom"]["fieldRef"]["fieldPath"].as_str()) {
            (Some(value), _) => value,
            (None, Some(path)) => {
                let field = pod.pointer(&format!("/{}", path.replace('.', "/"))).and_then(Value::as_str);
                field.with_context(|| format!("the pod has no {path}"))?
            }
            _ => bail!("{variable} is not known here"),
        };
        all.insert(variable["name"].as_str().unwrap_or_default().to_owned(), value.to_owned());
    }
    Ok(all.into_iter().map(|(name, value)| format!("{name}={value}")).collect())
}

/// A container's own, and the machine's where the pod says so.
fn namespaces(pod: &Value) -> Value {
    let mut own = vec!["mount", "ipc", "cgroup"];
    if pod["spec"]["hostPID"] != true {
        own.push("pid");
    }
    // The network, where it is the pod's own, is that of whoever starts the runtime.
    if pod["spec"]["hostNetwork"] != true {
        own.push("uts");
    }
    own.into_iter().map(|kind| json!({"type": kind})).collect()
}

fn mounts(pod: &Value, container: &Value, around: &Surroundings<'_>) -> Result<Value> {
    let mut all = json!([
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
         "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
    ]);
    let Some(mounts) = all.as_array_mut() else { bail!("no list of mounts") };
    let mut bind = |source: &Path, destination: &str, read_only: bool| {
        let options = ["rbind", "rprivate", if read_only { "ro" } else { "rw" }];
        mounts.push(json!({"destination": destination, "type": "bind", "source": source, "options": options}));
    };
    for mount in container["volumeMounts"].as_array().into_iter().flatten() {
        let path = host_path(pod, mount)?["path"].as_str().context("a hostPath without a path")?;
        let destination = mount["mountPath"].as_str().context("a volumeMount without mountPath")?;
        bind(Path::new(path), destination, mount["readOnly"] == true);
    }
    bind(around.account, ACCOUNT, true);
    for (source, destination) in around.over {
        bind(source, destination, true);
    }
    Ok(all)
}

/// The hostPath of a volumeMount.
pub fn host_path<'p>(pod: &'p Value, mount: &Value) -> Result<&'p Value> {
    let volumes = pod["spec"]["volumes"].as_array().map_or(&[][..], Vec::as_slice);
    let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]);
    let path = volume.map(|volume| &volume["hostPath"]).filter(|path| path.is_object());
    path.with_context(|| format!("{} is no hostPath volume of the pod", mount["name"]))
}

/// The profile's rules for a container with these capabilities, as containers/common makes them
/// (`pkg/seccomp/seccomp_linux.go`).
fn seccomp(capabilities: &[String]) -> Result<Value> {
    let text = std::fs::read_to_string(SECCOMP)
        .with_context(|| format!("cannot read {SECCOMP}; `cargo xtask setup` installs what is missing"))?;
    let profile: Value = serde_json::from_str(&text)?;
    let (go, scmp) = match std::env::consts::ARCH {
        "x86_64" => ("amd64", "SCMP_ARCH_X86_64"),
        "aarch64" => ("arm64", "SCMP_ARCH_AARCH64"),
        other => bail!("no system calls of {other} are known here"),
    };
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let has = |name: &Value| capabilities.iter().any(|capability| name == capability.as_str());
    let maps = list(&profile["archMap"]);
    let map = maps.iter().find(|map| map["architecture"] == scmp).context("a profile without this machine")?;
    let architectures = [vec![map["architecture"].clone()], list(&map["subArchitectures"])].concat();
    let applies = |rule: &Value| {
        let arches = list(&rule["includes"]["arches"]);
        (arches.is_empty() || arches.iter().any(|arch| arch == go))
            && list(&rule["includes"]["caps"]).iter().all(has)
            && !list(&rule["excludes"]["caps"]).iter().any(has)
    };
    let rules = list(&profile["syscalls"]).into_iter().filter(applies).map(|rule| {
        let mut kept = json!({"names": rule["names"], "action": rule["action"], "args": list(&rule["args"])});
        if rule["errnoRet"].is_u64() {
            kept["errnoRet"] = rule["errnoRet"].clone();
        }
        kept
    });
    Ok(json!({
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": architectures,
        "syscalls": rules.collect::<Vec<_>>(),
    }))
}
