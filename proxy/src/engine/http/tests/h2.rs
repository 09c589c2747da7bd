//! h2 on either side, gRPC over it.

use std::{convert::Infallible, net::SocketAddr, process::Stdio, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Version};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};

use super::lab::*;
use crate::{mesh::*, telemetry::record::Flag};

/// An h2 upstream that echoes the body and ends with `grpc-status: 5`.
pub async fn grpc_upstream() -> (SocketAddr, Arc<std::sync::atomic::AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = connections.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let service = service_fn(|request: Request<Incoming>| async move {
                assert_eq!(request.version(), Version::HTTP_2);
                let seen = request.uri().to_string();
                let te = request.headers().get("te").cloned();
                let body = request.into_body().collect().await.unwrap();
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", 5.into());
                for name in ["x-sum", "x-forwarded-client-cert"] {
                    if let Some(sent) = body.trailers().and_then(|sent| sent.get(name)) {
                        trailers.insert(name, sent.clone());
                    }
                }
                let frames = [Ok::<_, Infallible>(Frame::data(body.to_bytes())), Ok(Frame::trailers(trailers))];
                let body = StreamBody::new(futures_util::stream::iter(frames));
                let mut response = Response::new(body);
                response.headers_mut().insert("x-uri", seen.parse().unwrap());
                if let Some(te) = te {
                    response.headers_mut().insert("x-te", te);
                }
                Ok::<_, Infallible>(response)
            });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(async move { builder.serve_connection(TokioIo::new(stream), service).await });
        }
    });
    (address, connections)
}

type Client<B> = hyper::client::conn::http2::SendRequest<B>;

async fn h2_client<B>(lab: &Lab) -> Client<B>
where
    B: hyper::body::Body<Data = Bytes, Error = Infallible> + Send + Unpin + 'static,
{
    let stream = TcpStream::connect(lab.address).await.unwrap();
    let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

#[tokio::test]
async fn grpc_goes_through_with_trailers_and_its_status_is_logged() {
    let (address, connections) = grpc_upstream().await;
    let lab = Lab::with(cluster("a", Protocol::Grpc, &[address])).await;
    let mut client = h2_client(&lab).await;
    for _ in 0..3 {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", 9.into());
        // Which is not the client's to say, there either.
        trailers.insert("x-forwarded-client-cert", http::HeaderValue::from_static("URI=spiffe://admin"));
        let frames = [Ok(Frame::data(Bytes::from_static(b"hello"))), Ok(Frame::trailers(trailers))];
        let body = StreamBody::new(futures_util::stream::iter(frames));
        let request = Request::post("http://a/pkg.Service/Method")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(body)
            .unwrap();
        let response = client.send_request(request).await.unwrap();
        assert_eq!(response.headers()["x-uri"], "http://a/pkg.Service/Method");
        assert_eq!(response.headers()["x-te"], "trailers");
        let body = response.into_body().collect().await.unwrap();
        let trailers = body.trailers().unwrap().clone();
        assert_eq!((&trailers["grpc-status"], &trailers["x-sum"]), (&5.into(), &9.into()));
        assert!(!trailers.contains_key("x-forwarded-client-cert"));
        assert_eq!(body.to_bytes(), "hello");
    }
    assert_eq!(connections.load(std::sync::atomic::Ordering::SeqCst), 1, "streams share a connection");
    for record in lab.records(3).await {
        assert_eq!((record.grpc_status, record.response_code, record.protocol), (Some(5), 200, Some("HTTP/2")));
        assert_eq!((record.bytes_received, record.bytes_sent), (5, 5));
        assert!(record.flags.is_empty(), "{record:?}");
    }
}

/// A gRPC library shows `grpc-message`, never the body of a 503.
#[tokio::test]
async fn our_own_refusals_reach_a_grpc_client_as_a_status() {
    let lab = Lab::with(cluster("a", Protocol::Grpc, &[])).await;
    let mut client = h2_client(&lab).await;
    let request = Request::post("http://a/x").header("content-type", "application/grpc");
    let response = client.send_request(request.body(Full::new(Bytes::new())).unwrap()).await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["grpc-status"]), (200, &14.into()));
    assert_eq!(response.headers()["grpc-message"], "no healthy upstream");
    let record = lab.record().await;
    assert_eq!((record.grpc_status, record.flags), (Some(14), vec![Flag::UH]));
}

