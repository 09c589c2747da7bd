//! The target of a request on its way through: brought into normal form, rewritten, replaced.

use std::borrow::Cow;

use http::{Uri, uri::PathAndQuery};

use crate::mesh::{
    Forward, PathChange, RequestMatch,
    paths::{InvalidPath, normal},
};

/// What a rule makes of a target is not a valid one.
#[derive(Debug, thiserror::Error)]
#[error("the rewritten path {0:?} is not valid")]
pub struct Unfit(String);

/// Replaces the path of `uri` by its normal form; see [`normal`] for why.
pub fn normalise(uri: &mut Uri) -> Result<(), InvalidPath> {
    let Cow::Owned(path) = normal(uri.path())? else { return Ok(()) };
    let target = joined(&path, uri.query());
    // What the parser has let through stays valid when octets of it are decoded.
    *uri = replaced(uri, &target).map_err(|_| InvalidPath)?;
    Ok(())
}

/// The target after the route's rewrite; None where it has none.
pub fn rewritten(forward: &Forward, matches: &RequestMatch, uri: &Uri) -> Option<String> {
    if let Some(pattern) = &forward.rewrite_pattern {
        return Some(joined(&pattern.regex.replace_all(uri.path(), &*pattern.substitution), uri.query()));
    }
    changed(&forward.rewrite_path, matches, uri)
}

/// True where a piece of the request's path has become a dot segment by what was put before it: `/api../x`, whose prefix
/// `/api` is replaced by `/v1/`, would be `/v1/../x`, and the server would look where no route leads.
pub fn climbs(change: &PathChange, target: &str) -> bool {
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    let of_the_client = matches!(change, PathChange::Prefix(_) | PathChange::Regex { .. });
    of_the_client && path.split('/').any(|segment| matches!(segment, "." | ".."))
}

/// The target after a change that needs no compiled expression; None where there is none.
pub fn changed(change: &PathChange, matches: &RequestMatch, uri: &Uri) -> Option<String> {
    match change {
        PathChange::Keep | PathChange::Regex { .. } => None,
        PathChange::Full(path) => Some(joined(&rooted(path), uri.query())),
        PathChange::Prefix(prefix) => Some(joined(&with_prefix(prefix, matches, uri.path()), uri.query())),
    }
}

/// `path` with `prefix` for what the route matched: its prefix, or all of it. Between elements stands one slash (Gateway
/// API, `ReplacePrefixMatch`); a raw prefix is replaced as it is (Envoy's `prefix_rewrite`).
fn with_prefix(prefix: &str, matches: &RequestMatch, path: &str) -> String {
    use crate::mesh::TextMatch::{PathPrefix, Prefix};
    let matched = match &matches.path {
        // No match on the path is Envoy's prefix `/`.
        None => 1,
        Some(matched) => matched.matched_length(path),
    };
    let rest = path.get(matched..).unwrap_or_default();
    let new = match &matches.path {
        Some(PathPrefix(_)) if rest.starts_with('/') => format!("{}{rest}", prefix.trim_end_matches('/')),
        Some(Prefix(_) | PathPrefix(_)) | None => format!("{prefix}{rest}"),
        Some(_) => prefix.to_owned(),
    };
    rooted(&new).into_owned()
}

fn rooted(path: &str) -> Cow<'_, str> {
    if path.starts_with('/') { Cow::Borrowed(path) } else { Cow::Owned(format!("/{path}")) }
}

/// A path that has a query keeps it; else it gets that of the request.
fn joined(path: &str, query: Option<&str>) -> String {
    match query {
        Some(query) if !path.contains('?') => format!("{path}?{query}"),
        _ => path.to_owned(),
    }
}

/// `uri` with this target, scheme and authority as they were.
pub fn replaced(uri: &Uri, target: &str) -> Result<Uri, Unfit> {
    let unfit = || Unfit(target.to_owned());
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(target.parse::<PathAndQuery>().map_err(|_| unfit())?);
    Uri::from_parts(parts).map_err(|_| unfit())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::mesh::{Pattern, RewritePattern, TextMatch};

    fn on(path: TextMatch) -> RequestMatch {
        RequestMatch { path: Some(path), ..RequestMatch::default() }
    }

    fn prefix(text: &str) -> RequestMatch {
        on(TextMatch::Prefix(text.into()))
    }

    fn element(text: &str) -> RequestMatch {
        on(TextMatch::PathPrefix(text.into()))
    }

    #[test]
    fn prefixes_are_replaced_as_matched() {
        for (matches, new, target, expected) in [
            (prefix("/a"), "/x", "/a/b?q=1", "/x/b?q=1"),
            (prefix("/a"), "/x", "/ab", "/xb"),
            (prefix("/a/"), "/", "/a/b", "/b"),
            (prefix("/a"), "/", "/a/b", "//b"),
            (prefix("/"), "/x/", "/b", "/x/b"),
            (on(TextMatch::Exact("/a".into())), "/x", "/a?q", "/x?q"),
            (on(TextMatch::Regex(Pattern::new("/a.*").unwrap())), "/x", "/abc?q", "/x?q"),
            (RequestMatch::default(), "/x/", "/b", "/x/b"),
            (RequestMatch::default(), "/x", "/b", "/xb"),
            (element("/a"), "/x", "/a/b", "/x/b"),
            (element("/a"), "/x/", "/a/b", "/x/b"),
            (element("/a"), "/", "/a/b", "/b"),
            (element("/a"), "/", "/a", "/"),
            (element("/a"), "", "/a", "/"),
            (element("/a"), "/x", "/a", "/x"),
            (element("/a"), "/x", "/a/", "/x/"),
            (element(""), "/x", "/b", "/x/b"),
            (element(""), "/x", "/", "/x/"),
        ] {
            let uri = target.parse().unwrap();
            let new = changed(&PathChange::Prefix(new.into()), &matches, &uri);
            assert_eq!(new.as_deref(), Some(expected), "{matches:?} {target}");
        }
    }

    #[test]
    fn whole_paths_and_expressions() {
        let uri: Uri = "/a/7?q".parse().unwrap();
        let full = |new: &str| changed(&PathChange::Full(new.into()), &RequestMatch::default(), &uri).unwrap();
        assert_eq!((full("/x"), full("/x?y"), full("x")), ("/x?q".into(), "/x?y".into(), "/x?q".into()));
        let mut forward = Forward::to(Vec::new());
        assert_eq!(rewritten(&forward, &RequestMatch::default(), &uri), None);
        let regex = Arc::new(regex::Regex::new("/a/([0-9]+)").unwrap());
        forward.rewrite_pattern = Some(RewritePattern { regex, substitution: "/item-${1}".into() });
        assert_eq!(rewritten(&forward, &RequestMatch::default(), &uri).unwrap(), "/item-7?q");
    }

    #[test]
    fn scheme_and_authority_stay() {
        let uri: Uri = "http://a:1/b?c".parse().unwrap();
        assert_eq!(replaced(&uri, "/d").unwrap(), "http://a:1/d");
        assert!(replaced(&uri, "/d e").is_err());
        let mut uri: Uri = "http://a/%2e%2e/x?/../y".parse().unwrap();
        normalise(&mut uri).unwrap();
        assert_eq!(uri, "http://a/x?/../y");
    }
}
