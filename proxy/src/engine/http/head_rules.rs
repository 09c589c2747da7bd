//! What an HTTP/1 request head may look like, stricter than the parser behind it where two readings of one message
//! would be possible (RFC 9112 sections 2.2, 3.2, 5 and 6). What passes here is parsed by hyper without surprise.

use bytes::{Buf, BytesMut};
use http::Uri;

use super::framing::Framing;
use crate::limits;

/// Why a request is refused before anybody upstream hears of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("the request line is not `METHOD target HTTP/1.x`")]
    RequestLine,
    #[error("this HTTP version is not supported")]
    Version,
    #[error("a carriage return without a line feed")]
    BareCr,
    #[error("a header line is folded")]
    Folded,
    #[error("a header name has invalid bytes")]
    FieldName,
    #[error("a header value has invalid bytes")]
    FieldValue,
    #[error("the request target is not valid")]
    Target,
    #[error("an HTTP/1.1 request needs exactly one Host")]
    Host,
    #[error("Host or authority has invalid bytes or user information")]
    Authority,
    #[error("Content-Length is not one plain number")]
    ContentLength,
    #[error("Content-Length together with Transfer-Encoding")]
    LengthAndEncoding,
    #[error("Transfer-Encoding is not `chunked`")]
    TransferEncoding,
    #[error("the chunked body is malformed")]
    Chunk,
    #[error("the request head is too large")]
    TooLarge,
    #[error("the request head took too long")]
    TooSlow,
}

impl Violation {
    /// The status that the client gets.
    pub fn status(self) -> http::StatusCode {
        match self {
            Self::TooLarge => http::StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::TooSlow => http::StatusCode::REQUEST_TIMEOUT,
            Self::Version => http::StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            _ => http::StatusCode::BAD_REQUEST,
        }
    }

    /// A word for `%RESPONSE_CODE_DETAILS%`.
    pub fn details(self) -> &'static str {
        match self {
            Self::RequestLine | Self::BareCr | Self::Folded | Self::FieldName | Self::FieldValue => "http1.codec_error",
            Self::Version => "http1.unsupported_version",
            Self::Target => "http1.invalid_url",
            Self::Host => "http1.missing_or_repeated_host",
            Self::Authority => "http1.invalid_authority",
            Self::ContentLength => "http1.invalid_content_length",
            Self::LengthAndEncoding => "http1.content_length_and_chunked_not_allowed",
            Self::TransferEncoding => "http1.invalid_transfer_encoding",
            Self::Chunk => "http1.invalid_chunk",
            Self::TooLarge => "http1.headers_too_large",
            Self::TooSlow => "request_header_timeout",
        }
    }
}

/// What the guard must know of a head that is in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub framing: Framing,
    /// No request follows this one: HTTP/1.0 without keep-alive, or `Connection: close`.
    pub last: bool,
    /// More than HTTP/1.1's plain question and answer: another version, another form of target, CONNECT, Upgrade, Expect.
    pub special: bool,
}

/// Length of the request head that `raw` begins with, after the empty lines before it, which are ignored (RFC 9112 section
/// 2.2) and taken away. None: more bytes are needed; `scanned` keeps how far this one looked.
pub fn find_head(raw: &mut BytesMut, scanned: &mut usize) -> Option<usize> {
    loop {
        match raw[..] {
            [b'\r', b'\n', ..] => raw.advance(2),
            [b'\n', ..] => raw.advance(1),
            _ => break,
        }
        *scanned = 0;
    }
    let found = head_end(raw, *scanned);
    *scanned = if found.is_some() { 0 } else { raw.len() };
    found
}

/// Length of the head that `bytes` begin with, its final empty line included. `scanned` is how much of it earlier calls
/// have looked at. A line ends with LF; CR before it is usual, and bare LF is understood (RFC 9112 section 2.2).
pub fn head_end(bytes: &[u8], scanned: usize) -> Option<usize> {
    let mut at = scanned.saturating_sub(3);
    while let Some(found) = bytes[at..].iter().position(|byte| *byte == b'\n') {
        at += found + 1;
        match bytes[at..] {
            [b'\n', ..] => return Some(at + 1),
            [b'\r', b'\n', ..] => return Some(at + 2),
            _ => {}
        }
    }
    None
}

/// True where no further byte can make a request line of these: TLS, or another protocol's greeting. Waiting for the rest
/// would be in vain.
pub fn is_hopeless(bytes: &[u8]) -> bool {
    let method = bytes.iter().position(|byte| !is_token(*byte));
    method.is_some_and(|end| match bytes[end..] {
        [b' ', ..] | [b'\r'] => false,
        [b'\r', b'\n', ..] => end > 0,
        _ => true,
    })
}

