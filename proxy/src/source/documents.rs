//! A file's text to objects. Each document stands for itself: what is wrong with one is said with its line, column, object
//! and field, and the others are read all the same.

mod embedded;
mod foreign;
pub mod parts;
mod positions;

use std::{
    collections::{BTreeSet, HashSet},
    path::Path,
    sync::Arc,
};

use self::{
    embedded::{inner, replace},
    positions::positions,
};
use super::{
    decode::{Dialect, Field, Fields, Finding, Findings},
    kinds,
    yaml::{self, Fault, Node, Position, Value},
};
use crate::api::{
    AnyObject, Diagnostic, Object, ObjectId, ObjectMeta, Origin, Positions, Severity, Start, gateway_api,
};

/// What a file holds.
#[derive(Debug, Default)]
pub struct Parsed {
    pub objects: Vec<AnyObject>,
    /// One entry for each document that is refused, in order.
    pub refused: Vec<Refused>,
    /// Warnings and infos.
    pub diagnostics: Vec<Diagnostic>,
    /// Some of the text is no YAML.
    pub not_yaml: bool,
}

/// A document that does not count.
#[derive(Debug)]
pub struct Refused {
    /// None where the text does not tell which object it is.
    pub id: Option<ObjectId>,
    /// Every mistake in it; at least one.
    pub errors: Vec<Diagnostic>,
}

const CORE: &[&str] = &["v1"];
const ISTIO: &[&str] = &["v1", "v1beta1", "v1alpha3"];
const SECURITY: &[&str] = &["v1", "v1beta1"];
const GATEWAY_API: &[&str] = &["v1", "v1beta1"];

const DISCOVERY: &str = "discovery.k8s.io";

/// Kinds whose objects are in no namespace.
const CLUSTER_WIDE: &[&str] = &["Namespace", "GatewayClass"];

/// Reads every document of a file (`.json` is JSON, all else YAML, several documents each).
#[must_use]
pub fn parse_file(path: Arc<Path>, text: &str) -> Parsed {
    let read = parts::read(&path, text, Vec::new(), &mut Shapes::default());
    let mut whole = Parsed::default();
    for part in read.parts {
        part.into_parsed(&mut whole);
    }
    whole.tell_once();
    whole
}

impl Parsed {
    /// What is about no object is about a kind that is not read: told once.
    pub fn tell_once(&mut self) {
        let mut told: BTreeSet<String> = BTreeSet::new();
        self.diagnostics.retain(|said| said.object.is_some() || told.insert(said.message.clone()));
    }
}

/// The positions of documents read so far: thousands of documents have one shape.
#[derive(Debug, Default)]
pub struct Shapes {
    known: HashSet<Arc<Positions>>,
    /// How many may be known before those that nobody uses any more are looked for.
    most: usize,
}

impl Shapes {
    fn shared(&mut self, positions: Positions) -> Arc<Positions> {
        if let Some(known) = self.known.get(&positions) {
            return known.clone();
        }
        if self.known.len() >= self.most {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.most = (self.known.len() * 2).max(64);
        }
        let positions = Arc::new(positions);
        self.known.insert(positions.clone());
        positions
    }
}

struct Reader<'a> {
    path: Arc<Path>,
    parsed: Parsed,
    shapes: &'a mut Shapes,
    /// Kinds that an info was given for.
    skipped: BTreeSet<String>,
}

/// The `apiVersion` and `kind` of a document, and its root.
struct Header<'a> {
    group: &'a str,
    version: &'a str,
    kind: &'a str,
    root: &'a Node,
}

