//! Reads typed values out of a document's tree, and notes every finding at its place. Reading goes on after a mistake,
//! so that one run names all of them.
//!
//! The leniency is that of the formats' own readers: null is absent; protobuf JSON (Istio's kinds) takes numbers as
//! strings and field names in snake_case; Go's durations. Text fields want text, as Kubernetes does: `"true"`, not `true`.

use std::{cell::RefCell, collections::BTreeMap, net::IpAddr, time::Duration};

use super::{
    values,
    yaml::{Node, Position, Value},
};
use crate::api::Severity;

/// How field names are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Exactly as Kubernetes has them.
    Kubernetes,
    /// camelCase, or snake_case as in the .proto files.
    Istio,
}

/// What was found wrong with one document, in the order of reading.
#[derive(Debug, Default)]
pub struct Findings(RefCell<Vec<Finding>>);

#[derive(Debug)]
pub struct Finding {
    pub severity: Severity,
    pub at: Position,
    pub field: String,
    pub message: String,
}

impl Findings {
    pub fn add(&self, severity: Severity, at: Position, field: impl Into<String>, message: impl Into<String>) {
        self.0.borrow_mut().push(Finding { severity, at, field: field.into(), message: message.into() });
    }

    pub fn take(&self) -> Vec<Finding> {
        self.0.take()
    }
}

/// A value with its path in the document.
#[derive(Clone, Debug)]
pub struct Field<'a> {
    pub path: String,
    pub node: &'a Node,
    dialect: Dialect,
    findings: &'a Findings,
}

/// A mapping whose field names are known.
#[derive(Debug)]
pub struct Fields<'a> {
    pub field: Field<'a>,
    entries: BTreeMap<String, &'a Node>,
}

impl<'a> Field<'a> {
    pub fn root(node: &'a Node, path: &str, dialect: Dialect, findings: &'a Findings) -> Self {
        Self { path: path.to_owned(), node, dialect, findings }
    }

    pub fn error(&self, message: impl Into<String>) {
        self.findings.add(Severity::Error, self.node.at, &self.path, message);
    }

    pub fn warn(&self, message: impl Into<String>) {
        self.findings.add(Severity::Warning, self.node.at, &self.path, message);
    }

    /// The same value, its field names written in another way from here on.
    #[must_use]
    pub fn in_dialect(&self, dialect: Dialect) -> Self {
        Self { dialect, ..self.clone() }
    }

    /// A part of this value.
    #[must_use]
    pub fn child(&self, key: &str, node: &'a Node) -> Self {
        Self { path: join(&self.path, key), node, dialect: self.dialect, findings: self.findings }
    }

    fn expected(&self, what: &str) {
        let found = match &self.node.value {
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a mapping".to_owned(),
            Value::Plain(_) if self.node.is_null() => "null".to_owned(),
            Value::Plain(text) => format!("`{}`", shorten(text)),
            Value::Text { text, .. } => format!("\"{}\"", shorten(text)),
        };
        self.error(format!("must be {what}, not {found}"));
    }

