//! Access-log lines as text.

use std::fmt::Write as _;

use super::{
    format::{Piece, Template},
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
pub fn write(template: &Template, record: &Record, line: &mut String) {
    for piece in template {
        match piece {
            Piece::Literal(literal) => line.push_str(literal),
            Piece::Operator(operator) => match operator.value(record) {
                Value::Missing => line.push('-'),
                Value::Number(number) => {
                    // Writing to a String cannot fail.
                    let _ = write!(line, "{number}");
                }
                Value::Bytes(bytes) => escape(bytes, line),
                Value::Text(text) => escape(text.as_bytes(), line),
            },
        }
    }
}

/// Values are a peer's to choose. Quotes, backslashes, control characters and what is no UTF-8 are escaped, so that no
/// value can end its field, its line, or speak to a terminal.
pub fn escape(bytes: &[u8], line: &mut String) {
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' => line.push_str("\\\""),
                '\\' => line.push_str("\\\\"),
                c if needs_escape(c) => {
                    let mut buffer = [0; 4];
                    c.encode_utf8(&mut buffer).bytes().for_each(|byte| hex(byte, line));
                }
                c => line.push(c),
            }
        }
        chunk.invalid().iter().for_each(|byte| hex(*byte, line));
    }
}

/// Control characters (C0, DEL, C1) and what else ends a line or turns its direction.
pub fn needs_escape(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn hex(byte: u8, line: &mut String) {
    let _ = write!(line, "\\x{byte:02x}");
}
