//! `filters` of a rule or a backend of an HTTPRoute.

use super::{
    super::super::decode::{Field, Fields},
    backend_ref, hostname,
};
use crate::api::{
    gateway_api::MirrorFilter,
    virtual_service::{HeaderOperations, Headers, PartsPerMillion, PathChange, Redirect, RedirectPort, Rewrite},
};

const EVERY: PartsPerMillion = 1_000_000;

/// What the filters of one list come to.
#[derive(Debug, Default)]
pub struct Filters {
    pub headers: Headers,
    pub redirect: Option<Redirect>,
    pub rewrite: Option<Rewrite>,
    pub mirrors: Vec<MirrorFilter>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Type {
    RequestHeaders,
    ResponseHeaders,
    Redirect,
    Rewrite,
    Mirror,
}

/// Type, and the field that holds its settings.
const TYPES: &[(&str, Type, &str)] = &[
    ("RequestHeaderModifier", Type::RequestHeaders, "requestHeaderModifier"),
    ("ResponseHeaderModifier", Type::ResponseHeaders, "responseHeaderModifier"),
    ("RequestRedirect", Type::Redirect, "requestRedirect"),
    ("URLRewrite", Type::Rewrite, "urlRewrite"),
    ("RequestMirror", Type::Mirror, "requestMirror"),
];

/// Reads the filters of `fields`. What a request would get that a filter is left out for nobody can know: one that is
/// not honoured refuses the whole route.
pub fn filters(fields: &Fields<'_>, of_backend: bool) -> Filters {
    let mut filters = Filters::default();
    let mut seen = Vec::new();
    for (index, field) in fields.items("filters").iter().enumerate() {
        let holders: Vec<_> = TYPES.iter().map(|(_, _, holder)| *holder).collect();
        let others = ["extensionRef", "cors", "externalAuth"];
        let Some(given) = field.fields(&[&["type"], holders.as_slice()].concat(), &others, &[]) else { continue };
        let Some(type_field) = given.require("type") else { continue };
        let Some(name) = type_field.string() else { continue };
        let Some((_, kind, holder)) = TYPES.iter().find(|(known, ..)| *known == name) else {
            let known: Vec<_> = TYPES.iter().map(|(name, ..)| *name).collect();
            let shown = name.escape_debug();
            type_field.error(format!("\"{shown}\" is not honoured: there are {}", known.join(", ")));
            continue;
        };
        if of_backend && !matches!(kind, Type::RequestHeaders | Type::ResponseHeaders) {
            type_field.error("a backend takes RequestHeaderModifier and ResponseHeaderModifier only");
            continue;
        }
        if *kind != Type::Mirror && seen.contains(kind) {
            type_field.error(format!("filter {name} is given twice"));
        }
        seen.push(*kind);
        for (_, _, holder) in TYPES.iter().filter(|(_, other, _)| other != kind) {
            if let Some(field) = given.get(holder) {
                field.error(format!("goes with another type than {name}"));
            }
        }
        let Some(settings) = given.require(holder) else { continue };
        match kind {
            Type::RequestHeaders => filters.headers.request = headers(&settings).unwrap_or_default(),
            Type::ResponseHeaders => filters.headers.response = headers(&settings).unwrap_or_default(),
            Type::Redirect => filters.redirect = redirect(&settings),
            Type::Rewrite => filters.rewrite = rewrite(&settings),
            Type::Mirror => filters.mirrors.extend(mirror(&settings, index)),
        }
    }
    if seen.contains(&Type::Redirect)
        && seen.contains(&Type::Rewrite)
        && let Some(field) = fields.get("filters")
    {
        field.error("RequestRedirect and URLRewrite exclude each other");
    }
    filters
}

fn headers(field: &Field<'_>) -> Option<HeaderOperations> {
    let fields = field.fields(&["set", "add", "remove"], &[], &[])?;
    let mut seen: Vec<String> = Vec::new();
    let mut check = |field: &Field<'_>| {
        let name = field.string()?;
        if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
            field.error(format!("\"{}\" is not a header name", name.escape_debug()));
            return None;
        }
        let lower = name.to_ascii_lowercase();
        if seen.contains(&lower) {
            field.error(format!("header {name} is given twice in this filter"));
        }
        seen.push(lower.clone());
        Some(lower)
    };
    let mut list = |name: &str| {
        let mut pairs = Vec::new();
        for field in fields.items(name) {
            let Some(given) = field.fields(&["name", "value"], &[], &[]) else { continue };
            let name = given.require("name").and_then(|field| check(&field));
            let Some(value_field) = given.require("value") else { continue };
            let (Some(name), Some(value)) = (name, value_field.string()) else { continue };
            if http::HeaderValue::from_str(&value).is_err() {
                value_field.error("is not a value that a header can bear");
            }
            pairs.push((name, value));
        }
        pairs
    };
    let (set, add) = (list("set"), list("add"));
    let remove = fields.each("remove", check);
    Some(HeaderOperations { set, add, remove })
}

