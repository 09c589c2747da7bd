//! core/v1: Pod, Service, Secret. Only what a data plane reads is looked at; the rest is the kubelet's affair.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};

use super::{
    super::{
        decode::{Field, Fields},
        yaml::Node,
    },
    probes,
    volumes::{mount, volume},
};
use crate::api::{
    ObjectMeta,
    core::{ConfigMap, ContainerPort, Pod, Secret, Service, ServicePort, TargetPort},
};

const POD_READ: &[&str] =
    &["serviceAccountName", "serviceAccount", "nodeName", "hostNetwork", "volumes", "containers", "initContainers"];
const POD_IGNORED: &[&str] = &[
    "activeDeadlineSeconds",
    "affinity",
    "automountServiceAccountToken",
    "dnsConfig",
    "dnsPolicy",
    "enableServiceLinks",
    "ephemeralContainers",
    "hostAliases",
    "hostIPC",
    "hostPID",
    "hostUsers",
    "hostname",
    "hostnameOverride",
    "imagePullSecrets",
    "nodeSelector",
    "os",
    "overhead",
    "preemptionPolicy",
    "priority",
    "priorityClassName",
    "readinessGates",
    "resourceClaims",
    "resources",
    "restartPolicy",
    "runtimeClassName",
    "schedulerName",
    "schedulingGates",
    "securityContext",
    "setHostnameAsFQDN",
    "shareProcessNamespace",
    "subdomain",
    "terminationGracePeriodSeconds",
    "tolerations",
    "topologySpreadConstraints",
];
const CONTAINER_READ: &[&str] =
    &["volumeMounts", "ports", "restartPolicy", "livenessProbe", "readinessProbe", "startupProbe"];
const CONTAINER_IGNORED: &[&str] = &[
    "name",
    "image",
    "args",
    "command",
    "env",
    "envFrom",
    "imagePullPolicy",
    "lifecycle",
    "resizePolicy",
    "resources",
    "restartPolicyRules",
    "securityContext",
    "stdin",
    "stdinOnce",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "tty",
    "volumeDevices",
    "workingDir",
];

/// Reads a Pod: its `spec`, the addresses of its `status`, and the annotations that egret acts on.
pub fn pod(root: &Fields<'_>, meta: &ObjectMeta) -> Pod {
    let mut pod = Pod { service_account_name: "default".to_owned(), ..Pod::default() };
    annotations(root, meta);
    if let Some(fields) = root.get("spec").and_then(|spec| spec.fields(POD_READ, POD_IGNORED, &[])) {
        if let Some(name) = fields.string("serviceAccountName").or_else(|| fields.string("serviceAccount")) {
            pod.service_account_name = name;
        }
        pod.node_name = fields.string("nodeName").unwrap_or_default();
        pod.host_network = fields.get("hostNetwork").and_then(|f| f.boolean()).unwrap_or_default();
        pod.volumes = fields.each("volumes", volume);
        for (list, init) in [("containers", false), ("initContainers", true)] {
            for container in fields.items(list) {
                let Some(fields) = container.fields(CONTAINER_READ, CONTAINER_IGNORED, &[]) else { continue };
                pod.mounts.extend(fields.items("volumeMounts").iter().filter_map(mount));
                let ports: Vec<_> = fields.items("ports").iter().filter_map(container_port).collect();
                // Of those that run before the others only the ones that then stay may have any.
                if !init || fields.string("restartPolicy").as_deref() == Some("Always") {
                    pod.probes.extend(probes::of_container(&fields, &ports));
                }
                pod.ports.extend(ports);
            }
        }
    }
    if let Some(status) = root.get("status") {
        pod.ips = addresses(&status);
        let phase = status.node.get("phase").and_then(Node::text);
        pod.finished = matches!(phase, Some("Succeeded" | "Failed"));
    }
    if let Some(uid) = root.get("metadata").and_then(|metadata| metadata.node.get("uid")?.text().map(str::to_owned)) {
        pod.uid = uid;
    }
    pod
}

