//! Certificates, made by the very `openssl` commands that Istio's documentation has its readers type.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::process::run;

/// The authorities and certificates of one lab, as PEM files in one folder.
///
/// `system`: the authority that the lab's agent trusts as the system's (`SSL_CERT_FILE`).
/// `example.com`: the private authority of the documentation; its leaves are X.509 v1 and bear only a CN.
pub struct Pki {
    dir: PathBuf,
}

/// The subject of the client certificate that documentation makes, as nginx prints it.
pub const CLIENT_DN: &str = "O=client organization,CN=client.example.com";

impl Pki {
    pub(crate) fn new(dir: &Path) -> Result<Self> {
        let pki = Self::empty(dir)?;
        pki.authority("system", "/O=Egret Lab/CN=Lab Root")?;
        pki.authority("example.com", "/O=example Inc./CN=example.com")?;
        pki.leaf("web", "system", "/CN=edition.cnn.com", Some("DNS:edition.cnn.com,DNS:*.lab.test,DNS:lab.test"))?;
        pki.leaf("other-name", "system", "/CN=other.invalid", Some("DNS:other.invalid"))?;
        pki.expired("expired", "system", "/CN=expired.lab.test", "DNS:expired.lab.test")?;
        pki.leaf("my-nginx", "example.com", "/CN=my-nginx.mesh-external.svc.cluster.local/O=some organization", None)?;
        pki.leaf("client", "example.com", "/CN=client.example.com/O=client organization", None)?;
        Ok(pki)
    }

