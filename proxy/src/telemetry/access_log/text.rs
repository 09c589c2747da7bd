//! Access-log lines as text.

use super::{
    format::{Piece, Template},
    plain,
    values::Value,
};
use crate::telemetry::record::Record;

/// Istio's default format, and at its end the workload: one process logs for a whole node.
pub const DEFAULT: &str = concat!(
    "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% ",
    "%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% ",
    "\"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% ",
    "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" ",
    "\"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% ",
    "%UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% ",
    "%REQUESTED_SERVER_NAME% %ROUTE_NAME% %WORKLOAD%",
);

/// Appends the line of `record`, without its end, to `line`.
pub fn write(template: &Template, record: &Record, line: &mut Vec<u8>) {
    for piece in template {
        match piece {
            Piece::Literal(literal) => line.extend_from_slice(literal.as_bytes()),
            Piece::Operator(operator) => match operator.value(record) {
                Value::Missing => line.push(b'-'),
                Value::Number(number) => plain::number(number, line),
                Value::Bytes(bytes) => escape(bytes, line),
                Value::Text(text) => escape(text.as_bytes(), line),
                Value::Pair(first, second) => {
                    escape(first.as_bytes(), line);
                    line.push(b'/');
                    escape(second.as_bytes(), line);
                }
                Value::Plain(plain) => plain.write(line),
            },
        }
    }
}

/// Values are a peer's to choose. Quotes, backslashes, control characters and what is no UTF-8 are escaped, so that no
/// value can end its field, its line, or speak to a terminal.
pub fn escape(bytes: &[u8], line: &mut Vec<u8>) {
    if needs_none(bytes) {
        return line.extend_from_slice(bytes);
    }
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            let mut buffer = [0; 4];
            let bytes = c.encode_utf8(&mut buffer).as_bytes();
            match c {
                '"' => line.extend_from_slice(b"\\\""),
                '\\' => line.extend_from_slice(b"\\\\"),
                c if needs_escape(c) => bytes.iter().for_each(|byte| hex(*byte, line)),
                _ => line.extend_from_slice(bytes),
            }
        }
        chunk.invalid().iter().for_each(|byte| hex(*byte, line));
    }
}

/// True for nearly all there is: printable ASCII without quote and backslash. All bytes are looked at whatever they are, so
/// that the compiler makes this many at a time.
pub fn needs_none(bytes: &[u8]) -> bool {
    let odd =
        |byte: u8| u8::from(byte.wrapping_sub(b' ') > b'~' - b' ') | u8::from(byte == b'"') | u8::from(byte == b'\\');
    bytes.iter().fold(0, |any, byte| any | odd(*byte)) == 0
}

/// Control characters (C0, DEL, C1) and what else ends a line or turns its direction.
pub fn needs_escape(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn hex(byte: u8, line: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    line.extend_from_slice(&[b'\\', b'x', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
}
