//! What a client speaks, told from its first bytes, which are handed on unchanged.
//!
//! Calling HTTP something else would let plain text past a rule that wants it encrypted, so that all a lenient server
//! might take for a request counts as HTTP (and is then parsed strictly: 400). What has begun and might still become
//! either is waited for, and is never waved through as "something else" because a clock ran out: see [`Kind::Stalled`].

use std::{io, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::{Instant, timeout_at},
};

use super::client_hello::{self, ClientHello, Parsed};
pub use super::prefixed::Prefixed;
use crate::limits;

/// What a connection speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A whole ClientHello.
    Tls(ClientHello),
    /// HTTP/1, or what comes close enough for a server to take it for a request.
    Http1,
    /// The HTTP/2 preface (prior knowledge).
    Http2,
    /// None of these; or a client that has ended its side and waits for the server.
    Other,
    /// Nothing came in the time given: perhaps the server speaks first, perhaps the client just connects early.
    Silent,
    /// Begun and not finished in time or size. Text that might still become a request, or a ClientHello.
    Stalled { tls: bool },
}

/// What a listener has to tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// A port of unknown protocol: [`Kind`] as it is.
    Anything,
    /// TLS or not: what does not begin with a ClientHello is [`Kind::Other`] from its first byte on.
    Tls,
    /// HTTP/1 or h2: what does not begin with the HTTP/2 preface is [`Kind::Http1`], for HTTP to refuse.
    Http,
}

/// Reads until it is clear what the client speaks, and `silence` at most for the first byte. Answers with all bytes read.
///
/// # Errors
/// The client's reset, or another failure to read.
pub async fn sniff<S: AsyncRead + Unpin>(
    stream: &mut S,
    expect: Expect,
    silence: Duration,
) -> io::Result<(Kind, Bytes)> {
    let mut bytes = BytesMut::with_capacity(2048);
    let mut deadline = Instant::now() + silence;
    loop {
        let read = match timeout_at(deadline, stream.read_buf(&mut bytes)).await {
            Ok(read) => read?,
            Err(_) if bytes.is_empty() => return Ok((Kind::Silent, bytes.freeze())),
            Err(_) => return Ok((expect.stalled(&bytes), bytes.freeze())),
        };
        if read == 0 {
            // The client sends no more: what is not a request by now will never be one.
            let kind = expect.classify(&bytes).unwrap_or(Kind::Other);
            return Ok((kind, bytes.freeze()));
        }
        if bytes.len() == read {
            deadline = Instant::now() + limits::HEAD_TIME;
        }
        if let Some(kind) = expect.classify(&bytes) {
            return Ok((kind, bytes.freeze()));
        }
        if bytes.len() >= limits::SNIFF_BYTES {
            return Ok((expect.stalled(&bytes), bytes.freeze()));
        }
        bytes.reserve(2048.min(limits::SNIFF_BYTES - bytes.len()).max(1));
    }
}

impl Expect {
    /// None: more bytes are needed.
    fn classify(self, bytes: &[u8]) -> Option<Kind> {
        match self {
            Self::Anything => classify(bytes),
            Self::Tls if bytes.is_empty() => None,
            Self::Tls => match client_hello::parse(bytes) {
                Parsed::Incomplete => None,
                Parsed::Hello(hello) => Some(Kind::Tls(hello)),
                Parsed::NotTls => Some(Kind::Other),
            },
            Self::Http if bytes.starts_with(H2_PREFACE) => Some(Kind::Http2),
            Self::Http => (!H2_PREFACE.starts_with(bytes)).then_some(Kind::Http1),
        }
    }

    fn stalled(self, bytes: &[u8]) -> Kind {
        match (self, text(bytes)) {
            (Self::Tls, _) => Kind::Stalled { tls: true },
            // A method and the beginning of a target: a request, however slow or long. HTTP has its own clock for those.
            (Self::Http, _) | (Self::Anything, Text::Undecided { method: true }) => Kind::Http1,
            (Self::Anything, _) => Kind::Stalled { tls: bytes.first() == Some(&22) },
        }
    }
}

/// What the first bytes of a connection are; None: more are needed. It never takes a decision back when more come.
pub fn classify(bytes: &[u8]) -> Option<Kind> {
    if bytes.first() == Some(&22) {
        match client_hello::parse(bytes) {
            Parsed::Incomplete => return None,
            Parsed::Hello(hello) => return Some(Kind::Tls(hello)),
            Parsed::NotTls => {}
        }
    }
    if bytes.starts_with(H2_PREFACE) {
        return Some(Kind::Http2);
    }
    if H2_PREFACE.starts_with(bytes) {
        return None;
    }
    match text(bytes) {
        Text::Request => Some(Kind::Http1),
        Text::Undecided { .. } => None,
        Text::Other => Some(Kind::Other),
    }
}

/// RFC 9113 3.4.
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// HAProxy's PROXY protocol: a server that takes it finds a request behind it.
const PROXY_V1: &[u8] = b"PROXY ";
const PROXY_V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

