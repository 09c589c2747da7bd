//! Which route of a virtual host a request takes.

use std::{borrow::Cow, sync::Arc};

use http::{HeaderMap, HeaderName, header::HOST};

use super::routing::{Action, PathChange, RequestMatch, Route, TextMatch, VirtualHost};

/// What of a request is matched.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'a> {
    pub method: &'a str,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// Host or `:authority`, as sent.
    pub authority: &'a str,
    /// Without query.
    pub path: &'a str,
    pub query: Option<&'a str>,
    pub headers: &'a HeaderMap,
}

impl VirtualHost {
    /// The first route that holds for the request.
    #[must_use]
    pub fn route(&self, head: &RequestHead<'_>) -> Option<&Arc<Route>> {
        self.routes.iter().find(|route| route.matches.holds(head))
    }

    /// Routes before the one taken that the path alone would lead to, and what else they ask for: `method`, `headers`, …
    pub fn passed_over<'a>(
        &'a self,
        head: &'a RequestHead<'_>,
    ) -> impl Iterator<Item = (&'a Arc<Route>, Vec<&'static str>)> {
        let before = self.routes.iter().take_while(|route| !route.matches.holds(head));
        before.filter_map(|route| Some((route, route.matches.beside_the_path(head)?)))
    }

    /// Some route looks at the path or changes it: it is then brought into normal form first, see
    /// [`super::paths::normal`].
    #[must_use]
    pub fn deals_with_paths(&self) -> bool {
        let changed = |action: &Action| match action {
            Action::Forward(forward) => forward.rewrite_path != PathChange::Keep,
            Action::Redirect(redirect) => redirect.path != PathChange::Keep,
            Action::Direct(_) | Action::Refuse(_) => false,
        };
        self.routes.iter().any(|route| route.matches.path.is_some() || changed(&route.action))
    }
}

impl RequestMatch {
    /// What the request lacks, where the path is right.
    fn beside_the_path(&self, head: &RequestHead<'_>) -> Option<Vec<&'static str>> {
        let bare = || Self { path: self.path.clone(), ignore_path_case: self.ignore_path_case, ..Self::default() };
        let parts = [
            ("scheme", Self { scheme: self.scheme.clone(), ..bare() }),
            ("method", Self { method: self.method.clone(), ..bare() }),
            ("authority", Self { authority: self.authority.clone(), ..bare() }),
            ("headers", Self { headers: self.headers.clone(), ..bare() }),
            ("withoutHeaders", Self { without_headers: self.without_headers.clone(), ..bare() }),
            ("queryParams", Self { query: self.query.clone(), ..bare() }),
        ];
        let lacking = || parts.iter().filter(|(_, part)| !part.holds(head)).map(|(name, _)| *name).collect();
        bare().holds(head).then(lacking)
    }

    #[must_use]
    pub fn holds(&self, head: &RequestHead<'_>) -> bool {
        let Self { path, ignore_path_case, scheme, method, authority, headers, without_headers, query } = self;
        let text = |wanted: &Option<TextMatch>, is: &str| wanted.as_ref().is_none_or(|wanted| wanted.matches(is));
        path.as_ref().is_none_or(|path| path.matches_in(head.path, *ignore_path_case))
            && text(scheme, head.scheme)
            && text(method, head.method)
            && text(authority, head.authority)
            && headers.iter().all(|(name, wanted)| head.header(name).is_some_and(|value| wanted.matches(&value)))
            && !without_headers.iter().any(|(name, unwanted)| match (head.header(name), unwanted) {
                (Some(value), _) => unwanted.matches(&value),
                (None, TextMatch::Present) => false,
                // Istio sets `treat_missing_header_as_empty`: without `x: {regex: ".*"}` means never.
                (None, _) => unwanted.matches(""),
            })
            && query.iter().all(|(name, wanted)| head.parameter(name).is_some_and(|value| wanted.matches(value)))
    }
}

impl RequestHead<'_> {
    /// The value of a header, several lines joined with `,` (Envoy); `host` is the authority, whatever the version.
    pub(super) fn header(&self, name: &HeaderName) -> Option<Cow<'_, str>> {
        if name == HOST {
            return Some(Cow::Borrowed(self.authority));
        }
        let mut lines = self.headers.get_all(name).iter().map(|line| String::from_utf8_lossy(line.as_bytes()));
        let first = lines.next()?;
        Some(lines.fold(first, |mut joined, line| {
            let text = joined.to_mut();
            text.push(',');
            text.push_str(&line);
            joined
        }))
    }

    /// The first value of a query parameter, not decoded, as Envoy compares it; empty where it has no `=`.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query?.split('&').find_map(|parameter| {
            let (found, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            (found == name).then_some(value)
        })
    }
}

impl TextMatch {
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        self.matches_in(text, false)
    }

    /// `any_case` is for all but expressions (Istio `ignoreUriCase`), which have `(?i)`.
    fn matches_in(&self, text: &str, any_case: bool) -> bool {
        match self {
            Self::Exact(exact) if any_case => text.eq_ignore_ascii_case(exact),
            Self::Exact(exact) => text == exact,
            Self::Prefix(prefix) => after(text, prefix, any_case).is_some(),
            Self::PathPrefix(prefix) => {
                after(text, prefix, any_case).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            Self::Regex(pattern) => pattern.matches(text),
            Self::Present => true,
        }
    }

    /// How many bytes of a path that matched are the prefix that a rewrite replaces: all of it where the match was no
    /// prefix.
    #[must_use]
    pub fn matched_length(&self, path: &str) -> usize {
        match self {
            Self::Prefix(prefix) | Self::PathPrefix(prefix) => prefix.len().min(path.len()),
            Self::Exact(_) | Self::Regex(_) | Self::Present => path.len(),
        }
    }
}

/// What follows `prefix`, where `text` begins with it.
fn after<'t>(text: &'t str, prefix: &str, any_case: bool) -> Option<&'t str> {
    if !any_case {
        return text.strip_prefix(prefix);
    }
    let (start, rest) = text.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

#[cfg(test)]
mod tests;
