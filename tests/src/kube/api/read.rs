//! Get and list: whole, in pages, at a version, metadata only.

use std::{collections::BTreeMap, sync::Arc};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::{
    failure::Failure,
    kinds::Kind,
    request::{Asked, Target},
    selector::Selector,
    store::{Key, Object, Store, Table},
};

/// In which words an object is told: kind and version, whole or its metadata only.
pub struct Form {
    /// `"apiVersion":"v1","kind":"Pod"`
    head: String,
    list_head: String,
    metadata_only: bool,
    bare_items: bool,
}

impl Form {
    pub fn of(kind: &Kind, version: &str, metadata_only: bool) -> Self {
        let (api, kind_name) = if metadata_only {
            ("meta.k8s.io/v1".to_owned(), "PartialObjectMetadata".to_owned())
        } else {
            (kind.api_version(version), kind.kind.clone())
        };
        Self {
            list_head: format!(r#""apiVersion":"{api}","kind":"{kind_name}List""#),
            head: format!(r#""apiVersion":"{api}","kind":"{kind_name}""#),
            metadata_only,
            // Items of a list of a built-in kind do not repeat what they are.
            bare_items: !kind.custom() && !metadata_only,
        }
    }

    /// The object's JSON.
    pub fn render(&self, object: &Value) -> String {
        self.with_head(&self.head, object)
    }

    fn item(&self, object: &Value) -> String {
        if self.bare_items { object.to_string() } else { self.with_head(&self.head, object) }
    }

    fn with_head(&self, head: &str, object: &Value) -> String {
        if self.metadata_only {
            return format!(r#"{{{head},"metadata":{}}}"#, object["metadata"]);
        }
        let rest = object.to_string();
        format!("{{{head},{}", rest.strip_prefix('{').unwrap_or(&rest))
    }

    pub fn list(&self, metadata: &Value, objects: &[Object]) -> String {
        let mut text = format!(r#"{{{},"metadata":{metadata},"items":["#, self.list_head);
        for (number, object) in objects.iter().enumerate() {
            if number > 0 {
                text.push(',');
            }
            text.push_str(&self.item(object));
        }
        text.push_str("]}");
        text
    }
}

pub fn get(table: &Table, target: &Target, form: &Form) -> Result<String, Failure> {
    let name = target.name.clone().unwrap_or_default();
    let key = key(&table.kind, target.namespace.as_deref(), &name);
    let object = table.objects.get(&key).ok_or_else(|| Failure::not_found(&table.kind, &name))?;
    Ok(form.render(object))
}

/// Where an object of this kind is kept.
pub fn key(kind: &Kind, namespace: Option<&str>, name: &str) -> Key {
    let namespace = if kind.namespaced { namespace.unwrap_or_default() } else { "" };
    (namespace.to_owned(), name.to_owned())
}

/// The objects that a list or watch is about, in their order.
pub fn select<'a>(
    objects: &'a BTreeMap<Key, Object>,
    namespace: Option<&'a str>,
    selector: &'a Selector,
) -> impl Iterator<Item = (&'a Key, &'a Object)> {
    objects
        .iter()
        .filter(move |(key, object)| namespace.is_none_or(|wanted| key.0 == wanted) && selector.matches(object))
}

/// The namespace that a list or watch is restricted to.
pub fn namespace_of<'a>(kind: &Kind, target: &'a Target) -> Option<&'a str> {
    target.namespace.as_deref().filter(|_| kind.namespaced)
}

pub fn list(store: &Store, table: &Table, asked: &Asked, target: &Target, form: &Form) -> Result<String, Failure> {
    let selector = Selector::parse(asked.option("labelSelector"), asked.option("fieldSelector"))?;
    let limit = match asked.option("limit") {
        "" => 0,
        text => text.parse::<usize>().map_err(|_| Failure::bad_request(format!("limit: {text:?} is no number")))?,
    };
    let token = match asked.option("continue") {
        "" => None,
        text => Some(Token::parse(text).ok_or_else(|| Failure::bad_request("continue key is not valid"))?),
    };
    if token.is_some() && !matches!(asked.option("resourceVersion"), "" | "0") {
        return Err(Failure::bad_request("specifying resource version is not allowed when using continue"));
    }
    let version = match (&token, asked.option("resourceVersion"), asked.option("resourceVersionMatch")) {
        (Some(token), ..) => token.version,
        (None, "" | "0", _) => store.version,
        (None, text, exactly) => {
            let version = parse_version(text)?;
            if version > store.version {
                let message = format!("Too large resource version: {version}, current: {}", store.version);
                return Err(Failure { retry_after: Some(1), ..Failure::new(504, "Timeout", message) });
            }
            if exactly == "Exact" { version } else { store.version }
        }
    };
    let as_it_was = (version != store.version).then(|| table.at(version));
    let expired = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter.";
    let objects = match &as_it_was {
        None => &table.objects,
        Some(Some(objects)) => objects,
        Some(None) => return Err(Failure::gone(expired)),
    };
    let namespace = namespace_of(&table.kind, target);
    let after = token.map(|token| token.after);
    let mut found = select(objects, namespace, &selector)
        .filter(|(key, _)| after.as_ref().is_none_or(|after| *key > after))
        .peekable();
    let mut page: Vec<Object> = Vec::new();
    let mut last = None;
    while limit == 0 || page.len() < limit {
        let Some((key, object)) = found.next() else { break };
        page.push(Arc::clone(object));
        last = Some(key.clone());
    }
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if let (Some(_), Some(after)) = (found.peek(), last) {
        metadata["continue"] = Token { version, after }.to_text().into();
        // As the real server, only where a selector does not make it costly to know.
        if asked.option("labelSelector").is_empty() && asked.option("fieldSelector").is_empty() {
            metadata["remainingItemCount"] = found.count().into();
        }
    }
    Ok(form.list(&metadata, &page))
}

pub fn parse_version(text: &str) -> Result<u64, Failure> {
    text.parse()
        .map_err(|_| Failure::bad_request(format!("Invalid value: {text:?}: strconv.ParseUint: invalid syntax")))
}

/// Where the next page begins, and which state of the store all pages show.
struct Token {
    version: u64,
    after: Key,
}

impl Token {
    fn to_text(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(json!([self.version, self.after.0, self.after.1]).to_string())
    }

    fn parse(text: &str) -> Option<Self> {
        let (version, namespace, name) = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        Some(Self { version, after: (namespace, name) })
    }
}
