//! A file's documents as they were read, each with the digest of its text: of a file of thousands in which one changed, one is
//! read again.

use std::{borrow::Cow, collections::HashMap, path::Path, sync::Arc};

use twox_hash::XxHash64;

use super::{Parsed, Reader, Shapes, finding};
use crate::{
    api::AnyObject,
    source::{
        json,
        yaml::{self, Fault, is_marker, part_length},
    },
};

/// After so many parts in a row that are nowhere near where they were, they are looked for by their digests.
const NEAR: usize = 4;

/// What lies between two `---` lines, and what it was found to be.
#[derive(Debug)]
pub struct Part {
    digest: u64,
    length: usize,
    /// Lines in it and before it.
    lines: u32,
    before: u32,
    /// A `---` line ends it, not the end of the file.
    ended: bool,
    found: Found,
}

/// Most parts are one good object.
#[derive(Debug)]
enum Found {
    Object(AnyObject),
    Other(Box<Parsed>),
}

/// A file's parts in order, and what has become of those before.
#[derive(Debug, Default)]
pub struct Read {
    pub parts: Vec<Part>,
    /// Which of them were not there before.
    pub fresh: Vec<usize>,
    /// Those of before that are no more, in order.
    pub gone: Vec<Part>,
    /// Some that were there before are on other lines.
    pub moved: bool,
}

/// Reads a file anew, `before` being its parts as they were: those whose text is the same are taken over.
pub fn read(path: &Arc<Path>, text: &str, before: Vec<Part>, shapes: &mut Shapes) -> Read {
    // JSON is YAML but for its tabs, and inside a JSON string there are none.
    let json = path.extension().is_some_and(|extension| extension == "json");
    let text = if json && text.contains('\t') { Cow::from(text.replace('\t', " ")) } else { Cow::from(text) };
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let mut before = Before::new(before);
    let mut read = Read { parts: Vec::with_capacity(before.parts.len()), ..Read::default() };
    let mut line = 0;
    while !rest.is_empty() {
        let part = match before.near(rest) {
            Some(part) => read.keep(part, line),
            None => {
                let length = part_length(rest);
                let digest = digest(&rest[..length]);
                match before.anywhere(digest, length, length < rest.len()) {
                    Some(part) => read.keep(part, line),
                    None => {
                        read.fresh.push(read.parts.len());
                        Part::new(path, rest, (digest, length, line), shapes)
                    }
                }
            }
        };
        line += part.lines;
        rest = &rest[part.length..];
        read.parts.push(part);
    }
    read.gone = before.parts.into_iter().flatten().collect();
    read.parts.shrink_to_fit();
    read
}

/// Reads the one object of an API server anew, as [`read`] does a file.
pub fn read_object(path: &Arc<Path>, json: &[u8], before: Vec<Part>, shapes: &mut Shapes) -> Read {
    let digest = XxHash64::oneshot(SEED, json);
    if matches!(&*before, [part] if part.digest == digest && part.length == json.len()) {
        return Read { parts: before, ..Read::default() };
    }
    let part = Part::of((digest, json.len(), 0), path, shapes, |reader| match json::read(json) {
        Ok(root) => reader.document(&root, &[]),
        Err(error) => {
            reader.parsed.not_yaml = true;
            reader.refuse(None, vec![finding(&Fault { at: (0, 0), message: format!("not JSON: {error}") })]);
        }
    });
    Read { parts: vec![part], fresh: vec![0], gone: before, moved: false }
}

impl Read {
    fn keep(&mut self, mut part: Part, line: u32) -> Part {
        if part.before != line {
            self.moved = true;
            part.move_to(line);
        }
        part
    }
}

/// The parts of before that have not been met again.
struct Before {
    parts: Vec<Option<Part>>,
    /// Which of them is the next, where nothing was changed.
    next: usize,
    /// Parts in a row that were not found.
    missed: usize,
    by_digest: Option<HashMap<u64, Vec<usize>>>,
}

impl Before {
    fn new(parts: Vec<Part>) -> Self {
        Self { parts: parts.into_iter().map(Some).collect(), next: 0, missed: 0, by_digest: None }
    }

    /// The part with which `text` begins, if it lies where it lay but for a few that were changed, added or taken away.
    fn near(&mut self, text: &str) -> Option<Part> {
        let last = self.parts.len().min(self.next + 1 + self.missed.min(NEAR));
        let near = self.next..last;
        let at = near.into_iter().find(|at| self.parts[*at].as_ref().is_some_and(|part| part.begins(text)))?;
        self.take(at)
    }

