//! Whether a request for a certificate is granted: an agent gets the identities of pods that run on its node now, no others.

use std::{fmt, time::Duration};

use k8s_openapi::api::{
    certificates::v1::{CertificateSigningRequestCondition, CertificateSigningRequestSpec},
    core::v1::Pod,
};
use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256};
use rustls_pki_types::{CertificateSigningRequestDer, pem::PemObject};
use x509_parser::{
    certification_request::X509CertificationRequest,
    cri_attributes::ParsedCriAttribute,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
    x509::SubjectPublicKeyInfo,
};

use super::AGENTS;
use crate::{
    identity::{USAGES, authority::PublicKey},
    limits::{CERTIFICATE_REQUEST_BYTES, LEAF_LIFETIME},
    tls::der::Signed,
};

/// What is refused, and why: a condition's reason and message.
#[derive(Debug, PartialEq, Eq)]
pub struct Denial {
    pub reason: &'static str,
    pub message: String,
}

fn denial<T>(reason: &'static str, message: impl Into<String>) -> Result<T, Denial> {
    Err(Denial { reason, message: message.into() })
}

/// A request that is well formed, of an agent of this mesh.
#[derive(Debug)]
pub struct Asked {
    /// `spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT`
    pub identity: String,
    pub namespace: String,
    pub service_account: String,
    pub key: PublicKey,
    pub lifetime: Duration,
    pub place: Place,
}

/// Where the request came from.
#[derive(Debug, PartialEq, Eq)]
pub enum Place {
    Node(String),
    /// The agent's own pod tells its node (API servers before 1.32 do not put the node into tokens).
    AgentPod {
        name: String,
        uid: Option<String>,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "node {node}"),
            Self::AgentPod { name, .. } => write!(f, "the node of pod {name}"),
        }
    }
}

/// All that the request itself tells.
pub fn read(spec: &CertificateSigningRequestSpec, namespace: &str, trust_domain: &str) -> Result<Asked, Denial> {
    let agents = format!("system:serviceaccount:{namespace}:{AGENTS}");
    if spec.username.as_deref() != Some(&agents) {
        let who = spec.username.as_deref().unwrap_or_default();
        return denial("NotAnAgent", format!("{who} may not ask for mesh certificates, only {agents} may"));
    }
    let place = place(spec)?;
    check_usages(spec)?;
    let (name, key) = parse(&spec.request.0)?;
    let Some((namespace, service_account)) = workload(&name, trust_domain) else {
        let wanted = format!("spiffe://{trust_domain}/ns/NAMESPACE/sa/ACCOUNT");
        return denial("WrongName", format!("{} is no identity of this mesh: {wanted}", name.escape_default()));
    };
    let (namespace, service_account) = (namespace.to_owned(), service_account.to_owned());
    let asked = spec.expiration_seconds.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
    let lifetime = asked.unwrap_or(LEAF_LIFETIME).min(LEAF_LIFETIME);
    Ok(Asked { identity: name, namespace, service_account, key, lifetime, place })
}

/// What the API server's authenticator says of the requester; who asks cannot choose it.
fn place(spec: &CertificateSigningRequestSpec) -> Result<Place, Denial> {
    let told = |key: &str| {
        let values = spec.extra.as_ref()?.get(&format!("authentication.kubernetes.io/{key}"))?;
        <&[String; 1]>::try_from(values.as_slice()).ok().map(|[value]| value.clone()).filter(|value| !value.is_empty())
    };
    match (told("node-name"), told("pod-name")) {
        (Some(node), _) => Ok(Place::Node(node)),
        (None, Some(name)) => Ok(Place::AgentPod { name, uid: told("pod-uid") }),
        (None, None) => denial("NodeUnknown", "the requester's token is bound to no pod, so its node is not known"),
    }
}

fn check_usages(spec: &CertificateSigningRequestSpec) -> Result<(), Denial> {
    let mut usages: Vec<_> = spec.usages.iter().flatten().map(String::as_str).collect();
    let mut wanted = USAGES.to_vec();
    usages.sort_unstable();
    usages.dedup();
    wanted.sort_unstable();
    match usages == wanted {
        true => Ok(()),
        false => denial("WrongUsages", format!("usages must be {}", USAGES.join(", "))),
    }
}

