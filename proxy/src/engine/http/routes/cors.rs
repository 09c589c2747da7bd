//! Cross-origin requests, as Envoy's CORS filter has them (https://fetch.spec.whatwg.org/#http-cors-protocol).

use http::{
    HeaderMap, HeaderName, HeaderValue, Method,
    header::{
        ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
        ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
        ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN,
    },
};

use crate::mesh::{Cors, TextMatch};

/// What the policy makes of a request.
#[derive(Debug)]
pub enum Verdict {
    /// Not a cross-origin request, or of an origin that nothing allows: it goes on, untouched.
    Ignored,
    /// It goes on; its response gets these headers.
    Allowed(HeaderMap),
    /// A preflight: answered here, 200 with these headers.
    Preflight(HeaderMap),
}

pub fn judge(policy: &Cors, method: &Method, headers: &HeaderMap) -> Verdict {
    let Some(origin) = headers.get(ORIGIN).filter(|origin| !origin.is_empty()) else { return Verdict::Ignored };
    let allowed = policy.allow_origins.iter().any(|pattern| allows(pattern, origin));
    let asked = headers.get(ACCESS_CONTROL_REQUEST_METHOD).filter(|asked| !asked.is_empty());
    let mut answer = HeaderMap::new();
    if allowed {
        answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    }
    if let Some(asked) = asked.filter(|_| *method == Method::OPTIONS) {
        if !allowed && policy.forward_unmatched_preflights {
            return Verdict::Ignored;
        }
        if allowed {
            preflight(policy, asked, headers, &mut answer);
        }
        return Verdict::Preflight(answer);
    }
    if !allowed {
        return Verdict::Ignored;
    }
    if policy.allow_credentials {
        answer.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    insert(&mut answer, ACCESS_CONTROL_EXPOSE_HEADERS, &policy.expose_headers);
    Verdict::Allowed(answer)
}

fn preflight(policy: &Cors, method: &HeaderValue, headers: &HeaderMap, answer: &mut HeaderMap) {
    if policy.allow_credentials {
        answer.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    // `*` does not count for requests with credentials: what was asked for is said.
    match policy.allow_methods.as_str() {
        "*" => drop(answer.insert(ACCESS_CONTROL_ALLOW_METHODS, method.clone())),
        methods => insert(answer, ACCESS_CONTROL_ALLOW_METHODS, methods),
    }
    match (policy.allow_headers.as_str(), headers.get(ACCESS_CONTROL_REQUEST_HEADERS)) {
        ("*", Some(asked)) => drop(answer.insert(ACCESS_CONTROL_ALLOW_HEADERS, asked.clone())),
        ("*", None) => {}
        (names, _) => insert(answer, ACCESS_CONTROL_ALLOW_HEADERS, names),
    }
    if let Some(age) = policy.max_age {
        answer.insert(ACCESS_CONTROL_MAX_AGE, age.as_secs().into());
    }
}

/// A rule for the text `*` allows every origin.
fn allows(pattern: &TextMatch, origin: &HeaderValue) -> bool {
    pattern.matches("*") || origin.to_str().is_ok_and(|origin| pattern.matches(origin))
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Some(value) = HeaderValue::from_str(value).ok().filter(|value| !value.is_empty()) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn policy() -> Cors {
        Cors {
            allow_origins: vec![TextMatch::Exact("https://a".into())],
            allow_methods: "GET,POST".into(),
            allow_headers: "*".into(),
            expose_headers: "x-sum".into(),
            max_age: Some(Duration::from_secs(90)),
            allow_credentials: true,
            forward_unmatched_preflights: true,
        }
    }

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_preflight_is_answered_with_what_is_allowed() {
        let asked = headers(&[
            ("origin", "https://a"),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "x-one,x-two"),
        ]);
        let Verdict::Preflight(answer) = judge(&policy(), &Method::OPTIONS, &asked) else { panic!() };
        let expected = headers(&[
            ("access-control-allow-origin", "https://a"),
            ("access-control-allow-credentials", "true"),
            ("access-control-allow-methods", "GET,POST"),
            ("access-control-allow-headers", "x-one,x-two"),
            ("access-control-max-age", "90"),
        ]);
        assert_eq!(answer, expected);
        // The same headers on another method are no preflight.
        assert!(matches!(judge(&policy(), &Method::GET, &asked), Verdict::Allowed(_)));
    }

    #[test]
    fn a_foreign_origin_gets_nothing() {
        let asked = headers(&[("origin", "https://b"), ("access-control-request-method", "POST")]);
        assert!(matches!(judge(&policy(), &Method::OPTIONS, &asked), Verdict::Ignored));
        assert!(matches!(judge(&policy(), &Method::GET, &asked), Verdict::Ignored));
        let ignoring = Cors { forward_unmatched_preflights: false, ..policy() };
        let Verdict::Preflight(answer) = judge(&ignoring, &Method::OPTIONS, &asked) else { panic!() };
        assert_eq!(answer, HeaderMap::new());
        assert!(matches!(judge(&ignoring, &Method::GET, &headers(&[])), Verdict::Ignored));
    }

    #[test]
    fn a_request_that_is_allowed_exposes_headers() {
        let star = Cors { allow_origins: vec![TextMatch::Exact("*".into())], ..policy() };
        let Verdict::Allowed(answer) = judge(&star, &Method::GET, &headers(&[("origin", "https://b")])) else {
            panic!()
        };
        let expected = headers(&[
            ("access-control-allow-origin", "https://b"),
            ("access-control-allow-credentials", "true"),
            ("access-control-expose-headers", "x-sum"),
        ]);
        assert_eq!(answer, expected);
    }
}
