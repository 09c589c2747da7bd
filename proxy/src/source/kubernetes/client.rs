//! The connection to the API server.
//!
//! One HTTP/2 connection carries all watches of a node, as client-go's does, and pings tell within seconds that it is dead:
//! the client's own stack speaks HTTP/1.1, one connection for each watch, and notices silence after five minutes.

use http::{HeaderValue, header::USER_AGENT};
use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as HyperClient, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use kube::{
    Client, Config,
    client::{Body, ConfigExt as _},
    config::InferConfigError,
};
use rustls_pki_types::{InvalidDnsNameError, ServerName};
use thiserror::Error;
use tower::{BoxError, ServiceBuilder};

use crate::limits;

/// Why there is no client at all. That the API server cannot be reached is none of these: that may pass.
#[derive(Debug, Error)]
pub enum ClientError {
    #[error("no way to the API server: {0}")]
    Config(#[from] Box<InferConfigError>),
    #[error("the credentials for the API server cannot be used: {0}")]
    Credentials(#[from] Box<kube::Error>),
    #[error("tls-server-name {name}: {source}")]
    ServerName { name: String, source: InvalidDnsNameError },
    #[error("a proxy to the API server is not supported: {0}")]
    Proxy(http::Uri),
}

/// A client as `KUBECONFIG` (or `~/.kube/config`) says, or else as the pod's service account does. Wants a tokio runtime.
///
/// # Errors
/// Neither is there, or what it says cannot be used.
pub async fn connect() -> Result<Client, ClientError> {
    let mut config = Config::infer().await.map_err(Box::new)?;
    let agent = HeaderValue::from_static(concat!("egret/", env!("CARGO_PKG_VERSION")));
    config.headers.push((USER_AGENT, agent));
    if let Some(proxy) = config.proxy_url {
        return Err(ClientError::Proxy(proxy));
    }
    with_config(&config)
}

/// Our own namespace: `POD_NAMESPACE`, else that of the service account or the kubeconfig.
#[must_use]
pub fn namespace(client: &Client) -> String {
    let told = std::env::var("POD_NAMESPACE").ok().filter(|namespace| !namespace.is_empty());
    told.unwrap_or_else(|| client.default_namespace().to_owned())
}

fn with_config(config: &Config) -> Result<Client, ClientError> {
    // What the client's TLS settings are made with where none are named.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(limits::API_CONNECT));
    tcp.set_keepalive(Some(limits::API_PING));
    tcp.set_tcp_user_timeout(Some(limits::API_PING + limits::API_PONG));
    let tls = config.rustls_client_config().map_err(Box::new)?;
    let mut https = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
    if let Some(name) = &config.tls_server_name {
        let resolved = ServerName::try_from(name.clone());
        let resolved = resolved.map_err(|source| ClientError::ServerName { name: name.clone(), source })?;
        https = https.with_server_name_resolver(FixedServerNameResolver::new(resolved));
    }
    let http: HyperClient<_, Body> = HyperClient::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .http2_keep_alive_interval(limits::API_PING)
        .http2_keep_alive_timeout(limits::API_PONG)
        .http2_keep_alive_while_idle(true)
        .build(https.enable_all_versions().wrap_connector(tcp));
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().map_err(Box::new)?)
        .layer(config.extra_headers_layer().map_err(Box::new)?)
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace.clone()))
}