#[tokio::test]
async fn the_versions_meet_in_the_middle() {
    // h2 from the client, HTTP/1.1 to the upstream.
    let lab = Lab::to(mirror().await).await;
    let mut client = h2_client(&lab).await;
    let request = Request::get("http://a/x?y").header("cookie", "a=1").body(Full::new(Bytes::new())).unwrap();
    let response = client.send_request(request).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let mut lines: Vec<_> = std::str::from_utf8(&body).unwrap().trim_end().lines().collect();
    lines[1..].sort_unstable();
    assert_eq!(lines, ["GET /x?y HTTP/1.1", "cookie: a=1", "host: a"]);
    // HTTP/1.1 from the client, h2 to the upstream.
    let (address, _) = grpc_upstream().await;
    let lab = Lab::with(cluster("a", Protocol::Http2, &[address])).await;
    let mut client = lab.client().await;
    client.send("GET /z HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 200 ") && field(&head, "x-uri") == Some("http://a/z"), "{head}");
}

/// Two names in one request: one for the proxy's rules, another for the origin's.
#[tokio::test]
async fn an_authority_and_another_host_are_refused() {
    let lab = Lab::to(mirror().await).await;
    for (uri, host) in [("http://a/", "b"), ("http://me@a/", "me@a")] {
        let mut client = h2_client(&lab).await;
        let request = Request::get(uri).header("host", host).body(Full::new(Bytes::new())).unwrap();
        let response = client.send_request(request).await.unwrap();
        assert_eq!(response.status(), 400, "{uri} {host}");
    }
    let mut client = h2_client(&lab).await;
    let request = Request::connect("a:443").body(Full::new(Bytes::new())).unwrap();
    assert_eq!(client.send_request(request).await.unwrap().status(), 405);
}

/// REFUSED_STREAM says that the request was not looked at (RFC 9113 8.7): it goes out again, even a POST.
#[tokio::test]
async fn a_refused_stream_is_asked_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                let mut first = true;
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    if std::mem::take(&mut first) {
                        respond.send_reset(h2::Reason::REFUSED_STREAM);
                    } else {
                        respond.send_response(Response::new(()), true).unwrap();
                    }
                }
            });
        }
    });
    let lab = Lab::with(cluster("a", Protocol::Http2, &[address])).await;
    let mut client = lab.client().await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
}

/// A drained client is told by GOAWAY, and its stream in flight is answered.
#[tokio::test]
async fn a_drain_says_goaway() {
    let address = upstream(|mut raw, _| async move {
        raw.head().await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        raw.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        raw.fill().await;
    })
    .await;
    let lab = Lab::to(address).await;
    let mut client = h2_client(&lab).await;
    let request = || Request::get("http://a/").body(Full::new(Bytes::new())).unwrap();
    let sending = client.send_request(request());
    let (response, ()) = tokio::join!(sending, async {
        tokio::time::sleep(Duration::from_millis(80)).await;
        lab.engine.drain();
    });
    assert_eq!(response.unwrap().into_body().collect().await.unwrap().to_bytes(), "ok");
    assert_eq!(lab.engine.idle(tokio::time::Instant::now() + PATIENCE).await, 0);
    assert!(client.send_request(request()).await.is_err());
}

