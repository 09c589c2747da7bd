//! The client's end of a connection as a stream: bytes stay whole through narrow and broken pipes, ends are told from cuts, and
//! no write is made that could have been spared.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use rustls_pki_types::{PrivateKeyDer, ServerName};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server};

use super::lab::PATIENCE;
use crate::tls::{sessions::Sessions, stream::TlsStream};

const HOST: &str = "a.example";

struct Pair {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

fn configs(version: &'static SupportedProtocolVersion) -> Pair {
    let made = rcgen::generate_simple_self_signed([HOST.to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.resumption = Sessions::resumption();
    Pair { client: Arc::new(client), server: Arc::new(server) }
}

const VERSIONS: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS12, &rustls::version::TLS13];

async fn client<IO: AsyncRead + AsyncWrite + Unpin>(pair: &Pair, io: IO) -> io::Result<TlsStream<IO>> {
    TlsStream::connect(pair.client.clone(), ServerName::try_from(HOST).unwrap(), Vec::new(), io).await
}

/// Both ends, over pipes of so many bytes, which must take a server's tickets.
async fn connected(pair: &Pair, bytes: usize) -> (TlsStream<Counting>, server::TlsStream<DuplexStream>) {
    let (near, far) = duplex(bytes);
    let accepting = tokio::spawn(TlsAcceptor::from(pair.server.clone()).accept(far));
    let mut client = client(pair, Counting::new(near)).await.unwrap();
    client.flush().await.unwrap();
    (client, accepting.await.unwrap().unwrap())
}

/// Counts the writes that reach it.
struct Counting {
    io: DuplexStream,
    writes: Arc<AtomicUsize>,
}

impl Counting {
    fn new(io: DuplexStream) -> Self {
        Self { io, writes: Arc::default() }
    }
}

impl AsyncRead for Counting {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counting {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

fn data(bytes: u32) -> Vec<u8> {
    (0..bytes).map(|i| ((i * 31) >> 3) as u8).collect()
}

#[tokio::test]
async fn bytes_stay_whole_both_ways_through_narrow_pipes() {
    for version in VERSIONS {
        for bytes in [100, 5000, 1 << 20] {
            let pair = configs(version);
            let (near, far) = duplex(bytes);
            let acceptor = TlsAcceptor::from(pair.server.clone());
            let echo = tokio::spawn(async move {
                let (mut read, mut write) = tokio::io::split(acceptor.accept(far).await.unwrap());
                tokio::io::copy(&mut read, &mut write).await.unwrap();
                write.shutdown().await.unwrap();
            });
            let client = client(&pair, near).await.unwrap();
            let sent = data(300_000);
            let expected = sent.clone();
            let (mut read, mut write) = tokio::io::split(client);
            let writer = tokio::spawn(async move {
                write.write_all(&sent).await.unwrap();
                write.shutdown().await.unwrap();
                write
            });
            let mut got = Vec::new();
            timeout(PATIENCE, read.read_to_end(&mut got)).await.expect("the echo ends").unwrap();
            assert!(got == expected, "{bytes}");
            echo.await.unwrap();
            writer.await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_reader_of_few_bytes_gets_them_all() {
    let (mut client, mut server) = connected(&configs(&rustls::version::TLS13), 1 << 20).await;
    let sent = data(100_000);
    server.write_all(&sent).await.unwrap();
    server.shutdown().await.unwrap();
    let mut got = Vec::new();
    for size in [1, 7, 5000, 20_000, 3].into_iter().cycle() {
        let mut piece = vec![0; size];
        match timeout(PATIENCE, client.read(&mut piece)).await.unwrap().unwrap() {
            0 => break,
            count => got.extend_from_slice(&piece[..count]),
        }
        // Writing in between takes nothing from what is still to be read.
        client.write_all(b"x").await.unwrap();
    }
    assert!(got == sent);
}

#[tokio::test]
async fn an_end_is_told_from_a_cut() {
    for version in VERSIONS {
        let (mut client, mut server) = connected(&configs(version), 1 << 16).await;
        server.write_all(b"half of").await.unwrap();
        server.get_mut().0.shutdown().await.unwrap();
        let mut got = Vec::new();
        let error = timeout(PATIENCE, client.read_to_end(&mut got)).await.unwrap().unwrap_err();
        assert_eq!((error.kind(), &got[..]), (io::ErrorKind::UnexpectedEof, &b"half of"[..]));

        let (mut client, mut server) = connected(&configs(version), 1 << 16).await;
        server.write_all(b"all").await.unwrap();
        server.shutdown().await.unwrap();
        let mut got = Vec::new();
        timeout(PATIENCE, client.read_to_end(&mut got)).await.unwrap().unwrap();
        assert_eq!(got, b"all");
    }
}

#[tokio::test]
async fn a_client_that_has_ended_still_reads() {
    let (mut client, mut server) = connected(&configs(&rustls::version::TLS13), 1 << 16).await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(client.write(b"more").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    let mut question = String::new();
    timeout(PATIENCE, server.read_to_string(&mut question)).await.unwrap().unwrap();
    assert_eq!(question, "question");
    server.write_all(b"answer").await.unwrap();
    server.shutdown().await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, client.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, "answer");
}

/// One write for the ClientHello, one for the end of the handshake with the request, one for each further request.
#[tokio::test]
async fn the_last_flight_goes_with_the_first_bytes() {
    let pair = configs(&rustls::version::TLS13);
    let (near, far) = duplex(1 << 16);
    let accepting = tokio::spawn(TlsAcceptor::from(pair.server.clone()).accept(far));
    let near = Counting::new(near);
    let writes = near.writes.clone();
    let mut client = client(&pair, near).await.unwrap();
    assert_eq!(writes.load(Ordering::Relaxed), 1);
    let count = client.write_vectored(&[IoSlice::new(b"head "), IoSlice::new(b""), IoSlice::new(b"body")]).await;
    assert_eq!((count.unwrap(), writes.load(Ordering::Relaxed)), (9, 2));
    let mut server = accepting.await.unwrap().unwrap();
    let mut got = [0; 9];
    server.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"head body");
    client.write_all(&[7; 40_000]).await.unwrap();
    assert_eq!(writes.load(Ordering::Relaxed), 3);
}

/// A server may speak first, and waits for the end of the handshake with that.
#[tokio::test]
async fn the_last_flight_goes_when_the_client_only_listens() {
    let pair = configs(&rustls::version::TLS13);
    let (near, far) = duplex(1 << 16);
    let acceptor = TlsAcceptor::from(pair.server.clone());
    tokio::spawn(async move {
        let mut server = acceptor.accept(far).await.unwrap();
        server.write_all(b"220 ready\r\n").await.unwrap();
        server.flush().await.unwrap();
        let _ = server.read(&mut [0]).await;
    });
    let mut client = client(&pair, near).await.unwrap();
    let mut greeting = [0; 11];
    timeout(PATIENCE, client.read_exact(&mut greeting)).await.expect("the server speaks").unwrap();
    assert_eq!(&greeting, b"220 ready\r\n");
}

#[tokio::test]
async fn each_ticket_opens_one_connection() {
    let pair = configs(&rustls::version::TLS13);
    let mut kinds = Vec::new();
    for _ in 0..3 {
        let (mut client, mut server) = connected(&pair, 1 << 16).await;
        server.write_all(b"x").await.unwrap();
        client.read_exact(&mut [0]).await.unwrap();
        kinds.push(client.get_ref().1.handshake_kind().unwrap() == rustls::HandshakeKind::Resumed);
    }
    assert_eq!(kinds, [false, true, true]);
}

/// What a server sends before it is known must not fill the memory.
#[tokio::test]
async fn an_endless_handshake_message_is_refused() {
    let pair = configs(&rustls::version::TLS13);
    let (near, mut far) = duplex(1 << 16);
    let flood = tokio::spawn(async move {
        // A ServerHello of 16 MiB in full records.
        let mut record = vec![22, 3, 3, 0x40, 0, 2, 0xff, 0xff, 0xff];
        record.resize(5 + 0x4000, 0);
        let mut sent = 0;
        while far.write_all(&record).await.is_ok() {
            sent += record.len();
            record.truncate(5);
            record.resize(5 + 0x4000, 0);
        }
        sent
    });
    let error = timeout(PATIENCE, client(&pair, near)).await.expect("it is refused").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    assert!(flood.await.unwrap() < 300_000);
}