/// Takes the parts of a head as they are judged, in their order.
pub trait Reader<'h> {
    fn method(&mut self, _: &'h [u8]) {}

    /// A target whose form and authority are in order.
    ///
    /// # Errors
    /// It is no URI.
    fn target(&mut self, target: &'h [u8]) -> Result<(), Violation>;

    /// A field that is in order; the value without white space around it.
    ///
    /// # Errors
    /// The reader cannot hold it.
    fn field(&mut self, _name: &'h [u8], _value: &'h [u8]) -> Result<(), Violation> {
        Ok(())
    }
}

/// Keeps nothing.
struct Judge;

impl<'h> Reader<'h> for Judge {
    fn target(&mut self, target: &'h [u8]) -> Result<(), Violation> {
        Uri::try_from(target).map(|_| ()).map_err(|_| Violation::Target)
    }
}

/// Judges one whole head, the final empty line included.
pub fn check(head: &[u8]) -> Result<Head, Violation> {
    read(head, &mut Judge)
}

/// Judges one whole head and hands its parts to the reader. On an error what it was handed is void.
pub fn read<'h>(head: &'h [u8], reader: &mut impl Reader<'h>) -> Result<Head, Violation> {
    if head.len() > limits::HEAD_BYTES {
        return Err(Violation::TooLarge);
    }
    let mut lines = head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let request = request_line(lines.next().unwrap_or_default(), reader)?;
    let mut fields = Fields { keep_alive: request.http11, ..Fields::default() };
    let mut count = 0;
    for line in lines.take_while(|line| !line.is_empty()) {
        count += 1;
        if count > limits::HEAD_FIELDS {
            return Err(Violation::TooLarge);
        }
        fields.add(line, reader)?;
    }
    fields.judge(&request)
}

struct RequestLine {
    http11: bool,
    /// CONNECT, or a target that is not in origin-form.
    special: bool,
}

fn request_line<'h>(line: &'h [u8], reader: &mut impl Reader<'h>) -> Result<RequestLine, Violation> {
    if line.contains(&b'\r') {
        return Err(Violation::BareCr);
    }
    let mut parts = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Violation::RequestLine);
    };
    if method.is_empty() || !method.iter().all(|byte| is_token(*byte)) {
        return Err(Violation::RequestLine);
    }
    let http11 = match version {
        b"HTTP/1.1" => true,
        b"HTTP/1.0" => false,
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit() => {
            return Err(Violation::Version);
        }
        _ => return Err(Violation::RequestLine),
    };
    reader.method(method);
    check_target(method, target, reader)?;
    Ok(RequestLine { http11, special: method == b"CONNECT" || target[0] != b'/' })
}

/// RFC 9112 section 3.2: the four forms, each where it belongs.
fn check_target<'h>(method: &[u8], target: &'h [u8], reader: &mut impl Reader<'h>) -> Result<(), Violation> {
    if target.is_empty() || target.iter().any(|byte| *byte <= b' ' || *byte == 0x7f) {
        return Err(Violation::Target);
    }
    if method == b"CONNECT" {
        return check_authority(target);
    }
    match target {
        b"*" if method == b"OPTIONS" => return Ok(()),
        [b'/', ..] => {}
        _ => {
            let scheme_end = target.windows(3).position(|three| three == b"://").ok_or(Violation::Target)?;
            let (scheme, rest) = (&target[..scheme_end], &target[scheme_end + 3..]);
            if !scheme.eq_ignore_ascii_case(b"http") && !scheme.eq_ignore_ascii_case(b"https") {
                return Err(Violation::Target);
            }
            let authority = rest.split(|byte| matches!(byte, b'/' | b'?' | b'#')).next().unwrap_or_default();
            if authority.is_empty() {
                return Err(Violation::Authority);
            }
            check_authority(authority)?;
        }
    }
    reader.target(target)
}

/// `host[:port]` and nothing else (RFC 9110 section 7.2); an empty one is legal and names nothing.
pub fn check_authority(value: &[u8]) -> Result<(), Violation> {
    if value.is_empty() || is_plain_authority(value) {
        return Ok(());
    }
    if value.iter().any(|byte| !byte.is_ascii_graphic() || matches!(byte, b'@' | b'/' | b'\\' | b'?' | b'#' | b',')) {
        return Err(Violation::Authority);
    }
    let authority = http::uri::Authority::try_from(value).map_err(|_| Violation::Authority)?;
    let port = authority.as_str().strip_prefix(authority.host()).ok_or(Violation::Authority)?;
    match port.strip_prefix(':') {
        None if port.is_empty() => Ok(()),
        // `host:` is legal, with the default port (RFC 3986 section 3.2.3).
        Some("") => Ok(()),
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) && digits.parse::<u16>().is_ok() => Ok(()),
        _ => Err(Violation::Authority),
    }
}

