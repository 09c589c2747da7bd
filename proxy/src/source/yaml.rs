//! Text to trees whose every node knows its line and column.
//!
//! One YAML parser reads values and positions at once, so a message always points at the text that was decoded. Scalars
//! stay text: the field that reads them decides what they mean (`off` is a word in one field and false in another).
//! A stream is cut at its `---` lines first (YAML allows them nowhere else), so a document that is broken costs only
//! itself. Aliases, nesting and merges are bounded: a few lines of YAML may otherwise describe terabytes.

use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span, Tag};

use crate::limits;

/// Line and column, both from 1.
pub type Position = (u32, u32);

/// A value of a document. `at` is where it starts; a block that starts below its key is at the key.
#[derive(Clone, Debug)]
pub struct Node {
    pub at: Position,
    pub value: Value,
}

#[derive(Clone, Debug)]
pub enum Value {
    /// Unquoted: null, a bool, a number or a word.
    Plain(String),
    /// Quoted or a block: always text.
    Text {
        text: String,
        block: Option<Block>,
    },
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// Where the text of a literal block (`|`) lies, so that YAML inside it has positions too.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    /// Line of the text's first line.
    pub line: u32,
    /// Columns of indentation taken off.
    pub indent: u32,
}

#[derive(Clone, Debug)]
pub struct Entry {
    pub key: String,
    pub at: Position,
    pub node: Node,
}

impl Node {
    /// True for `null`, `~` and nothing at all: the field counts as absent.
    #[must_use]
    pub fn is_null(&self) -> bool {
        matches!(&self.value, Value::Plain(text) if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    #[must_use]
    pub fn is_empty_list(&self) -> bool {
        matches!(&self.value, Value::List(items) if items.is_empty())
    }

    /// The entry of a mapping with exactly this key, unless its value is null.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|e| e.key == key).map(|e| &e.node).filter(|n| !n.is_null()),
            _ => None,
        }
    }

    /// Maps every position of the tree.
    pub fn relocate(&mut self, shift: &impl Fn(Position) -> Position) {
        self.at = shift(self.at);
        match &mut self.value {
            Value::List(items) => items.iter_mut().for_each(|item| item.relocate(shift)),
            Value::Map(entries) => entries.iter_mut().for_each(|entry| {
                entry.at = shift(entry.at);
                entry.node.relocate(shift);
            }),
            Value::Plain(_) | Value::Text { .. } => {}
        }
    }

    /// Its text, if it is a scalar.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Plain(text) | Value::Text { text, .. } => Some(text),
            _ => None,
        }
    }
}

/// A document that is well-formed YAML.
#[derive(Debug)]
pub struct Document {
    pub root: Node,
    /// What makes it unusable all the same: duplicate keys.
    pub faults: Vec<Fault>,
}

/// Something wrong with the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub at: Position,
    pub message: String,
}

/// The documents of a stream in order, each well-formed or with the reason why it is not. Empty ones are left out.
#[must_use]
pub fn documents(text: &str) -> Vec<Result<Document, Fault>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let (mut rest, mut offset, mut found) = (text, 0, Vec::new());
    while !rest.is_empty() {
        let part = Part { text: &rest[..part_length(rest)], offset };
        part.documents(&mut found);
        (offset, rest) = (part.offset + part.lines(), &rest[part.text.len()..]);
    }
    found
}

/// A part of a stream from one `---` to the next.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    pub text: &'a str,
    /// Lines before it.
    pub offset: u32,
}

impl Part<'_> {
    /// Its documents: one or none, unless `...` ends one before.
    pub fn documents(&self, found: &mut Vec<Result<Document, Fault>>) {
        Builder::new(self).read(found);
    }

    #[must_use]
    pub fn lines(&self) -> u32 {
        let lines = self.text.bytes().filter(|byte| *byte == b'\n').count();
        u32::try_from(lines).unwrap_or(u32::MAX)
    }
}

/// Bytes up to the first `---` line that ends a document. What precedes one and holds only comments and directives stays with
/// the document it announces.
#[must_use]
pub fn part_length(text: &str) -> usize {
    let (mut at, mut bare) = (0, true);
    for content in text.split_inclusive('\n') {
        let marker = is_marker(content);
        if marker && !bare {
            return at;
        }
        if marker {
            // A marker with nothing before it opens a document; the next one closes it, even an empty one.
            bare = false;
        } else if bare {
            let content = content.trim();
            bare = content.is_empty() || content.starts_with(['#', '%']);
        }
        at += content.len();
    }
    text.len()
}

