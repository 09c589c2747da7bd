//! A request of the bytes of its head: names and values are slices of them.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, header::TE};

use super::super::super::{
    head_rules::{self, Head, Reader, Violation},
    headers::words,
    payload::Payload,
};
use crate::limits;

/// Fields that are added on the way, for which the map has room too: growing it costs more than parsing a head.
const ADDED: usize = 2;

struct Parts<'h> {
    head: &'h Bytes,
    method: Method,
    uri: Uri,
    fields: HeaderMap,
}

/// Judges and parses the head.
pub fn parse(head: &Bytes) -> Result<(Request<Payload>, Head), Violation> {
    // No more than that: it is the largest piece of memory that a request needs, and the small ones cost the least.
    let lines = head.iter().filter(|byte| **byte == b'\n').count();
    let fields = HeaderMap::with_capacity(lines.saturating_sub(2).min(limits::HEAD_FIELDS) + ADDED);
    let mut parts = Parts { head, method: Method::GET, uri: Uri::default(), fields };
    let judged = head_rules::read(head, &mut parts)?;
    let mut request = Request::new(Payload::Empty);
    *request.method_mut() = parts.method;
    *request.uri_mut() = parts.uri;
    *request.headers_mut() = parts.fields;
    Ok((request, judged))
}

impl<'h> Reader<'h> for Parts<'h> {
    fn method(&mut self, method: &'h [u8]) {
        // A token, which is all that a method can be.
        self.method = Method::from_bytes(method).unwrap_or_default();
    }

    fn target(&mut self, target: &'h [u8]) -> Result<(), Violation> {
        self.uri = Uri::from_maybe_shared(self.head.slice_ref(target)).map_err(|_| Violation::Target)?;
        Ok(())
    }

    fn field(&mut self, name: &'h [u8], value: &'h [u8]) -> Result<(), Violation> {
        let name = HeaderName::from_bytes(name).map_err(|_| Violation::FieldName)?;
        let value = HeaderValue::from_maybe_shared(self.head.slice_ref(value)).map_err(|_| Violation::FieldValue)?;
        self.fields.append(name, value);
        Ok(())
    }
}

/// The client takes trailers (RFC 9110 section 10.1.4).
pub fn takes_trailers(fields: &HeaderMap) -> bool {
    words(fields, &TE).any(|word| word.eq_ignore_ascii_case("trailers"))
}