/// What nearly all requests name: letters, digits, dots and hyphens, then perhaps a port. Whatever else is legal takes the
/// way through the parser.
fn is_plain_authority(value: &[u8]) -> bool {
    let end = value.iter().position(|byte| !byte.is_ascii_alphanumeric() && !matches!(byte, b'.' | b'-'));
    let (host, port) = value.split_at(end.unwrap_or(value.len()));
    let port = match port {
        [] => true,
        // Four digits are a port whatever they are.
        [b':', digits @ ..] => (1..=4).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    port && (1..=limits::HOST_NAME_BYTES).contains(&host.len())
}

#[derive(Default)]
struct Fields {
    hosts: u32,
    length: Option<u64>,
    encoding: bool,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    special: bool,
}

impl Fields {
    fn add<'h>(&mut self, line: &'h [u8], reader: &mut impl Reader<'h>) -> Result<(), Violation> {
        if matches!(line[0], b' ' | b'\t') {
            return Err(Violation::Folded);
        }
        if line.contains(&b'\r') {
            return Err(Violation::BareCr);
        }
        let colon = line.iter().position(|byte| *byte == b':').ok_or(Violation::FieldName)?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
            return Err(Violation::FieldName);
        }
        if !line[colon + 1..].iter().all(|byte| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f)) {
            return Err(Violation::FieldValue);
        }
        if name.eq_ignore_ascii_case(b"host") {
            self.hosts += 1;
            check_authority(value)?;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            let length = plain_number(value).ok_or(Violation::ContentLength)?;
            if self.length.replace(length).is_some() {
                return Err(Violation::ContentLength);
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            // A second line, or a coding before `chunked`, would need decoding that nobody here does.
            self.chunked = !self.encoding && value.eq_ignore_ascii_case(b"chunked");
            self.encoding = true;
        } else if name.eq_ignore_ascii_case(b"connection") {
            self.close |= has_word(value, b"close");
            self.keep_alive |= has_word(value, b"keep-alive");
        } else if name.eq_ignore_ascii_case(b"upgrade") || name.eq_ignore_ascii_case(b"expect") {
            self.special = true;
        }
        reader.field(name, value)
    }

    fn judge(&self, request: &RequestLine) -> Result<Head, Violation> {
        if self.hosts > 1 || (self.hosts == 0 && request.http11) {
            return Err(Violation::Host);
        }
        let framing = match (self.encoding, self.length) {
            (true, Some(_)) => return Err(Violation::LengthAndEncoding),
            (true, None) if !self.chunked || !request.http11 => return Err(Violation::TransferEncoding),
            (true, None) => Framing::chunked(),
            (false, length) => Framing::length(length.unwrap_or(0)),
        };
        let special = self.special || request.special || !request.http11;
        Ok(Head { framing, last: self.close || !self.keep_alive, special })
    }
}

/// Digits only: `+5`, `5, 5` and ` 5` inside are what smugglers write. Beyond 2^63 no body is meant.
fn plain_number(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok().filter(|length| *length <= i64::MAX as u64)
}

pub fn has_word(value: &[u8], word: &[u8]) -> bool {
    value.split(|byte| *byte == b',').any(|part| part.trim_ascii().eq_ignore_ascii_case(word))
}