enum Text {
    Request,
    /// `method`: a method and the space after it are there.
    Undecided {
        method: bool,
    },
    Other,
}

/// Tells a request line, as widely as servers read one: empty lines and blanks before it, any method of token
/// characters in any case, blanks of any kind between the words, versions of any kind.
fn text(bytes: &[u8]) -> Text {
    if bytes.len() >= 5 && PROXY_V2.starts_with(&bytes[..bytes.len().min(PROXY_V2.len())]) {
        return Text::Request;
    }
    let start = bytes.iter().position(|b| !matches!(b, b' ' | b'\t' | b'\r' | b'\n' | 0x0b | 0x0c));
    let Some(start) = start else { return Text::Undecided { method: false } };
    let rest = &bytes[start..];
    if rest.starts_with(PROXY_V1) {
        return Text::Request;
    }
    let end = rest.iter().position(|b| *b == b'\n');
    let line = &rest[..end.unwrap_or(rest.len())];
    let method_end = line.iter().position(|b| is_blank(*b)).unwrap_or(line.len());
    let (method, after) = line.split_at(method_end);
    // `HTTP/` in the line says it whatever the rest looks like.
    if after.windows(5).any(|word| word.eq_ignore_ascii_case(b"HTTP/")) {
        return Text::Request;
    }
    // NUL: git's own protocol, AMQP and many more; no server reads a target beyond it.
    if !method.iter().all(|b| is_token(*b)) || line.contains(&0) {
        return Text::Other;
    }
    let mut words = after.split(|b| is_blank(*b)).filter(|word| !word.is_empty());
    let target = words.next().unwrap_or_default();
    if target.first().is_some_and(|b| b.is_ascii_control()) {
        return Text::Other;
    }
    // SIP and RTSP have request lines too, and say so at their end or by their scheme.
    let other_protocol = end.is_some() && words.next().is_some_and(|word| matches!(word, b"SIP/2.0" | b"RTSP/1.0"));
    let path = matches!(target.first(), Some(b'/' | b'*')) || (has_scheme(target) && !other_scheme(target));
    if path && !other_protocol {
        return Text::Request;
    }
    match end {
        Some(_) => Text::Other,
        None => Text::Undecided { method: !after.is_empty() },
    }
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | 0x0b | 0x0c)
}

/// RFC 9110 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn has_scheme(target: &[u8]) -> bool {
    target.windows(3).any(|word| word == b"://")
}

fn other_scheme(target: &[u8]) -> bool {
    ["rtsp://", "rtspu://", "rtsps://"]
        .iter()
        .any(|scheme| target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme.as_bytes())))
}

#[cfg(test)]
mod tests {
    use rand::{RngExt as _, SeedableRng, rngs::StdRng};
    use tokio::io::AsyncWriteExt;

    use super::{super::client_hello::tests::OPENSSL, *};

    /// curl 7.88 --http2-prior-knowledge.
    const CURL_H2: &[u8] = include_bytes!("testdata/curl_h2_prior_knowledge.bin");