impl Reader<'_> {
    fn part(&mut self, part: yaml::Part<'_>) {
        let mut found = Vec::new();
        part.documents(&mut found);
        for document in found {
            match document {
                Ok(document) => self.document(&document.root, &document.faults),
                Err(fault) => {
                    self.parsed.not_yaml = true;
                    self.refuse(None, vec![finding(&fault)]);
                }
            }
        }
    }

    fn document(&mut self, root: &Node, faults: &[Fault]) {
        let Some(header) = self.header(root) else { return };
        let list = matches!(root.get("items"), Some(Node { value: Value::List(_), .. }));
        if header.kind.ends_with("List") && list && faults.is_empty() {
            if let Some(Node { value: Value::List(items), .. }) = root.get("items") {
                items.iter().for_each(|item| self.document(item, &[]));
            }
            return;
        }
        let findings = Findings::default();
        for fault in faults {
            findings.add(Severity::Error, fault.at, "", &fault.message);
        }
        match (header.group, header.kind) {
            ("", "Pod") => self.object(&header, "Pod", CORE, &findings, &["status"], AnyObject::Pod, |root, meta| {
                Some(kinds::core::pod(root, meta))
            }),
            ("", "Service") => self.object(&header, "Service", CORE, &findings, &[], AnyObject::Service, |root, _| {
                kinds::core::service(root)
            }),
            ("", "Namespace") => {
                self.object(&header, "Namespace", CORE, &findings, &[], AnyObject::Namespace, |_, _| {
                    Some(Default::default())
                });
            }
            ("", "Secret") => {
                let read = &["data", "stringData"];
                self.object(&header, "Secret", CORE, &findings, read, AnyObject::Secret, |root, _| {
                    Some(kinds::core::secret(root))
                });
            }
            ("", "ConfigMap") => self.config_map(&header, &findings, faults),
            (DISCOVERY, "EndpointSlice") => {
                let (read, wrap) = (kinds::endpoint_slice::READ, AnyObject::EndpointSlice);
                self.object(&header, "EndpointSlice", CORE, &findings, read, wrap, |root, meta| {
                    kinds::endpoint_slice::endpoint_slice(root, meta)
                });
            }
            ("networking.istio.io", "ServiceEntry") => {
                self.object(&header, "ServiceEntry", ISTIO, &findings, &[], AnyObject::ServiceEntry, |root, _| {
                    kinds::service_entry::service_entry(root)
                });
            }
            ("networking.istio.io", "DestinationRule") => {
                self.object(
                    &header,
                    "DestinationRule",
                    ISTIO,
                    &findings,
                    &[],
                    AnyObject::DestinationRule,
                    |root, _| kinds::destination_rule::destination_rule(root),
                );
            }
            ("networking.istio.io", "VirtualService") => {
                self.object(&header, "VirtualService", ISTIO, &findings, &[], AnyObject::VirtualService, |root, _| {
                    kinds::virtual_service::virtual_service(root)
                });
            }
            ("networking.istio.io", "Gateway") => {
                self.object(&header, "Gateway", ISTIO, &findings, &[], AnyObject::Gateway, |root, _| {
                    kinds::gateway::gateway(root)
                });
            }
            ("networking.istio.io", "Sidecar") => {
                self.object(&header, "Sidecar", ISTIO, &findings, &[], AnyObject::Sidecar, |root, _| {
                    kinds::sidecar::sidecar(root)
                });
            }
            ("security.istio.io", "PeerAuthentication") => {
                let (kind, wrap) = ("PeerAuthentication", AnyObject::PeerAuthentication);
                self.object(&header, kind, SECURITY, &findings, &[], wrap, |root, _| {
                    kinds::security::peer_authentication(root)
                });
            }
            ("security.istio.io", "AuthorizationPolicy") => {
                let (kind, wrap) = ("AuthorizationPolicy", AnyObject::AuthorizationPolicy);
                self.object(&header, kind, SECURITY, &findings, &[], wrap, |root, meta| {
                    kinds::security::authorization_policy(root, meta)
                });
            }
            ("install.istio.io", "IstioOperator")
                if root.get("spec").is_some_and(|s| s.get("meshConfig").is_some()) =>
            {
                let versions = &["v1alpha1"];
                self.object(&header, "IstioOperator", versions, &findings, &[], AnyObject::MeshConfig, |root, _| {
                    let spec = root.require("spec")?.entries();
                    let mesh = spec.into_iter().find(|(key, _)| *key == "meshConfig")?.1;
                    kinds::mesh_config::mesh_config(&mesh)
                });
            }
            (gateway_api::GROUP, kind) => self.gateway_api(&header, kind, findings, faults),
            _ => self.foreign(&header, faults),
        }
    }

    fn gateway_api(&mut self, header: &Header<'_>, kind: &str, findings: Findings, faults: &[Fault]) {
        use kinds::gateway_api as read;
        let (versions, none): (_, &[&str]) = (GATEWAY_API, &[]);
        match kind {
            "GatewayClass" => {
                self.object(header, "GatewayClass", versions, &findings, none, AnyObject::GatewayClass, |root, _| {
                    read::gateway_class(root)
                });
            }
            "Gateway" => {
                let kind = gateway_api::GATEWAY;
                self.object(header, kind, versions, &findings, none, AnyObject::KubeGateway, |root, _| {
                    read::gateway(root)
                });
            }
            "HTTPRoute" => {
                self.object(header, "HTTPRoute", versions, &findings, none, AnyObject::HttpRoute, |root, _| {
                    read::http_route(root)
                });
            }
            "TLSRoute" => {
                let versions = &["v1", "v1beta1", "v1alpha3", "v1alpha2"];
                self.object(header, "TLSRoute", versions, &findings, none, AnyObject::TlsRoute, |root, _| {
                    read::tls_route(root)
                });
            }
            "BackendTLSPolicy" => {
                let (versions, wrap) = (&["v1", "v1beta1", "v1alpha3"], AnyObject::BackendTlsPolicy);
                self.object(header, "BackendTLSPolicy", versions, &findings, none, wrap, |root, _| {
                    read::backend_tls_policy(root)
                });
            }
            "ReferenceGrant" => {
                let wrap = AnyObject::ReferenceGrant;
                self.object(header, "ReferenceGrant", versions, &findings, none, wrap, |root, _| {
                    read::reference_grant(root)
                });
            }
            _ => self.foreign(header, faults),
        }
    }

    /// Finds out what a document is; None where it says so badly that it is refused.
    fn header<'a>(&mut self, root: &'a Node) -> Option<Header<'a>> {
        let mut refuse = |at: Position, field: &str, message: &str| {
            let finding =
                Finding { severity: Severity::Error, at, field: field.to_owned(), message: message.to_owned() };
            self.refuse(None, vec![finding]);
            None
        };
        let Value::Map(_) = root.value else {
            return refuse(
                root.at,
                "",
                "not an object: a document is a mapping with `apiVersion`, `kind` and `metadata`",
            );
        };
        let mesh = ["outboundTrafficPolicy", "accessLogFile", "meshConfig", "tlsDefaults", "trustDomain"];
        if root.get("kind").is_none() && mesh.iter().any(|key| root.get(key).is_some()) {
            return refuse(root.at, "", "`kind` is missing; mesh settings go into the ConfigMap `istio`, key `mesh`");
        }
        let Some(kind) = root.get("kind") else { return refuse(root.at, "", "`kind` is missing") };
        let Some(api_version) = root.get("apiVersion") else { return refuse(root.at, "", "`apiVersion` is missing") };
        let Some(kind_text) = kind.text() else { return refuse(kind.at, "kind", "must be text") };
        let Some(version_text) = api_version.text() else {
            return refuse(api_version.at, "apiVersion", "must be text");
        };
        let (group, version) = version_text.split_once('/').unwrap_or(("", version_text));
        Some(Header { group, version, kind: kind_text, root })
    }

    /// Reads one object of a kind that counts. `read` are the root fields that its reader takes besides the usual ones.
    #[expect(clippy::too_many_arguments, reason = "one row of the table of kinds")]
    fn object<S>(
        &mut self,
        header: &Header<'_>,
        kind: &'static str,
        versions: &[&str],
        findings: &Findings,
        read: &[&str],
        wrap: fn(Arc<Object<S>>) -> AnyObject,
        spec: impl FnOnce(&Fields<'_>, &ObjectMeta) -> Option<S>,
    ) {
        // Istio's kinds are protobuf JSON, all others plain Go structs.
        let dialect = match header.group {
            "" | DISCOVERY | gateway_api::GROUP => Dialect::Kubernetes,
            _ => Dialect::Istio,
        };
        let mut names = vec!["metadata", "spec"];
        names.extend(read);
        let ignored = ["apiVersion", "kind", "status", "type", "immutable", "binaryData"];
        let root = Field::root(header.root, "", dialect, findings);
        let fields = root.fields(&names, if header.group.is_empty() { &ignored } else { &ignored[..3] }, &[]);
        let meta = fields.as_ref().and_then(|fields| kinds::meta::metadata(fields, !CLUSTER_WIDE.contains(&kind)));
        let id = meta.as_ref().map(|meta| ObjectId::new(kind, meta.namespace.as_str(), meta.name.as_str()));
        if !versions.contains(&header.version) {
            let at = header.root.get("apiVersion").map_or(header.root.at, |node| node.at);
            let message = format!("\"{}\" is not one of {}", header.version, versions.join(", "));
            findings.add(Severity::Error, at, "apiVersion", message);
        }
        let spec = match (&fields, &meta) {
            (Some(fields), Some(meta)) => spec(fields, meta),
            _ => None,
        };
        let found = findings.take();
        let errors = found.iter().any(|finding| finding.severity == Severity::Error);
        match (id, meta, spec) {
            (Some(id), Some(meta), Some(spec)) if !errors => {
                self.note(Some(&id), found);
                let positions = self.shapes.shared(positions(header.root, dialect));
                let (file, start) = (self.path.clone(), Start::new(header.root.at));
                let origin = Origin { file, start, positions, made_from: Origin::not_made() };
                self.parsed.objects.push(wrap(Arc::new(Object { id, meta, spec, origin })));
            }
            (id, ..) => self.refuse(id, found),
        }
    }

    /// The ConfigMap `istio` holds mesh settings, as YAML inside its key `mesh`. Others may hold certificates.
    fn config_map(&mut self, header: &Header<'_>, findings: &Findings, faults: &[Fault]) {
        let data = header.root.get("data");
        let named_istio = header.root.get("metadata").and_then(|m| m.get("name")?.text()) == Some("istio");
        let Some(mesh) = data.and_then(|data| data.get("mesh")).filter(|_| named_istio) else {
            if data.is_none() {
                return self.foreign(header, faults);
            }
            return self.object(header, "ConfigMap", CORE, findings, &["data"], AnyObject::ConfigMap, |root, _| {
                Some(kinds::core::config_map(root))
            });
        };
        // The inner text has places of its own: bring them to those of the file, and put the tree where the text was.
        let mut root = header.root.clone();
        match inner(mesh) {
            Ok(tree) => replace(&mut root, "data", "mesh", tree),
            Err(faults) => {
                replace(&mut root, "data", "mesh", Node { at: mesh.at, value: Value::Plain(String::new()) });
                for fault in faults {
                    findings.add(Severity::Error, fault.at, "data.mesh", fault.message);
                }
            }
        }
        let header = Header { root: &root, ..*header };
        self.object(&header, "ConfigMap", CORE, findings, &["data"], AnyObject::MeshConfig, |root, _| {
            let mesh = root.get("data")?.entries().into_iter().find(|(key, _)| *key == "mesh")?.1;
            if mesh.node.is_null() {
                return Some(Default::default());
            }
            // The settings are protobuf JSON, whatever holds them.
            kinds::mesh_config::mesh_config(&mesh.in_dialect(Dialect::Istio))
        });
    }

    fn refuse(&mut self, id: Option<ObjectId>, found: Vec<Finding>) {
        let (mut errors, rest): (Vec<_>, Vec<_>) = found.into_iter().partition(|f| f.severity == Severity::Error);
        if errors.is_empty() {
            // Cannot be: a reader that gives nothing says why. Refusing without a word would be worse.
            let message = "cannot be read".to_owned();
            errors.push(Finding { severity: Severity::Error, at: (1, 1), field: String::new(), message });
        }
        self.note(id.as_ref(), rest);
        let errors = self.diagnostics(id.as_ref(), errors);
        self.parsed.refused.push(Refused { id, errors });
    }

    fn note(&mut self, id: Option<&ObjectId>, found: Vec<Finding>) {
        let found = self.diagnostics(id, found);
        self.parsed.diagnostics.extend(found);
    }

    /// Findings in the order of the text, each once (some fields are looked at twice).
    fn diagnostics(&self, id: Option<&ObjectId>, mut found: Vec<Finding>) -> Vec<Diagnostic> {
        found.sort_by(|a, b| (a.at, &a.field, &a.message).cmp(&(b.at, &b.field, &b.message)));
        found.dedup_by(|a, b| (a.at, &a.field, &a.message) == (b.at, &b.field, &b.message));
        let diagnostic = |f: Finding| Diagnostic {
            severity: f.severity,
            object: id.cloned(),
            file: self.path.clone(),
            line: f.at.0,
            column: f.at.1,
            field: f.field,
            message: f.message,
        };
        found.into_iter().map(diagnostic).collect()
    }
}

fn finding(fault: &Fault) -> Finding {
    Finding { severity: Severity::Error, at: fault.at, field: String::new(), message: fault.message.clone() }
}

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;
