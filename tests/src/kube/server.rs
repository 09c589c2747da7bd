//! The API server as a test holds it.

use std::{
    net::{Ipv4Addr, SocketAddr},
    ops::Deref,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::{net::TcpListener, runtime::Runtime};
use tokio_rustls::TlsAcceptor;

use super::{
    api::{self, Fault, Seen, Shared, User},
    certificates,
    client::Client,
};

/// See the module's documentation. Dereferences to the administrator's [`Client`]. Ends when dropped.
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    tls: TlsAcceptor,
    authority: String,
    runtime: Mutex<Option<Runtime>>,
    client: Client,
    dir: tempfile::TempDir,
}

impl Deref for ApiServer {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl ApiServer {
    /// A server on a free port of 127.0.0.1, with the namespaces that every cluster has.
    pub fn start() -> Result<Self> {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into())
    }

    /// A server at an address; port 0 is any that is free.
    pub fn start_at(address: SocketAddr) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix(&format!("{}-", crate::lab::fresh_id())).tempdir()?;
        let (tls, authority) = certificates::make(address.ip())?;
        let shared = Arc::new(Shared::new(&authority));
        let (runtime, address) = listen(&shared, &tls, address)?;
        let config = kubeconfig_text(address, &authority, &shared.tokens().mint(User::person("admin")), "admin");
        let path = dir.path().join("admin.kubeconfig");
        std::fs::write(&path, config)?;
        let client = Client::new(&path)?;
        let server = Self { shared, address, tls, authority, runtime: Mutex::new(Some(runtime)), client, dir };
        for namespace in ["default", "kube-system", "kube-public", "kube-node-lease"] {
            server.client.create(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}))?;
        }
        Ok(server)
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// PEM of the authority that the server's certificate is of.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The administrator.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The server is gone: nobody listens, and all connections end. What it stores stays.
    pub fn stop(&self) {
        let runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(runtime) = runtime {
            // Tasks are dropped before this returns, and their sockets with them.
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }

    /// After [`ApiServer::stop`]: the same address, objects, tokens and log.
    pub fn resume(&self) -> Result<()> {
        let mut runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner);
        if runtime.is_none() {
            *runtime = Some(listen(&self.shared, &self.tls, self.address)?.0);
        }
        Ok(())
    }

    /// Gone for a moment.
    pub fn restart(&self) -> Result<()> {
        self.stop();
        self.resume()
    }

    /// A kubeconfig file for a user; `admin` may do everything, others what RBAC objects say.
    pub fn kubeconfig(&self, user: &str) -> Result<PathBuf> {
        let token = self.shared.tokens().mint(User::person(user));
        self.write_kubeconfig(user, &token)
    }

    /// A kubeconfig file for the holder of a token.
    pub fn kubeconfig_of(&self, token: &str) -> Result<PathBuf> {
        self.write_kubeconfig("token", token)
    }

    fn write_kubeconfig(&self, user: &str, token: &str) -> Result<PathBuf> {
        let path = self.dir.path().join(format!("{user}-{}.kubeconfig", api::random_hex(4)));
        std::fs::write(&path, kubeconfig_text(self.address, &self.authority, token, user))?;
        Ok(path)
    }

    /// A token of a service account, which is made where it is not there.
    pub fn service_account(&self, namespace: &str, name: &str) -> Result<String> {
        let user = self.account(namespace, name)?;
        Ok(self.shared.tokens().mint(user))
    }

    /// The same, bound to a pod on a node as the kubelet's projected tokens are: requests bear the node's name
    /// (`authentication.kubernetes.io/node-name` among the extra fields of a CertificateSigningRequest).
    pub fn service_account_of_pod(&self, namespace: &str, name: &str, pod: &Value) -> Result<String> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let user = self.account(namespace, name)?.bound(
            &text(&pod["metadata"]["name"]),
            &text(&pod["metadata"]["uid"]),
            &text(&pod["spec"]["nodeName"]),
        );
        Ok(self.shared.tokens().mint(user))
    }

    fn account(&self, namespace: &str, name: &str) -> Result<User> {
        let account =
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"namespace": namespace, "name": name}});
        let found = match self.client.get("ServiceAccount", namespace, name)? {
            Some(found) => found,
            None => self.client.create(&account)?,
        };
        Ok(User::service_account(namespace, name, found["metadata"]["uid"].as_str().unwrap_or_default()))
    }

    /// From now on the token is nobody's (401).
    pub fn revoke(&self, token: &str) {
        self.shared.tokens().revoke(token);
    }

    /// Writes `token`, `ca.crt` and `namespace` as a pod finds them under /var/run/secrets/kubernetes.io/serviceaccount.
    pub fn write_service_account(&self, dir: &Path, namespace: &str, token: &str) -> Result<()> {
        std::fs::create_dir_all(dir)?;
        for (file, text) in [("token", token), ("ca.crt", &self.authority), ("namespace", namespace)] {
            std::fs::write(dir.join(file), text)?;
        }
        Ok(())
    }

    /// Does ill from now on; hands back the number for [`ApiServer::lift`].
    pub fn fault(&self, fault: Fault) -> u64 {
        self.shared.faults().add(fault)
    }

    pub fn lift(&self, fault: u64) {
        self.shared.faults().lift(fault);
    }

    pub fn lift_all(&self) {
        self.shared.faults().lift_all();
    }

    /// Cuts all open watches.
    pub fn drop_watches(&self) {
        self.shared.drop_watches();
    }

    /// Forgets what happened so far: a watch from before gets 410, a list's next page too.
    pub fn compact(&self) {
        self.shared.store().compact();
    }

    /// How often a watch that allows it gets a bookmark; 10 s unless set.
    pub fn bookmark_every(&self, interval: Duration) {
        self.shared.set_bookmark_interval(interval);
    }

    /// All requests so far, oldest first.
    #[must_use]
    pub fn requests(&self) -> Vec<Seen> {
        self.shared.seen().clone()
    }

    /// The same, and forgets them.
    #[must_use]
    pub fn take_requests(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.shared.seen())
    }

    /// The version that the next list would have.
    #[must_use]
    pub fn resource_version(&self) -> u64 {
        self.shared.store().version
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn listen(shared: &Arc<Shared>, tls: &TlsAcceptor, address: SocketAddr) -> Result<(Runtime, SocketAddr)> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("kube-apiserver")
        .enable_all()
        .build()?;
    let listener = runtime
        .block_on(TcpListener::bind(address))
        .with_context(|| format!("the API server cannot listen on {address}"))?;
    let address = listener.local_addr()?;
    runtime.spawn(api::serve(listener, tls.clone(), shared.clone()));
    Ok((runtime, address))
}

fn kubeconfig_text(address: SocketAddr, authority: &str, token: &str, user: &str) -> String {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "lab",
        "clusters": [{"name": "lab", "cluster": {
            "server": format!("https://{address}"),
            "certificate-authority-data": BASE64_STANDARD.encode(authority),
        }}],
        "users": [{"name": user, "user": {"token": token}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": user, "namespace": "default"}}],
    });
    format!("{config:#}\n")
}