    /// A mapping. `read` are the fields that the caller asks for, `ignored` those that mean nothing to a data plane,
    /// `later` those that the kind's author has and egret does not honour: a warning each. All others are unknown.
    pub fn fields(&self, read: &[&str], ignored: &[&str], later: &[&str]) -> Option<Fields<'a>> {
        let Value::Map(entries) = &self.node.value else {
            self.expected("a mapping");
            return None;
        };
        let mut known = BTreeMap::new();
        for entry in entries {
            let name = match self.dialect {
                Dialect::Kubernetes => entry.key.clone(),
                Dialect::Istio => camel(&entry.key),
            };
            let path = join(&self.path, &name);
            if read.contains(&name.as_str()) {
                if known.insert(name, &entry.node).is_some() {
                    self.findings.add(Severity::Error, entry.at, path, "given twice, in camelCase and in snake_case");
                }
            } else if later.contains(&name.as_str()) {
                if !entry.node.is_null() {
                    self.findings.add(Severity::Warning, entry.at, path, "not honoured yet");
                }
            } else if !ignored.contains(&name.as_str()) {
                let hint = similar(&name, read).map(|near| format!(" (did you mean `{near}`?)")).unwrap_or_default();
                self.findings.add(Severity::Warning, entry.at, path, format!("unknown field{hint}"));
            }
        }
        Some(Fields { field: self.clone(), entries: known })
    }

    /// A list; null items are errors.
    pub fn items(&self) -> Vec<Field<'a>> {
        let Value::List(items) = &self.node.value else {
            self.expected("a list");
            return Vec::new();
        };
        let fields = items.iter().enumerate().map(|(i, node)| Self {
            path: format!("{}[{i}]", self.path),
            node,
            ..self.clone()
        });
        fields
            .filter(|item| {
                if item.node.is_null() {
                    item.error("is empty");
                    false
                } else {
                    true
                }
            })
            .collect()
    }

    /// A mapping with free keys.
    pub fn entries(&self) -> Vec<(&'a str, Field<'a>)> {
        let Value::Map(entries) = &self.node.value else {
            self.expected("a mapping");
            return Vec::new();
        };
        entries.iter().map(|e| (e.key.as_str(), self.child(&e.key, &e.node))).collect()
    }

    pub fn string(&self) -> Option<String> {
        match &self.node.value {
            Value::Text { text, .. } => Some(text.clone()),
            Value::Plain(text) if values::is_word(text) => Some(text.clone()),
            Value::Plain(text) => {
                self.error(format!("must be text: write \"{}\", in quotes", shorten(text)));
                None
            }
            _ => {
                self.expected("text");
                None
            }
        }
    }

    pub fn strings(&self) -> Vec<String> {
        self.items().iter().filter_map(Field::string).collect()
    }

    /// Text to text, as labels are.
    pub fn string_map(&self) -> BTreeMap<String, String> {
        let entries = self.entries().into_iter();
        entries
            .filter(|(_, value)| !value.node.is_null())
            .filter_map(|(k, v)| Some((k.to_owned(), v.string()?)))
            .collect()
    }

    pub fn boolean(&self) -> Option<bool> {
        let parsed = match &self.node.value {
            Value::Plain(text) => values::boolean(text),
            _ => None,
        };
        if parsed.is_none() {
            self.expected("true or false");
        }
        parsed
    }

    /// A whole number from `min` to `max`; in Istio's kinds it may be written as text.
    pub fn number(&self, min: u32, max: u32) -> Option<u32> {
        let parsed = match &self.node.value {
            Value::Plain(text) => values::whole(text),
            Value::Text { text, .. } if self.dialect == Dialect::Istio => values::whole(text),
            _ => None,
        };
        match parsed {
            Some(n) if (i64::from(min)..=i64::from(max)).contains(&n) => u32::try_from(n).ok(),
            Some(n) => {
                self.error(format!("must be from {min} to {max}, not {n}"));
                None
            }
            None => {
                self.expected("a whole number");
                None
            }
        }
    }

    /// A number with a fraction, from `min` to `max`; in Istio's kinds it may be written as text.
    pub fn decimal(&self, min: f64, max: f64) -> Option<f64> {
        let text = match &self.node.value {
            Value::Plain(text) => Some(text),
            Value::Text { text, .. } if self.dialect == Dialect::Istio => Some(text),
            _ => None,
        };
        let Some(number) = text.and_then(|text| text.parse::<f64>().ok()).filter(|number| number.is_finite()) else {
            self.expected("a number");
            return None;
        };
        if !(min..=max).contains(&number) {
            self.error(format!("must be from {min} to {max}, not {number}"));
            return None;
        }
        Some(number)
    }

    /// A port, 1 to 65535.
    pub fn port(&self) -> Option<u16> {
        self.number(1, u32::from(u16::MAX)).and_then(|n| u16::try_from(n).ok())
    }

    pub fn ip(&self) -> Option<IpAddr> {
        let text = self.string()?;
        let parsed = text.parse().ok();
        if parsed.is_none() {
            self.error(format!("\"{}\" is not an IP address", shorten(&text)));
        }
        parsed
    }

    /// A duration as Go writes it (`10s`, `1.5s`, `100ms`, `1h30m`), 1 ms at least.
    pub fn duration(&self) -> Option<Duration> {
        let duration = self.duration_or_zero()?;
        if duration < Duration::from_millis(1) {
            self.error("must be 1ms at least");
            return None;
        }
        Some(duration)
    }

    /// The same, zero allowed.
    pub fn duration_or_zero(&self) -> Option<Duration> {
        let parsed = self.node.text().and_then(values::duration);
        if parsed.is_none() {
            self.expected("a duration such as 10s, 1.5s, 100ms or 1h30m");
        }
        parsed
    }

    /// One of the names of an enumeration.
    pub fn choice<T: Copy>(&self, names: &[(&str, T)]) -> Option<T> {
        let text = self.string()?;
        let found = names.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        if found.is_none() {
            let names: Vec<_> = names.iter().map(|(name, _)| *name).collect();
            self.error(format!("\"{}\" is not one of {}", shorten(&text), names.join(", ")));
        }
        found
    }
}

