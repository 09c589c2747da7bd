use http::HeaderValue;

use super::*;
use crate::mesh::routing::Pattern;

const NO_HEADERS: &[(&str, &str)] = &[];

/// Whether `matches` holds for a request with this target and these header lines.
fn holds(matches: &RequestMatch, target: &str, lines: &[(&'static str, &'static str)]) -> bool {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(*name, HeaderValue::from_static(value));
    }
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    matches.holds(&RequestHead {
        method: "GET",
        scheme: "http",
        authority: "a.example:8080",
        path,
        query,
        headers: &headers,
    })
}

fn path(path: TextMatch) -> RequestMatch {
    RequestMatch { path: Some(path), ..RequestMatch::default() }
}

fn regex(expression: &str) -> TextMatch {
    TextMatch::Regex(Pattern::new(expression).unwrap())
}

fn text(matches: fn(String) -> TextMatch, text: &str) -> TextMatch {
    matches(text.to_owned())
}

#[test]
fn nothing_given_holds_always() {
    assert!(holds(&RequestMatch::default(), "/any?x", NO_HEADERS));
}

#[test]
fn paths() {
    use TextMatch::{Exact, PathPrefix, Prefix};
    for (wanted, holding, others) in [
        (text(Exact, "/a"), &["/a", "/a?x=/b"][..], &["/a/", "/A", "/ab", "/"][..]),
        (text(Prefix, "/a"), &["/a", "/ab", "/a/b", "/a?b"], &["/A", "/", "/b/a"]),
        (text(PathPrefix, "/a"), &["/a", "/a/", "/a/b", "/a?b"], &["/ab", "/", "/A"]),
        (text(PathPrefix, ""), &["/", "/b"], &["*"]),
        (regex("/a+"), &["/a", "/aa", "/a?b"], &["/ab", "/b/a", "/a\n"]),
        (regex("/a|/b.*"), &["/a", "/bc"], &["/ac"]),
    ] {
        let matches = path(wanted);
        holding.iter().for_each(|target| assert!(holds(&matches, target, NO_HEADERS), "{matches:?} {target}"));
        others.iter().for_each(|target| assert!(!holds(&matches, target, NO_HEADERS), "{matches:?} {target}"));
    }
}

#[test]
fn the_case_of_paths_can_be_ignored_but_not_by_expressions() {
    use TextMatch::{Exact, PathPrefix, Prefix};
    for (wanted, holding) in [
        (text(Exact, "/Ab"), true),
        (text(Prefix, "/Ab"), true),
        (text(PathPrefix, "/Ab"), true),
        (regex("/Ab"), false),
    ] {
        let matches = RequestMatch { ignore_path_case: true, ..path(wanted) };
        assert_eq!(holds(&matches, "/aB", NO_HEADERS), holding, "{matches:?}");
    }
    let matches = RequestMatch { ignore_path_case: true, ..path(text(Prefix, "/ä")) };
    assert!(!holds(&matches, "/aö", NO_HEADERS), "a character is not split");
}

#[test]
fn pseudo_headers_are_compared_as_sent() {
    let exact = |text: &str| Some(TextMatch::Exact(text.to_owned()));
    let default = RequestMatch::default;
    assert!(holds(&RequestMatch { method: exact("GET"), ..default() }, "/", NO_HEADERS));
    assert!(!holds(&RequestMatch { method: exact("get"), ..default() }, "/", NO_HEADERS));
    assert!(holds(&RequestMatch { scheme: exact("http"), ..default() }, "/", NO_HEADERS));
    assert!(!holds(&RequestMatch { scheme: exact("https"), ..default() }, "/", NO_HEADERS));
    assert!(holds(&RequestMatch { authority: exact("a.example:8080"), ..default() }, "/", NO_HEADERS));
    assert!(!holds(&RequestMatch { authority: exact("a.example"), ..default() }, "/", NO_HEADERS));
}

#[test]
fn headers_and_their_absence() {
    let name = HeaderName::from_static("x");
    let with = |wanted: TextMatch| RequestMatch { headers: vec![(name.clone(), wanted)], ..RequestMatch::default() };
    let without = |unwanted: TextMatch| RequestMatch {
        without_headers: vec![(name.clone(), unwanted)],
        ..RequestMatch::default()
    };
    let exact = || text(TextMatch::Exact, "1,2");
    // matches, no such header, `x: 1`, `x: 1` and `x: 2`, an empty one
    for (matches, none, one, both, empty) in [
        (with(exact()), false, false, true, false),
        (with(TextMatch::Present), false, true, true, true),
        (with(regex(".*")), false, true, true, true),
        (without(exact()), true, true, false, true),
        (without(TextMatch::Present), true, false, false, false),
        (without(regex(".*")), false, false, false, false),
    ] {
        assert_eq!(holds(&matches, "/", NO_HEADERS), none, "{matches:?}");
        assert_eq!(holds(&matches, "/", &[("x", "1")]), one, "{matches:?}");
        assert_eq!(holds(&matches, "/", &[("x", "1"), ("x", "2")]), both, "{matches:?}");
        assert_eq!(holds(&matches, "/", &[("x", "")]), empty, "{matches:?}");
    }
    let host =
        RequestMatch { headers: vec![(HOST, text(TextMatch::Exact, "a.example:8080"))], ..RequestMatch::default() };
    assert!(holds(&host, "/", NO_HEADERS), "an h2 request has no Host line");
}

#[test]
fn query_parameters() {
    let query = |wanted: TextMatch| RequestMatch { query: vec![("v".into(), wanted)], ..RequestMatch::default() };
    let exact = query(text(TextMatch::Exact, "1"));
    for (target, holding) in [
        ("/?v=1", true),
        ("/?a=2&v=1", true),
        ("/?v=1&v=2", true),
        ("/?v=2&v=1", false),
        ("/?V=1", false),
        ("/", false),
    ] {
        assert_eq!(holds(&exact, target, NO_HEADERS), holding, "{target}");
    }
    assert!(!holds(&exact, "/?v=%31", NO_HEADERS), "not decoded, as Envoy has it");
    assert!(holds(&query(TextMatch::Present), "/?v", NO_HEADERS));
    assert!(holds(&query(text(TextMatch::Exact, "")), "/?v=", NO_HEADERS));
}

#[test]
fn a_rewrite_replaces_what_matched() {
    for (matches, length) in [
        (text(TextMatch::Prefix, "/a"), 2),
        (text(TextMatch::PathPrefix, "/a"), 2),
        (text(TextMatch::Exact, "/a/b"), 4),
        (regex("/a.*"), 4),
    ] {
        assert_eq!(matches.matched_length("/a/b"), length, "{matches:?}");
    }
}