/// `tchar` of RFC 9110 section 5.6.2.
pub fn is_token(byte: u8) -> bool {
    const TOKEN: [bool; 256] = {
        let mut table = [false; 256];
        let mut at = 0;
        while at < 256 {
            table[at] = (at as u8).is_ascii_alphanumeric();
            at += 1;
        }
        let marks = b"!#$%&'*+-.^_`|~";
        let mut at = 0;
        while at < marks.len() {
            table[marks[at] as usize] = true;
            at += 1;
        }
        table
    };
    TOKEN[usize::from(byte)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(head: &str) -> Result<Head, Violation> {
        assert_eq!(head_end(head.as_bytes(), 0), Some(head.len()), "one whole head: {head:?}");
        check(head.as_bytes())
    }

    #[test]
    fn ordinary_heads_pass() {
        let get = judged("GET /a?b=c HTTP/1.1\r\nHost: example.com:8080\r\nAccept: */*\r\n\r\n").unwrap();
        assert_eq!(get, Head { framing: Framing::length(0), last: false, special: false });
        assert!(judged("GET / HTTP/1.0\r\n\r\n").unwrap().last);
        assert!(!judged("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").unwrap().last);
        assert!(judged("GET / HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n\r\n").unwrap().last);
        let post = judged("POST http://[::1]:80/x HTTP/1.1\r\nhost:\r\nContent-Length: 12\r\n\r\n").unwrap();
        assert_eq!(post.framing, Framing::length(12));
        let chunked = judged("POST / HTTP/1.1\nHost: a\nTransfer-Encoding: Chunked\n\n").unwrap();
        assert_eq!(chunked.framing, Framing::chunked());
        assert!(judged("OPTIONS * HTTP/1.1\r\nHost: a_b\r\n\r\n").is_ok());
        assert!(judged("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n").is_ok());
        assert!(judged("GET /caf\u{e9} HTTP/1.1\r\nHost: a\r\nX: caf\u{e9}\r\n\r\n").is_ok());
    }

    /// Each of these has two readings, or none; a proxy and an upstream that differ in theirs are a way to smuggle.
    #[test]
    fn the_smugglers_corpus_is_refused() {
        use Violation::*;
        let corpus: &[(&str, Violation)] = &[
            ("GET / HTTP/1.1\r\n\r\n", Host),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", Host),
            ("GET / HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n", Host),
            ("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", Authority),
            ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", Authority),
            ("GET / HTTP/1.1\r\nHost: a\x01\r\n\r\n", FieldValue),
            ("GET / HTTP/1.1\r\nHost: a\u{e9}\r\n\r\n", Authority),
            ("GET / HTTP/1.1\r\nHost: a/../b\r\n\r\n", Authority),
            ("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", Authority),
            ("GET / HTTP/1.1\r\nHost: a:99999\r\n\r\n", Authority),
            ("GET / HTTP/1.1\r\nHost: a:+80\r\n\r\n", Authority),
            ("GET http://u:p@a/ HTTP/1.1\r\nHost: a\r\n\r\n", Authority),
            ("GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n", Authority),
            ("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", Target),
            ("GET a HTTP/1.1\r\nHost: a\r\n\r\n", Target),
            ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", Target),
            ("GET /a\x7f HTTP/1.1\r\nHost: a\r\n\r\n", Target),
            ("GET /a\tb HTTP/1.1\r\nHost: a\r\n\r\n", Target),
            ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", RequestLine),
            ("GET /\r\nHost: a\r\n\r\n", RequestLine),
            ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", RequestLine),
            ("GET / http/1.1\r\nHost: a\r\n\r\n", RequestLine),
            ("G(T / HTTP/1.1\r\nHost: a\r\n\r\n", RequestLine),
            ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", Version),
            ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", Version),
            ("GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n", FieldName),
            ("GET / HTTP/1.1\r\nHost: a\r\n: y\r\n\r\n", FieldName),
            ("GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n", FieldName),
            ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding\x0b: chunked\r\n\r\n", FieldName),
            ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", Folded),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n\tz\r\n\r\n", Folded),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: y\rTransfer-Encoding: chunked\r\n\r\n", BareCr),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: y\r\r\n\r\n", BareCr),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n", FieldValue),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
                LengthAndEncoding,
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
                LengthAndEncoding,
            ),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", ContentLength),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", ContentLength),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\n", ContentLength),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\n", ContentLength),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", ContentLength),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\n", ContentLength),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", ContentLength),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551617\r\n\r\n", ContentLength),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", TransferEncoding),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n", TransferEncoding),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity, chunked\r\n\r\n", TransferEncoding),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n", TransferEncoding),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
                TransferEncoding,
            ),
            ("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", TransferEncoding),
        ];
        for (head, violation) in corpus {
            assert_eq!(judged(head), Err(*violation), "{head:?}");
        }
    }

    #[test]
    fn the_limits_hold_exactly() {
        let fields = |count: usize| {
            let mut head = String::from("GET / HTTP/1.1\r\nHost: a\r\n");
            (1..count).for_each(|at| head.push_str(&format!("x{at}: y\r\n")));
            head + "\r\n"
        };
        assert!(judged(&fields(limits::HEAD_FIELDS)).is_ok());
        assert_eq!(judged(&fields(limits::HEAD_FIELDS + 1)), Err(Violation::TooLarge));
        let long = |length: usize| {
            let start = "GET / HTTP/1.1\r\nHost: a\r\nX: ";
            format!("{start}{}\r\n\r\n", "y".repeat(length - start.len() - 4))
        };
        assert!(judged(&long(limits::HEAD_BYTES)).is_ok());
        assert_eq!(judged(&long(limits::HEAD_BYTES + 1)), Err(Violation::TooLarge));
    }

    /// What passes must be what hyper's parser reads without an error of its own: it would answer past the log.
    #[test]
    fn what_passes_is_understood_by_the_parser_behind() {
        for head in [
            "GET /a?b=c HTTP/1.1\r\nHost: example.com:8080\r\nAccept: */*\r\n\r\n",
            "GET / HTTP/1.0\nX:\t \n\n",
            "POST / HTTP/1.1\r\nHost: [::1]:80\r\nX: caf\u{e9} \"\\\r\n\r\n",
        ] {
            judged(head).unwrap();
            let mut fields = [httparse::EMPTY_HEADER; 8];
            let mut request = httparse::Request::new(&mut fields);
            assert!(request.parse(head.as_bytes()).unwrap().is_complete(), "{head:?}");
        }
    }
}
