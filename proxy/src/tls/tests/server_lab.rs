//! Our server under test, called by the real `openssl s_client`.

use std::{
    io::Write,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use rustls::HandshakeKind;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::spawn_blocking,
    time::timeout,
};

use super::lab::{Lab, PATIENCE, Reader};
use crate::{
    mesh::{ClientCertificates, ClientTrust, IdentitySource, ServerTlsSettings, TrustSource},
    tls::{ClientCertificate, Contexts, ServerContext, TlsError, client_fault, peer_certificate},
};

/// What the server came to know of one connection.
#[derive(Debug)]
pub struct Taken {
    pub certificate: Option<ClientCertificate>,
    pub alpn: Option<String>,
    pub resumed: bool,
}

/// What both sides say of one connection.
pub struct Call {
    /// All that `openssl` wrote.
    pub client: String,
    /// Or why the handshake failed, as the log has it.
    pub server: Result<Taken, String>,
}

impl Call {
    /// The answer of the application arrived.
    pub fn is_served(&self) -> bool {
        self.client.contains(ANSWER)
    }

    /// The certificate that was accepted, or a panic with what was said.
    pub fn taken(self) -> Taken {
        assert!(self.is_served(), "{}\n{:?}", self.client, self.server);
        self.server.unwrap()
    }

    /// Why nothing was answered.
    pub fn refused(self) -> String {
        assert!(!self.is_served(), "{}", self.client);
        self.server.unwrap_err()
    }
}

const ANSWER: &str = "the answer of the application";

impl Lab {
    fn identity(&self, name: &str) -> IdentitySource {
        let (certificate, key) = (self.material(&format!("{name}.crt")), self.material(&format!("{name}.key")));
        IdentitySource::Files { certificate, key }
    }

    /// SIMPLE with these certificates.
    pub fn simple(&self, names: &[&str]) -> ServerTlsSettings {
        ServerTlsSettings {
            identities: names.iter().map(|name| self.identity(name)).collect(),
            clients: ClientCertificates::None,
            alpn: Vec::new(),
            min_version: None,
            max_version: None,
            cipher_suites: Vec::new(),
            curves: Vec::new(),
        }
    }

    pub fn client_trust(&self, ca: &str) -> ClientTrust {
        ClientTrust {
            ca: TrustSource::File(self.material(&format!("{ca}.crt"))),
            crl: None,
            subject_alt_names: Vec::new(),
            spki: Vec::new(),
            hashes: Vec::new(),
        }
    }

    /// MUTUAL: presents `name`, and takes clients of `ca`.
    pub fn mutual(&self, name: &str, ca: &str) -> ServerTlsSettings {
        ServerTlsSettings { clients: ClientCertificates::Required(self.client_trust(ca)), ..self.simple(&[name]) }
    }

    /// `openssl s_client` in the folder, against a connection that this server takes.
    pub async fn call(&self, server: &Arc<ServerContext>, arguments: &[&str]) -> Call {
        self.call_typing_first(server, &[arguments, &["-ign_eof"]].concat(), "").await
    }

    /// The same; `input` is typed, and its letters are commands to `s_client`.
    pub async fn call_typing_first(
        &self,
        server: &Arc<ServerContext>,
        arguments: &[&str],
        input: &'static str,
    ) -> Call {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut command = Command::new("openssl");
        command
            .args(["s_client", "-connect", &address, "-nameopt", "RFC2253"])
            .args(arguments)
            .current_dir(self.dir.path());
        let client = spawn_blocking(move || {
            let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = piped.spawn().unwrap();
            let mut stdin = child.stdin.take().unwrap();
            let _ = stdin.write_all(input.as_bytes());
            // Open until the end: `s_client` reads commands from it.
            let output = child.wait_with_output().unwrap();
            drop(stdin);
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
        });
        let server =
            timeout(PATIENCE, serve(server, &listener, !input.is_empty())).await.expect("the server comes to an end");
        let client = timeout(PATIENCE, client).await.expect("openssl comes to an end").unwrap();
        Call { client, server }
    }
}

/// Answers, and closes: where the client has something to type, only once that has come to its end.
async fn serve(server: &ServerContext, listener: &TcpListener, waits: bool) -> Result<Taken, String> {
    let (tcp, _) = listener.accept().await.unwrap();
    let mut stream = match server.accept(tcp).await {
        Ok(stream) => stream,
        Err((error, tcp)) => {
            // As the engine does it: let the alert arrive.
            let mut tcp = tcp.unwrap();
            let _ = tcp.shutdown().await;
            let _ = timeout(PATIENCE, tcp.read_to_end(&mut Vec::new())).await;
            return Err(client_fault(&error));
        }
    };
    let connection = stream.get_ref().1;
    let taken = Taken {
        certificate: peer_certificate(connection),
        alpn: connection.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned()),
        resumed: connection.handshake_kind() == Some(HandshakeKind::Resumed),
    };
    if waits {
        // What rustls answers to a request for a new handshake leaves with the next write.
        let _ = timeout(Duration::from_secs(1), stream.read(&mut [0])).await;
    }
    let _ = stream.write_all(ANSWER.as_bytes()).await;
    let _ = stream.shutdown().await;
    let _ = timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await;
    Ok(taken)
}

pub fn contexts(settings: &ServerTlsSettings) -> Contexts {
    Contexts::build(&Contexts::default(), [], [Arc::new(settings.clone())], &Reader::default())
}

pub fn build_server(settings: &ServerTlsSettings) -> Result<Arc<ServerContext>, TlsError> {
    contexts(settings).server(settings).map_err(|error| (*error).clone())
}