/// The real thing: curl, in both versions.
#[tokio::test]
async fn curl_is_content() {
    let lab = Lab::to(mirror().await).await;
    let resolve = format!("a:{}:127.0.0.1", lab.address.port());
    for version in ["--http1.0", "--http1.1", "--http2-prior-knowledge"] {
        let mut curl = std::process::Command::new("curl");
        curl.args(["-sS", "-m", "5", version, "--resolve", &resolve, "-d", "body", "-w", " %{http_code}"])
            .arg(format!("http://a:{}/curl", lab.address.port()))
            .stderr(Stdio::inherit());
        let output = tokio::task::spawn_blocking(move || curl.output()).await.unwrap().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.starts_with("POST /curl HTTP/1.1") && text.ends_with(" 200"), "{version}: {text}");
    }
}

/// `maxConcurrentStreams: 1`: two requests at a time need two connections, which both serve the next ones.
#[tokio::test]
async fn streams_of_a_connection_are_limited() {
    for (limit, expected) in [(Some(1), 2), (None, 1)] {
        let (address, connections) = grpc_upstream().await;
        let mut narrow = cluster("a", Protocol::Grpc, &[address]);
        Arc::make_mut(&mut narrow.pool).max_concurrent_streams = limit;
        let lab = Lab::with(narrow).await;
        let client = h2_client(&lab).await;
        let ask = |frames: tokio::sync::mpsc::Receiver<Frame<Bytes>>| {
            let mut client = client.clone();
            let frames = futures_util::stream::unfold(frames, async |mut frames| {
                frames.recv().await.map(|frame| (Ok::<_, Infallible>(frame), frames))
            });
            tokio::spawn(async move {
                let request = Request::post("http://a/").body(StreamBody::new(Box::pin(frames))).unwrap();
                client.send_request(request).await.unwrap().into_body().collect().await.unwrap();
            })
        };
        // The first to come opens the connection; it stays in use while its body is on the way.
        let (first, frames) = tokio::sync::mpsc::channel(1);
        let one = ask(frames);
        first.send(Frame::data(Bytes::from_static(b"x"))).await.unwrap();
        while connections.load(std::sync::atomic::Ordering::SeqCst) == 0 || lab.pod.http.count() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (_, frames) = tokio::sync::mpsc::channel(1);
        ask(frames).await.unwrap();
        drop(first);
        one.await.unwrap();
        assert_eq!(connections.load(std::sync::atomic::Ordering::SeqCst), expected, "{limit:?}");
        let (_, frames) = tokio::sync::mpsc::channel(1);
        ask(frames).await.unwrap();
        assert_eq!(connections.load(std::sync::atomic::Ordering::SeqCst), expected, "{limit:?}");
    }
}

/// `useClientProtocol` goes before what the port says, `h2UpgradePolicy` is for clients of either version.
#[tokio::test]
async fn the_version_towards_the_upstream_follows_the_rule() {
    let h1 = mirror().await;
    let mut client_decides = cluster("a", Protocol::Http2, &[h1]);
    Arc::make_mut(&mut client_decides.pool).use_client_protocol = true;
    let lab = Lab::with(client_decides).await;
    assert!(lab.ask("GET /", "").await.1.starts_with("GET / HTTP/1.1"));
    let (h2, _) = grpc_upstream().await;
    for change in [|pool: &mut Pool| pool.use_client_protocol = true, |pool: &mut Pool| pool.h2_upgrade = true] {
        let mut cluster = cluster("a", Protocol::Http, &[h2]);
        change(Arc::make_mut(&mut cluster.pool));
        let lab = Lab::with(cluster).await;
        let mut client = h2_client(&lab).await;
        let response = client.send_request(Request::get("http://a/").body(Full::<Bytes>::default()).unwrap()).await;
        assert_eq!(response.unwrap().headers()["x-uri"], "http://a/");
    }
    let mut upgraded = cluster("a", Protocol::Http, &[h2]);
    Arc::make_mut(&mut upgraded.pool).h2_upgrade = true;
    let lab = Lab::with(upgraded).await;
    let mut client = lab.client().await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(client.head().await.starts_with("HTTP/1.1 200 "));
}