/// The one name and the key of a PKCS #10 request (RFC 2986) that is signed with that key.
fn parse(pem: &[u8]) -> Result<(String, PublicKey), Denial> {
    const MALFORMED: &str = "MalformedRequest";
    if pem.len() > CERTIFICATE_REQUEST_BYTES {
        return denial(MALFORMED, format!("more than {CERTIFICATE_REQUEST_BYTES} bytes"));
    }
    let Ok(der) = CertificateSigningRequestDer::from_pem_slice(pem) else {
        return denial(MALFORMED, "no CERTIFICATE REQUEST in PEM");
    };
    let Ok(([], request)) = X509CertificationRequest::from_der(&der) else {
        return denial(MALFORMED, "no PKCS #10 request");
    };
    let info = &request.certification_request_info;
    let key = requested_key(&info.subject_pki)?;
    let signed = Signed::read(&der).map(|signed| signed.verify(info.subject_pki.raw, webpki::ALL_VERIFICATION_ALGS));
    if !matches!(signed, Some(Ok(()))) {
        return denial(MALFORMED, "it is not signed with its own key, or by an algorithm that is not accepted");
    }
    let mut names = Vec::new();
    for attribute in info.iter_attributes() {
        let ParsedCriAttribute::ExtensionRequest(requested) = attribute.parsed_attribute() else {
            return denial(MALFORMED, "it has attributes other than a request for extensions");
        };
        for extension in &requested.extensions {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(alternatives) => names.extend(&alternatives.general_names),
                ParsedExtension::BasicConstraints(constraints) if constraints.ca => {
                    return denial("NoCa", "certificates of CAs are not issued");
                }
                ParsedExtension::KeyUsage(usage) if usage.key_cert_sign() || usage.crl_sign() => {
                    return denial("NoCa", "certificates of CAs are not issued");
                }
                ParsedExtension::BasicConstraints(_)
                | ParsedExtension::KeyUsage(_)
                | ParsedExtension::ExtendedKeyUsage(_) => {}
                _ => return denial(MALFORMED, format!("the extension {} is not issued", extension.oid)),
            }
        }
    }
    match names.as_slice() {
        [GeneralName::URI(name)] => Ok(((*name).to_owned(), key)),
        [_] => denial("WrongName", "its name is no URI"),
        names => denial("WrongName", format!("it has {} names: exactly one is issued", names.len())),
    }
}

fn requested_key(spki: &SubjectPublicKeyInfo<'_>) -> Result<PublicKey, Denial> {
    let oid = spki.algorithm.algorithm.to_id_string();
    let curve = spki.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
    let curve = curve.map(|curve| curve.to_id_string()).unwrap_or_default();
    let algorithm = match (oid.as_str(), curve.as_str()) {
        ("1.2.840.10045.2.1", "1.2.840.10045.3.1.7") => &PKCS_ECDSA_P256_SHA256,
        ("1.2.840.10045.2.1", "1.3.132.0.34") => &PKCS_ECDSA_P384_SHA384,
        ("1.2.840.113549.1.1.1", _) if spki.parsed().is_ok_and(|key| key.key_size() >= 2048) => &PKCS_RSA_SHA256,
        _ => return denial("WeakKey", "keys must be ECDSA of P-256 or P-384, or RSA of 2048 bits or more"),
    };
    Ok(PublicKey { bits: spki.subject_public_key.data.to_vec(), algorithm })
}

/// Namespace and service account of an identity of the mesh, spelled as the agents spell it.
fn workload<'a>(name: &'a str, trust_domain: &str) -> Option<(&'a str, &'a str)> {
    let path = name.strip_prefix("spiffe://")?.strip_prefix(trust_domain)?;
    let (namespace, service_account) = path.strip_prefix("/ns/")?.split_once("/sa/")?;
    let fit = |name: &str| {
        let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
        !name.is_empty() && name.len() <= 253 && name.bytes().all(known)
    };
    (fit(namespace) && fit(service_account)).then_some((namespace, service_account))
}

/// Whether one of these pods, all of the identity's namespace, is why the node's agent asks.
pub fn check_pods(pods: &[Pod], asked: &Asked, node: &str) -> Result<(), Denial> {
    let bears = |pod: &&Pod| {
        let spec = pod.spec.as_ref();
        let account = spec.and_then(|spec| spec.service_account_name.as_deref()).filter(|name| !name.is_empty());
        pod.metadata.namespace.as_deref() == Some(&asked.namespace)
            && account.unwrap_or("default") == asked.service_account
            && spec.and_then(|spec| spec.node_name.as_deref()) == Some(node)
    };
    let mut others = "";
    for pod in pods.iter().filter(bears) {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
        if ["Succeeded", "Failed"].contains(&phase) {
            others = " that is not finished";
        } else if pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true) {
            others = " with a network of its own";
        } else {
            return Ok(());
        }
    }
    let (namespace, account) = (&asked.namespace, &asked.service_account);
    denial("NoSuchPod", format!("no pod{others} of service account {namespace}/{account} runs on node {node}"))
}

/// The node that a request came from, by the agent's own pod.
pub fn node_of(agent: Option<&Pod>, name: &str, uid: Option<&str>) -> Result<String, Denial> {
    let agent = agent.filter(|pod| uid.is_none_or(|uid| pod.metadata.uid.as_deref() == Some(uid)));
    let node = agent.and_then(|pod| pod.spec.as_ref()?.node_name.clone()).filter(|node| !node.is_empty());
    node.map_or_else(|| denial("NodeUnknown", format!("the agent's pod {name} is on no node any more")), Ok)
}

/// A decision as the API wants it.
pub fn condition(kind: &str, reason: &str, message: &str) -> CertificateSigningRequestCondition {
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
    let now = Time(Timestamp::now());
    CertificateSigningRequestCondition {
        type_: kind.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_update_time: Some(now.clone()),
        last_transition_time: Some(now),
    }
}
