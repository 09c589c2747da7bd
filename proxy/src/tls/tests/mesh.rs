//! Mesh mTLS: handshakes over sockets between two contexts, right and wrong.

use std::{net::Ipv4Addr, process::Stdio, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::server;

use super::lab::{PATIENCE, Reader};
use crate::{
    identity::tests::lab::{Mesh, PlugIn},
    limits::{FORMER_ROOT_TRUST, LEAF_LIFETIME, LEAF_RENEW_AT},
    mesh::table::{MeshTls, Peer},
    tls::{ClientContext, Contexts, ServerContext, TlsStream, UpstreamName, client_fault, peer_identity},
};

const SLEEP: &str = "spiffe://cluster.local/ns/default/sa/sleep";
const SERVER: &str = "spiffe://cluster.local/ns/default/sa/server";
const OTHER: &str = "spiffe://cluster.local/ns/default/sa/other";

fn rule(names: &[&str]) -> MeshTls {
    let subject_alt_names = names.iter().map(|name| (*name).to_owned()).collect();
    MeshTls { required: true, sni: "outbound_.80_.v1_.server.default.svc.cluster.local".to_owned(), subject_alt_names }
}

fn peer(identity: &str) -> Peer {
    Peer { identity: Arc::from(identity), captured: Some(Arc::default()) }
}

fn first(mesh: &Mesh) -> Contexts {
    Contexts::with_identities(mesh.identities.clone())
}

fn next(contexts: &Contexts) -> Contexts {
    Contexts::build(contexts, [], [], &Reader::default())
}

struct Ends {
    client: Result<TlsStream<TcpStream>, String>,
    server: Result<server::TlsStream<TcpStream>, String>,
}

async fn handshake(client: &ClientContext, server: &ServerContext) -> Ends {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let both = async {
        tokio::join!(
            async {
                let stream = TcpStream::connect(address).await.unwrap();
                let connected = client.connect(UpstreamName::default(), stream).await;
                let mut stream = connected.map_err(|error| error.to_string())?;
                // The last flight, which else waits for what the client says first.
                let _ = stream.flush().await;
                Ok(stream)
            },
            async {
                let (stream, _) = listener.accept().await.unwrap();
                server.accept(stream).await.map_err(|(error, _)| client_fault(&error))
            }
        )
    };
    let (client, server) = timeout(PATIENCE, both).await.expect("the handshakes end");
    Ends { client, server }
}

/// Bytes go both ways.
async fn talk(client: &mut TlsStream<TcpStream>, server: &mut server::TlsStream<TcpStream>) {
    let exchange = async {
        let mut bytes = [0; 4];
        client.write_all(b"ping").await.unwrap();
        server.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"ping");
        server.write_all(b"pong").await.unwrap();
        client.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"pong");
    };
    timeout(PATIENCE, exchange).await.expect("the bytes come");
}

#[tokio::test]
async fn both_show_their_identity_and_the_right_one_is_taken() {
    let mesh = Mesh::new(&[SLEEP, SERVER]);
    let contexts = first(&mesh);
    let server = contexts.mesh_server(SERVER).unwrap();
    for (rule, peer) in
        [(rule(&[]), Some(peer(SERVER))), (rule(&[OTHER, SERVER]), Some(peer(OTHER))), (rule(&[]), None)]
    {
        let client = contexts.mesh_client(SLEEP, &rule, peer.as_ref()).unwrap();
        let ends = handshake(&client, &server).await;
        let (mut client, mut server) = (ends.client.unwrap(), ends.server.unwrap());
        assert_eq!(peer_identity(server.get_ref().1).as_deref(), Some(SLEEP));
        assert_eq!(server.get_ref().1.alpn_protocol(), Some(&b"istio"[..]));
        assert_eq!(server.get_ref().1.server_name(), Some("outbound_.80_.v1_.server.default.svc.cluster.local"));
        talk(&mut client, &mut server).await;
    }
}

#[tokio::test]
async fn another_service_account_is_refused_with_both_names() {
    let mesh = Mesh::new(&[SLEEP, SERVER]);
    let contexts = first(&mesh);
    let server = contexts.mesh_server(SERVER).unwrap();
    for (rule, peer) in [(rule(&[]), Some(peer(OTHER))), (rule(&[OTHER]), Some(peer(SERVER)))] {
        let client = contexts.mesh_client(SLEEP, &rule, peer.as_ref()).unwrap();
        let ends = handshake(&client, &server).await;
        let error = ends.client.unwrap_err();
        assert!(error.contains(&format!("showed the identity {SERVER}, but {OTHER} was expected")), "{error}");
        let error = ends.server.unwrap_err();
        assert!(error.contains(&format!("the client refused our identity {SERVER}")), "{error}");
    }
}

