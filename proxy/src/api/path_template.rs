//! Paths with operators, as AuthorizationPolicy has them: `/foo/{*}/bar/{**}`.

/// A path in which `{*}` stands for one element, and `{**}` for whatever is there.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PathTemplate(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
enum Piece {
    Text(String),
    /// `{*}`: one element, not empty.
    Element,
    /// `{**}`: any text, with slashes or none at all. Only [`Piece::Text`] follows it, once at most.
    Rest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTemplate {
    #[error("beside `{{*}}` and `{{**}}` a path has no `*` and no other braces")]
    Operator,
    #[error("`{{*}}` and `{{**}}` stand for whole elements: between slashes, or after the last one")]
    Element,
    #[error("`{{**}}` must be the last operator of the path")]
    AfterRest,
}

impl PathTemplate {
    /// None: a path without operators, which is compared as text.
    ///
    /// # Errors
    /// Why nothing could be compared with it.
    pub fn parse(path: &str) -> Option<Result<Self, InvalidTemplate>> {
        (path.contains("{*}") || path.contains("{**}")).then(|| Self::pieces(path).map(Self))
    }

    fn pieces(path: &str) -> Result<Vec<Piece>, InvalidTemplate> {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut text = String::new();
        for (at, element) in path.split('/').enumerate() {
            if at > 0 {
                text.push('/');
            }
            let operator = match element {
                "{*}" => Piece::Element,
                "{**}" => Piece::Rest,
                _ if element.contains("{*}") || element.contains("{**}") => return Err(InvalidTemplate::Element),
                _ if element.contains(['*', '{', '}']) => return Err(InvalidTemplate::Operator),
                _ => {
                    text.push_str(element);
                    continue;
                }
            };
            if pieces.contains(&Piece::Rest) {
                return Err(InvalidTemplate::AfterRest);
            }
            if !text.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut text)));
            }
            pieces.push(operator);
        }
        if !text.is_empty() {
            pieces.push(Piece::Text(text));
        }
        Ok(pieces)
    }

    /// The whole path, without query.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        let mut rest = path;
        let mut pieces = self.0.iter();
        while let Some(piece) = pieces.next() {
            match piece {
                Piece::Text(text) => match rest.strip_prefix(text.as_str()) {
                    Some(after) => rest = after,
                    None => return false,
                },
                Piece::Element => {
                    let end = rest.find('/').unwrap_or(rest.len());
                    if end == 0 {
                        return false;
                    }
                    rest = &rest[end..];
                }
                Piece::Rest => {
                    return pieces.all(|last| match last {
                        Piece::Text(text) => rest.ends_with(text.as_str()),
                        Piece::Element | Piece::Rest => false,
                    });
                }
            }
        }
        rest.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Those of Istio's reference of `paths`, and their neighbours.
    #[test]
    fn operators_stand_for_elements() {
        for (template, path, matches) in [
            ("/foo/{*}", "/foo/bar", true),
            ("/foo/{*}", "/foo/bar/baz", false),
            ("/foo/{*}", "/foo/", false),
            ("/foo/{*}", "/foo/bar/", false),
            ("/foo/{**}/", "/foo/bar/", true),
            ("/foo/{**}/", "/foo/bar/baz.txt/", true),
            ("/foo/{**}/", "/foo//", true),
            ("/foo/{**}/", "/foo/bar", false),
            ("/foo/{**}/", "/foo/", false),
            ("/foo/{*}/bar/{**}", "/foo/buzz/bar/", true),
            ("/foo/{*}/bar/{**}", "/foo/buzz/bar/baz", true),
            ("/foo/{*}/bar/{**}", "/foo/buzz/bar", false),
            ("/foo/{*}/bar/{**}", "/foo/a/b/bar/", false),
            ("/{*}/baz", "/a/baz", true),
            ("/{*}/baz", "/a/bazz", false),
            ("/{**}", "/", true),
            ("/{**}/x/y", "/a/b/x/y", true),
            ("/{**}/x/y", "/a/b/x/z", false),
        ] {
            let template = PathTemplate::parse(template).unwrap().unwrap();
            assert_eq!(template.matches(path), matches, "{template:?} {path}");
        }
    }

    #[test]
    fn what_is_no_template_is_told_apart() {
        for path in ["/foo", "/foo/*", "*/foo", "/{foo}", "*"] {
            assert_eq!(PathTemplate::parse(path), None, "{path}");
        }
        for (path, why) in [
            ("/*/baz/{*}", InvalidTemplate::Operator),
            ("/**/baz/{*}", InvalidTemplate::Operator),
            ("/{a}/{*}", InvalidTemplate::Operator),
            ("/{a=*}/{*}", InvalidTemplate::Operator),
            ("/a{*}", InvalidTemplate::Element),
            ("/{*}b/c", InvalidTemplate::Element),
            ("/{**}/{*}", InvalidTemplate::AfterRest),
            ("/{**}/a/{**}", InvalidTemplate::AfterRest),
        ] {
            assert_eq!(PathTemplate::parse(path), Some(Err(why)), "{path}");
        }
    }
}
