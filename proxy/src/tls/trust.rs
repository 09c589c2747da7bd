//! What server certificates are checked against: the system's bundle, or the CA that the rule gives.

use std::{
    collections::HashSet,
    hash::{BuildHasher, RandomState},
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use rustls_pki_types::{CertificateDer, TrustAnchor};

use super::{
    TlsError, crl,
    inspect::{self, CertificateSummary},
    material::{Blob, RawTrust},
};
use crate::{limits::WARNED_CERTIFICATES, mesh::SYSTEM_BUNDLES};

#[derive(Debug)]
pub(super) enum Trust {
    /// `insecureSkipVerify`.
    Unchecked,
    System(Arc<SystemBundle>),
    Configured(Configured),
}

/// A CA that was given for a destination: for it X.509 v1 and names by CN count too.
#[derive(Debug)]
pub(super) struct Configured {
    pub from: String,
    pub anchors: Vec<TrustAnchor<'static>>,
    pub certificates: Vec<CertificateDer<'static>>,
    pub roots: Vec<Root>,
}

/// What must be known of a configured CA at each handshake, read out once.
#[derive(Debug)]
pub(super) struct Root {
    /// SubjectPublicKeyInfo in DER.
    pub spki: Vec<u8>,
    pub signs_crls: bool,
    pub summary: CertificateSummary,
}

impl Trust {
    pub(super) fn new(raw: RawTrust) -> Result<Self, TlsError> {
        match raw {
            RawTrust::Unchecked => Ok(Self::Unchecked),
            RawTrust::System(bundle) => Ok(Self::System(bundle)),
            RawTrust::Public(blob) => match SystemBundle::of(read(&blob)?) {
                Some(bundle) => Ok(Self::System(Arc::new(bundle))),
                None => Err(TlsError::NoCertificate { from: blob.from }),
            },
            RawTrust::Configured(blob) => Configured::new(&blob).map(Self::Configured),
        }
    }

    pub(super) fn anchors(&self) -> &[TrustAnchor<'static>] {
        match self {
            Self::Unchecked => &[],
            Self::System(bundle) => &bundle.anchors,
            Self::Configured(configured) => &configured.anchors,
        }
    }

    /// In words, for messages.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Unchecked => "anybody".to_owned(),
            Self::System(_) => "a CA of the system's bundle".to_owned(),
            Self::Configured(configured) => format!("the CA in {}", configured.from),
        }
    }
}

impl Configured {
    /// A certificate that cannot be read refuses the rule where it is the only one; in a bundle it is left out.
    fn new(blob: &Blob) -> Result<Self, TlsError> {
        let from = blob.from.clone();
        let mut new = Self { from: from.clone(), anchors: Vec::new(), certificates: Vec::new(), roots: Vec::new() };
        let mut fault = TlsError::NoCertificate { from: from.clone() };
        for certificate in read(blob)? {
            match root(&certificate) {
                Ok((anchor, root)) => {
                    new.anchors.push(anchor);
                    new.roots.push(root);
                    new.certificates.push(certificate);
                }
                Err(why) => {
                    log::warn!("a CA certificate in {from} cannot be read and does not count: {why}");
                    fault = TlsError::BadCertificate { from: from.clone(), why };
                }
            }
        }
        if new.roots.is_empty() { Err(fault) } else { Ok(new) }
    }
}

fn root(certificate: &CertificateDer<'static>) -> Result<(TrustAnchor<'static>, Root), String> {
    let parsed = inspect::parse(certificate)?;
    let anchor = webpki::anchor_from_trusted_cert(certificate).map_err(|error| error.to_string())?.to_owned();
    let spki = parsed.public_key().raw.to_vec();
    Ok((anchor, Root { spki, signs_crls: crl::signs_crls(&parsed), summary: CertificateSummary::of(&parsed) }))
}

fn read(blob: &Blob) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    inspect::certificates(&blob.bytes).map_err(|why| TlsError::BadCertificate { from: blob.from.clone(), why })
}

/// The system's CA bundle, shared by all contexts that use it.
#[derive(Debug)]
pub(super) struct SystemBundle {
    certificates: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
}

impl PartialEq for SystemBundle {
    fn eq(&self, other: &Self) -> bool {
        self.certificates == other.certificates
    }
}

impl Eq for SystemBundle {}

impl SystemBundle {
    /// Reads the bundle as OpenSSL would find it (`SSL_CERT_FILE`, `SSL_CERT_DIR`, else where the distribution has it).
    /// What in it cannot be read is left out; nothing readable at all is an error. It is `previous` where that has the same.
    pub(super) fn load(previous: Option<&Arc<Self>>) -> Result<Arc<Self>, TlsError> {
        let mut found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            log::warn!("a part of the system's CA bundle cannot be read: {error}");
        }
        found.certs.sort_unstable_by(|a, b| a.as_ref().cmp(b.as_ref()));
        if let Some(previous) = previous.filter(|previous| previous.certificates == found.certs) {
            return Ok(previous.clone());
        }
        Self::of(found.certs).map(Arc::new).ok_or_else(|| {
            let why = found.errors.first().map_or_else(|| "no certificate found".to_owned(), ToString::to_string);
            TlsError::NoSystemTrust { why }
        })
    }

    pub(super) fn of(certificates: Vec<CertificateDer<'static>>) -> Option<Self> {
        let anchors: Vec<_> = certificates
            .iter()
            .filter_map(|certificate| Some(webpki::anchor_from_trusted_cert(certificate).ok()?.to_owned()))
            .collect();
        (!anchors.is_empty()).then_some(Self { certificates, anchors })
    }

    /// Whether a file that a rule names is the system's bundle, by its own path or by a link.
    pub(super) fn is_at(path: &Path) -> bool {
        let same = |usual: &PathBuf| match (usual.canonicalize(), path.canonicalize()) {
            (Ok(usual), Ok(path)) => usual == path,
            _ => false,
        };
        SYSTEM_BUNDLES.iter().any(|usual| Path::new(usual) == path) || Self::paths().iter().any(same)
    }

    /// The paths to watch for a changed bundle.
    pub(super) fn paths() -> Vec<PathBuf> {
        let file = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
        let folders = std::env::var_os("SSL_CERT_DIR")
            .map(|folders| {
                std::env::split_paths(&folders).filter(|path| !path.as_os_str().is_empty()).collect::<Vec<_>>()
            })
            .unwrap_or_default();
        if file.is_none() && folders.is_empty() {
            return SYSTEM_BUNDLES.iter().map(PathBuf::from).filter(|path| path.exists()).collect();
        }
        file.into_iter().chain(folders).collect()
    }
}

/// Certificates about which something was said already.
#[derive(Debug, Default)]
pub(super) struct Said {
    seen: Mutex<HashSet<u64>>,
    hasher: RandomState,
}

impl Said {
    /// True the first time for this certificate and this remark.
    pub(super) fn first(&self, certificate: &[u8], remark: &str) -> bool {
        let mut seen = self.seen.lock();
        if seen.len() >= WARNED_CERTIFICATES {
            seen.clear();
        }
        seen.insert(self.hasher.hash_one((certificate, remark)))
    }
}
