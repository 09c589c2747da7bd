//! Message heads: requests written, responses read.

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version,
    header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING},
};

use crate::{engine::http::framing::Framing, limits};

/// Why what came is no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    #[error("{0}")]
    Syntax(httparse::Error),
    #[error("the response head is too large")]
    TooLarge,
    #[error("Content-Length is not one plain number")]
    ContentLength,
    #[error("HTTP/1.0 with Transfer-Encoding")]
    TransferEncoding,
}

/// Where a response's body ends (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    Length(u64),
    Chunked(Framing),
    UntilClose,
}

/// The head of a final response.
#[derive(Debug)]
pub struct Head {
    pub response: Response<()>,
    pub extent: Extent,
    /// The upstream lets the connection be used again.
    pub keep_alive: bool,
}

/// Writes a request head. `host` is for a request without Host; `target` is in origin-form.
pub fn write_request(out: &mut Vec<u8>, method: &Method, target: &str, headers: &HeaderMap, host: &str) {
    let add = |out: &mut Vec<u8>, parts: &[&[u8]]| parts.iter().for_each(|part| out.extend_from_slice(part));
    add(out, &[method.as_str().as_bytes(), b" ", target.as_bytes(), b" HTTP/1.1\r\n"]);
    for (name, value) in headers {
        add(out, &[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
    }
    if !headers.contains_key(HOST) {
        add(out, &[b"host: ", host.as_bytes(), b"\r\n"]);
    }
    out.extend_from_slice(b"\r\n");
}

/// The final response's head that `bytes` begin with, and its length together with the interim ones (1xx) before it. None:
/// the head is not whole yet.
pub fn read_response(bytes: &Bytes, method: &Method) -> Result<Option<(Head, usize)>, HeadError> {
    let mut at = 0;
    loop {
        match read_head(&bytes.slice(at..), method)? {
            Read::Final(head, length) => return Ok(Some((head, at + length))),
            Read::Interim(length) => at += length,
            // The whole of it is kept meanwhile, so the whole of it counts.
            Read::Partial if bytes.len() >= limits::HEAD_BYTES => return Err(HeadError::TooLarge),
            Read::Partial => return Ok(None),
        }
    }
}

enum Read {
    Final(Head, usize),
    Interim(usize),
    Partial,
}

fn read_head(bytes: &Bytes, method: &Method) -> Result<Read, HeadError> {
    let mut fields = [const { MaybeUninit::uninit() }; limits::HEAD_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let parser = httparse::ParserConfig::default();
    let length = match parser.parse_response_with_uninit_headers(&mut parsed, bytes, &mut fields) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(Read::Partial),
        Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooLarge),
        Err(error) => return Err(HeadError::Syntax(error)),
    };
    if length > limits::HEAD_BYTES {
        return Err(HeadError::TooLarge);
    }
    let code = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = code.ok_or(HeadError::Syntax(httparse::Error::Status))?;
    // Nothing asks for another protocol here, so 101 is the answer to something else.
    if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(Read::Interim(length));
    }
    let mut headers = HeaderMap::with_capacity(parsed.headers.len());
    for field in parsed.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes());
        // A slice of what was read: nothing is copied.
        let value = HeaderValue::from_maybe_shared(bytes.slice_ref(field.value));
        let (Ok(name), Ok(value)) = (name, value) else {
            return Err(HeadError::Syntax(httparse::Error::HeaderName));
        };
        headers.append(name, value);
    }
    let http11 = parsed.version == Some(1);
    let extent = extent(status, http11, method, &headers)?;
    let keep_alive = http11
        && extent != Extent::UntilClose
        && status != StatusCode::SWITCHING_PROTOCOLS
        && !words(&headers, &CONNECTION).any(|word| word.eq_ignore_ascii_case(b"close"));
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.version_mut() = if http11 { Version::HTTP_11 } else { Version::HTTP_10 };
    *response.headers_mut() = headers;
    Ok(Read::Final(Head { response, extent, keep_alive }, length))
}

fn extent(status: StatusCode, http11: bool, method: &Method, headers: &HeaderMap) -> Result<Extent, HeadError> {
    let bodiless = matches!(status.as_u16(), 101 | 204 | 304) || *method == Method::HEAD;
    if bodiless {
        return Ok(Extent::Length(0));
    }
    if headers.contains_key(TRANSFER_ENCODING) {
        if !http11 {
            return Err(HeadError::TransferEncoding);
        }
        let chunked =
            words(headers, &TRANSFER_ENCODING).last().is_some_and(|last| last.eq_ignore_ascii_case(b"chunked"));
        return Ok(if chunked { Extent::Chunked(Framing::chunked()) } else { Extent::UntilClose });
    }
    if !headers.contains_key(CONTENT_LENGTH) {
        return Ok(Extent::UntilClose);
    }
    // The same number twice is one number (RFC 9110 section 8.6).
    let mut lengths =
        headers.get_all(CONTENT_LENGTH).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let first = lengths.next().and_then(number);
    let length = first.filter(|first| lengths.all(|other| number(other) == Some(*first)));
    Ok(Extent::Length(length.ok_or(HeadError::ContentLength)?))
}

/// Digits only. The two highest numbers are left out: hyper has a meaning of its own for them.
fn number(text: &[u8]) -> Option<u64> {
    let digits = text.trim_ascii();
    let plain = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let text = plain.then(|| std::str::from_utf8(digits).ok())??;
    text.parse().ok().filter(|number| *number < u64::MAX - 1)
}

fn words<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h [u8]> + use<'h> {
    let lines = headers.get_all(name).iter();
    lines.flat_map(|value| value.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii)
}