/// True of a text that begins with a `---` line.
#[must_use]
pub fn is_marker(text: &str) -> bool {
    text.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// A collection that is still open.
struct Frame {
    at: Position,
    anchor: usize,
    kind: Kind,
}

enum Kind {
    List(Vec<Node>),
    Map {
        entries: Vec<Entry>,
        seen: HashMap<String, Position>,
        merged: Vec<Entry>,
        key: Option<(String, Position, bool)>,
    },
}

struct Anchored {
    node: Node,
    cost: usize,
    depth: usize,
}

struct Builder<'a> {
    part: &'a Part<'a>,
    stack: Vec<Frame>,
    anchors: HashMap<usize, Anchored>,
    /// What anchors and aliases have copied so far.
    copied: usize,
    faults: Vec<Fault>,
}

impl<'a> Builder<'a> {
    fn new(part: &'a Part<'a>) -> Self {
        Self { part, stack: Vec::new(), anchors: HashMap::new(), copied: 0, faults: Vec::new() }
    }

    fn read(mut self, found: &mut Vec<Result<Document, Fault>>) {
        for event in Parser::new_from_str(self.part.text) {
            let step = match event {
                Ok((event, span)) => self.event(event, span),
                Err(error) => {
                    let at = self.position(error.marker().line(), error.marker().col());
                    Err(Fault { at, message: format!("not YAML: {}", error.info()) })
                }
            };
            match step {
                Ok(None) => {}
                Ok(Some(root)) => {
                    self.anchors.clear();
                    let faults = std::mem::take(&mut self.faults);
                    if !root.is_null() || !faults.is_empty() {
                        found.push(Ok(Document { root, faults }));
                    }
                }
                Err(fault) => return found.push(Err(fault)),
            }
        }
    }

    fn position(&self, line: usize, column: usize) -> Position {
        let line = u32::try_from(line).unwrap_or(u32::MAX).max(1);
        (line.saturating_add(self.part.offset), u32::try_from(column).unwrap_or(u32::MAX - 1) + 1)
    }

    /// Takes one event; Some when it completes a document.
    fn event(&mut self, event: Event<'_>, span: Span) -> Result<Option<Node>, Fault> {
        let at = self.position(span.start.line(), span.start.col());
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let node = self.scalar(&text, style, tag.as_deref(), at, &span)?;
                self.complete(node, anchor)
            }
            Event::SequenceStart(anchor, tag) => {
                core_tag(tag.as_deref(), at)?;
                self.open(Frame { at, anchor, kind: Kind::List(Vec::new()) })
            }
            Event::MappingStart(anchor, tag) => {
                core_tag(tag.as_deref(), at)?;
                let (entries, seen, merged) = (Vec::new(), HashMap::new(), Vec::new());
                self.open(Frame { at, anchor, kind: Kind::Map { entries, seen, merged, key: None } })
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(frame) = self.stack.pop() else { return Ok(None) };
                let value = match frame.kind {
                    Kind::List(items) => Value::List(items),
                    Kind::Map { mut entries, mut seen, merged, .. } => {
                        entries.extend(merged.into_iter().filter(|e| seen.insert(e.key.clone(), e.at).is_none()));
                        Value::Map(entries)
                    }
                };
                self.complete(Node { at: frame.at, value }, frame.anchor)
            }
            Event::Alias(anchor) => {
                let Some(known) = self.anchors.get(&anchor) else {
                    return Err(Fault { at, message: "alias to an anchor that is not complete here".to_owned() });
                };
                let (cost, depth) = (known.cost, known.depth);
                self.charge(cost, at)?;
                if self.stack.len() + depth > limits::YAML_DEPTH {
                    return Err(too_deep(at));
                }
                let node = self.anchors.get(&anchor).map(|known| Node { at, ..known.node.clone() });
                node.map_or(Ok(None), |node| self.complete(node, 0))
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) | Event::DocumentEnd => {
                Ok(None)
            }
        }
    }

    fn open(&mut self, frame: Frame) -> Result<Option<Node>, Fault> {
        if self.stack.len() >= limits::YAML_DEPTH {
            return Err(too_deep(frame.at));
        }
        self.stack.push(frame);
        Ok(None)
    }

    fn scalar(
        &self,
        text: &str,
        style: ScalarStyle,
        tag: Option<&Tag>,
        at: Position,
        span: &Span,
    ) -> Result<Node, Fault> {
        core_tag(tag, at)?;
        let plain = style == ScalarStyle::Plain && tag.is_none_or(|tag| tag.suffix != "str");
        let value = if plain {
            Value::Plain(text.to_owned())
        } else {
            let block = if style == ScalarStyle::Literal { self.block(text, span.start) } else { None };
            Value::Text { text: text.to_owned(), block }
        };
        Ok(Node { at, value })
    }

    /// Where a literal block's text lies. The parser gives the place of its first line that is not empty.
    fn block(&self, text: &str, start: Marker) -> Option<Block> {
        let (line, column) = self.position(start.line(), start.col());
        let empty = u32::try_from(text.bytes().take_while(|b| *b == b'\n').count()).ok()?;
        Some(Block { line: line.checked_sub(empty)?, indent: column - 1 })
    }

    /// Puts a finished node where it belongs: remembered for aliases, a key, a value, an item or the document itself.
    fn complete(&mut self, mut node: Node, anchor: usize) -> Result<Option<Node>, Fault> {
        if anchor != 0 {
            let (cost, depth) = measure(&node);
            self.charge(cost, node.at)?;
            self.anchors.insert(anchor, Anchored { node: node.clone(), cost, depth });
        }
        let Some(frame) = self.stack.last_mut() else { return Ok(Some(node)) };
        match &mut frame.kind {
            Kind::List(items) => items.push(node),
            Kind::Map { entries, seen, merged, key } => match key.take() {
                None => {
                    let Some(text) = node.text() else {
                        return Err(Fault { at: node.at, message: "a mapping key must be text".to_owned() });
                    };
                    let merge = text == "<<" && matches!(node.value, Value::Plain(_));
                    *key = Some((text.to_owned(), node.at, merge));
                }
                Some((_, at, true)) => merge(node, at, merged)?,
                Some((key, at, false)) => {
                    if let Some(first) = seen.get(&key) {
                        let message = format!("key `{key}` is given twice (first on line {})", first.0);
                        self.faults.push(Fault { at, message });
                    } else {
                        if node.at.0 != at.0 {
                            node.at = at;
                        }
                        seen.insert(key.clone(), at);
                        entries.push(Entry { key, at, node });
                    }
                }
            },
        }
        Ok(None)
    }

    fn charge(&mut self, cost: usize, at: Position) -> Result<(), Fault> {
        self.copied = self.copied.saturating_add(cost);
        if self.copied > limits::YAML_ALIAS_BYTES {
            let message = format!("anchors and aliases expand to more than {} bytes", limits::YAML_ALIAS_BYTES);
            return Err(Fault { at, message });
        }
        Ok(())
    }
}

