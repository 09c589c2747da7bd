//! A response in bytes, as hyper would write it: lower-case names in the order they are in, one way of framing.

use http::{
    HeaderMap, HeaderName, Method, StatusCode,
    header::{self, CONNECTION, CONTENT_LENGTH, TRAILER, TRANSFER_ENCODING},
    response,
};
use http_body::Body;

use super::super::super::head_rules;

/// How the body is told from what follows it.
#[derive(Debug, PartialEq, Eq)]
pub enum Encoder {
    /// So many bytes are still owed.
    Length(u64),
    Chunked {
        /// What trailers may be sent: those that the head names, to a client that takes any.
        trailers: Vec<HeaderName>,
    },
}

/// What decides about a head besides the response itself.
pub struct Asked {
    pub head: bool,
    pub takes_trailers: bool,
    /// The connection ends after this.
    pub last: bool,
}

impl Asked {
    pub fn new(method: &Method, takes_trailers: bool, last: bool) -> Self {
        Self { head: *method == Method::HEAD, takes_trailers, last }
    }
}

/// Writes the head. Afterwards `asked.last` holds where the response itself says so, too.
pub fn head(out: &mut Vec<u8>, parts: &response::Parts, body: &impl Body, asked: &mut Asked) -> Encoder {
    let status = parts.status;
    let bodiless = status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let exact = if body.is_end_stream() { Some(0) } else { body.size_hint().exact() };
    status_line(out, status);

    let (mut told_length, mut told_close) = (None, false);
    let mut trailers = Vec::new();
    for (name, value) in &parts.headers {
        match *name {
            CONTENT_LENGTH => {
                let length = std::str::from_utf8(value.as_bytes()).ok().and_then(|length| length.parse::<u64>().ok());
                // A length that is not the body's is told to HEAD alone, which gets none.
                let fits = asked.head || (!bodiless && exact != Some(0) && (exact.is_none() || length == exact));
                if told_length.is_some() || length.is_none() || !fits {
                    continue;
                }
                told_length = length;
            }
            TRANSFER_ENCODING => continue,
            TRAILER if asked.head || bodiless => continue,
            TRAILER => trailers.extend(value.to_str().unwrap_or_default().split(',').filter_map(trailer_name)),
            CONNECTION => told_close |= head_rules::has_word(value.as_bytes(), b"close"),
            _ => {}
        }
        field(out, name, value.as_bytes());
    }
    asked.last |= told_close;
    if asked.last && !told_close {
        out.extend_from_slice(b"connection: close\r\n");
    }
    if !asked.takes_trailers {
        trailers.clear();
    }
    let encoder = match (told_length, exact) {
        (Some(length), _) => Encoder::Length(length),
        (None, _) if bodiless => Encoder::Length(0),
        (None, None) if asked.head => Encoder::Length(0),
        (None, None) => {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
            Encoder::Chunked { trailers }
        }
        (None, Some(length)) => {
            if length > 0 || !asked.head {
                out.extend_from_slice(b"content-length: ");
                decimal(out, length);
                out.extend_from_slice(b"\r\n");
            }
            Encoder::Length(length)
        }
    };
    out.extend_from_slice(b"\r\n");
    if asked.head { Encoder::Length(0) } else { encoder }
}

fn status_line(out: &mut Vec<u8>, status: StatusCode) {
    if status == StatusCode::OK {
        return out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
    }
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    // Many parsers want some reason.
    out.extend_from_slice(status.canonical_reason().unwrap_or("<none>").as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn field(out: &mut Vec<u8>, name: &HeaderName, value: &[u8]) {
    out.extend_from_slice(name.as_str().as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn decimal(out: &mut Vec<u8>, number: u64) {
    let (mut digits, mut at, mut left) = ([0; 20], 20, number);
    loop {
        at -= 1;
        digits[at] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            return out.extend_from_slice(&digits[at..]);
        }
    }
}

/// A name of the `Trailer` field, where it may be one of a trailer (RFC 9110 section 6.5.1).
fn trailer_name(name: &str) -> Option<HeaderName> {
    let name = HeaderName::from_bytes(name.trim().as_bytes()).ok()?;
    let never = [
        header::AUTHORIZATION,
        header::CACHE_CONTROL,
        header::CONTENT_ENCODING,
        header::CONTENT_LENGTH,
        header::CONTENT_RANGE,
        header::CONTENT_TYPE,
        header::HOST,
        header::MAX_FORWARDS,
        header::SET_COOKIE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::TE,
    ];
    (!never.contains(&name)).then_some(name)
}

impl Encoder {
    /// Nothing more follows.
    pub fn ended(&self) -> bool {
        *self == Self::Length(0)
    }

    /// What goes before and after a piece of `length` bytes; how much of it is sent.
    pub fn piece(&mut self, out: &mut Vec<u8>, length: usize) -> (usize, &'static [u8]) {
        match self {
            Self::Length(left) => {
                let step = usize::try_from(*left).unwrap_or(usize::MAX).min(length);
                *left -= step as u64;
                (step, b"")
            }
            Self::Chunked { .. } => {
                hexadecimal(out, length);
                out.extend_from_slice(b"\r\n");
                (length, b"\r\n")
            }
        }
    }

    /// Ends the body. False: it is not all there, so that only the end of the connection can tell.
    pub fn end(&mut self, out: &mut Vec<u8>, fields: Option<&HeaderMap>) -> bool {
        match std::mem::replace(self, Self::Length(0)) {
            Self::Length(left) => left == 0,
            Self::Chunked { trailers } => {
                out.extend_from_slice(b"0\r\n");
                let allowed = fields.into_iter().flatten().filter(|(name, _)| trailers.contains(name));
                allowed.for_each(|(name, value)| field(out, name, value.as_bytes()));
                out.extend_from_slice(b"\r\n");
                true
            }
        }
    }
}

fn hexadecimal(out: &mut Vec<u8>, number: usize) {
    let digits = (usize::BITS - number.leading_zeros()).div_ceil(4).max(1);
    for digit in (0..digits).rev() {
        out.push(b"0123456789ABCDEF"[(number >> (4 * digit)) & 0xf]);
    }
}
