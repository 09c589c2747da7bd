//! Keeps the last good version of every object, file by file.
//!
//! A document that is refused leaves its object as it was; a file of which some text cannot even be told apart keeps
//! every object that it had and does not name now, for one of them may be the broken one. So a slip of the pen never takes
//! a TLS rule away.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::documents::{Parsed, Refused, parse_file};
use crate::api::{AnyObject, Diagnostic, ObjectId, Objects, Severity};

/// What became of one file.
#[derive(Debug)]
pub struct FileChange {
    pub path: PathBuf,
    /// None: the file is gone. An error: it is there and cannot be read.
    pub content: Option<io::Result<Vec<u8>>>,
}

/// The state after a batch of changes.
#[derive(Debug)]
pub struct Batch {
    /// Every object in force.
    pub objects: Objects,
    /// Documents refused now, in all files (`egret_config_objects_rejected`).
    pub rejected_now: usize,
    /// What there is to say about the files of this batch, in order of file and line.
    pub diagnostics: Vec<Diagnostic>,
    /// True where nothing in this batch was refused (`egret_config_reloads_total{result}`).
    pub accepted: bool,
}

#[derive(Debug, Default)]
struct File {
    objects: HashMap<ObjectId, AnyObject>,
    refused: usize,
}

/// Two files that hold one object, and what to say about it.
type Double<'a> = ([&'a Path; 2], Diagnostic);

/// All files, and the objects that each of them gave.
#[derive(Debug, Default)]
pub struct Store {
    /// By path, whose order decides between two files that hold the same object.
    files: BTreeMap<PathBuf, File>,
}

impl Store {
    /// Takes a batch of changes as one.
    pub fn apply(&mut self, changes: Vec<FileChange>) -> Batch {
        let (before, _) = self.merge();
        let mut diagnostics = Vec::new();
        let mut changed = BTreeSet::new();
        let mut orphans = Vec::new();
        let mut accepted = true;
        for FileChange { path, content } in changes {
            changed.insert(path.clone());
            let Some(content) = content else {
                self.files.remove(&path);
                continue;
            };
            let file: Arc<Path> = Arc::from(path.as_path());
            let parsed = parse(file, content);
            accepted &= parsed.refused.is_empty();
            let refused_ids: Vec<_> = parsed.refused.iter().filter_map(|refused| refused.id.clone()).collect();
            orphans.extend(refused_ids.into_iter().map(|id| (path.clone(), id)));
            self.files.entry(path).or_default().update(parsed, &mut diagnostics);
        }
        self.adopt(orphans, &before);
        let (merged, doubles) = self.merge();
        diagnostics.extend(
            doubles.into_iter().filter(|(paths, _)| paths.iter().any(|p| changed.contains(*p))).map(|(_, d)| d),
        );
        diagnostics.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
        once_each_kind(&mut diagnostics);
        let mut objects = Objects::default();
        merged.into_values().for_each(|object| objects.insert(object));
        let rejected_now = self.files.values().map(|file| file.refused).sum();
        Batch { objects, rejected_now, diagnostics, accepted }
    }

    /// A refused object whose good version lay in another file, and is there no more, stays in force as well: somebody
    /// moved it and broke it in one go.
    fn adopt(&mut self, orphans: Vec<(PathBuf, ObjectId)>, before: &BTreeMap<ObjectId, AnyObject>) {
        for (path, id) in orphans {
            let held = self.files.values().any(|file| file.objects.contains_key(&id));
            if let (false, Some(object), Some(file)) = (held, before.get(&id), self.files.get_mut(&path)) {
                file.objects.insert(id, object.clone());
            }
        }
    }

    /// One version of each object, and a warning for each that more than one file holds: the last path counts.
    fn merge(&self) -> (BTreeMap<ObjectId, AnyObject>, Vec<Double<'_>>) {
        let mut merged: BTreeMap<ObjectId, AnyObject> = BTreeMap::new();
        let mut holder: HashMap<&ObjectId, &Path> = HashMap::new();
        let mut doubles = Vec::new();
        for (path, file) in &self.files {
            for (id, object) in &file.objects {
                if let (Some(earlier), Some(holder)) =
                    (merged.insert(id.clone(), object.clone()), holder.insert(id, path))
                {
                    let by = object.origin();
                    let message =
                        format!("is in {}:{} too, and that one counts (the last path)", by.file.display(), by.start.0);
                    doubles.push(([holder, path.as_path()], whole(&earlier, Severity::Warning, message)));
                }
            }
        }
        (merged, doubles)
    }
}

impl File {
    fn update(&mut self, parsed: Parsed, diagnostics: &mut Vec<Diagnostic>) {
        let refused: BTreeSet<_> = parsed.refused.iter().filter_map(|refused| refused.id.clone()).collect();
        let unnamed = parsed.not_yaml || parsed.refused.iter().any(|refused| refused.id.is_none());
        self.objects.retain(|id, _| unnamed || refused.contains(id));
        self.refused = parsed.refused.len();
        diagnostics.extend(parsed.diagnostics);
        diagnostics.extend(parsed.refused.into_iter().flat_map(|refused| refused.errors));
        let mut seen: BTreeSet<ObjectId> = BTreeSet::new();
        for object in parsed.objects {
            let id = object.id().clone();
            let line = object.origin().start.0;
            let earlier = self.objects.insert(id.clone(), object);
            if let (false, Some(earlier)) = (seen.insert(id), earlier) {
                let message = format!("is on line {line} of this file too, and that one counts");
                diagnostics.push(whole(&earlier, Severity::Warning, message));
            }
        }
    }
}

/// A finding about an object as a whole.
fn whole(object: &AnyObject, severity: Severity, message: String) -> Diagnostic {
    let origin = object.origin();
    let (line, column) = origin.start;
    let (object, file, field) = (Some(object.id().clone()), origin.file.clone(), String::new());
    Diagnostic { severity, object, file, line, column, field, message }
}

/// Text and objects of one file; what is no text at all is refused as one document.
fn parse(file: Arc<Path>, content: io::Result<Vec<u8>>) -> Parsed {
    let message = match content.map(String::from_utf8) {
        Ok(Ok(text)) => return parse_file(file, &text),
        Ok(Err(error)) => format!("not YAML: byte {} is not UTF-8", error.utf8_error().valid_up_to()),
        Err(error) => format!("cannot be read: {error}"),
    };
    let (severity, field) = (Severity::Error, String::new());
    let error = Diagnostic { severity, object: None, file, line: 1, column: 1, field, message };
    Parsed { refused: vec![Refused { id: None, errors: vec![error] }], not_yaml: true, ..Parsed::default() }
}

/// A folder full of Deployments is worth one info, not one a file.
fn once_each_kind(diagnostics: &mut Vec<Diagnostic>) {
    let mut seen = BTreeSet::new();
    diagnostics.retain(|d| d.severity != Severity::Info || seen.insert(d.message.clone()));
}

#[cfg(test)]
mod tests;