#[tokio::test]
async fn an_expired_server_is_refused_by_the_client() {
    let (old, mesh) = (Mesh::new(&[SLEEP, SERVER]), Mesh::new(&[SLEEP, SERVER]));
    // Two agents of one mesh; one of them stands still in time and does not renew.
    let plug_in = PlugIn::new("cluster", "730");
    old.update(Some(&plug_in.secret()));
    mesh.update(Some(&plug_in.secret()));
    mesh.clock.advance(LEAF_LIFETIME + Duration::from_secs(1));
    mesh.identities.renew();
    let (stale, fresh) = (first(&old), first(&mesh));

    let client = fresh.mesh_client(SLEEP, &rule(&[]), Some(&peer(SERVER))).unwrap();
    let ends = handshake(&client, &stale.mesh_server(SERVER).unwrap()).await;
    let error = ends.client.unwrap_err();
    assert!(
        error.contains(&format!("the server's mesh certificate for {SERVER} is refused (it expired at ")),
        "{error}"
    );
    assert!(error.contains(&format!("{SERVER} was expected")), "{error}");
}

#[tokio::test]
async fn an_expired_client_is_refused_by_the_server() {
    let plug_in = PlugIn::new("cluster", "730");
    let (one, two) = (Mesh::new(&[SLEEP]), Mesh::new(&[SERVER]));
    one.update(Some(&plug_in.secret()));
    two.clock.advance(LEAF_LIFETIME / 2);
    two.update(Some(&plug_in.secret()));
    let server = first(&two).mesh_server(SERVER).unwrap();
    // The client's clock stands so that the server's certificate is valid for it, and its own not renewed.
    one.clock.advance(LEAF_LIFETIME - Duration::from_secs(60));
    two.clock.advance(LEAF_LIFETIME / 2 + Duration::from_secs(60));
    let client = first(&one).mesh_client(SLEEP, &rule(&[]), Some(&peer(SERVER))).unwrap();
    let ends = handshake(&client, &server).await;
    let error = ends.server.unwrap_err();
    assert!(
        error.contains(&format!("the client's mesh certificate for {SLEEP} is refused (it expired at ")),
        "{error}"
    );
    assert!(error.contains("spiffe://cluster.local/* was expected"), "{error}");
    // One's own expired certificate is not even sent.
    one.clock.advance(Duration::from_secs(120));
    let ends = handshake(&client, &server).await;
    let error = ends.client.unwrap_err();
    assert!(error.contains(&format!("no mesh certificate yet for our own identity {SLEEP}")), "{error}");
}

#[tokio::test]
async fn a_foreign_ca_is_refused_by_both_sides() {
    let (ours, theirs) = (Mesh::new(&[SLEEP, SERVER]), Mesh::new(&[SLEEP, SERVER]));
    let (ours, theirs) = (first(&ours), first(&theirs));
    let client = ours.mesh_client(SLEEP, &rule(&[]), Some(&peer(SERVER))).unwrap();
    let ends = handshake(&client, &theirs.mesh_server(SERVER).unwrap()).await;
    let error = ends.client.unwrap_err();
    assert!(error.contains(&format!("the server's mesh certificate for {SERVER} is refused (no CA of this mesh issued it; its issuer is CN=egret mesh CA ")), "{error}");
    assert!(ends.server.unwrap_err().contains("refused our identity"));
}

/// `openssl s_client`, which checks nothing here, with these arguments; what the server says to it.
async fn stranger(server: &ServerContext, arguments: &[&str]) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut command = std::process::Command::new("openssl");
    command.args(["s_client", "-connect", &address]).args(arguments);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let refused = timeout(PATIENCE, async { server.accept(listener.accept().await.unwrap().0).await }).await;
    child.kill().unwrap();
    child.wait().unwrap();
    let (error, _) = refused.expect("the handshake ends").map(|_| ()).unwrap_err();
    client_fault(&error)
}