/// `<<: *base` or `<<: [*a, *b]`: what is written wins over what is merged, and the earlier base over the later.
fn merge(node: Node, at: Position, merged: &mut Vec<Entry>) -> Result<(), Fault> {
    let bases = match node.value {
        Value::Map(entries) => vec![entries],
        Value::List(items) => items
            .into_iter()
            .map(|item| match item.value {
                Value::Map(entries) => Ok(entries),
                _ => Err(Fault { at, message: "`<<` takes a mapping or a list of mappings".to_owned() }),
            })
            .collect::<Result<_, _>>()?,
        _ => return Err(Fault { at, message: "`<<` takes a mapping or a list of mappings".to_owned() }),
    };
    merged.extend(bases.into_iter().flatten());
    Ok(())
}

/// Bytes that a copy takes (about), and how deep it is.
fn measure(node: &Node) -> (usize, usize) {
    const NODE: usize = size_of::<Entry>();
    match &node.value {
        Value::Plain(text) | Value::Text { text, .. } => (NODE + text.len(), 1),
        Value::List(items) => {
            let inner = items.iter().map(measure);
            inner.fold((NODE, 1), |(cost, depth), (c, d)| (cost + c, depth.max(d + 1)))
        }
        Value::Map(entries) => {
            let inner = entries.iter().map(|e| (e.key.len(), measure(&e.node)));
            inner.fold((NODE, 1), |(cost, depth), (key, (c, d))| (cost + key + c, depth.max(d + 1)))
        }
    }
}

fn too_deep(at: Position) -> Fault {
    Fault { at, message: format!("nested more than {} levels deep", limits::YAML_DEPTH) }
}

/// Tags of other languages (`!!python/object`, `!Ref`) mean something that nobody here can honour.
fn core_tag(tag: Option<&Tag>, at: Position) -> Result<(), Fault> {
    match tag {
        // A lone `!` says no more than that a scalar is text.
        Some(tag) if !(tag.is_yaml_core_schema() || tag.handle.is_empty() && tag.suffix == "!") => {
            Err(Fault { at, message: format!("tag `{}{}` is not known here", tag.handle, tag.suffix) })
        }
        _ => Ok(()),
    }
}
