//! Our own HTTP/1.1 and hyper's side by side: the same bytes in give the same bytes out.

use rand::{RngExt as _, SeedableRng, rngs::StdRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::lab::*;
use crate::{engine::accept::Role, mesh::*};

/// Answers with what was asked, framed in the way that the path names.
async fn framer() -> std::net::SocketAddr {
    upstream(|mut raw, _| async move {
        loop {
            while !raw.text().contains("\r\n\r\n") {
                if !raw.fill().await {
                    return;
                }
            }
            let mut head = raw.head().await;
            if let Some(length) = field(&head, "content-length") {
                let body = raw.exactly(length.parse().unwrap()).await;
                head.push_str(&String::from_utf8(body).unwrap());
            } else if field(&head, "transfer-encoding").is_some() {
                raw.until("0\r\n").await;
                raw.until("\r\n").await;
            }
            // HEAD and 304 have the head that GET would get.
            let bodiless = head.starts_with("HEAD");
            let path = head.split(' ').nth(1).unwrap().to_owned();
            let length = head.len();
            let answer = match &path[..2] {
                "/c" => format!(
                    "HTTP/1.1 200 OK\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n{}",
                    if bodiless { String::new() } else { format!("{length:x}\r\n{head}\r\n0\r\nx-sum: 1\r\n\r\n") }
                ),
                "/n" => "HTTP/1.1 204 No Content\r\nX-Of: n\r\n\r\n".to_owned(),
                "/m" => "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Length: 7\r\n\r\n".to_owned(),
                "/z" => {
                    "HTTP/1.1 299 Odd\r\nContent-Length: 0\r\nSet-Cookie: a\r\nX: y\r\nSet-Cookie: b\r\n\r\n".to_owned()
                }
                _ => format!(
                    "HTTP/1.1 200 OK\r\nServer: s\r\nContent-Length: {length}\r\n\r\n{}",
                    if bodiless { "" } else { &head }
                ),
            };
            raw.send(answer).await;
        }
    })
    .await
}

/// One request of random form; the last one closes.
fn request(random: &mut StdRng, last: bool) -> String {
    let path = ["/l", "/c", "/n", "/m", "/z", "/l?q=%20"][random.random_range(0..6)];
    let close =
        if last { "Connection: close\r\n" } else { ["", "Connection: keep-alive\r\n"][random.random_range(0..2)] };
    let te = ["", "TE: trailers\r\n"][random.random_range(0..2)];
    let more = format!(
        "{}{}",
        "X-More: 1\r\n".repeat(random.random_range(0..4)),
        ["", "Cookie:  a=b \t\r\n"][random.random_range(0..2)]
    );
    let host = ["a", "A:80"][random.random_range(0..2)];
    let rest = format!("Host: {host}\r\n{te}{close}{more}");
    match random.random_range(0..24) {
        0 => format!("POST {path} HTTP/1.1\r\n{rest}Content-Length: 5\r\n\r\nhello"),
        1 => format!(
            "PUT {path} HTTP/1.1\r\n{rest}Transfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nX-T: 1\r\n\r\n"
        ),
        2 => format!("GET http://a{path} HTTP/1.1\r\n{rest}\r\n"),
        3 => format!("GET {path} HTTP/1.0\r\n{rest}\r\n"),
        4 => format!("GET {path} HTTP/1.1\r\n{rest}X : y\r\n\r\n"),
        5 => format!("GET /nowhere HTTP/1.1\r\nHost: other\r\n{close}\r\n"),
        6 => format!("OPTIONS * HTTP/1.1\r\n{rest}\r\n"),
        7 => format!("DELETE {path} HTTP/1.1\n{}\n", rest.replace('\r', "")),
        8..11 => format!("HEAD {path} HTTP/1.1\r\n{rest}\r\n"),
        11 => format!("\r\n\r\nGET {path} HTTP/1.1\r\n{rest}\r\n"),
        _ => format!("GET {path} HTTP/1.1\r\n{rest}\r\n"),
    }
}

/// All that comes back for `sent`, which is cut by `random`.
async fn answers(lab: &Lab, sent: &str, random: &mut StdRng) -> String {
    let (mut read, mut write) = lab.client().await.stream.into_split();
    let mut rest = sent.as_bytes();
    let whole = random.random_range(0..3) == 0;
    let writing = async {
        while !rest.is_empty() {
            let step = if whole { rest.len() } else { random.random_range(1..=rest.len().min(150)) };
            if write.write_all(&rest[..step]).await.is_err() {
                return;
            }
            rest = &rest[step..];
            match random.random_range(0..8) {
                0 => tokio::time::sleep(std::time::Duration::from_millis(2)).await,
                _ => tokio::task::yield_now().await,
            }
        }
    };
    let mut got = Vec::new();
    let reading = tokio::time::timeout(PATIENCE, read.read_to_end(&mut got));
    let ((), read) = tokio::join!(writing, reading);
    drop(read.unwrap_or_else(|_| panic!("no end after {sent:?}")));
    String::from_utf8(got).unwrap()
}

/// What a client of one way must do to notice which way it is on is what this test finds.
#[tokio::test]
async fn requests_are_answered_alike_however_they_are_cut() {
    let address = framer().await;
    let service = || snapshot(OutboundPolicy::RegistryOnly, vec![cluster("a", Protocol::Http, &[address])], 1);
    let original = "192.0.2.1:80".parse().unwrap();
    let own = Lab::on(service(), original, Role::Outbound, false).await;
    let hyper = Lab::on(service(), original, Role::Outbound, true).await;
    for seed in 0..250 {
        let mut random = StdRng::seed_from_u64(seed);
        let count = random.random_range(1..7);
        let sent: String = (1..=count).map(|number| request(&mut random, number == count)).collect();
        let cut = &mut random;
        let (ours, theirs) = (answers(&own, &sent, cut).await, answers(&hyper, &sent, cut).await);
        assert_eq!(ours, theirs, "seed {seed}: {sent:?}");
        assert!(ours.starts_with("HTTP/1."), "seed {seed}: {ours:?}");
    }
}
