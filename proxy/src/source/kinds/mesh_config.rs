//! Mesh configuration: YAML inside the ConfigMap `istio` (key `mesh`), or `spec.meshConfig` of an IstioOperator.

use super::{
    super::{decode::Field, values},
    traffic_policy::locality,
    virtual_service::retries,
};
use crate::api::istio::MeshConfig;

const READ: &[&str] = &[
    "outboundTrafficPolicy",
    "accessLogFile",
    "accessLogFormat",
    "accessLogEncoding",
    "rootNamespace",
    "trustDomain",
    "connectTimeout",
    "tlsDefaults",
    "enableAutoMtls",
    "meshMTLS",
    "meshMtls",
    "localityLbSetting",
    "defaultHttpRetryPolicy",
    "trustDomainAliases",
];
/// What only the control plane of a cluster acts on.
const IGNORED: &[&str] = &[
    "ingressClass",
    "ingressService",
    "ingressControllerMode",
    "ingressSelector",
    "configSources",
    "enablePrometheusMerge",
    "verifyCertificateAtClient",
    "disableEnvoyListenerLog",
    "certificates",
    "thriftConfig",
    "proxyListenPort",
    "proxyInboundListenPort",
    "proxyHttpPort",
];
const LATER: &[&str] = &[
    "protocolDetectionTimeout",
    "tcpKeepalive",
    "enableTracing",
    "enableEnvoyAccessLogService",
    "defaultConfig",
    "inboundTrafficPolicy",
    "caCertificates",
    "defaultServiceExportTo",
    "defaultVirtualServiceExportTo",
    "defaultDestinationRuleExportTo",
    "dnsRefreshRate",
    "h2UpgradePolicy",
    "inboundClusterStatName",
    "outboundClusterStatName",
    "serviceSettings",
    "serviceScopeConfigs",
    "ca",
    "extensionProviders",
    "defaultProviders",
    "discoverySelectors",
    "pathNormalization",
    "hboneIdleTimeout",
];
const CURVES: &[&str] = &["P-256", "P-384", "P-521", "X25519", "X25519MLKEM768"];

/// Reads mesh settings; what is absent keeps its default.
pub fn mesh_config(field: &Field<'_>) -> Option<MeshConfig> {
    let fields = field.fields(READ, IGNORED, LATER)?;
    let mut mesh = MeshConfig::default();
    if let Some(policy) = fields.get("outboundTrafficPolicy").and_then(|f| f.fields(&["mode"], &[], &["egressProxy"])) {
        // Istio's zero value is REGISTRY_ONLY, but a policy without mode is what nobody means: ALLOW_ANY is the default.
        let modes = &[("ALLOW_ANY", false), ("REGISTRY_ONLY", true)];
        mesh.registry_only = policy.get("mode").and_then(|f| f.choice(modes));
    }
    // Here an empty string is not absent: it switches the access log off.
    mesh.access_log_file = fields.get("accessLogFile").and_then(|f| f.string());
    mesh.access_log_format = fields.string("accessLogFormat");
    mesh.access_log_json = fields.get("accessLogEncoding").and_then(|f| f.choice(&[("TEXT", false), ("JSON", true)]));
    if let Some(field) = fields.get("rootNamespace") {
        mesh.root_namespace = field.string().filter(|name| !name.is_empty());
        if mesh.root_namespace.as_deref().is_some_and(|name| !values::dns_label(name)) {
            field.error("is not the name of a namespace");
        }
    }
    if let Some(field) = fields.get("trustDomain") {
        mesh.trust_domain = field.string().filter(|name| !name.is_empty());
        if let Some(Err(reason)) = mesh.trust_domain.as_deref().map(values::dns_name) {
            field.error(reason);
        }
    }
    mesh.connect_timeout = fields.get("connectTimeout").and_then(|f| f.duration());
    if let Some(tls) = fields
        .get("tlsDefaults")
        .and_then(|f| f.fields(&["minProtocolVersion", "cipherSuites", "ecdhCurves"], &[], &["maxProtocolVersion"]))
    {
        let versions = &[("TLS_AUTO", None), ("TLSV1_2", Some("TLSV1_2")), ("TLSV1_3", Some("TLSV1_3"))];
        let version = tls.get("minProtocolVersion").and_then(|f| f.choice(versions)).flatten();
        mesh.tls_min_version = version.map(str::to_owned);
        mesh.tls_cipher_suites = tls.strings("cipherSuites");
        mesh.tls_curves = tls.strings("ecdhCurves");
        for field in tls.items("ecdhCurves").iter().filter(|f| f.node.text().is_some_and(|c| !CURVES.contains(&c))) {
            field.error(format!("is not one of {}", CURVES.join(", ")));
        }
    }
    mesh.auto_mtls = fields.get("enableAutoMtls").and_then(|f| f.boolean());
    if let Some(tls) = fields
        .get("meshMTLS")
        .or_else(|| fields.get("meshMtls"))
        .and_then(|f| f.fields(&["minProtocolVersion"], &[], &["cipherSuites", "ecdhCurves"]))
    {
        let versions = &[("TLS_AUTO", None), ("TLSV1_2", Some("TLSV1_2")), ("TLSV1_3", Some("TLSV1_3"))];
        let version = tls.get("minProtocolVersion").and_then(|f| f.choice(versions)).flatten();
        mesh.mesh_tls_min_version = version.map(str::to_owned);
    }
    mesh.locality = fields.get("localityLbSetting").and_then(|f| locality(&f));
    mesh.default_retries = fields.get("defaultHttpRetryPolicy").and_then(|f| retries(&f));
    mesh.trust_domain_aliases = fields.strings("trustDomainAliases");
    Some(mesh)
}