/// `status.podIPs`, or `status.podIP` where that is all there is.
fn addresses(status: &Field<'_>) -> Vec<std::net::IpAddr> {
    let nodes = status.entries();
    let find = |name: &str| nodes.iter().find(|(key, f)| *key == name && !f.node.is_null()).map(|(_, f)| f);
    let listed: Vec<_> = find("podIPs")
        .map(|f| f.items())
        .unwrap_or_default()
        .iter()
        .filter_map(|item| item.fields(&["ip"], &[], &[])?.require("ip")?.ip())
        .collect();
    if listed.is_empty() { find("podIP").and_then(|f| f.ip()).into_iter().collect() } else { listed }
}

fn container_port(field: &Field<'_>) -> Option<ContainerPort> {
    let fields = field.fields(&["name", "containerPort"], &["protocol", "hostPort", "hostIP"], &[])?;
    Some(ContainerPort { name: fields.string("name"), port: fields.require("containerPort")?.port()? })
}

/// Refuses what would silently leave a pod outside (or inside) the mesh.
fn annotations(root: &Fields<'_>, meta: &ObjectMeta) {
    let Some(metadata) = root.get("metadata") else { return };
    let maps = metadata.entries();
    let fields: Vec<_> = maps
        .iter()
        .filter(|(key, f)| matches!(*key, "annotations" | "labels") && !f.node.is_null())
        .flat_map(|(_, f)| f.entries())
        .collect();
    for (key, field) in &fields {
        let value = field.node.text().unwrap_or_default();
        match *key {
            "egret.dev/netns" if !netns(value) => {
                field.error(format!("\"{value}\" is neither the name of a network namespace nor an absolute path"));
            }
            "sidecar.istio.io/inject"
                if !matches!(value, "true" | "false" | "yes" | "no" | "y" | "n" | "on" | "off") =>
            {
                field.error(format!("\"{value}\" is not one of \"true\", \"false\""));
            }
            "egret.dev/enroll" if !matches!(value, "true" | "false") => {
                field.error(format!("\"{value}\" is not one of \"true\", \"false\""));
            }
            "istio.io/dataplane-mode" if !matches!(value, "none" | "ambient") => {
                field.error(format!("\"{value}\" is not one of none, ambient"));
            }
            _ => {}
        }
    }
    let known = ["egret.dev/netns", "egret.dev/enroll"];
    for (key, field) in fields.iter().filter(|(key, _)| key.starts_with("egret.dev/") && !known.contains(key)) {
        if meta.annotations.contains_key(*key) {
            field.warn(format!("annotation {key} is not known; there is {}", known.join(", ")));
        }
    }
}

/// A name under /run/netns, or a path such as /proc/1/ns/net.
fn netns(value: &str) -> bool {
    if value.contains('\0') {
        return false;
    }
    if value.starts_with('/') { value.len() > 1 } else { !matches!(value, "" | "." | "..") && !value.contains('/') }
}

const SERVICE_READ: &[&str] =
    &["type", "clusterIP", "clusterIPs", "externalName", "selector", "ports", "publishNotReadyAddresses"];
const SERVICE_IGNORED: &[&str] = &[
    "allocateLoadBalancerNodePorts",
    "externalIPs",
    "externalTrafficPolicy",
    "healthCheckNodePort",
    "internalTrafficPolicy",
    "ipFamilies",
    "ipFamilyPolicy",
    "loadBalancerClass",
    "loadBalancerIP",
    "loadBalancerSourceRanges",
    "sessionAffinity",
    "sessionAffinityConfig",
    "topologyKeys",
    "trafficDistribution",
];

