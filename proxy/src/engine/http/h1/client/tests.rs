//! The bytes of responses, cut anywhere; each test's upstream is the other end of a socket pair.

use http_body_util::BodyExt as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

use super::*;
use crate::{
    engine::{balance::ClusterState, stream::Socket},
    mesh::Pool,
};

fn pair() -> (Box<Conn>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let guard = ClusterState::default().connection(&Pool::default()).unwrap();
    (Conn::new(UpstreamIo::Plain(Socket::Unix(ours)), guard), theirs)
}

/// What is left of an exchange whose response comes in these pieces, after which the upstream ends.
async fn exchange(method: Method, pieces: &[&[u8]]) -> Result<(u16, Vec<u8>, Option<HeaderMap>, bool), Error> {
    let (mut conn, mut upstream) = pair();
    let pieces: Vec<_> = pieces.iter().map(|piece| piece.to_vec()).collect();
    let answering = tokio::spawn(async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            upstream.read_buf(&mut head).await.unwrap();
        }
        for piece in pieces {
            upstream.write_all(&piece).await.unwrap();
            tokio::task::yield_now().await;
        }
    });
    let head = conn.exchange(&method, "/", &HeaderMap::new(), "a").await.map_err(|lost| lost.error)?;
    let body = (&mut *conn).collect().await?;
    answering.await.unwrap();
    let trailers = body.trailers().cloned();
    Ok((head.status().as_u16(), body.to_bytes().to_vec(), trailers, conn.is_reusable()))
}

#[tokio::test]
async fn a_request_is_written_as_it_is() {
    let (mut conn, mut upstream) = pair();
    let headers = [("accept", "*/*"), ("x-a", "1"), ("x-a", "2")];
    let headers: HeaderMap = headers.iter().map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap())).collect();
    tokio::join!(
        async {
            conn.exchange(&Method::GET, "/a?b", &headers, "host:80").await.unwrap();
        },
        async {
            let mut head = [0; 1024];
            let read = upstream.read(&mut head).await.unwrap();
            let expected = "GET /a?b HTTP/1.1\r\naccept: */*\r\nx-a: 1\r\nx-a: 2\r\nhost: host:80\r\n\r\n";
            assert_eq!(std::str::from_utf8(&head[..read]).unwrap(), expected);
            upstream.write_all(b"HTTP/1.1 204 OK\r\n\r\n").await.unwrap();
        }
    );
}

/// A head of 10 MiB does not fit the socket, and the answer may come before it was read.
#[tokio::test]
async fn what_the_socket_has_no_room_for_goes_out_later() {
    let (mut conn, mut upstream) = pair();
    let headers: HeaderMap = [(http::header::ACCEPT, "x".repeat(10 << 20).parse().unwrap())].into_iter().collect();
    let reading = tokio::spawn(async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            upstream.read_buf(&mut head).await.unwrap();
        }
        upstream.write_all(b"HTTP/1.1 204 OK\r\n\r\n").await.unwrap();
        head.len()
    });
    conn.exchange(&Method::GET, "/", &headers, "a").await.unwrap();
    assert!(reading.await.unwrap() > 10 << 20 && conn.is_reusable());
}

