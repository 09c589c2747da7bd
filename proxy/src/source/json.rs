//! JSON of an API server to the same trees as YAML. Nobody wrote that text, so nothing in it has a line: every place is (0, 0),
//! and messages name the field alone.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};

use super::yaml::{Entry, Node, Position, Value};

const NOWHERE: Position = (0, 0);

/// Reads one JSON value.
///
/// # Errors
/// What is no JSON, or has more levels than serde_json takes (128).
pub fn read(text: &[u8]) -> Result<Node, serde_json::Error> {
    serde_json::from_slice(text)
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Tree)
    }
}

struct Tree;

fn node<E>(value: Value) -> Result<Node, E> {
    Ok(Node { at: NOWHERE, value })
}

impl<'de> Visitor<'de> for Tree {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        node(Value::Plain("null".to_owned()))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        node(Value::Plain(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        node(Value::Plain(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        node(Value::Plain(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        node(Value::Plain(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        node(Value::Text { text: value.to_owned(), block: None })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        node(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries: Vec<Entry> = Vec::new();
        while let Some((key, node)) = map.next_entry::<String, Node>()? {
            entries.push(Entry { key, at: NOWHERE, node });
        }
        node(Value::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_the_tree_that_yaml_would_be() {
        let text = r#"{"a":[1,-2,1.5,true,null,"",{"b":"x\ty\u0000"}],"c":{}}"#;
        let yaml = super::super::yaml::documents(text).pop().unwrap().unwrap().root;
        let mut json = read(text.as_bytes()).unwrap();
        assert_eq!(json.at, NOWHERE);
        let mut places = yaml.clone();
        places.relocate(&|_| NOWHERE);
        json.relocate(&|_| NOWHERE);
        assert_eq!(format!("{json:?}"), format!("{places:?}"));
        let Value::Text { text, .. } = read(br#""\ud83d\ude00""#).unwrap().value else { panic!() };
        assert_eq!(text, "\u{1f600}", "YAML knows no pairs of surrogates");
        assert!(read(b"{\"a\":").is_err());
        assert!(read("[".repeat(10_000).as_bytes()).is_err());
    }
}
