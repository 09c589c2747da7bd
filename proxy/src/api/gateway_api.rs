//! gateway.networking.k8s.io kinds, as far as they are honoured. [`crate::mesh`] brings them into the shape of Istio's own
//! Gateway and VirtualService, whose types serve here too where a field means the same.

use std::{collections::BTreeMap, time::Duration};

use smol_str::SmolStr;

use super::virtual_service::{Headers, HttpMatch, PartsPerMillion, Redirect, Rewrite};

/// The API group.
pub const GROUP: &str = "gateway.networking.k8s.io";
/// [`super::ObjectId::kind`] of a Gateway of this group; that of Istio's is plain `Gateway`.
pub const GATEWAY: &str = "Gateway.gateway.networking.k8s.io";

/// Option of a listener's `tls`: how it is terminated, in Istio's words.
pub const TERMINATE_MODE: &str = "gateway.istio.io/tls-terminate-mode";
/// … and which cipher suites of TLS 1.2 are offered, separated by commas.
pub const CIPHER_SUITES: &str = "gateway.istio.io/tls-cipher-suites";

/// GatewayClass: who serves the Gateways of this class.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GatewayClass {
    pub controller_name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gateway {
    /// `gatewayClassName`
    pub class: String,
    pub listeners: Vec<Listener>,
    pub addresses: Vec<Address>,
}

/// `addresses[]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// `IPAddress`, `Hostname` or something of another controller's.
    pub kind: String,
    pub value: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Unique within the Gateway: `sectionName` of routes.
    pub name: String,
    pub port: u16,
    pub protocol: ListenerProtocol,
    /// In lower case, may begin with `*.`; None: every host.
    pub hostname: Option<String>,
    pub tls: Option<ListenerTls>,
    pub allowed_routes: AllowedRoutes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerProtocol {
    Http,
    Https,
    Tls,
    Tcp,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListenerTls {
    /// `mode: Passthrough`; else `Terminate`.
    pub passthrough: bool,
    pub options: BTreeMap<String, String>,
    pub certificates: Vec<ObjectRef>,
    /// Clients must show a certificate. None: they are not asked for one.
    pub clients: Option<FrontendValidation>,
}

/// `frontendValidation` of a listener, or what `tls.frontend` of the Gateway says about its port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FrontendValidation {
    /// Path of `caCertificateRefs`, for messages.
    pub field: String,
    /// One of these has issued the certificate of a client.
    pub cas: Vec<ObjectRef>,
    /// Mode `AllowInsecureFallback`: a client may show none. One that it shows must be good all the same.
    pub optional: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedRoutes {
    pub from: RoutesFrom,
    /// Group and kind; empty: what goes with the protocol.
    pub kinds: Vec<(String, String)>,
}

/// `allowedRoutes.namespaces`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RoutesFrom {
    #[default]
    Same,
    All,
    None,
    Selector(LabelSelector),
}

/// metav1.LabelSelector: all of it must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    pub labels: BTreeMap<String, String>,
    pub expressions: Vec<LabelExpression>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelExpression {
    pub key: String,
    pub operator: LabelOperator,
    /// Of `In` and `NotIn`.
    pub values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LabelOperator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

/// A reference to an object, defaults filled in; namespace None: that of the object that refers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectRef {
    pub group: String,
    pub kind: String,
    pub namespace: Option<SmolStr>,
    pub name: SmolStr,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpRoute {
    pub parents: Vec<ParentRef>,
    /// In lower case; empty: those of the listener.
    pub hostnames: Vec<String>,
    pub rules: Vec<HttpRule>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParentRef {
    pub object: ObjectRef,
    pub section: Option<String>,
    pub port: Option<u16>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpRule {
    /// None: named by its place.
    pub name: Option<String>,
    /// One of them is enough; empty matches every request.
    pub matches: Vec<HttpMatch>,
    pub headers: Headers,
    pub redirect: Option<Redirect>,
    pub rewrite: Option<Rewrite>,
    pub mirrors: Vec<MirrorFilter>,
    /// `timeouts.request`; None: no limit.
    pub request_timeout: Option<Duration>,
    /// `timeouts.backendRequest`: of one attempt.
    pub backend_timeout: Option<Duration>,
    pub retry: Option<Retry>,
    pub backends: Vec<HttpBackend>,
}

/// `retry`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retry {
    /// Status codes, besides connection errors.
    pub codes: Vec<u16>,
    pub attempts: Option<u32>,
    pub backoff: Option<Duration>,
}

/// Filter `RequestMirror`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorFilter {
    pub backend: BackendRef,
    pub share: PartsPerMillion,
    /// Its index among the rule's filters, for messages.
    pub filter: usize,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendRef {
    pub object: ObjectRef,
    pub port: Option<u16>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpBackend {
    pub backend: BackendRef,
    pub weight: u32,
    pub headers: Headers,
}

/// TLSRoute: TLS passed through by its server name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsRoute {
    pub parents: Vec<ParentRef>,
    /// In lower case; empty: those of the listener.
    pub hostnames: Vec<String>,
    pub rules: Vec<TlsRule>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsRule {
    /// None: named by its place.
    pub name: Option<String>,
    pub backends: Vec<TlsBackend>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsBackend {
    pub backend: BackendRef,
    pub weight: u32,
}

/// BackendTLSPolicy: TLS towards Services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendTlsPolicy {
    pub targets: Vec<BackendTlsTarget>,
    /// `caCertificateRefs`; empty: `wellKnownCACertificates: System`.
    pub cas: Vec<ObjectRef>,
    /// SNI, and the name that is checked where `subject_alt_names` is empty.
    pub hostname: String,
    /// `subjectAltNames[]`: host names and URIs, one of which the server must bear.
    pub subject_alt_names: Vec<String>,
}

/// `targetRefs[]`, of the policy's own namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendTlsTarget {
    pub object: ObjectRef,
    /// The name of a port; None: every port.
    pub section: Option<String>,
}

/// Lets objects of other namespaces refer to those of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReferenceGrant {
    /// One of these may refer …
    pub from: Vec<GrantFrom>,
    /// … to one of those.
    pub to: Vec<GrantTo>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GrantFrom {
    pub group: String,
    pub kind: String,
    pub namespace: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GrantTo {
    pub group: String,
    pub kind: String,
    /// None: every object of this kind.
    pub name: Option<String>,
}
