//! The roots that are trusted: those in force, and former ones until the last certificate issued under them has run out.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls_pki_types::{CertificateDer, UnixTime};
use serde::{Deserialize, Serialize};

use super::authority::{lasting, seconds};
use crate::{limits::FORMER_ROOT_TRUST, tls::inspect};

/// Each root with the end of its trust in seconds since the epoch; None: in force. Those in force come first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TrustedRoots(Vec<(CertificateDer<'static>, Option<i64>)>);

/// One root as it is written down.
#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    /// Base64 of DER.
    certificate: String,
    /// Seconds since the epoch; None: in force.
    trusted_until: Option<i64>,
}

impl TrustedRoots {
    /// What [`Self::to_json`] wrote. Errors: a sentence fragment.
    pub fn from_json(bytes: &[u8]) -> Result<Self, String> {
        let remembered: Vec<Remembered> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let read = |root: Remembered| {
            let der = STANDARD.decode(&root.certificate).map_err(|error| error.to_string())?;
            inspect::parse(&der)?;
            Ok((CertificateDer::from(der), root.trusted_until))
        };
        remembered.into_iter().map(read).collect::<Result<_, _>>().map(Self)
    }

    pub fn to_json(&self) -> String {
        let write = |(root, trusted_until): &(CertificateDer<'_>, Option<i64>)| Remembered {
            certificate: STANDARD.encode(root),
            trusted_until: *trusted_until,
        };
        let remembered: Vec<_> = self.0.iter().map(write).collect();
        // Two fields of plain types: nothing in it can fail to be written.
        serde_json::to_string_pretty(&remembered).unwrap_or_default()
    }

    /// What is trusted once these roots are in force: those that were before stay for [`FORMER_ROOT_TRUST`] from now on.
    #[must_use]
    pub fn follow(&self, in_force: &[CertificateDer<'static>], now: UnixTime) -> Self {
        let now = seconds(now);
        let end = |(root, until): &(CertificateDer<'static>, Option<i64>)| {
            (root.clone(), Some(until.unwrap_or(now + lasting(FORMER_ROOT_TRUST))))
        };
        let before = self.0.iter().filter(|(root, _)| !in_force.contains(root));
        let former = before.map(end).filter(|(_, until)| until.is_some_and(|until| now < until));
        Self(in_force.iter().map(|root| (root.clone(), None)).chain(former).collect())
    }

    /// Those that are in force no more.
    pub fn former(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        self.0.iter().filter(|(_, until)| until.is_some()).map(|(root, _)| root)
    }

    pub fn all(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        self.0.iter().map(|(root, _)| root)
    }
}