/// One that shows this certificate of the CA.
async fn shows(server: &ServerContext, ca: &PlugIn, name: &str) -> String {
    let path = |end: &str| ca.folder.path().join(format!("{name}{end}")).to_str().unwrap().to_owned();
    stranger(server, &["-alpn", "istio", "-cert", &path(".pem"), "-key", &path("-key.pem")]).await
}

#[tokio::test]
async fn strangers_are_refused_with_the_reason() {
    let (plug_in, foreign) = (PlugIn::new("ours", "730"), PlugIn::new("theirs", "730"));
    let mesh = Mesh::new(&[SERVER]);
    mesh.update(Some(&plug_in.secret()));
    let server = first(&mesh).mesh_server(SERVER).unwrap();
    let leaf = |ca: &PlugIn, name: &str, names: &str| {
        ca.write(&format!("{name}.ext"), names);
        let (key, csr, pem, ext) =
            (format!("{name}-key.pem"), format!("{name}.csr"), format!("{name}.pem"), format!("{name}.ext"));
        ca.openssl(&[
            "req",
            "-new",
            "-nodes",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-subj",
            "/CN=leaf",
            "-keyout",
            &key,
            "-out",
            &csr,
        ]);
        ca.openssl(&[
            "x509",
            "-req",
            "-days",
            "1",
            "-CA",
            "root-cert.pem",
            "-CAkey",
            "root-key.pem",
            "-CAcreateserial",
            "-extfile",
            &ext,
            "-in",
            &csr,
            "-out",
            &pem,
        ]);
    };
    let error = stranger(&server, &[]).await;
    assert!(error.contains("the client showed no certificate; spiffe://cluster.local/* was expected"), "{error}");
    leaf(&foreign, "sleep", &format!("subjectAltName=URI:{SLEEP}"));
    let error = shows(&server, &foreign, "sleep").await;
    // Istio's Makefile gives every root the same name: that it is another one shows in its key.
    assert!(
        error.contains(&format!("certificate for {SLEEP} is refused (another CA named CN=Root CA,O=Istio")),
        "{error}"
    );
    leaf(&plug_in, "dns", "subjectAltName=DNS:sleep.default");
    let error = shows(&server, &plug_in, "dns").await;
    assert!(error.contains("certificate for CN=leaf is refused (it bears no SPIFFE identity)"), "{error}");
    leaf(&plug_in, "two", &format!("subjectAltName=URI:{SLEEP},URI:{OTHER}"));
    assert!(shows(&server, &plug_in, "two").await.contains("several URIs"));
    leaf(&plug_in, "elsewhere", "subjectAltName=URI:spiffe://elsewhere/ns/default/sa/sleep");
    let error = shows(&server, &plug_in, "elsewhere").await;
    assert!(
        error.contains("showed the identity spiffe://elsewhere/ns/default/sa/sleep, but spiffe://cluster.local/* was"),
        "{error}"
    );
}

#[tokio::test]
async fn aliases_of_the_trust_domain_are_the_trust_domain() {
    let plug_in = PlugIn::new("cluster", "730");
    let old = "spiffe://old.example/ns/default/sa/server";
    let (mut one, two) = (Mesh::new(&[SLEEP]), Mesh::new(&[old]));
    two.update(Some(&plug_in.secret()));
    one.update(Some(&plug_in.secret()));
    let contexts = first(&one);
    let mut theirs = Mesh { settings: one.settings.clone(), ..two };
    theirs.settings.trust_domain = "old.example".to_owned();
    theirs.settings.trust_domain_aliases = vec!["cluster.local".to_owned()];
    theirs.update(Some(&plug_in.secret()));
    let server = first(&theirs).mesh_server(old).unwrap();
    let client = contexts.mesh_client(SLEEP, &rule(&[]), Some(&peer(SERVER))).unwrap();
    let error = handshake(&client, &server).await.client.unwrap_err();
    assert!(error.contains(&format!("showed the identity {old}, but {SERVER} was expected")), "{error}");
    one.settings.trust_domain_aliases = vec!["old.example".to_owned()];
    one.update(Some(&plug_in.secret()));
    let client = next(&contexts).mesh_client(SLEEP, &rule(&[]), Some(&peer(SERVER))).unwrap();
    let ends = handshake(&client, &server).await;
    ends.client.unwrap();
    assert_eq!(peer_identity(ends.server.unwrap().get_ref().1).as_deref(), Some(SLEEP));
    // The path counts all the same.
    let client = next(&contexts).mesh_client(SLEEP, &rule(&[]), Some(&peer(OTHER))).unwrap();
    handshake(&client, &server).await.client.unwrap_err();
}

