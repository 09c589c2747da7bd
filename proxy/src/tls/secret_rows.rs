//! Certificates and CAs that rules and servers use, as rows of `proxy-config secret`.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use super::{
    TlsContextSettings, TlsError,
    inspect::{self, CertificateSummary},
    material::{Blob, Inputs, RawIdentity, RawTrust, ServerInputs},
    trust::Said,
};
use crate::{
    limits::EXPIRY_WARNING,
    mesh::{IdentitySource, Material, Place, ServerTlsSettings, TrustSource},
};

/// One line of `proxy-config secret`: a certificate chain, or a CA bundle, that rules use.
#[derive(Clone, Debug)]
pub struct SecretRow {
    /// `kubernetes://X`, `kubernetes://X-cacert`, `file-cert:crt~key`, `file-root:ca`, `default`, `ROOTCA`
    pub name: String,
    /// Of the Secret; empty for files of the host.
    pub namespace: String,
    /// `Cert Chain`, or `CA` where basicConstraints of the first certificate say so (as istioctl decides it).
    pub kind: &'static str,
    /// `ACTIVE`, or why it cannot be used.
    pub status: String,
    /// Usable, and within its validity period at the time of the reload; [`Self::is_valid_at`] looks again.
    pub valid: bool,
    /// Of the first certificate, in decimal; empty where there is none.
    pub serial: String,
    /// Seconds since the epoch, of the first certificate.
    pub not_after: Option<i64>,
    /// Seconds since the epoch, of the first certificate.
    pub not_before: Option<i64>,
    /// All certificates of the chain or bundle, in order.
    pub chain: Vec<CertificateSummary>,
    /// Each of them counts by itself: CAs that somebody has named, of which one is as good as the other. The system's own are
    /// too many to be shown.
    pub bundle: bool,
    /// The rules that use it: the workloads whose clusters have one of these settings see the row.
    pub settings: Vec<Arc<TlsContextSettings>>,
    /// The same of servers, whose settings gateways' listeners and pods' own ports have.
    pub servers: Vec<Arc<ServerTlsSettings>>,
}

impl SecretRow {
    /// A row about the first certificate of `chain`, of no rule yet; validity is as of `now`.
    pub(super) fn new(
        name: &str,
        namespace: &str,
        kind: &'static str,
        status: String,
        chain: Vec<CertificateSummary>,
        now: SystemTime,
    ) -> Self {
        let first = chain.first();
        let mut row = Self {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            kind,
            status,
            valid: false,
            serial: first.map(|first| first.serial.clone()).unwrap_or_default(),
            not_after: first.map(|first| first.not_after),
            not_before: first.map(|first| first.not_before),
            chain,
            bundle: false,
            settings: Vec::new(),
            servers: Vec::new(),
        };
        row.valid = row.is_valid_at(now);
        row
    }

    /// `VALID CERT` now.
    #[must_use]
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        self.certificate_is_valid_at(self.chain.first(), now)
    }

    /// The same of one of its certificates.
    #[must_use]
    pub fn certificate_is_valid_at(&self, certificate: Option<&CertificateSummary>, now: SystemTime) -> bool {
        self.status == ACTIVE && certificate.is_some_and(|certificate| certificate.is_valid_at(now))
    }
}

pub(super) const ACTIVE: &str = "ACTIVE";

/// By name and namespace.
#[derive(Debug, Default)]
pub(super) struct Rows(BTreeMap<(String, String), SecretRow>);

