//! What a request must be like for a route, see [`super::matching`] for how it is compared.

use std::sync::Arc;

use http::HeaderName;
use serde::{Serialize, Serializer};

/// What a request must be like; all that is given must hold, nothing given holds always.
#[derive(Debug, Default, Serialize)]
pub struct RequestMatch {
    /// Compared with the path without its query.
    pub path: Option<TextMatch>,
    /// The path is compared in any case.
    pub ignore_path_case: bool,
    pub scheme: Option<TextMatch>,
    pub method: Option<TextMatch>,
    /// Compared with `:authority` or Host, as sent.
    pub authority: Option<TextMatch>,
    /// Lower-case name to match; several lines of a header are joined with `,` (Envoy).
    #[serde(serialize_with = "named")]
    pub headers: Vec<(HeaderName, TextMatch)>,
    #[serde(serialize_with = "named")]
    pub without_headers: Vec<(HeaderName, TextMatch)>,
    pub query: Vec<(String, TextMatch)>,
}

fn named<S: Serializer>(list: &[(HeaderName, TextMatch)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(list.iter().map(|(name, matches)| (name.as_str(), matches)))
}

#[derive(Clone, Debug, Serialize)]
pub enum TextMatch {
    Exact(String),
    /// A raw string prefix.
    Prefix(String),
    /// By path element: `/a` holds for `/a` and `/a/b`, not for `/ab`. Kept without a trailing slash.
    PathPrefix(String),
    Regex(Pattern),
    /// Any value, as long as there is one.
    Present,
}

/// A compiled RE2-like expression; it must match the whole text.
#[derive(Clone, Debug)]
pub struct Pattern(Arc<regex::Regex>);

impl Pattern {
    /// # Errors
    /// What is wrong with the expression, in one line.
    pub fn new(expression: &str) -> Result<Self, String> {
        // Size limits are the library's own defaults (10 MiB compiled); matching takes time linear in the text. It must stand by
        // itself before it is anchored, or `a)|(?:b` would get out of the brackets.
        let whole = format!("^(?:{expression})$");
        match regex::Regex::new(expression).and_then(|_| regex::Regex::new(&whole)) {
            Ok(regex) => Ok(Self(Arc::new(regex))),
            Err(error) => Err(error.to_string().lines().last().unwrap_or_default().trim().to_owned()),
        }
    }

    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        self.0.is_match(text)
    }

    /// The expression as its author wrote it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let anchored = self.0.as_str();
        anchored.strip_prefix("^(?:").and_then(|rest| rest.strip_suffix(")$")).unwrap_or(anchored)
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}
