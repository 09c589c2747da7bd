//! Access-log lines as JSON: one object a line.

use std::io::Write as _;

use super::{
    format::{self, FormatError, Operator, Piece, Place, Template},
    plain, text,
    values::Value,
};
use crate::telemetry::record::Record;

/// Istio's keys in Istio's order, and at the end the workload and who called it.
pub const DEFAULT: &[(&str, &str)] = &[
    ("start_time", "%START_TIME%"),
    ("route_name", "%ROUTE_NAME%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("connection_termination_details", "%CONNECTION_TERMINATION_DETAILS%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER_RAW%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    ("upstream_transport_failure_reason", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
    ("workload", "%WORKLOAD%"),
    ("source_principal", "%SOURCE_PRINCIPAL%"),
];

/// A JSON value with operators in it.
#[derive(Clone, Debug)]
pub enum Node {
    /// Keys are kept as they are written, quotes included.
    Object(Vec<(String, Node)>),
    Array(Vec<Node>),
    /// The string is one operator: the value keeps its type (numbers are numbers, missing is null), as in Envoy.
    Operator(Operator),
    Template(Template),
    /// Written as it is.
    Constant(String),
}

/// The default format.
pub fn default() -> Result<Node, FormatError> {
    let members = DEFAULT.iter().map(|(key, format)| Ok((quoted(key), string(format, key)?)));
    Ok(Node::Object(members.collect::<Result<_, FormatError>>()?))
}

/// A format of the operator's own: the text of a JSON object.
pub fn parse(format: &str) -> Result<Node, FormatError> {
    match serde_json::from_str(format) {
        Ok(value @ serde_json::Value::Object(_)) => node(value, ""),
        Ok(_) => Err(FormatError::Json("it is a JSON value of another kind".to_owned())),
        Err(error) => Err(FormatError::Json(error.to_string())),
    }
}

fn node(value: serde_json::Value, key: &str) -> Result<Node, FormatError> {
    use serde_json::Value as Json;
    Ok(match value {
        Json::Object(members) => Node::Object(
            members
                .into_iter()
                .map(|(key, value)| Ok((quoted(&key), node(value, &key)?)))
                .collect::<Result<_, FormatError>>()?,
        ),
        Json::Array(items) => {
            Node::Array(items.into_iter().map(|item| node(item, key)).collect::<Result<_, FormatError>>()?)
        }
        Json::String(format) => string(&format, key)?,
        constant => Node::Constant(constant.to_string()),
    })
}

fn string(format: &str, key: &str) -> Result<Node, FormatError> {
    let mut template = format::parse(format, &Place(Some(key.to_owned())))?;
    Ok(match (template.len(), template.pop()) {
        (1, Some(Piece::Operator(operator))) => Node::Operator(operator),
        (_, Some(last)) => {
            template.push(last);
            Node::Template(template)
        }
        (_, None) => Node::Constant("\"\"".to_owned()),
    })
}

fn quoted(text: &str) -> String {
    let mut quoted = Vec::new();
    write_string(text.as_bytes(), &mut quoted);
    // What is escaped is UTF-8.
    String::from_utf8_lossy(&quoted).into_owned()
}

/// Appends the object of `record`, without the line's end, to `line`.
pub fn write(node: &Node, record: &Record, line: &mut Vec<u8>) {
    match node {
        Node::Object(members) => {
            line.push(b'{');
            for (index, (key, value)) in members.iter().enumerate() {
                if index > 0 {
                    line.push(b',');
                }
                line.extend_from_slice(key.as_bytes());
                line.push(b':');
                write(value, record, line);
            }
            line.push(b'}');
        }
        Node::Array(items) => {
            line.push(b'[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    line.push(b',');
                }
                write(item, record, line);
            }
            line.push(b']');
        }
        Node::Operator(operator) => match operator.value(record) {
            Value::Missing => line.extend_from_slice(b"null"),
            Value::Number(number) => plain::number(number, line),
            value => {
                line.push(b'"');
                write_value(&value, line);
                line.push(b'"');
            }
        },
        Node::Template(template) => {
            line.push(b'"');
            for piece in template {
                match piece {
                    Piece::Literal(literal) => escape(literal.as_bytes(), line),
                    Piece::Operator(operator) => write_value(&operator.value(record), line),
                }
            }
            line.push(b'"');
        }
        Node::Constant(constant) => line.extend_from_slice(constant.as_bytes()),
    }
}

/// As part of a string.
fn write_value(value: &Value<'_>, line: &mut Vec<u8>) {
    match value {
        Value::Missing => line.push(b'-'),
        Value::Number(number) => plain::number(*number, line),
        Value::Bytes(bytes) => escape(bytes, line),
        Value::Text(text) => escape(text.as_bytes(), line),
        Value::Pair(first, second) => {
            escape(first.as_bytes(), line);
            line.push(b'/');
            escape(second.as_bytes(), line);
        }
        Value::Plain(plain) => plain.write(line),
    }
}

fn write_string(bytes: &[u8], line: &mut Vec<u8>) {
    line.push(b'"');
    escape(bytes, line);
    line.push(b'"');
}

/// JSON string escapes (RFC 8259 7); what is no UTF-8 becomes U+FFFD.
fn escape(bytes: &[u8], line: &mut Vec<u8>) {
    if text::needs_none(bytes) {
        return line.extend_from_slice(bytes);
    }
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' => line.extend_from_slice(b"\\\""),
                '\\' => line.extend_from_slice(b"\\\\"),
                c if text::needs_escape(c) => {
                    // All that needs it lies in the basic plane: one unit. Writing to a vector cannot fail.
                    let _ = write!(line, "\\u{:04x}", u32::from(c));
                }
                c => line.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        if !chunk.invalid().is_empty() {
            line.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
}