    /// The part with this text, wherever it lay; `ended` by a `---` line.
    fn anywhere(&mut self, digest: u64, length: usize, ended: bool) -> Option<Part> {
        self.missed += 1;
        if self.missed <= NEAR || self.parts.is_empty() {
            return None;
        }
        let parts = &self.parts;
        let by_digest = self.by_digest.get_or_insert_with(|| {
            let mut by_digest: HashMap<u64, Vec<usize>> = HashMap::new();
            for (at, part) in parts.iter().enumerate().rev() {
                if let Some(part) = part {
                    by_digest.entry(part.digest).or_default().push(at);
                }
            }
            by_digest
        });
        let found = by_digest.get_mut(&digest)?;
        let at = std::iter::from_fn(|| found.pop())
            .find(|at| parts[*at].as_ref().is_some_and(|part| part.length == length))?;
        let mut part = self.take(at)?;
        part.ended = ended;
        Some(part)
    }

    fn take(&mut self, at: usize) -> Option<Part> {
        self.next = at + 1;
        self.missed = 0;
        self.parts[at].take()
    }
}

impl Part {
    fn new(path: &Arc<Path>, rest: &str, (digest, length, line): (u64, usize, u32), shapes: &mut Shapes) -> Self {
        let text = yaml::Part { text: &rest[..length], offset: line };
        let part = Self::of((digest, length, line), path, shapes, |reader| reader.part(text));
        Self { lines: text.lines(), ended: length < rest.len(), ..part }
    }

    /// What is found by `read` in a text with this digest and length, which begins after so many lines.
    fn of(
        (digest, length, before): (u64, usize, u32),
        path: &Arc<Path>,
        shapes: &mut Shapes,
        read: impl FnOnce(&mut Reader<'_>),
    ) -> Self {
        let mut reader = Reader { path: path.clone(), parsed: Parsed::default(), shapes, skipped: Default::default() };
        read(&mut reader);
        let mut parsed = reader.parsed;
        let quiet = parsed.refused.is_empty() && parsed.diagnostics.is_empty() && !parsed.not_yaml;
        let one = if quiet && parsed.objects.len() == 1 { parsed.objects.pop() } else { None };
        let found = one.map_or_else(|| Found::Other(Box::new(parsed)), Found::Object);
        Self { digest, length, lines: 0, before, ended: false, found }
    }

    /// What is no text at all.
    #[must_use]
    pub fn refused(parsed: Parsed) -> Self {
        Self { digest: 0, length: usize::MAX, lines: 0, before: 0, ended: false, found: Found::Other(Box::new(parsed)) }
    }

    /// `text` begins with this very part. Its last line must be followed by what followed it: where a `---` line ended it, the
    /// same text makes the same part before another one.
    fn begins(&self, text: &str) -> bool {
        let Some(own) = text.as_bytes().get(..self.length) else { return false };
        let Some(rest) = text.get(self.length..) else { return false };
        let ends = if self.ended { own.ends_with(b"\n") && is_marker(rest) } else { rest.is_empty() };
        ends && XxHash64::oneshot(SEED, own) == self.digest
    }

    fn move_to(&mut self, line: u32) {
        let moved = |at: u32| at.wrapping_sub(self.before).wrapping_add(line);
        let place = |object: &AnyObject| {
            let start = &object.origin().start;
            start.set_line(moved(start.get().0));
        };
        match &mut self.found {
            Found::Object(object) => place(object),
            Found::Other(parsed) => {
                parsed.objects.iter().for_each(place);
                let errors = parsed.refused.iter_mut().flat_map(|refused| &mut refused.errors);
                for said in parsed.diagnostics.iter_mut().chain(errors) {
                    said.line = moved(said.line);
                }
            }
        }
        self.before = line;
    }

    #[must_use]
    pub fn objects(&self) -> &[AnyObject] {
        match &self.found {
            Found::Object(object) => std::slice::from_ref(object),
            Found::Other(parsed) => &parsed.objects,
        }
    }

    /// All that is to say of it, and of what is wrong with it; None where it is one good object.
    #[must_use]
    pub fn other(&self) -> Option<&Parsed> {
        match &self.found {
            Found::Object(_) => None,
            Found::Other(parsed) => Some(parsed),
        }
    }

    pub(super) fn into_parsed(self, whole: &mut Parsed) {
        match self.found {
            Found::Object(object) => whole.objects.push(object),
            Found::Other(parsed) => {
                whole.objects.extend(parsed.objects);
                whole.refused.extend(parsed.refused);
                whole.diagnostics.extend(parsed.diagnostics);
                whole.not_yaml |= parsed.not_yaml;
            }
        }
    }
}

const SEED: u64 = 0;

fn digest(text: &str) -> u64 {
    XxHash64::oneshot(SEED, text.as_bytes())
}
