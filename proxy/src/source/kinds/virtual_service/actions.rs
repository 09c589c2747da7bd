//! What an http route does with a request.

use base64::{Engine, engine::general_purpose::STANDARD};

use super::{
    super::super::decode::{Field, Fields},
    destination,
    matches::string_match,
};
use crate::{
    api::virtual_service::{
        Abort, CorsPolicy, Delegate, DirectResponse, Fault, HeaderOperations, Headers, Mirror, PartsPerMillion,
        PathChange, Redirect, RedirectPort, Retries, Rewrite, StringMatch,
    },
    limits::DIRECT_RESPONSE_BYTES,
};

const ALL: PartsPerMillion = 1_000_000;
/// gRPC's status codes by name (the gRPC protocol's "Status codes").
const GRPC: &[&str] = &[
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

pub fn redirect(field: &Field<'_>) -> Option<Redirect> {
    let fields = field.fields(&["uri", "authority", "port", "derivePort", "scheme", "redirectCode"], &[], &[])?;
    let code = match fields.get("redirectCode") {
        None => 301,
        Some(field) => match field.number(0, 999)? {
            // protobuf's zero is "not given".
            0 => 301,
            code @ (301 | 302 | 303 | 307 | 308) => u16::try_from(code).unwrap_or(301),
            code => {
                field.error(format!("{code} is none of 301, 302, 303, 307 and 308"));
                301
            }
        },
    };
    let derived =
        [("FROM_PROTOCOL_DEFAULT", RedirectPort::ProtocolDefault), ("FROM_REQUEST_PORT", RedirectPort::Request)];
    let port = fields.get("port").and_then(|f| f.port()).map(RedirectPort::Number);
    if port.is_some() && fields.get("derivePort").is_some() {
        fields.field.error("`port` and `derivePort` exclude each other");
    }
    let uri = fields.string("uri");
    if let (Some(at), Some(uri)) = (fields.get("uri"), &uri)
        && !uri.starts_with('/')
    {
        at.error("must begin with `/`");
    }
    let redirect = Redirect {
        path: uri.map_or(PathChange::Keep, PathChange::Full),
        authority: fields.string("authority"),
        port: port.or_else(|| fields.get("derivePort").and_then(|f| f.choice(&derived))),
        scheme: fields.string("scheme").map(|scheme| scheme.to_ascii_lowercase()),
        code,
    };
    if let (Some(at), Some(scheme)) = (fields.get("scheme"), &redirect.scheme)
        && !matches!(scheme.as_str(), "http" | "https")
    {
        at.error("must be http or https");
    }
    if redirect == (Redirect { code, ..Redirect::default() }) {
        fields.field.error("leads back to the same URL: give `uri`, `authority`, `port` or `scheme`");
    }
    Some(redirect)
}

pub fn direct_response(field: &Field<'_>) -> Option<DirectResponse> {
    let fields = field.fields(&["status", "body"], &[], &[])?;
    let status = fields.require("status").and_then(|f| f.number(200, 599)).and_then(|n| u16::try_from(n).ok())?;
    let mut body = Vec::new();
    if let Some(given) = fields.get("body").and_then(|f| f.fields(&["string", "bytes"], &[], &[])) {
        if let Some(text) = given.string("string") {
            body = text.into_bytes();
        }
        if let Some(at) = given.get("bytes") {
            match at.string().map(|text| STANDARD.decode(text.trim())) {
                Some(Ok(bytes)) => body = bytes,
                Some(Err(error)) => at.error(format!("is not base64: {error}")),
                None => {}
            }
        }
        if body.len() > DIRECT_RESPONSE_BYTES {
            given.field.error(format!("has {} bytes; {DIRECT_RESPONSE_BYTES} are allowed", body.len()));
        }
    }
    Some(DirectResponse { status, body })
}

pub fn delegate(field: &Field<'_>) -> Option<Delegate> {
    let fields = field.fields(&["name", "namespace"], &[], &[])?;
    Some(Delegate { name: fields.require("name")?.string()?, namespace: fields.string("namespace") })
}

pub fn rewrite(field: &Field<'_>) -> Option<Rewrite> {
    let fields = field.fields(&["uri", "authority", "uriRegexRewrite"], &[], &[])?;
    let mut path = fields.string("uri").map_or(PathChange::Keep, PathChange::Prefix);
    if let Some(given) = fields.get("uriRegexRewrite").and_then(|f| f.fields(&["match", "rewrite"], &[], &[])) {
        if path != PathChange::Keep {
            fields.field.error("`uri` and `uriRegexRewrite` exclude each other");
        }
        let pattern = given.require("match")?;
        let expression = pattern.string()?;
        if let Err(error) = regex::Regex::new(&expression) {
            let why = error.to_string().lines().last().unwrap_or_default().trim().to_owned();
            pattern.error(format!("is not a regular expression (RE2): {why}"));
        }
        path = PathChange::Regex { pattern: expression, substitution: given.string("rewrite").unwrap_or_default() };
    }
    let rewrite = Rewrite { path, authority: fields.string("authority") };
    if rewrite == Rewrite::default() {
        fields.field.error("changes nothing: give `uri`, `uriRegexRewrite` or `authority`");
    }
    Some(rewrite)
}

/// Reads an HTTPRetry.
pub fn retries(field: &Field<'_>) -> Option<Retries> {
    let read = &["attempts", "perTryTimeout", "retryOn", "backoff", "retryIgnorePreviousHosts"];
    let fields = field.fields(read, &[], &["retryRemoteLocalities"])?;
    let words = fields.string("retryOn").unwrap_or_default();
    Some(Retries {
        attempts: fields.get("attempts").and_then(|f| f.number(0, 1000)).unwrap_or_default(),
        per_try_timeout: fields.get("perTryTimeout").and_then(|f| f.duration_or_zero()).filter(|time| !time.is_zero()),
        retry_on: words.split(',').map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect(),
        backoff: fields.get("backoff").and_then(|f| f.duration()),
        ignore_previous_hosts: fields.get("retryIgnorePreviousHosts").and_then(|f| f.boolean()),
    })
}

pub fn fault(field: &Field<'_>) -> Option<Fault> {
    let fields = field.fields(&["delay", "abort"], &[], &[])?;
    let mut fault = Fault::default();
    if let Some(given) =
        fields.get("delay").and_then(|f| f.fields(&["fixedDelay", "percentage", "percent"], &[], &["exponentialDelay"]))
    {
        let time = given.require("fixedDelay").and_then(|f| f.duration())?;
        fault.delay = Some((time, fault_share(&given, "delayed")));
    }
    if let Some(given) = fields
        .get("abort")
        .and_then(|f| f.fields(&["httpStatus", "grpcStatus", "percentage", "percent"], &[], &["http2Error"]))
    {
        let http = given.get("httpStatus").and_then(|f| f.number(200, 599)).and_then(|n| u16::try_from(n).ok());
        let grpc = given.get("grpcStatus").and_then(|f| {
            let name = f.string()?;
            let code = GRPC.iter().position(|known| *known == name);
            if code.is_none() {
                f.error(format!("\"{name}\" is none of {}", GRPC.join(", ")));
            }
            u32::try_from(code?).ok()
        });
        let abort = match (http, grpc) {
            (Some(status), None) => Abort::Http(status),
            (None, Some(status)) => Abort::Grpc(status),
            _ => {
                given.field.error("wants one of `httpStatus` and `grpcStatus`");
                return None;
            }
        };
        fault.abort = Some((abort, fault_share(&given, "aborted")));
    }
    Some(fault)
}

/// Of a fault: without a percentage nothing happens, in Istio too, which is worth a word.
fn fault_share(fields: &Fields<'_>, what: &str) -> PartsPerMillion {
    share(fields, "percentage", "percent").unwrap_or_else(|| {
        fields.field.warn(format!("without `percentage` no request is {what}"));
        0
    })
}

/// `percentage: {value: 0.1}`, or the older whole number.
fn share(fields: &Fields<'_>, name: &str, old: &str) -> Option<PartsPerMillion> {
    if let Some(field) = fields.get(name) {
        let given = field.fields(&["value"], &[], &[])?;
        let percent = given.get("value").map_or(Some(0.0), |f| f.decimal(0.0, 100.0))?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 1,000,000")]
        return Some((percent * 10_000.0).round() as PartsPerMillion);
    }
    Some(fields.get(old)?.number(0, 100)? * 10_000)
}

/// `mirrors`, or the one `mirror` with its percentage; all requests where none is given.
pub fn mirrors(fields: &Fields<'_>) -> Vec<Mirror> {
    let mut found = Vec::new();
    if let Some(field) = fields.get("mirror") {
        if fields.get("mirrors").is_some() {
            field.error("`mirror` and `mirrors` exclude each other");
        }
        let percentage = share(fields, "mirrorPercentage", "mirrorPercent").unwrap_or(ALL);
        found.extend(destination(&field).map(|destination| Mirror { destination, percentage }));
    }
    for field in fields.items("mirrors") {
        let Some(given) = field.fields(&["destination", "percentage"], &[], &[]) else { continue };
        let Some(destination) = given.require("destination").and_then(|f| destination(&f)) else { continue };
        found.push(Mirror { destination, percentage: share(&given, "percentage", "").unwrap_or(ALL) });
    }
    found
}

pub fn cors(field: &Field<'_>) -> Option<CorsPolicy> {
    let read = &[
        "allowOrigins",
        "allowOrigin",
        "allowMethods",
        "allowHeaders",
        "exposeHeaders",
        "maxAge",
        "allowCredentials",
        "unmatchedPreflights",
    ];
    let fields = field.fields(read, &[], &[])?;
    let old = fields.strings("allowOrigin").into_iter().map(|origin| match origin.as_str() {
        "*" => StringMatch::Regex(".*".to_owned()),
        _ => StringMatch::Exact(origin),
    });
    let preflights = [("UNSPECIFIED", false), ("FORWARD", false), ("IGNORE", true)];
    Some(CorsPolicy {
        allow_origins: fields.items("allowOrigins").iter().filter_map(string_match).chain(old).collect(),
        allow_methods: fields.strings("allowMethods"),
        allow_headers: fields.strings("allowHeaders"),
        expose_headers: fields.strings("exposeHeaders"),
        max_age: fields.get("maxAge").and_then(|f| f.duration_or_zero()),
        allow_credentials: fields.get("allowCredentials").and_then(|f| f.boolean()),
        ignore_unmatched_preflights: fields
            .get("unmatchedPreflights")
            .and_then(|f| f.choice(&preflights))
            .unwrap_or_default(),
    })
}

pub fn headers(field: &Field<'_>) -> Headers {
    let Some(fields) = field.fields(&["request", "response"], &[], &[]) else { return Headers::default() };
    let operations = |name: &str| fields.get(name).map(|f| header_operations(&f)).unwrap_or_default();
    Headers { request: operations("request"), response: operations("response") }
}

fn header_operations(field: &Field<'_>) -> HeaderOperations {
    let Some(fields) = field.fields(&["set", "add", "remove"], &[], &[]) else { return HeaderOperations::default() };
    let lines = |name: &str| {
        let Some(field) = fields.get(name) else { return Vec::new() };
        for (key, value) in field.entries() {
            header_name(&value, key);
            if value.node.text().is_some_and(|text| http::HeaderValue::from_str(text).is_err()) {
                value.error("is not a value that a header can bear");
            }
        }
        field.string_map().into_iter().collect()
    };
    for item in fields.items("remove") {
        header_name(&item, item.node.text().unwrap_or_default());
    }
    HeaderOperations { set: lines("set"), add: lines("add"), remove: fields.strings("remove") }
}

/// `Host` (and `:authority`) may be set; the other pseudo-headers may not.
fn header_name(field: &Field<'_>, name: &str) {
    let plain = if name.eq_ignore_ascii_case(":authority") { "host" } else { name };
    if http::HeaderName::from_bytes(plain.as_bytes()).is_err() {
        field.error(format!("\"{}\" is not the name of a header", name.escape_debug()));
    }
}