    #[test]
    fn requests_of_every_make() {
        for request in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"get / http/1.1\n",
            b"\r\n\r\n \tGET /x HTTP/1.1\r\n",
            b"PURGE-it /x HTTP/1.1\r\n",
            b"M-SEARCH * HTTP/1.1\r\n",
            b"CONNECT a.example:443 HTTP/1.1\r\n",
            b"OPTIONS http://a.example HTTP/1.1\r\n",
            b"GET\t/\tHTTP/1.1\r\n",
            b"GET\x0c/\x0bHTTP/1.0\r\n",
            b"GET foo HTTP/1.1\r\n",
            b"\x16GET / HTTP/1.1\r\n",
            b"{GET} / HTTP/1.1\r\n",
            b"GET / RTSP/2.0\r\n",
            b"GET /\r\nHost: a.example\r\n",
            b"PRI * HTTP/2.0\r\nHost: a.example\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET / HTTP/1.1\r\n",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c",
            b"SSH-2.0-x / HTTP/1.1\r\n",
            b"PING /\r\n",
        ] {
            assert_eq!(classify(request), Some(Kind::Http1), "{}", request.escape_ascii());
        }
        assert_eq!(classify(CURL_H2), Some(Kind::Http2));
        assert!(matches!(classify(OPENSSL), Some(Kind::Tls(_))));
    }

    #[test]
    fn other_protocols_are_known_at_once() {
        for other in [
            &b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"[..],
            b"*1\r\n$4\r\nPING\r\n",
            b"get key\r\n",
            b"NICK somebody\r\n",
            b"EHLO a.example\r\n",
            b"OPTIONS rtsp://a.example/s RTSP/1.0\r\n",
            b"OPTIONS sip:a@a.example SIP/2.0\r\n",
            b"003agit-upload-pack /p.git\0host=a.example\0",
            b"AMQP\0\0\x09\x01",
            b"\0\0\0\x08\x04\xd2\x16\x2f",
            b"\x30\x0c\x02\x01\x01\x60\x07",
            b"\x10\x0e\0\x04MQTT",
            b"?\0\0\0",
            b"{\"hello\":1}",
            b"\x15\x03\x01\0\x02\x02\x28",
            b"hello\n",
        ] {
            assert_eq!(classify(other), Some(Kind::Other), "{}", other.escape_ascii());
        }
    }

    #[test]
    fn a_long_target_needs_no_end() {
        let long = [b"GET /".as_slice(), &[b'a'; 20_000]].concat();
        assert_eq!(classify(&long), Some(Kind::Http1));
        assert_eq!(classify(b"GET /"), Some(Kind::Http1));
        assert_eq!(classify(b"GET"), None);
        assert_eq!(classify(b"GET h"), None);
        assert_eq!(classify(b"PRI * HTT"), None);
    }

    /// However the network cuts a request, it is never called anything but HTTP.
    #[test]
    fn no_cut_makes_a_request_something_else() {
        let requests = [
            &b"\r\nGeT foo HTTP/1.1\r\nHost: a.example\r\n"[..],
            b"POST http://a.example/x HTTP/1.1\r\n",
            b"GET\x0c/ HTTP/1.1\r\n",
            CURL_H2,
        ];
        for request in requests {
            let whole = classify(request);
            for end in 1..request.len() {
                let early = classify(&request[..end]);
                assert!(early.is_none() || early == whole, "{} {early:?}", request[..end].escape_ascii());
            }
        }
    }

    /// Seeded mutations: no panic, and a decision once taken stands when more bytes come.
    #[test]
    fn mutated_beginnings_do_no_harm() {
        let mut random = StdRng::seed_from_u64(0x5111ff);
        let seeds = [CURL_H2, OPENSSL, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"SSH-2.0-x\r\n", b"\r\n\r\n\0\r\nQUIT\n"];
        for round in 0..20_000 {
            let mut bytes = seeds[round % seeds.len()].to_vec();
            for _ in 0..random.random_range(1..5) {
                let at = random.random_range(0..bytes.len());
                match random.random_range(0..3) {
                    0 => bytes[at] = random.random(),
                    1 => bytes.insert(at, b" \t\r\n/\0"[random.random_range(0..6)]),
                    _ => bytes.truncate(at.max(1)),
                }
            }
            let (first, _) = bytes.split_at(random.random_range(0..=bytes.len()));
            if let Some(early @ (Kind::Tls(_) | Kind::Http2)) = classify(first) {
                assert_eq!(classify(&bytes), Some(early));
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_told_from_everything_else() {
        let (_client, mut server) = tokio::io::duplex(64);
        let started = Instant::now();
        let (kind, bytes) = sniff(&mut server, Expect::Anything, limits::SNIFF_SILENCE).await.unwrap();
        assert_eq!((kind, bytes.len()), (Kind::Silent, 0));
        assert_eq!(started.elapsed(), limits::SNIFF_SILENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_begun_has_its_own_clock() {
        for (begun, expected) in [
            (&OPENSSL[..100], Kind::Stalled { tls: true }),
            (b"GE", Kind::Stalled { tls: false }),
            (b"GET foo", Kind::Http1),
        ] {
            let (mut client, mut server) = tokio::io::duplex(1024);
            client.write_all(begun).await.unwrap();
            let started = Instant::now();
            let (kind, bytes) = sniff(&mut server, Expect::Anything, limits::SNIFF_SILENCE).await.unwrap();
            assert_eq!(kind, expected);
            assert_eq!(bytes, begun);
            assert_eq!(started.elapsed(), limits::HEAD_TIME);
        }
    }

    #[tokio::test]
    async fn a_hello_in_single_bytes_is_read_whole_and_handed_on() {
        let (mut client, mut server) = tokio::io::duplex(1);
        let writer = tokio::spawn(async move {
            client.write_all(OPENSSL).await.unwrap();
            client.write_all(b"more").await.unwrap();
        });
        let (kind, bytes) = sniff(&mut server, Expect::Anything, limits::SNIFF_SILENCE).await.unwrap();
        assert!(matches!(kind, Kind::Tls(hello) if hello.sni.as_deref() == Some("edition.cnn.com")));
        let mut all = Vec::new();
        Prefixed::new(bytes, server).read_to_end(&mut all).await.unwrap();
        assert_eq!(all, [OPENSSL, b"more"].concat());
        writer.await.unwrap();
    }

    #[tokio::test]
    async fn an_end_decides_and_size_is_bounded() {
        let (mut client, mut server) = tokio::io::duplex(64);
        client.write_all(b"ping").await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(sniff(&mut server, Expect::Anything, limits::SNIFF_SILENCE).await.unwrap().0, Kind::Other);
        let (mut client, mut server) = tokio::io::duplex(1 << 20);
        client.write_all(&vec![b'a'; 1 << 20]).await.unwrap();
        let (kind, bytes) = sniff(&mut server, Expect::Anything, limits::SNIFF_SILENCE).await.unwrap();
        assert_eq!(kind, Kind::Stalled { tls: false });
        assert!(bytes.len() <= limits::SNIFF_BYTES + 4096, "{}", bytes.len());
    }
}
