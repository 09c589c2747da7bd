//! Access-log lines as JSON: one object a line.

use std::fmt::Write as _;

use super::{
    format::{self, FormatError, Operator, Piece, Place, Template},
    text,
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
    let mut quoted = String::from("\"");
    escape(text.as_bytes(), &mut quoted);
    quoted.push('"');
    quoted
}

/// Appends the object of `record`, without the line's end, to `line`.
pub fn write(node: &Node, record: &Record, line: &mut String) {
    match node {
        Node::Object(members) => {
            line.push('{');
            for (index, (key, value)) in members.iter().enumerate() {
                if index > 0 {
                    line.push(',');
                }
                line.push_str(key);
                line.push(':');
                write(value, record, line);
            }
            line.push('}');
        }
        Node::Array(items) => {
            line.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    line.push(',');
                }
                write(item, record, line);
            }
            line.push(']');
        }
        Node::Operator(operator) => match operator.value(record) {
            Value::Missing => line.push_str("null"),
            Value::Number(number) => {
                let _ = write!(line, "{number}");
            }
            Value::Bytes(bytes) => write_string(bytes, line),
            Value::Text(text) => write_string(text.as_bytes(), line),
        },
        Node::Template(template) => {
            line.push('"');
            for piece in template {
                match piece {
                    Piece::Literal(literal) => escape(literal.as_bytes(), line),
                    Piece::Operator(operator) => match operator.value(record) {
                        Value::Missing => line.push('-'),
                        Value::Number(number) => {
                            let _ = write!(line, "{number}");
                        }
                        Value::Bytes(bytes) => escape(bytes, line),
                        Value::Text(text) => escape(text.as_bytes(), line),
                    },
                }
            }
            line.push('"');
        }
        Node::Constant(constant) => line.push_str(constant),
    }
}

fn write_string(bytes: &[u8], line: &mut String) {
    line.push('"');
    escape(bytes, line);
    line.push('"');
}

/// JSON string escapes (RFC 8259 7); what is no UTF-8 becomes U+FFFD.
fn escape(bytes: &[u8], line: &mut String) {
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' => line.push_str("\\\""),
                '\\' => line.push_str("\\\\"),
                c if text::needs_escape(c) => {
                    // All that needs it lies in the basic plane: one unit.
                    let _ = write!(line, "\\u{:04x}", u32::from(c));
                }
                c => line.push(c),
            }
        }
        if !chunk.invalid().is_empty() {
            line.push('\u{fffd}');
        }
    }
}