#[tokio::test]
async fn two_roots_are_trusted_while_one_follows_the_other() {
    let (old, new) = (PlugIn::new("old", "730"), PlugIn::new("new", "730"));
    let (one, two) = (Mesh::new(&[SLEEP]), Mesh::new(&[SERVER]));
    let both = |mut secret: crate::api::core::Secret| {
        secret.data.insert("root-cert.pem".to_owned(), [old.read("root-cert.pem"), new.read("root-cert.pem")].concat());
        secret
    };
    one.update(Some(&both(old.secret())));
    two.update(Some(&both(new.secret())));
    let (client, server) = (first(&one), first(&two));
    let ends = handshake(
        &client.mesh_client(SLEEP, &rule(&[]), Some(&peer(SERVER))).unwrap(),
        &server.mesh_server(SERVER).unwrap(),
    )
    .await;
    let (mut client_end, mut server_end) = (ends.client.unwrap(), ends.server.unwrap());
    talk(&mut client_end, &mut server_end).await;
    // The server's side drops the old root: it is trusted for some time yet, then no more.
    two.update(Some(&new.secret()));
    let server = next(&server);
    let connect = async |server: &Contexts| {
        let client = client.mesh_client(SLEEP, &rule(&[]), Some(&peer(SERVER))).unwrap();
        handshake(&client, &server.mesh_server(SERVER).unwrap()).await
    };
    connect(&server).await.server.unwrap();
    two.clock.advance(FORMER_ROOT_TRUST);
    one.clock.advance(FORMER_ROOT_TRUST);
    one.identities.renew();
    one.identities.publish();
    assert!(two.identities.renew());
    let server = next(&server);
    two.identities.publish();
    let error = connect(&server).await.server.unwrap_err();
    assert!(error.contains(&format!("certificate for {SLEEP} is refused")), "{error}");
}

#[tokio::test]
async fn a_renewal_keeps_connections_and_contexts_and_a_new_ca_does_not() {
    let mesh = Mesh::new(&[SLEEP, SERVER]);
    let contexts = first(&mesh);
    let client = |contexts: &Contexts| contexts.mesh_client(SLEEP, &rule(&[]), Some(&peer(SERVER))).unwrap();
    let server = contexts.mesh_server(SERVER).unwrap();
    let ends = handshake(&client(&contexts), &server).await;
    let (mut client_end, mut server_end) = (ends.client.unwrap(), ends.server.unwrap());
    let serial = |stream: &TlsStream<TcpStream>| {
        let shown = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
        crate::tls::inspect::CertificateSummary::from_der(&shown).unwrap().serial
    };
    mesh.clock.advance(LEAF_RENEW_AT);
    mesh.identities.renew();
    talk(&mut client_end, &mut server_end).await;
    let after = next(&contexts);
    assert_eq!(client(&after).id, client(&contexts).id);
    // The same context shows the new certificate.
    let renewed = handshake(&client(&contexts), &server).await.client.unwrap();
    assert_ne!(serial(&renewed), serial(&client_end));
    // Other rules and peers are other contexts.
    let any = contexts.mesh_client(SLEEP, &rule(&[]), None).unwrap();
    assert_ne!(any.id, client(&contexts).id);
    let plug_in = PlugIn::new("cluster", "730");
    mesh.update(Some(&plug_in.secret()));
    assert_eq!(client(&contexts).id, client(&after).id, "what is in force stays until the next build");
    assert_ne!(client(&next(&after)).id, client(&after).id);
    talk(&mut client_end, &mut server_end).await;
}

#[tokio::test]
async fn while_the_ca_changes_no_handshake_fails() {
    let (mesh, plug_in) = (Mesh::new(&[SLEEP, SERVER]), PlugIn::new("cluster", "730"));
    let old = first(&mesh);
    let connect = async |client: &Contexts, server: &Contexts| {
        let client = client.mesh_client(SLEEP, &rule(&[]), Some(&peer(SERVER))).unwrap();
        let ends = handshake(&client, &server.mesh_server(SERVER).unwrap()).await;
        ends.client.unwrap();
        ends.server.unwrap().get_ref().1.peer_certificates().unwrap().len()
    };
    assert_eq!(connect(&old, &old).await, 1);
    // Trusted already by whoever is built now, and not shown yet to those who do not know of it.
    mesh.identities.update(&mesh.settings, mesh.names.clone(), Some(&plug_in.secret()));
    let new = next(&old);
    for (client, server) in [(&old, &old), (&old, &new), (&new, &old), (&new, &new)] {
        assert_eq!(connect(client, server).await, 1);
    }
    mesh.identities.publish();
    // With the intermediate.
    assert_eq!(connect(&new, &new).await, 2);
}