/// Reads a Service.
pub fn service(root: &Fields<'_>) -> Option<Service> {
    let fields = root.require("spec")?.fields(SERVICE_READ, SERVICE_IGNORED, &[])?;
    let types = ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"].map(|name| (name, name));
    let type_ = fields.get("type").and_then(|f| f.choice(&types)).unwrap_or("ClusterIP").to_owned();
    let mut addresses = fields.items("clusterIPs");
    if addresses.is_empty() {
        addresses.extend(fields.get("clusterIP"));
    }
    let headless = addresses.iter().any(|f| f.node.text() == Some("None"));
    let given = |f: &&Field<'_>| !matches!(f.node.text(), Some("None" | ""));
    let cluster_ips = addresses.iter().filter(given).filter_map(Field::ip).collect();
    let external_name = fields.string("externalName");
    if type_ == "ExternalName" && external_name.is_none() {
        fields.field.error("`externalName` is missing: type ExternalName is that name");
    }
    let port_fields = fields.items("ports");
    let ports: Vec<_> = port_fields.iter().filter_map(service_port).collect();
    if port_fields.len() > 1 {
        for field in port_fields.iter().filter(|f| f.node.get("name").is_none()) {
            field.error("`name` is missing: a Service with several ports names each");
        }
    }
    Some(Service {
        type_,
        cluster_ips,
        headless,
        external_name,
        publish_not_ready_addresses: fields
            .get("publishNotReadyAddresses")
            .and_then(|f| f.boolean())
            .unwrap_or_default(),
        selector: fields.string_map("selector"),
        ports,
    })
}

fn service_port(field: &Field<'_>) -> Option<ServicePort> {
    let fields = field.fields(&["name", "port", "protocol", "appProtocol", "targetPort"], &["nodePort"], &[])?;
    let protocols = ["TCP", "UDP", "SCTP"].map(|name| (name, name));
    let target_port = fields.get("targetPort").and_then(|f| match f.node.text() {
        Some(text) if text.starts_with(|c: char| c.is_ascii_digit()) => f.port().map(TargetPort::Number),
        _ => f.string().map(TargetPort::Name),
    });
    Some(ServicePort {
        name: fields.string("name"),
        port: fields.require("port")?.port()?,
        protocol: fields.get("protocol").and_then(|f| f.choice(&protocols)).map(str::to_owned),
        app_protocol: fields.string("appProtocol"),
        target_port,
    })
}

/// Reads a Secret: `data` decoded, `stringData` laid over it. Errors name the key, never the value.
pub fn secret(root: &Fields<'_>) -> Secret {
    let mut data = BTreeMap::new();
    for (key, field) in root.get("data").map(|f| f.entries()).unwrap_or_default() {
        if field.node.is_null() {
            data.insert(key.to_owned(), Vec::new());
            continue;
        }
        let Some(text) = field.node.text() else {
            field.error(format!("key {key} must be text in base64"));
            continue;
        };
        let packed: String = text.chars().filter(|c| !matches!(c, '\n' | '\r' | ' ' | '\t')).collect();
        match STANDARD.decode(packed) {
            Ok(bytes) => drop(data.insert(key.to_owned(), bytes)),
            Err(error) => field.error(format!("key {key} is not base64 ({error}); plain text goes into stringData")),
        }
    }
    for (key, field) in root.get("stringData").map(|f| f.entries()).unwrap_or_default() {
        match field.node.text() {
            Some(text) => drop(data.insert(key.to_owned(), text.as_bytes().to_vec())),
            None => field.error(format!("key {key} must be text")),
        }
    }
    Secret { data }
}

/// What certificates begin with in PEM.
const PEM: &str = "-----BEGIN ";

/// Whether `data` of a ConfigMap may be what a rule or a volume takes a certificate from.
fn holds_certificates(data: &[(&str, Field<'_>)]) -> bool {
    data.iter().any(|(key, field)| *key == "ca.crt" || field.node.text().is_some_and(|text| text.contains(PEM)))
}

/// Reads a ConfigMap. Of one that holds no certificates only the keys are kept: in a projected volume they hide files of others.
pub fn config_map(root: &Fields<'_>) -> ConfigMap {
    let given = root.get("data").map(|f| f.entries()).unwrap_or_default();
    let counts = holds_certificates(&given);
    let mut data = BTreeMap::new();
    for (key, field) in given {
        let text = if field.node.is_null() { Some("") } else { field.node.text() };
        match text {
            Some(text) => drop(data.insert(key.to_owned(), if counts { text.to_owned() } else { String::new() })),
            None => field.error(format!("key {key} must be text")),
        }
    }
    ConfigMap { data }
}
