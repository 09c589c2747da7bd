//! The normal form of a path, so that no spelling of it evades a route.

use std::borrow::Cow;

/// A path that no server should be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the path has an encoded NUL")]
pub struct InvalidPath;

/// `path` (without its query) as Istio's default `pathNormalization: BASE` has it: what RFC 3986 section 6.2.2 calls
/// equivalent becomes equal. Percent-encoded letters, digits, `-`, `.`, `_` and `~` are decoded, `\` is `/`, and `.` and
/// `..` are resolved. Repeated slashes and `%2F` stay: they may mean something to the server. Where a virtual host matches
/// on paths, this form is matched, and it is what goes upstream, so that both ends speak of the same path.
///
/// # Errors
/// An encoded NUL, at which some servers end the path.
pub fn normal(path: &str) -> Result<Cow<'_, str>, InvalidPath> {
    if !path.starts_with('/') || !suspicious(path.as_bytes()) {
        return Ok(Cow::Borrowed(path));
    }
    let plain = decode(path)?;
    let mut segments: Vec<&str> = Vec::new();
    let mut parts = plain[1..].split('/').peekable();
    while let Some(part) = parts.next() {
        let last = parts.peek().is_none();
        match part {
            "." | ".." => {
                if part == ".." {
                    segments.pop();
                }
                // What ends with a dot segment names the folder.
                if last {
                    segments.push("");
                }
            }
            _ => segments.push(part),
        }
    }
    let mut normal = String::with_capacity(plain.len());
    for segment in &segments {
        normal.push('/');
        normal.push_str(segment);
    }
    if normal.is_empty() {
        normal.push('/');
    }
    Ok(Cow::Owned(normal))
}

/// Most paths have nothing that a normal form would change.
fn suspicious(path: &[u8]) -> bool {
    path.windows(2).any(|two| two == b"/.") || path.iter().any(|byte| matches!(byte, b'\\' | b'%'))
}

fn decode(path: &str) -> Result<String, InvalidPath> {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find(['%', '\\']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix('\\') {
            out.push('/');
            rest = after;
            continue;
        }
        let octet = rest.get(1..3).and_then(|digits| {
            let hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            u8::from_str_radix(digits, 16).ok().filter(|_| hex)
        });
        match octet {
            Some(0) => return Err(InvalidPath),
            // After a `%` that begins no octet, a decoded digit would make one that nobody has sent.
            Some(octet) if is_unreserved(octet) && !out.as_bytes().iter().rev().take(2).any(|byte| *byte == b'%') => {
                out.push(char::from(octet));
                rest = &rest[3..];
            }
            Some(_) => {
                out.push_str(&rest[..3]);
                rest = &rest[3..];
            }
            None => {
                out.push('%');
                rest = &rest[1..];
            }
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// RFC 3986 section 2.3.
fn is_unreserved(octet: u8) -> bool {
    octet.is_ascii_alphanumeric() || b"-._~".contains(&octet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equivalent_paths_become_equal() {
        for (path, expected) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/..", "/"),
            ("/a/.", "/a/"),
            ("/..", "/"),
            ("/../../b", "/b"),
            ("/./a/./b", "/a/b"),
            ("/%2e%2E/b", "/b"),
            ("/a/.%2e/b", "/b"),
            ("/a%2f..%2fb", "/a%2f..%2fb"),
            ("/x/%2e%2e%2fb", "/x/..%2fb"),
            ("\\a", "\\a"),
            ("/\\a", "//a"),
            ("/x\\..\\b", "/b"),
            ("/%61dmin", "/admin"),
            ("/%25%36%31", "/%2561"),
            ("/a//b", "/a//b"),
            ("/a//../b", "/a/b"),
            ("/...", "/..."),
            ("/a/..b", "/a/..b"),
            ("/.hidden", "/.hidden"),
            ("/%", "/%"),
            ("/%4", "/%4"),
            ("/%zz", "/%zz"),
            ("/%+1", "/%+1"),
            ("/%c3%a4", "/%c3%a4"),
            ("/%%32%65/", "/%%32e/"),
            ("/%2%65", "/%2%65"),
            ("/ä%", "/ä%"),
            ("/%ä", "/%ä"),
            ("*", "*"),
        ] {
            assert_eq!(normal(path).as_deref(), Ok(expected), "{path}");
        }
        assert_eq!(normal("/a%00.png"), Err(InvalidPath));
    }

    /// One pass is enough: what a server behind would make of it is what was matched.
    #[test]
    fn the_normal_form_of_a_normal_form_is_itself() {
        for path in ["/a/%2e%2e/../%2e", "/x/..%5c..", "/%2525/..", "/a/b/../../../c/.", "//..//a", "/%%32%65/"] {
            let once = normal(path).unwrap().into_owned();
            assert_eq!(normal(&once).unwrap(), once, "{path}");
        }
    }

    #[test]
    fn a_plain_path_is_not_copied() {
        assert!(matches!(normal("/politics/2026?no"), Ok(Cow::Borrowed(_))));
    }
}
