//! A state folder, a clock that can be moved, and plug-in CAs made by `openssl` as Istio's Makefile makes them.

use std::{
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
};

use tempfile::TempDir;

use super::*;

/// Real time, and as much more as was added.
#[derive(Debug, Default)]
pub struct Clock {
    ahead: AtomicU64,
}

impl Clock {
    pub fn advance(&self, time: Duration) {
        self.ahead.fetch_add(time.as_secs(), Ordering::SeqCst);
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        let ahead = Duration::from_secs(self.ahead.load(Ordering::SeqCst));
        Some(UnixTime::since_unix_epoch(SystemTime::UNIX_EPOCH.elapsed().unwrap() + ahead))
    }
}

/// One agent's identities.
pub struct Mesh {
    pub folder: TempDir,
    pub clock: Arc<Clock>,
    pub identities: Arc<Identities>,
    pub settings: Settings,
    pub names: BTreeSet<Arc<str>>,
}

impl Mesh {
    pub fn new(names: &[&str]) -> Self {
        let (folder, clock) = (TempDir::new().unwrap(), Arc::new(Clock::default()));
        let identities = Identities::with_clock(folder.path(), clock.clone());
        let names = names.iter().map(|name| Arc::from(*name)).collect();
        let mesh = Self { folder, clock, identities, settings: Settings::default(), names };
        mesh.update(None);
        mesh
    }

    pub fn update(&self, secret: Option<&Secret>) {
        self.identities.update(&self.settings, self.names.clone(), secret);
        self.identities.publish();
    }

    /// The same folder in a new process.
    pub fn restart(&mut self, secret: Option<&Secret>) {
        self.identities = Identities::with_clock(self.folder.path(), self.clock.clone());
        self.update(secret);
    }

    pub fn complaints(&self) -> String {
        let all: Vec<_> = self.identities.complaints().iter().map(ToString::to_string).collect();
        all.join("\n")
    }

    pub fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.identities.trust().unwrap().roots.clone()
    }
}

/// A folder with `root-cert.pem`, `ca-cert.pem`, `ca-key.pem`, `cert-chain.pem`, as Istio's `Makefile.selfsigned.mk`
/// makes it: an intermediate with `pathlen:0`, a chain that ends with the root.
pub struct PlugIn {
    pub folder: TempDir,
    /// Of keys: as the Makefile, or quicker to make.
    rsa: bool,
}

impl PlugIn {
    /// With ECDSA keys.
    pub fn new(cluster: &str, days: &str) -> Self {
        Self::with_keys(false, cluster, days)
    }

    /// With RSA keys.
    pub fn rsa(cluster: &str, days: &str) -> Self {
        Self::with_keys(true, cluster, days)
    }

    fn with_keys(rsa: bool, cluster: &str, days: &str) -> Self {
        let new = Self { folder: TempDir::new().unwrap(), rsa };
        new.write(
            "root.conf",
            "[req]\ndistinguished_name=dn\nx509_extensions=ext\nprompt=no\n[dn]\nO=Istio\nCN=Root CA\n[ext]\n\
             subjectKeyIdentifier=hash\nbasicConstraints=critical,CA:true\n\
             keyUsage=critical,digitalSignature,nonRepudiation,keyEncipherment,keyCertSign\n",
        );
        new.key("root-key.pem");
        new.openssl(&[
            "req",
            "-sha256",
            "-new",
            "-x509",
            "-key",
            "root-key.pem",
            "-config",
            "root.conf",
            "-days",
            "3650",
            "-out",
            "root-cert.pem",
        ]);
        new.intermediate(cluster, days);
        new
    }

    fn key(&self, name: &str) {
        match self.rsa {
            true => self.openssl(&["genrsa", "-out", name, "2048"]),
            // SEC1, which is another format.
            false => self.openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", name]),
        };
    }

    /// A new intermediate under the same root.
    pub fn intermediate(&self, cluster: &str, days: &str) {
        self.write(
            "ca.conf",
            &format!(
                "[req]\ndistinguished_name=dn\nreq_extensions=ext\nprompt=no\n[dn]\nO=Istio\nCN=Intermediate CA\nL={cluster}\n[ext]\n\
                 subjectKeyIdentifier=hash\nbasicConstraints=critical,CA:true,pathlen:0\n\
                 keyUsage=critical,digitalSignature,nonRepudiation,keyEncipherment,keyCertSign\n\
                 subjectAltName=DNS:istiod.istio-system.svc\n"
            ),
        );
        self.sign_intermediate(days);
    }

    /// One as `ca.conf` has it.
    pub fn sign_intermediate(&self, days: &str) {
        self.key("ca-key.pem");
        self.openssl(&["req", "-sha256", "-new", "-config", "ca.conf", "-key", "ca-key.pem", "-out", "ca.csr"]);
        self.openssl(&[
            "x509",
            "-req",
            "-sha256",
            "-days",
            days,
            "-CA",
            "root-cert.pem",
            "-CAkey",
            "root-key.pem",
            "-CAcreateserial",
            "-extensions",
            "ext",
            "-extfile",
            "ca.conf",
            "-in",
            "ca.csr",
            "-out",
            "ca-cert.pem",
        ]);
        let mut chain = self.read("ca-cert.pem");
        chain.extend(self.read("root-cert.pem"));
        std::fs::write(self.folder.path().join("cert-chain.pem"), chain).unwrap();
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).unwrap();
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.folder.path().join(name)).unwrap()
    }

    pub fn openssl(&self, arguments: &[&str]) -> String {
        openssl(self.folder.path(), arguments)
    }

    pub fn secret(&self) -> Secret {
        Secret { data: PLUG_IN_PARTS.iter().map(|part| ((*part).to_owned(), self.read(part))).collect() }
    }

    /// Only the root, as it is trusted.
    pub fn root(&self) -> CertificateDer<'static> {
        crate::tls::inspect::certificates(&self.read("root-cert.pem")).unwrap().remove(0)
    }
}

/// Runs it in the folder; its output.
pub fn openssl(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("openssl").args(arguments).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// PEM of certificates, for `openssl`.
pub fn pem(certificates: &[CertificateDer<'_>]) -> String {
    use base64::Engine as _;
    let block = |der: &CertificateDer<'_>| {
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| str::from_utf8(line).unwrap()).collect();
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
    };
    certificates.iter().map(block).collect()
}