/// Who uses what a row is about.
#[derive(Clone, Copy)]
enum User<'a> {
    Client(&'a Arc<TlsContextSettings>),
    Server(&'a Arc<ServerTlsSettings>),
}

impl Rows {
    pub(super) fn into_list(self) -> Vec<SecretRow> {
        self.0.into_values().collect()
    }

    pub(super) fn add_client(
        &mut self,
        settings: &Arc<TlsContextSettings>,
        inputs: &Inputs,
        failure: Option<&Arc<TlsError>>,
    ) {
        let user = User::Client(settings);
        if let (Some(source), Some(raw)) = (&settings.identity, &inputs.identity) {
            self.add_identity(user, source, raw, failure);
        }
        self.add_trust(user, &settings.trust, &inputs.trust);
    }

    pub(super) fn add_server(
        &mut self,
        settings: &Arc<ServerTlsSettings>,
        inputs: &ServerInputs,
        failure: Option<&Arc<TlsError>>,
    ) {
        let user = User::Server(settings);
        for (source, raw) in settings.identities.iter().zip(&inputs.identities) {
            self.add_identity(user, source, raw, failure);
        }
        if let (Some(trust), Some(read)) = (settings.clients.trust(), &inputs.clients) {
            self.add_trust(user, &trust.ca, &read.trust);
        }
    }

    fn add_identity(
        &mut self,
        user: User<'_>,
        source: &IdentitySource,
        raw: &Result<RawIdentity, TlsError>,
        failure: Option<&Arc<TlsError>>,
    ) {
        let (name, namespace) = match source {
            IdentitySource::Secret { namespace, name } => (format!("kubernetes://{name}"), namespace.clone()),
            IdentitySource::Files { certificate, key } => {
                (format!("file-cert:{}~{}", certificate.path, key.path), namespace_of(certificate))
            }
        };
        // Only what is wrong with this very certificate or key belongs into its row.
        let failure = failure.filter(|error| raw.as_ref().is_ok_and(|raw| error.is_about(raw)));
        let read = raw.as_ref().map(|raw| &raw.certificate);
        self.add(user, name, namespace, "Cert Chain", read, failure);
    }

    fn add_trust(&mut self, user: User<'_>, source: &TrustSource, raw: &Result<RawTrust, TlsError>) {
        let (name, namespace) = match source {
            TrustSource::System => return,
            TrustSource::Secret { namespace, name } => (format!("kubernetes://{name}-cacert"), namespace.clone()),
            TrustSource::ConfigMap { namespace, name } => {
                (format!("configmap://{namespace}/{name}"), namespace.clone())
            }
            TrustSource::File(material) => (format!("file-root:{}", material.path), namespace_of(material)),
        };
        let read = match raw {
            Ok(RawTrust::Configured(blob) | RawTrust::Public(blob)) => Ok(blob),
            Ok(_) => return,
            Err(error) => Err(error),
        };
        self.add(user, name, namespace, "CA", read, None).bundle = matches!(raw, Ok(RawTrust::Configured(_)));
    }

    fn add(
        &mut self,
        user: User<'_>,
        name: String,
        namespace: String,
        kind_unread: &'static str,
        raw: Result<&Blob, &TlsError>,
        failure: Option<&Arc<TlsError>>,
    ) -> &mut SecretRow {
        let row = self
            .0
            .entry((name, namespace))
            .or_insert_with_key(|(name, namespace)| read_row(name, namespace, kind_unread, raw, failure));
        match user {
            User::Client(settings) => row.settings.push(Arc::clone(settings)),
            User::Server(settings) => row.servers.push(Arc::clone(settings)),
        }
        row
    }
}

fn read_row(
    name: &str,
    namespace: &str,
    kind_unread: &'static str,
    raw: Result<&Blob, &TlsError>,
    failure: Option<&Arc<TlsError>>,
) -> SecretRow {
    let (chain, unreadable) = match raw {
        Err(error) => (Vec::new(), Some(error.to_string())),
        Ok(blob) => match inspect::chain(&blob.bytes) {
            Ok(chain) if chain.is_empty() => {
                (chain, Some(TlsError::NoCertificate { from: blob.from.clone() }.to_string()))
            }
            Ok(chain) => (chain, None),
            Err(why) => (Vec::new(), Some(TlsError::BadCertificate { from: blob.from.clone(), why }.to_string())),
        },
    };
    let status = unreadable.or_else(|| failure.map(ToString::to_string)).unwrap_or_else(|| ACTIVE.to_owned());
    let kind = match chain.first() {
        Some(first) if first.is_ca => "CA",
        Some(_) => "Cert Chain",
        None => kind_unread,
    };
    SecretRow::new(name, namespace, kind, status, chain, SystemTime::now())
}

fn namespace_of(material: &Material) -> String {
    match &material.place {
        Place::Host => String::new(),
        Place::Secret { namespace, .. } | Place::ConfigMap { namespace, .. } => namespace.clone(),
    }
}

/// What should be said about certificates, once for each.
pub(super) fn warnings(rows: &[SecretRow], said: &Said) -> Vec<String> {
    let now = inspect::unix_seconds(SystemTime::now());
    let soon = now.saturating_add(i64::try_from(EXPIRY_WARNING.as_secs()).unwrap_or(i64::MAX));
    let mut found = Vec::new();
    for row in rows {
        for certificate in &row.chain {
            let mut say = |remark: &str, text: String| {
                let identity = format!("{}|{}|{}", row.name, certificate.issuer, certificate.serial);
                if said.first(identity.as_bytes(), remark) {
                    found.push(text);
                }
            };
            let (name, subject) = (&row.name, &certificate.subject);
            let when = inspect::timestamp(certificate.not_after);
            if certificate.not_after < now {
                say("expired", format!("{name}: the certificate {subject} expired at {when}: renew it"));
            } else if certificate.not_after < soon {
                say("soon", format!("{name}: the certificate {subject} expires at {when}: renew it"));
            }
            if certificate.version == 1 {
                say("v1", format!("{name}: the certificate {subject} is X.509 v1: it works here, but issue it as v3"));
            }
        }
    }
    found
}
