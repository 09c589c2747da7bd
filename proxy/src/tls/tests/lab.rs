//! A folder of certificates made by `openssl`, and real servers on loopback that present them.

use std::{
    collections::HashMap,
    fs,
    io::{self, BufRead, BufReader, Read},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use tempfile::TempDir;
use tokio::{net::TcpStream, time::timeout};

use super::settings;
use crate::{
    api::core::{ConfigMap, Secret},
    mesh::table::{IdentitySource, Material, Place, TlsSettings, TrustSource},
    tls::{ClientContext, Contexts, MaterialReader, TlsError, TlsStream, UpstreamName, read_host_file},
};

/// Long enough for a machine that compiles beside the tests, short enough that nothing hangs.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// The name of Istio's example server.
pub const NGINX: &str = "my-nginx.mesh-external.svc.cluster.local";

pub struct Lab {
    pub dir: TempDir,
}

impl Lab {
    pub fn new() -> Self {
        Self { dir: TempDir::new().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).unwrap();
    }

    /// Runs `openssl` in the folder.
    pub fn openssl(&self, arguments: &[&str]) {
        let output = Command::new("openssl").args(arguments).current_dir(self.dir.path()).output().unwrap();
        assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// A root as Istio's documents make it: `<name>.crt`, `<name>.key`; v3, `CA:TRUE`.
    pub fn root(&self, name: &str, subject: &str) {
        let (key, crt) = (format!("{name}.key"), format!("{name}.crt"));
        self.openssl(&[
            "req", "-x509", "-sha256", "-nodes", "-days", "365", "-newkey", "rsa:2048", "-subj", subject, "-keyout",
            &key, "-out", &crt,
        ]);
    }

    /// A key and its request: `<name>.key`, `<name>.csr`. `kind`: `rsa:2048`, `ed25519`, or a curve.
    pub fn request(&self, name: &str, subject: &str, kind: &str) {
        let (key, csr) = (format!("{name}.key"), format!("{name}.csr"));
        let curve = format!("ec_paramgen_curve:{kind}");
        let mut arguments = vec!["req", "-out", &csr, "-keyout", &key, "-nodes", "-subj", subject];
        match kind {
            "rsa:2048" | "ed25519" => arguments.extend(["-newkey", kind]),
            _ => arguments.extend(["-newkey", "ec", "-pkeyopt", &curve]),
        }
        self.openssl(&arguments);
    }

    /// Signs `<name>.csr` as Istio's documents do, which makes X.509 v1: no extension, the CN is all the name there is.
    pub fn sign_v1(&self, name: &str, ca: &str, more: &[&str]) {
        let (csr, crt) = (format!("{name}.csr"), format!("{name}.crt"));
        let (ca_crt, ca_key) = (format!("{ca}.crt"), format!("{ca}.key"));
        let mut arguments =
            vec!["x509", "-req", "-sha256", "-CA", &ca_crt, "-CAkey", &ca_key, "-in", &csr, "-out", &crt];
        if !more.contains(&"-days") {
            arguments.extend(["-days", "365"]);
        }
        if !more.contains(&"-set_serial") {
            arguments.extend(["-set_serial", "0"]);
        }
        arguments.extend(more);
        self.openssl(&arguments);
    }

    /// Signs `<name>.csr` as X.509 v3 with these extensions, one a line.
    pub fn sign_v3(&self, name: &str, ca: &str, extensions: &str, more: &[&str]) {
        let file = format!("{name}.ext");
        self.write(&file, extensions);
        let mut arguments = vec!["-extfile", file.as_str()];
        arguments.extend(more);
        self.sign_v1(name, ca, &arguments);
    }

    /// Request and v1 certificate in one, RSA.
    pub fn leaf_v1(&self, name: &str, ca: &str, subject: &str) {
        self.request(name, subject, "rsa:2048");
        self.sign_v1(name, ca, &[]);
    }

    /// Request and v3 certificate in one, ECDSA P-256.
    pub fn leaf_v3(&self, name: &str, ca: &str, subject: &str, extensions: &str) {
        self.request(name, subject, "P-256");
        self.sign_v3(name, ca, extensions, &[]);
    }

    /// The example's root and server: `root`, `server` (v1, CN only).
    pub fn example() -> Self {
        let lab = Self::new();
        lab.root("root", "/O=example Inc./CN=example.com");
        lab.leaf_v1("server", "root", &format!("/CN={NGINX}/O=some organization"));
        lab
    }

    pub fn material(&self, name: &str) -> Material {
        Material { path: self.path(name).to_str().unwrap().to_owned(), place: Place::Host }
    }

    /// SIMPLE with `<ca>.crt`.
    pub fn trusting(&self, ca: &str) -> TlsSettings {
        super::settings_with(settings(), |new| new.trust = TrustSource::File(self.material(&format!("{ca}.crt"))))
    }

    /// MUTUAL with `<ca>.crt`, presenting `<name>.crt`.
    pub fn presenting(&self, ca: &str, name: &str) -> TlsSettings {
        let identity = IdentitySource::Files {
            certificate: self.material(&format!("{name}.crt")),
            key: self.material(&format!("{name}.key")),
        };
        super::settings_with(self.trusting(ca), |new| new.identity = Some(identity))
    }

    /// `openssl s_server` presenting `<name>.crt`.
    pub fn serve(&self, name: &str, more: &[&str]) -> Server {
        let (crt, key) = (format!("{name}.crt"), format!("{name}.key"));
        let mut command = Command::new("openssl");
        command.args(["s_server", "-accept", "127.0.0.1:0", "-cert", &crt, "-key", &key, "-www"]).args(more);
        let mut child = command
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let server_child = Running(child);
        let (sender, receiver) = mpsc::channel();
        // Reads on to the end, as a full pipe would stop the server.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some(address) = line.strip_prefix("ACCEPT ") {
                    let _ = sender.send(address.to_owned());
                }
            }
        });
        let address = receiver.recv_timeout(PATIENCE).expect("openssl s_server says where it listens");
        Server { address: address.parse().unwrap(), _child: server_child }
    }

    /// nginx with these directives in its one server.
    pub fn nginx(&self, directives: &str) -> Server {
        let address = free_address();
        let dir = self.dir.path().display();
        self.write(
            "nginx.conf",
            format!(
                "daemon off; master_process off; pid {dir}/nginx.pid; error_log {dir}/error.log info;\n\
                 events {{}}\nhttp {{ access_log off; client_body_temp_path {dir}/a; proxy_temp_path {dir}/b;\n\
                 fastcgi_temp_path {dir}/c; uwsgi_temp_path {dir}/d; scgi_temp_path {dir}/e;\n\
                 server {{ listen {address} ssl; {directives} }} }}"
            ),
        );
        let child = Command::new("nginx")
            .args(["-p", self.dir.path().to_str().unwrap(), "-c", self.path("nginx.conf").to_str().unwrap()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Server { address, _child: Running(child) };
        let deadline = std::time::Instant::now() + PATIENCE;
        while std::net::TcpStream::connect(address).is_err() {
            assert!(std::time::Instant::now() < deadline, "{}", String::from_utf8_lossy(&self.read("error.log")));
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }
}

pub struct Server {
    pub address: SocketAddr,
    _child: Running,
}

/// A child that does not outlive the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_address() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

/// Secrets by namespace and name; files of the host.
#[derive(Default)]
pub struct Reader {
    pub secrets: Mutex<HashMap<(String, String), Arc<Secret>>>,
    pub config_maps: Mutex<HashMap<(String, String), Arc<ConfigMap>>>,
}

impl Reader {
    pub fn set(&self, namespace: &str, name: &str, data: &[(&str, Vec<u8>)]) {
        let data = data.iter().map(|(key, bytes)| ((*key).to_owned(), bytes.clone())).collect();
        self.secrets.lock().unwrap().insert((namespace.to_owned(), name.to_owned()), Arc::new(Secret { data }));
    }
}

impl Reader {
    pub fn set_config_map(&self, namespace: &str, name: &str, data: &[(&str, Vec<u8>)]) {
        let text = |bytes: &Vec<u8>| String::from_utf8(bytes.clone()).unwrap();
        let data = data.iter().map(|(key, bytes)| ((*key).to_owned(), text(bytes))).collect();
        self.config_maps.lock().unwrap().insert((namespace.to_owned(), name.to_owned()), Arc::new(ConfigMap { data }));
    }
}

impl MaterialReader for Reader {
    fn secret(&self, namespace: &str, name: &str) -> Option<Arc<Secret>> {
        self.secrets.lock().unwrap().get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    fn config_map(&self, namespace: &str, name: &str) -> Option<Arc<ConfigMap>> {
        self.config_maps.lock().unwrap().get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    fn file(&self, path: &Path) -> io::Result<Vec<u8>> {
        read_host_file(path)
    }
}

pub fn build(settings: &TlsSettings) -> Result<Arc<ClientContext>, TlsError> {
    let contexts = Contexts::build(&Contexts::default(), [Arc::new(settings.clone())], [], &Reader::default());
    contexts.get(settings).map_err(|error| (*error).clone())
}

/// Connects, and sends the last flight of the handshake, which else waits for what the client says first.
pub async fn connect(context: &ClientContext, server: &Server, host: &str) -> Result<TlsStream<TcpStream>, TlsError> {
    use tokio::io::AsyncWriteExt;
    let tcp = timeout(PATIENCE, TcpStream::connect(server.address)).await.unwrap().unwrap();
    let connecting = context.connect(UpstreamName { host: Some(host) }, tcp);
    let mut stream = timeout(PATIENCE, connecting).await.expect("the handshake ends")?;
    // A server that refuses the client by now says so where it is read.
    let _ = stream.flush().await;
    Ok(stream)
}

/// Builds a context and connects once.
pub async fn try_once(settings: &TlsSettings, server: &Server, host: &str) -> Result<TlsStream<TcpStream>, TlsError> {
    let context = build(settings)?;
    connect(&context, server, settings.sni.as_deref().unwrap_or(host)).await
}

/// Sends one request, reads the answer to its end and closes: `openssl s_server` serves one connection after the other.
pub async fn get(mut stream: TlsStream<TcpStream>) -> io::Result<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let exchange = async {
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
        stream.flush().await?;
        let mut answer = Vec::new();
        let end = stream.read_to_end(&mut answer).await;
        if answer.is_empty() {
            end?;
        }
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    timeout(PATIENCE, exchange).await.expect("the answer comes")
}

/// A server of one connection that writes `answer` and closes.
pub fn plain_server(answer: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        if let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.set_read_timeout(Some(PATIENCE));
            let _ = stream.read(&mut [0; 4096]);
            let _ = io::Write::write_all(&mut stream, answer);
        }
    });
    address
}