fn redirect(field: &Field<'_>) -> Option<Redirect> {
    let fields = field.fields(&["scheme", "hostname", "path", "port", "statusCode"], &[], &[])?;
    let schemes = ["http", "https"].map(|name| (name, name));
    let scheme = fields.get("scheme").and_then(|field| field.choice(&schemes)).map(str::to_owned);
    let code = fields.get("statusCode").map_or(Some(302), |field| {
        let code = field.number(0, 999)?;
        if !matches!(code, 301 | 302 | 303 | 307 | 308) {
            field.error(format!("{code} is not one of 301, 302, 303, 307, 308"));
        }
        Some(code)
    });
    let port = match fields.get("port") {
        Some(field) => field.port().map(RedirectPort::Number),
        None if scheme.is_some() => Some(RedirectPort::ProtocolDefault),
        None => Some(RedirectPort::Request),
    };
    Some(Redirect {
        path: fields.get("path").and_then(|field| path(&field)).unwrap_or_default(),
        authority: fields.get("hostname").and_then(|field| hostname(&field, false)),
        port,
        scheme,
        code: u16::try_from(code?).unwrap_or(302),
    })
}

fn rewrite(field: &Field<'_>) -> Option<Rewrite> {
    let fields = field.fields(&["hostname", "path"], &[], &[])?;
    Some(Rewrite {
        path: fields.get("path").and_then(|field| path(&field)).unwrap_or_default(),
        authority: fields.get("hostname").and_then(|field| hostname(&field, false)),
    })
}

fn path(field: &Field<'_>) -> Option<PathChange> {
    let fields = field.fields(&["type", "replaceFullPath", "replacePrefixMatch"], &[], &[])?;
    let types = &[("ReplaceFullPath", false), ("ReplacePrefixMatch", true)];
    let prefix = fields.require("type").and_then(|field| field.choice(types))?;
    let names = ["replaceFullPath", "replacePrefixMatch"];
    let (wanted, other) = if prefix { (names[1], names[0]) } else { (names[0], names[1]) };
    if let Some(field) = fields.get(other) {
        field.error("goes with another type");
    }
    let value = fields.require(wanted)?.string()?;
    Some(if prefix {
        // The rest begins with its own slash: `/` and nothing mean the same, and so do `/x/` and `/x`.
        PathChange::Prefix(value.strip_suffix('/').unwrap_or(&value).to_owned())
    } else {
        PathChange::Full(if value.is_empty() { "/".to_owned() } else { value })
    })
}

fn mirror(field: &Field<'_>, filter: usize) -> Option<MirrorFilter> {
    let fields = field.fields(&["backendRef", "percent", "fraction"], &[], &[])?;
    let given = fields.require("backendRef")?.fields(&["group", "kind", "namespace", "name", "port"], &[], &[])?;
    let backend = backend_ref(&given)?;
    let percent = fields.get("percent").and_then(|field| field.number(0, 100)).map(|percent| percent * 10_000);
    let fraction = fields.get("fraction").and_then(|field| fraction(&field));
    if let (Some(field), true) = (fields.get("fraction"), fields.get("percent").is_some()) {
        field.error("`percent` and `fraction` exclude each other");
    }
    Some(MirrorFilter { backend, share: percent.or(fraction).unwrap_or(EVERY), filter })
}

fn fraction(field: &Field<'_>) -> Option<PartsPerMillion> {
    let fields = field.fields(&["numerator", "denominator"], &[], &[])?;
    let most = i32::MAX.unsigned_abs();
    let numerator = fields.require("numerator").and_then(|field| field.number(0, most))?;
    let denominator = fields.get("denominator").map_or(Some(100), |field| field.number(1, most))?;
    if numerator > denominator {
        field.error("must be 1 at most");
        return None;
    }
    u32::try_from(u64::from(numerator) * u64::from(EVERY) / u64::from(denominator)).ok()
}
