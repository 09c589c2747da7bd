//! What of the mesh CA outlives the process, in the state folder: the built-in CA, and the roots that were trusted.
//!
//! ```text
//! <state folder>/ca/ca-cert.pem, ca-key.pem    the built-in CA (0700, files 0600)
//! <state folder>/cacerts/*.pem                 a plug-in CA, where the operator puts one there
//! <state folder>/trusted-roots.json            roots in force, and former ones with the end of their trust
//! ```

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use rustls_pki_types::{CertificateDer, UnixTime};

use super::{
    IdentityError,
    authority::{AuthorityPem, new_root},
    roots::TrustedRoots,
};
use crate::tls::read_host_file;

const CERTIFICATE: &str = "ca-cert.pem";
const KEY: &str = "ca-key.pem";
const ROOTS: &str = "root-cert.pem";
const CHAIN: &str = "cert-chain.pem";

/// The four files of a plug-in CA; the last may be missing.
pub const PLUG_IN_PARTS: [&str; 4] = [CERTIFICATE, KEY, ROOTS, CHAIN];

#[derive(Debug)]
pub(super) struct State {
    folder: PathBuf,
}

impl State {
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    pub fn plug_in_folder(&self) -> PathBuf {
        self.folder.join("cacerts")
    }

    /// The plug-in CA of the folder `cacerts`; None where there is no such folder, or nothing of a CA in it.
    pub fn plug_in(&self) -> Result<Option<AuthorityPem>, IdentityError> {
        let folder = self.plug_in_folder();
        let read = |name: &'static str| read(&folder.join(name));
        let from = folder.display().to_string();
        let missing = |missing| IdentityError::Missing { from: from.clone(), missing, other: "" };
        match (read(CERTIFICATE)?, read(KEY)?, read(ROOTS)?, read(CHAIN)?) {
            (None, None, None, None) => Ok(None),
            (None, ..) => Err(missing(CERTIFICATE)),
            (_, None, ..) => Err(missing(KEY)),
            (_, _, None, _) => Err(missing(ROOTS)),
            (Some(certificate), Some(key), Some(roots), chain) => {
                Ok(Some(AuthorityPem { certificate, key, roots, chain: chain.unwrap_or_default(), from }))
            }
        }
    }

    /// The built-in CA, made where there is none. Half of one is not completed: the other half may be in a backup, and
    /// certificates under the old root would be refused by all who trust the new one.
    pub fn built_in(&self, now: UnixTime) -> Result<AuthorityPem, IdentityError> {
        let folder = self.folder.join("ca");
        let from = folder.display().to_string();
        let other = ", or remove the folder so that a new CA is made";
        let missing = |missing| IdentityError::Missing { from: from.clone(), missing, other };
        let key_file = folder.join(KEY);
        match (read(&folder.join(CERTIFICATE))?, read(&key_file)?) {
            (None, None) => {
                let pem = new_root(from, now)?;
                self.write_built_in(&folder, &pem)
                    .map_err(|error| IdentityError::Unwritable { from: pem.from.clone(), why: error.to_string() })?;
                log::info!("made the built-in mesh CA in {}", pem.from);
                Ok(pem)
            }
            (None, Some(_)) => Err(missing(CERTIFICATE)),
            (Some(_), None) => Err(missing(KEY)),
            (Some(certificate), Some(key)) => {
                let mode = fs::metadata(&key_file).map_or(0, |metadata| metadata.permissions().mode() & 0o777);
                if mode & 0o077 != 0 {
                    return Err(IdentityError::Exposed { from: key_file.display().to_string(), mode });
                }
                Ok(AuthorityPem { roots: certificate.clone(), certificate, key, chain: Vec::new(), from })
            }
        }
    }

    /// Both files come into being at once, by the renaming of their folder: a crash leaves no half of a CA.
    fn write_built_in(&self, folder: &Path, pem: &AuthorityPem) -> io::Result<()> {
        let temporary = self.folder.join("ca.new");
        match fs::remove_dir_all(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        DirBuilder::new().mode(0o700).create(&temporary)?;
        write(&temporary.join(KEY), &pem.key)?;
        write(&temporary.join(CERTIFICATE), &pem.certificate)?;
        File::open(&temporary)?.sync_all()?;
        // Takes the place of an empty folder, and of none else.
        fs::rename(&temporary, folder)?;
        File::open(&self.folder)?.sync_all()
    }

    /// Remembers the roots that are in force from now on, and answers the former ones that are trusted still.
    pub fn remember(
        &self,
        in_force: &[CertificateDer<'static>],
        now: UnixTime,
    ) -> (Vec<CertificateDer<'static>>, Option<IdentityError>) {
        let file = self.folder.join("trusted-roots.json");
        let (before, mut fault) = match recall(&file) {
            Ok(before) => (before, None),
            Err(error) => (TrustedRoots::default(), Some(error)),
        };
        let after = before.follow(in_force, now);
        // A file that cannot be understood stays for whoever wants to look at it.
        if fault.is_none()
            && before != after
            && let Err(error) = self.write_record(&file, &after)
        {
            fault = Some(IdentityError::Unwritable { from: file.display().to_string(), why: error.to_string() });
        }
        (after.former().cloned().collect(), fault)
    }

    fn write_record(&self, file: &Path, roots: &TrustedRoots) -> io::Result<()> {
        let temporary = file.with_extension("json.new");
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        write(&temporary, roots.to_json().as_bytes())?;
        fs::rename(&temporary, file)?;
        File::open(&self.folder)?.sync_all()
    }
}

fn recall(file: &Path) -> Result<TrustedRoots, IdentityError> {
    let unreadable = |why: String| IdentityError::Unreadable { from: file.display().to_string(), why };
    let Some(bytes) = read(file)? else { return Ok(TrustedRoots::default()) };
    TrustedRoots::from_json(&bytes).map_err(unreadable)
}

/// None: there is no such file.
fn read(file: &Path) -> Result<Option<Vec<u8>>, IdentityError> {
    match read_host_file(file) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(IdentityError::Unreadable { from: file.display().to_string(), why: error.to_string() }),
    }
}

/// A new file of this content, on the disk when this returns.
fn write(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    file.write_all(bytes)?;
    file.sync_all()
}
