//! The bytes a rule's credentials consist of, as they are in Secrets and files: read, bounded, not yet understood.
//!
//! Kept beside the context built from them: as long as they are equal the context stays, with its sessions and its id.

use std::{
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{MaterialReader, Side, TlsContextSettings, TlsError, trust::SystemBundle};
use crate::{
    api::core::Secret,
    limits::CREDENTIAL_BYTES,
    mesh::ServerTlsSettings,
    mesh::table::{IdentitySource, Material, Place, TrustSource},
};

/// Everything read for one [`TlsContextSettings`]. Each part bears its own error, so that a rule whose CA is missing still shows
/// its client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Inputs {
    pub identity: Option<Result<RawIdentity, TlsError>>,
    pub trust: Result<RawTrust, TlsError>,
    pub crls: Result<Vec<Blob>, TlsError>,
}

/// Bytes, and where they are from, in words (`secret default/client-credential, key tls.crt`).
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Blob {
    pub from: String,
    pub bytes: Vec<u8>,
}

impl std::fmt::Debug for Blob {
    /// Says where from and how much, never what.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({} bytes)", self.from, self.bytes.len())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RawIdentity {
    pub certificate: Blob,
    pub key: Blob,
}

/// Everything read for one [`ServerTlsSettings`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServerInputs {
    pub identities: Vec<Result<RawIdentity, TlsError>>,
    /// What clients' certificates are checked against, where any are asked for.
    pub clients: Option<ClientInputs>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ClientInputs {
    pub trust: Result<RawTrust, TlsError>,
    pub crls: Result<Vec<Blob>, TlsError>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RawTrust {
    System(Arc<SystemBundle>),
    Configured(Blob),
    /// A file that the rule names and that is the system's bundle: held to the rules of public CAs.
    Public(Blob),
    /// `insecureSkipVerify`: nothing is checked, so nothing is read.
    Unchecked,
}

/// Reads what `settings` name. `system` yields the system's bundle, read once for a reload.
pub(super) fn read(
    settings: &TlsContextSettings,
    reader: &dyn MaterialReader,
    system: &mut dyn FnMut() -> Result<Arc<SystemBundle>, TlsError>,
) -> Inputs {
    let identity = settings.identity.as_ref().map(|source| identity(source, reader));
    if settings.insecure_skip_verify {
        return Inputs { identity, trust: Ok(RawTrust::Unchecked), crls: Ok(Vec::new()) };
    }
    let trust = match &settings.trust {
        TrustSource::System => system().map(RawTrust::System),
        given => configured(Side::Server, given, reader),
    };
    Inputs { identity, trust, crls: crls(settings.crl.as_ref(), &settings.trust, reader) }
}

/// Reads what the settings of a server name.
pub(super) fn read_server(settings: &ServerTlsSettings, reader: &dyn MaterialReader) -> ServerInputs {
    let identities = settings.identities.iter().map(|source| identity(source, reader)).collect();
    let clients = settings.clients.trust().map(|clients| ClientInputs {
        trust: configured(Side::Client, &clients.ca, reader),
        crls: crls(clients.crl.as_ref(), &clients.ca, reader),
    });
    ServerInputs { identities, clients }
}

/// A CA that somebody has named to check `peer` with.
fn configured(peer: Side, source: &TrustSource, reader: &dyn MaterialReader) -> Result<RawTrust, TlsError> {
    match source {
        TrustSource::System => Err(TlsError::NoClientCa),
        TrustSource::Secret { namespace, name } => {
            ca_of_secrets(peer, reader, namespace, name).map(RawTrust::Configured)
        }
        TrustSource::ConfigMap { namespace, name } => {
            config_map_key(reader, namespace, name, "ca.crt").map(RawTrust::Configured)
        }
        TrustSource::File(material) => {
            let public = material.place == Place::Host && SystemBundle::is_at(Path::new(&material.path));
            self::material(material, reader).map(if public { RawTrust::Public } else { RawTrust::Configured })
        }
    }
}

/// Host paths that `settings` name.
pub(super) fn files(settings: &TlsContextSettings) -> Vec<PathBuf> {
    host_paths(settings.identity.as_slice(), Some(&settings.trust), settings.crl.as_ref())
}

/// Host paths that the settings of a server name.
pub(super) fn server_files(settings: &ServerTlsSettings) -> Vec<PathBuf> {
    let clients = settings.clients.trust();
    host_paths(&settings.identities, clients.map(|trust| &trust.ca), clients.and_then(|trust| trust.crl.as_ref()))
}

fn host_paths(identities: &[IdentitySource], trust: Option<&TrustSource>, crl: Option<&Material>) -> Vec<PathBuf> {
    let mut materials = Vec::new();
    for identity in identities {
        if let IdentitySource::Files { certificate, key } = identity {
            materials.extend([certificate, key]);
        }
    }
    if let Some(TrustSource::File(material)) = trust {
        materials.push(material);
    }
    materials.extend(crl);
    materials.into_iter().filter(|m| m.place == Place::Host).map(|m| PathBuf::from(&m.path)).collect()
}

/// `cert`+`key` where both are there, else `tls.crt`+`tls.key` (Istio, `ExtractCertInfo`). The Secret's type is ignored.
fn identity(source: &IdentitySource, reader: &dyn MaterialReader) -> Result<RawIdentity, TlsError> {
    match source {
        IdentitySource::Files { certificate, key } => {
            Ok(RawIdentity { certificate: material(certificate, reader)?, key: material(key, reader)? })
        }
        IdentitySource::Secret { namespace, name } => {
            let missing = || TlsError::SecretMissing { namespace: namespace.clone(), name: name.clone() };
            let secret = reader.secret(namespace, name).ok_or_else(missing)?;
            let pair =
                |certificate, key| (has(&secret, certificate) && has(&secret, key)).then_some((certificate, key));
            let (certificate, key) = pair("cert", "key").or_else(|| pair("tls.crt", "tls.key")).ok_or_else(|| {
                TlsError::SecretKeyMissing {
                    secret: format!("{namespace}/{name}"),
                    wanted: "certificate with its private key (tls.crt and tls.key, or cert and key)".to_owned(),
                }
            })?;
            Ok(RawIdentity {
                certificate: key_of(&secret, namespace, name, certificate)?,
                key: key_of(&secret, namespace, name, key)?,
            })
        }
    }
}

/// The CA of `<name>-cacert`, else of `<name>`; never the system's.
fn ca_of_secrets(peer: Side, reader: &dyn MaterialReader, namespace: &str, name: &str) -> Result<Blob, TlsError> {
    for name in [format!("{name}-cacert"), name.to_owned()] {
        let Some(secret) = reader.secret(namespace, &name) else { continue };
        for key in ["cacert", "ca.crt"] {
            if has(&secret, key) {
                return key_of(&secret, namespace, &name, key);
            }
        }
    }
    Err(TlsError::NoCa { peer, namespace: namespace.to_owned(), name: name.to_owned() })
}

/// Every CRL that the rule or the Secrets of its CA name: one that is there is meant to count.
fn crls(named: Option<&Material>, ca: &TrustSource, reader: &dyn MaterialReader) -> Result<Vec<Blob>, TlsError> {
    let mut found = Vec::new();
    if let Some(crl) = named {
        found.push(material(crl, reader)?);
    }
    if let TrustSource::Secret { namespace, name } = ca {
        for name in [format!("{name}-cacert"), name.clone()] {
            let Some(secret) = reader.secret(namespace, &name) else { continue };
            for key in ["crl", "ca.crl"] {
                if has(&secret, key) {
                    found.push(key_of(&secret, namespace, &name, key)?);
                }
            }
        }
    }
    Ok(found)
}

fn material(material: &Material, reader: &dyn MaterialReader) -> Result<Blob, TlsError> {
    match &material.place {
        Place::Host => {
            let from = material.path.clone();
            match reader.file(Path::new(&material.path)) {
                Ok(bytes) => bounded(Blob { from, bytes }),
                Err(error) => Err(TlsError::Unreadable { from, why: error.to_string() }),
            }
        }
        Place::Secret { namespace, name, key } => {
            let missing = || TlsError::SecretMissing { namespace: namespace.clone(), name: name.clone() };
            let secret = reader.secret(namespace, name).ok_or_else(missing)?;
            key_of(&secret, namespace, name, key)
        }
        Place::ConfigMap { namespace, name, key } => config_map_key(reader, namespace, name, key),
    }
}

fn has(secret: &Secret, key: &str) -> bool {
    secret.data.get(key).is_some_and(|bytes| !bytes.is_empty())
}

fn key_of(secret: &Secret, namespace: &str, name: &str, key: &str) -> Result<Blob, TlsError> {
    match secret.data.get(key) {
        Some(bytes) => bounded(Blob { from: format!("secret {namespace}/{name}, key {key}"), bytes: bytes.clone() }),
        None => Err(TlsError::SecretKeyMissing { secret: format!("{namespace}/{name}"), wanted: format!("key {key}") }),
    }
}

fn config_map_key(reader: &dyn MaterialReader, namespace: &str, name: &str, key: &str) -> Result<Blob, TlsError> {
    let missing = || TlsError::ConfigMapMissing { namespace: namespace.to_owned(), name: name.to_owned() };
    let config_map = reader.config_map(namespace, name).ok_or_else(missing)?;
    match config_map.data.get(key) {
        Some(text) => {
            bounded(Blob { from: format!("configmap {namespace}/{name}, key {key}"), bytes: text.clone().into_bytes() })
        }
        None => Err(TlsError::ConfigMapKeyMissing { config_map: format!("{namespace}/{name}"), key: key.to_owned() }),
    }
}

fn bounded(blob: Blob) -> Result<Blob, TlsError> {
    if blob.bytes.len() > CREDENTIAL_BYTES {
        return Err(TlsError::TooLarge { from: blob.from, limit: CREDENTIAL_BYTES });
    }
    Ok(blob)
}

/// Reads a credential of the host: a regular file of bounded size. A pipe or a device neither blocks nor fills memory.
pub fn read_host_file(path: &Path) -> io::Result<Vec<u8>> {
    // O_NONBLOCK: opening a pipe that nobody writes to would wait for ever.
    let file = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    let mut bytes = Vec::new();
    // One byte more than is allowed, so that `bounded` sees that there is more.
    file.take(CREDENTIAL_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
