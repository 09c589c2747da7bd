//! Header operations of routes and destinations.

use http::{HeaderName, HeaderValue, header::HOST};

use super::super::routing::HeaderRules;
use crate::api::virtual_service::HeaderOperations;

/// Header rules, and the authority that a `host` or `:authority` among them means.
#[derive(Debug, Default)]
pub struct Made {
    pub rules: HeaderRules,
    pub authority: Option<String>,
    /// Left out, with the field (relative to the operations) and why.
    pub refused: Vec<(String, String)>,
    /// Taken otherwise than Envoy would.
    pub remarks: Vec<(String, String)>,
}

/// `request`: only there a Host can be set.
pub fn header_rules(operations: &HeaderOperations, request: bool) -> Made {
    let mut made = Made::default();
    // `set` goes before `add` where both name the authority (Istio `TranslateHeadersOperations`).
    made.rules.add = lines(&operations.add, "add", request, &mut made);
    made.rules.set = lines(&operations.set, "set", request, &mut made);
    for (at, name) in operations.remove.iter().enumerate() {
        match HeaderName::from_bytes(name.as_bytes()) {
            Ok(HOST) => made.refused.push((format!("remove[{at}]"), "the Host cannot be removed".to_owned())),
            Ok(name) => made.rules.remove.push(name),
            Err(_) => made.refused.push((format!("remove[{at}]"), format!("{name} is no header name"))),
        }
    }
    made
}

fn lines(
    operations: &[(String, String)],
    field: &str,
    request: bool,
    made: &mut Made,
) -> Vec<(HeaderName, HeaderValue)> {
    let mut lines = Vec::new();
    for (name, value) in operations {
        let place = format!("{field}.{name}");
        let literal = value.replace("%%", "%");
        if value.replace("%%", "").contains('%') {
            let remark = format!("{value}: variables between % signs are not filled in, the text is sent as it is");
            made.remarks.push((place.clone(), remark));
        }
        if request && (name.eq_ignore_ascii_case(":authority") || name.eq_ignore_ascii_case("host")) {
            made.authority = Some(literal);
            continue;
        }
        match (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(&literal)) {
            (Ok(HOST), _) => made.refused.push((place, "a response has no Host".to_owned())),
            (Ok(name), Ok(value)) => lines.push((name, value)),
            (Err(_), _) => made.refused.push((place, format!("{name} is no header name"))),
            (_, Err(_)) => made.refused.push((place, format!("{value} is no header value"))),
        }
    }
    lines
}