#[tokio::test]
async fn no_session_outlives_its_handshake() {
    let mesh = Mesh::new(&[SLEEP, SERVER]);
    let contexts = first(&mesh);
    let client = contexts.mesh_client(SLEEP, &rule(&[]), None).unwrap();
    let server = contexts.mesh_server(SERVER).unwrap();
    for _ in 0..2 {
        let ends = handshake(&client, &server).await;
        let (mut client_end, mut server_end) = (ends.client.unwrap(), ends.server.unwrap());
        talk(&mut client_end, &mut server_end).await;
        assert_eq!(client_end.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
    }
}

#[tokio::test]
async fn the_least_version_of_the_mesh_counts() {
    let mut mesh = Mesh::new(&[SLEEP, SERVER]);
    mesh.settings.mesh_tls_min_version = Some("TLSV1_3".to_owned());
    mesh.update(None);
    let contexts = first(&mesh);
    let error = stranger(&contexts.mesh_server(SERVER).unwrap(), &["-tls1_2"]).await;
    assert!(error.contains("Tls13RequiredForQuic") || error.contains("ersion"), "{error}");
}

#[tokio::test]
async fn names_that_tls_cannot_carry_are_not_sent() {
    let mesh = Mesh::new(&[SLEEP, SERVER]);
    let contexts = first(&mesh);
    let rule = MeshTls { sni: "outbound_.80_._.*.example.com".to_owned(), ..rule(&[]) };
    let client = contexts.mesh_client(SLEEP, &rule, Some(&peer(SERVER))).unwrap();
    let ends = handshake(&client, &contexts.mesh_server(SERVER).unwrap()).await;
    ends.client.unwrap();
    assert_eq!(ends.server.unwrap().get_ref().1.server_name(), None);
}

#[test]
fn rows_show_the_certificate_as_it_is_now() {
    let mesh = Mesh::new(&[SLEEP, OTHER]);
    let contexts = first(&mesh);
    let names = |rows: &[crate::tls::SecretRow]| {
        rows.iter()
            .map(|row| (row.name.clone(), row.namespace.clone(), row.kind, row.status.clone(), row.valid))
            .collect::<Vec<_>>()
    };
    let row =
        |name: &str, namespace: &str, kind| (name.to_owned(), namespace.to_owned(), kind, "ACTIVE".to_owned(), true);
    let (default, root) = (row("default", "default", "Cert Chain"), row("ROOTCA", "", "CA"));
    let rows = contexts.mesh_secrets(Some(SLEEP));
    assert_eq!(names(&rows), [default.clone(), root.clone()]);
    assert_eq!(rows[0].chain[0].subject_alt_names, [SLEEP]);
    assert_eq!(names(&contexts.mesh_secrets(None)), [default.clone(), default, root]);
    // Without a new configuration.
    mesh.clock.advance(LEAF_RENEW_AT);
    mesh.identities.renew();
    assert_ne!(contexts.mesh_secrets(Some(SLEEP))[0].serial, rows[0].serial);
    // No certificate: the reason is there.
    let rows = contexts.mesh_secrets(Some(SERVER));
    assert_eq!((rows[0].status.as_str(), rows[0].valid), ("no certificate was issued yet", false));
    assert!(first(&Mesh::new(&[])).mesh_secrets(None).is_empty());
}

#[test]
fn without_a_ca_the_reason_is_told() {
    let error = Contexts::default().mesh_server(SERVER).unwrap_err().to_string();
    assert_eq!(error, "mesh mTLS cannot be used: this agent holds no mesh identities");
    let mesh = Mesh::new(&[SLEEP]);
    let error = first(&mesh).mesh_client(SERVER, &rule(&[]), None).unwrap_err().to_string();
    assert!(error.contains(&format!("no mesh certificate yet for our own identity {SERVER}")), "{error}");
}