    /// A folder with no authority in it yet.
    pub(crate) fn empty(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// `<name>.crt` in the lab's folder.
    #[must_use]
    pub fn crt(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.crt"))
    }

    /// `<name>.key` in the lab's folder.
    #[must_use]
    pub fn key(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.key"))
    }

    /// A Secret as `kubectl create secret generic NAME --from-file=tls.key=… --from-file=tls.crt=… --from-file=ca.crt=…`
    /// makes it; each entry is a key of the Secret and a file.
    pub fn secret(&self, name: &str, entries: &[(&str, PathBuf)]) -> Result<String> {
        use base64::{Engine, prelude::BASE64_STANDARD};
        let mut text = format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\ntype: Opaque\ndata:\n");
        for (key, path) in entries {
            text.push_str(&format!("  {key}: {}\n", BASE64_STANDARD.encode(std::fs::read(path)?)));
        }
        Ok(text)
    }

    /// The Secret of the documentation: `leaf`'s certificate and key, and the private authority.
    pub fn client_secret(&self, name: &str, leaf: &str) -> Result<String> {
        let entries = [("tls.key", self.key(leaf)), ("tls.crt", self.crt(leaf)), ("ca.crt", self.crt("example.com"))];
        self.secret(name, &entries)
    }

    /// A ConfigMap with a CA, as the Gateway API's references want it.
    pub fn ca_config_map(&self, name: &str, authority: &str) -> Result<String> {
        let pem = serde_json::to_string(&std::fs::read_to_string(self.crt(authority))?)?;
        Ok(format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{ca.crt: {pem}}}\n"))
    }

    fn path(&self, file: &str) -> String {
        self.dir.join(file).to_string_lossy().into_owned()
    }

    /// A self-signed authority.
    pub fn authority(&self, name: &str, subject: &str) -> Result<()> {
        let (key, crt) = (self.path(&format!("{name}.key")), self.path(&format!("{name}.crt")));
        let made = ["req", "-x509", "-sha256", "-nodes", "-days", "365", "-newkey", "ec", "-pkeyopt"];
        let rest = ["ec_paramgen_curve:P-256", "-subj", subject, "-keyout", &key, "-out", &crt];
        run("openssl", &[&made[..], &rest[..]].concat()).map(drop)
    }

    /// A leaf signed by `authority`: X.509 v1 with nothing but a subject where `san` is None, else v3 with that SAN.
    pub fn leaf(&self, name: &str, authority: &str, subject: &str, san: Option<&str>) -> Result<()> {
        self.signed(name, authority, &self.request(name, subject)?, san)
    }

    /// The same with an RSA key of 2048 bits, which most servers of the world still have.
    pub(crate) fn rsa_leaf(&self, name: &str, authority: &str, subject: &str, san: &str) -> Result<()> {
        let (key, csr) = (self.path(&format!("{name}.key")), self.path(&format!("{name}.csr")));
        run("openssl", &["req", "-out", &csr, "-newkey", "rsa:2048", "-nodes", "-keyout", &key, "-subj", subject])?;
        self.signed(name, authority, &csr, Some(san))
    }

    fn signed(&self, name: &str, authority: &str, csr: &str, san: Option<&str>) -> Result<()> {
        let (ca, ca_key) = (self.path(&format!("{authority}.crt")), self.path(&format!("{authority}.key")));
        let crt = self.path(&format!("{name}.crt"));
        let mut args = vec!["x509", "-req", "-sha256", "-days", "365", "-CA", &ca, "-CAkey", &ca_key];
        args.extend(["-CAcreateserial", "-in", csr, "-out", &crt]);
        let extensions = self.path(&format!("{name}.ext"));
        if let Some(san) = san {
            std::fs::write(&extensions, format!("subjectAltName={san}\nbasicConstraints=CA:FALSE\n"))?;
            args.extend(["-extfile", &extensions]);
        }
        run("openssl", &args).map(drop)
    }

    /// A leaf of `example.com` by the very commands of Istio's tasks: RSA, X.509 v1, nothing but a subject.
    pub fn task_leaf(&self, name: &str, subject: &str) -> Result<()> {
        let (key, csr) = (self.path(&format!("{name}.key")), self.path(&format!("{name}.csr")));
        let crt = self.path(&format!("{name}.crt"));
        run("openssl", &["req", "-out", &csr, "-newkey", "rsa:2048", "-nodes", "-keyout", &key, "-subj", subject])?;
        let (ca, ca_key) = (self.path("example.com.crt"), self.path("example.com.key"));
        let made = ["x509", "-req", "-sha256", "-days", "365", "-CA", &ca, "-CAkey", &ca_key, "-set_serial", "0"];
        run("openssl", &[&made[..], &["-in", &csr, "-out", &crt]].concat()).map(drop)
    }

    /// A v3 leaf that ended years ago; only `openssl ca` can date one.
    fn expired(&self, name: &str, authority: &str, subject: &str, san: &str) -> Result<()> {
        let csr = self.request(name, subject)?;
        let config = self.path("ca.conf");
        std::fs::write(self.path("index.txt"), "")?;
        std::fs::write(
            &config,
            format!(
                "[ca]\ndefault_ca=d\n[d]\ndatabase={}\nnew_certs_dir={}\nrand_serial=yes\ndefault_md=sha256\n\
                 policy=p\nx509_extensions=e\nunique_subject=no\n[p]\ncommonName=supplied\n[e]\nsubjectAltName={san}\n",
                self.path("index.txt"),
                self.dir.display()
            ),
        )?;
        let (ca, ca_key) = (self.path(&format!("{authority}.crt")), self.path(&format!("{authority}.key")));
        let crt = self.path(&format!("{name}.crt"));
        let dates = ["-startdate", "20200101000000Z", "-enddate", "20200201000000Z"];
        let mut args = vec!["ca", "-batch", "-notext", "-config", &config, "-cert", &ca, "-keyfile", &ca_key];
        args.extend(dates);
        args.extend(["-in", &csr, "-out", &crt]);
        run("openssl", &args).map(drop)
    }

    /// A key and a signing request for it.
    fn request(&self, name: &str, subject: &str) -> Result<String> {
        let (key, csr) = (self.path(&format!("{name}.key")), self.path(&format!("{name}.csr")));
        let made = ["req", "-out", &csr, "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        run("openssl", &[&made[..], &["-keyout", &key, "-subj", subject][..]].concat())?;
        Ok(csr)
    }
}