impl<'a> Fields<'a> {
    /// The field of this name, unless it is absent or null.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Field<'a>> {
        let node = self.entries.get(name).copied().filter(|node| !node.is_null())?;
        Some(self.field.child(name, node))
    }

    /// The same; its absence is an error of this mapping.
    #[must_use]
    pub fn require(&self, name: &str) -> Option<Field<'a>> {
        let found = self.get(name);
        if found.is_none() {
            self.field.error(format!("`{name}` is missing"));
        }
        found
    }

    /// Text that is not empty: protobuf holds an empty string for absent.
    #[must_use]
    pub fn string(&self, name: &str) -> Option<String> {
        self.get(name)?.string().filter(|text| !text.is_empty())
    }

    #[must_use]
    pub fn strings(&self, name: &str) -> Vec<String> {
        self.get(name).map(|field| field.strings()).unwrap_or_default()
    }

    #[must_use]
    pub fn string_map(&self, name: &str) -> BTreeMap<String, String> {
        self.get(name).map(|field| field.string_map()).unwrap_or_default()
    }

    /// What `read` makes of each item of a list, in no more room than they take: objects stay while they are in force.
    pub fn each<T>(&self, name: &str, read: impl FnMut(&Field<'a>) -> Option<T>) -> Vec<T> {
        let items = self.items(name);
        let mut made = Vec::with_capacity(items.len());
        made.extend(items.iter().filter_map(read));
        made
    }

    #[must_use]
    pub fn items(&self, name: &str) -> Vec<Field<'a>> {
        self.get(name).map(|field| field.items()).unwrap_or_default()
    }
}

/// `a.b`; keys that would read as more than one field are in brackets, as in Kubernetes' own messages: `data[tls.crt]`.
#[must_use]
pub fn join(path: &str, key: &str) -> String {
    if key.contains(['.', '/', '[', ']']) {
        format!("{path}[{key}]")
    } else if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// The JSON name of a protobuf field: `credential_name` is `credentialName`.
#[must_use]
pub fn camel(key: &str) -> String {
    let mut name = String::with_capacity(key.len());
    let mut upper = false;
    for c in key.chars() {
        if c == '_' {
            upper = true;
        } else {
            name.push(if upper { c.to_ascii_uppercase() } else { c });
            upper = false;
        }
    }
    name
}

/// A known name that differs by its case or one letter: what a typing slip leaves behind.
pub fn similar<'n>(name: &str, known: &[&'n str]) -> Option<&'n str> {
    let near = |other: &str| {
        if name.eq_ignore_ascii_case(other) {
            return true;
        }
        if name.len() < 3 || name.len().abs_diff(other.len()) > 1 {
            return false;
        }
        let same = name.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
        let (rest, other_rest) = (&name.as_bytes()[same..], &other.as_bytes()[same..]);
        let skip = |bytes: &[u8]| bytes.get(1..).unwrap_or_default().to_vec();
        let swapped =
            matches!((rest, other_rest), ([a, b, tail @ ..], [c, d, end @ ..]) if (a, b, tail) == (d, c, end));
        swapped || skip(rest) == skip(other_rest) || rest == skip(other_rest) || skip(rest) == other_rest
    };
    known.iter().copied().find(|other| near(other))
}

/// What a message quotes of a value: its beginning, without line breaks.
fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(60).flat_map(char::escape_debug).collect();
    if text.chars().nth(60).is_some() {
        short.push('…');
    }
    short
}