#[tokio::test]
async fn responses_end_where_they_end_however_they_are_cut() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let sum: HeaderMap = [("x-sum".parse().unwrap(), "1".parse().unwrap())].into_iter().collect();
    for (response, method, status, body, trailers, reusable) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello".to_owned(), Method::GET, 200, "hello", None, true),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello".to_owned(), Method::GET, 200, "hello", None, true),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello!".to_owned(), Method::GET, 200, "hello", None, false),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned(), Method::GET, 200, "", None, true),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n".to_owned(), Method::HEAD, 200, "", None, true),
        ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n".to_owned(), Method::GET, 304, "", None, true),
        ("HTTP/1.1 204 No Content\r\n\r\n".to_owned(), Method::GET, 204, "", None, true),
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 204 OK\r\n\r\n".to_owned(),
            Method::GET,
            204,
            "",
            None,
            true,
        ),
        ("HTTP/1.1 200 OK\r\n\r\nhello".to_owned(), Method::GET, 200, "hello", None, false),
        ("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello".to_owned(), Method::GET, 200, "hello", None, false),
        (
            "HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 5\r\n\r\nhello".to_owned(),
            Method::GET,
            200,
            "hello",
            None,
            false,
        ),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello".to_owned(), Method::GET, 200, "hello", None, false),
        (format!("{chunked}3;x\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"), Method::GET, 200, "hello", None, true),
        (format!("{chunked}5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"), Method::GET, 200, "hello", Some(sum), true),
        (format!("{chunked}5\r\nhello\r\n0\r\n\r\n!"), Method::GET, 200, "hello", None, false),
    ] {
        // What comes after the response is seen with its last byte, or when the connection is used again.
        for cut in 0..response.trim_end_matches('!').len() {
            let (first, second) = response.as_bytes().split_at(cut);
            let got = exchange(method.clone(), &[first, second]).await.unwrap();
            assert_eq!(got, (status, body.as_bytes().to_vec(), trailers.clone(), reusable), "{response:?} at {cut}");
        }
    }
}

#[tokio::test]
async fn what_is_no_response_or_not_all_of_it_is_an_error() {
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(limits::HEAD_FIELDS + 1));
    let large = format!("HTTP/1.1 200 OK\r\na: {}", "b".repeat(limits::HEAD_BYTES));
    for (response, misread) in [
        ("NONSENSE\r\n\r\n", true),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", true),
        ("HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello", true),
        ("HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551616\r\n\r\nhello", true),
        ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", true),
        ("HTTP/1.1 200 OK\r\na b: c\r\n\r\n", true),
        (&many, true),
        (&large, true),
        ("", false),
        ("HTTP/1.1 200 OK\r\nCont", false),
        ("HTTP/1.1 100 Continue\r\n\r\n", false),
        ("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello", false),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", false),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello0\r\n\r\n", false),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\na b: c\r\n\r\n", false),
    ] {
        let error = exchange(Method::GET, &[response.as_bytes()]).await.unwrap_err();
        assert_eq!(error.misread(), misread, "{:?}: {error}", response.get(..80).unwrap_or(response));
    }
}

#[tokio::test]
async fn a_connection_that_ended_or_chatters_is_not_quiet() {
    let (mut conn, mut upstream) = pair();
    assert!(conn.is_quiet() && conn.is_quiet());
    upstream.write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n").await.unwrap();
    let (mut ended, upstream) = pair();
    drop(upstream);
    // The runtime hears of both while it waits.
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    assert!(!conn.is_quiet() && !ended.is_quiet());
}

#[tokio::test]
async fn an_answer_that_began_is_told_from_silence() {
    for (answer, silent) in [("", true), ("H", false)] {
        let (mut conn, mut upstream) = pair();
        upstream.write_all(answer.as_bytes()).await.unwrap();
        upstream.shutdown().await.unwrap();
        let lost = conn.exchange(&Method::GET, "/", &HeaderMap::new(), "a").await.unwrap_err();
        assert!(lost.error.closed() && lost.silent == silent, "{answer:?}: {lost:?}");
    }
}

/// A connection that another worker has opened must not need that worker to be awake.
#[test]
fn a_connection_goes_on_at_another_runtime() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (first, second) = (runtime(), runtime());
    let (mut conn, upstream) = first.block_on(async { pair() });
    conn.worker = Some(usize::MAX);
    let mut upstream = upstream.into_std().unwrap();
    let answering = std::thread::spawn(move || {
        upstream.set_nonblocking(false).unwrap();
        let read = io::Read::read(&mut upstream, &mut [0; 1024]).unwrap();
        io::Write::write_all(&mut upstream, b"HTTP/1.1 204 OK\r\n\r\n").unwrap();
        read
    });
    second.block_on(async {
        assert!(conn.is_ready() && conn.is_local());
        conn.exchange(&Method::GET, "/", &HeaderMap::new(), "a").await.unwrap();
    });
    assert!(answering.join().unwrap() > 0);
}
