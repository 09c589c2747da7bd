//! Keeps the last good version of every object, file by file.
//!
//! A document that is refused leaves its object as it was; a file of which some text cannot even be told apart keeps
//! every object that it had and does not name now, for one of them may be the broken one. So a slip of the pen never takes
//! a TLS rule away.

mod file;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    io,
    path::{Path, PathBuf},
};

use self::file::File;
use super::documents::{Parsed, Shapes, parts::Part};
use crate::api::{AnyObject, Diagnostic, ObjectId, Objects, Severity};

/// What became of one file.
#[derive(Debug)]
pub struct FileChange {
    pub path: PathBuf,
    /// None: the file is gone.
    pub content: Option<Content>,
}

/// What a file holds.
#[derive(Debug)]
pub enum Content {
    /// Documents as somebody wrote them. An error: the file is there and cannot be read.
    Text(io::Result<Vec<u8>>),
    /// One object as JSON, as an API server has it: its fields have no lines.
    Object(Vec<u8>),
}

/// What a batch of changes was.
#[derive(Debug)]
pub struct Batch {
    /// Objects that came, changed or went.
    pub changed: Vec<Changed>,
    /// Documents lie on other lines than before, and nothing else of them has changed.
    pub moved: bool,
    /// Documents refused now, in all files (`egret_config_objects_rejected`).
    pub rejected_now: usize,
    /// What there is to say about the files of this batch, in order of file and line.
    pub diagnostics: Vec<Diagnostic>,
    /// True where nothing in this batch was refused (`egret_config_reloads_total{result}`).
    pub accepted: bool,
}

/// An object before and after a batch; None: it was not there, or is no more.
#[derive(Clone, Debug)]
pub struct Changed {
    pub before: Option<AnyObject>,
    pub after: Option<AnyObject>,
}

/// All files, and the objects that each of them gave.
#[derive(Debug, Default)]
pub struct Store {
    /// By path, whose order decides between two files that hold the same object.
    files: BTreeMap<PathBuf, File>,
    /// Every object in force.
    objects: Objects,
    /// Of objects that are there more than once, how often more. Most are not.
    more: HashMap<ObjectId, u32>,
    shapes: Shapes,
}

/// What becomes of an object in a batch.
#[derive(Debug, Default)]
struct Touched {
    /// The last version that came.
    came: Option<AnyObject>,
    /// How often it is there, in all files together.
    copies: u32,
}

impl Touched {
    fn come(&mut self, object: AnyObject) {
        self.copies += 1;
        self.came = Some(object);
    }

    fn go(&mut self) {
        self.copies = self.copies.saturating_sub(1);
    }
}

/// The copies of one object, each with its file, by path and place in the file: the last one counts.
type Held<'a> = Vec<(&'a Path, &'a AnyObject)>;

impl Store {
    /// For an agent of a cluster: the objects are those of this node.
    #[must_use]
    pub fn of_node(node: Option<&str>) -> Self {
        let mut store = Self::default();
        store.objects.node = node.map(Into::into);
        store
    }

    /// For the controller of a cluster, which speaks for Gateways of these controllers.
    #[must_use]
    pub fn of_cluster(controllers: &'static [&'static str]) -> Self {
        let mut store = Self::default();
        store.objects.controllers = Some(controllers);
        store
    }

    /// Every object in force.
    #[must_use]
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    #[must_use]
    pub fn into_objects(self) -> Objects {
        self.objects
    }

    /// Takes a batch of changes as one.
    pub fn apply(&mut self, changes: Vec<FileChange>) -> Batch {
        let mut touched: HashMap<ObjectId, Touched> = HashMap::new();
        let (mut files, mut orphans) = (BTreeSet::new(), Vec::new());
        let mut moved = false;
        for FileChange { path, content } in changes {
            let before = self.files.remove(&path).unwrap_or_default();
            files.insert(path.clone());
            if let Some(content) = content {
                let (file, changed) = before.read_again(&path, content, &mut self.shapes);
                moved |= changed.moved;
                for id in file.refused_ids() {
                    orphans.push((path.clone(), id.clone()));
                }
                for object in changed.came {
                    self.touch(&mut touched, object.id()).come(object);
                }
                for object in changed.went {
                    self.touch(&mut touched, object.id()).go();
                }
                self.files.insert(path, file);
            } else {
                for object in before.objects() {
                    self.touch(&mut touched, object.id()).go();
                }
            }
        }
        self.adopt(orphans, &mut touched);
        let changed = self.decide(touched);
        let mut diagnostics: Vec<_> = files.iter().flat_map(|path| self.said(path)).collect();
        diagnostics.extend(self.doubles(&files));
        diagnostics.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
        once_each_kind(&mut diagnostics);
        let rejected_now = self.files.values().map(|file| file.refused).sum();
        let accepted = files.iter().filter_map(|path| self.files.get(path)).all(|file| file.refused == 0);
        Batch { changed, moved, rejected_now, diagnostics, accepted }
    }

    /// How often an object is there, before this batch: what is in force is there.
    fn copies(&self, id: &ObjectId) -> u32 {
        self.objects.find(id).map_or(0, |_| 1 + self.more.get(id).copied().unwrap_or(0))
    }

    fn touch<'t>(&self, touched: &'t mut HashMap<ObjectId, Touched>, id: &ObjectId) -> &'t mut Touched {
        touched.entry(id.clone()).or_insert_with(|| Touched { came: None, copies: self.copies(id) })
    }

    /// A refused object whose good version lay in another file, and is there no more, stays in force as well: somebody
    /// moved it and broke it in one go.
    fn adopt(&mut self, orphans: Vec<(PathBuf, ObjectId)>, touched: &mut HashMap<ObjectId, Touched>) {
        for (path, id) in orphans {
            let held = touched.get(&id).map_or_else(|| self.copies(&id), |touched| touched.copies) > 0;
            if let (false, Some(object), Some(file)) = (held, self.objects.find(&id), self.files.get_mut(&path)) {
                file.keep(object.clone());
                self.touch(touched, &id).come(object);
            }
        }
    }

    /// Puts in force what counts of what was touched, and tells what that changed.
    fn decide(&mut self, touched: HashMap<ObjectId, Touched>) -> Vec<Changed> {
        for (id, Touched { copies, .. }) in &touched {
            match copies.checked_sub(1) {
                Some(more) if more > 0 => drop(self.more.insert(id.clone(), more)),
                _ => drop(self.more.remove(id)),
            }
        }
        let (simple, several): (Vec<_>, Vec<_>) =
            touched.into_iter().partition(|(_, touched)| touched.copies == u32::from(touched.came.is_some()));
        let several: HashSet<ObjectId> = several.into_iter().map(|(id, _)| id).collect();
        let mut winners: Vec<_> = simple.into_iter().map(|(id, touched)| (id, touched.came)).collect();
        if !several.is_empty() {
            let held = self.held(|id| several.contains(id));
            let last = several.iter().map(|id| {
                let last = held.get(id).and_then(|copies| copies.last());
                (id.clone(), last.map(|(_, object)| (*object).clone()))
            });
            winners.extend(last.collect::<Vec<_>>());
        }
        let mut changed = Vec::new();
        for (id, after) in winners {
            let before = self.objects.find(&id);
            match (&before, &after) {
                (Some(before), Some(after)) if before.is(after) => continue,
                (None, None) => continue,
                _ => {}
            }
            if let Some(before) = &before {
                self.objects.remove(before);
            }
            if let Some(after) = &after {
                self.objects.insert(after.clone());
            }
            changed.push(Changed { before, after });
        }
        changed
    }

    /// Every copy of the objects asked for.
    fn held(&self, wanted: impl Fn(&ObjectId) -> bool) -> HashMap<ObjectId, Held<'_>> {
        let mut held: HashMap<ObjectId, Held<'_>> = HashMap::new();
        for (path, file) in &self.files {
            for object in file.objects().filter(|object| wanted(object.id())) {
                held.entry(object.id().clone()).or_default().push((path, object));
            }
        }
        held
    }

    /// What is to say about the documents of a file by themselves.
    fn said(&self, path: &Path) -> Vec<Diagnostic> {
        let mut said = Parsed::default();
        for other in self.files.get(path).into_iter().flat_map(|file| &file.parts).filter_map(Part::other) {
            said.diagnostics.extend(other.diagnostics.iter().cloned());
        }
        said.tell_once();
        let parts = self.files.get(path).into_iter().flat_map(|file| &file.parts).filter_map(Part::other);
        said.diagnostics.extend(parts.flat_map(|other| &other.refused).flat_map(|refused| &refused.errors).cloned());
        said.diagnostics
    }

    /// A warning for each copy of an object after which comes another one, as far as the files of this batch hold them.
    fn doubles(&self, files: &BTreeSet<PathBuf>) -> Vec<Diagnostic> {
        if self.more.is_empty() {
            return Vec::new();
        }
        let mut said = Vec::new();
        for copies in self.held(|id| self.more.contains_key(id)).into_values() {
            for pair in copies.windows(2) {
                let [(earlier_path, earlier), (path, later)] = pair else { continue };
                let line = later.origin().start.get().0;
                if earlier_path == path && files.contains(*path) {
                    let message = format!("is on line {line} of this file too, and that one counts");
                    said.push(whole(earlier, Severity::Warning, message));
                } else if earlier_path != path && (files.contains(*earlier_path) || files.contains(*path)) {
                    let file = later.origin().file.display();
                    let message = format!("is in {file}:{line} too, and that one counts (the last path)");
                    said.push(whole(earlier, Severity::Warning, message));
                }
            }
        }
        said
    }
}

/// A finding about an object as a whole.
fn whole(object: &AnyObject, severity: Severity, message: String) -> Diagnostic {
    let origin = object.origin();
    let (line, column) = origin.start.get();
    let (object, file, field) = (Some(object.id().clone()), origin.file.clone(), String::new());
    Diagnostic { severity, object, file, line, column, field, message }
}

/// A folder full of Deployments is worth one info, not one a file.
fn once_each_kind(diagnostics: &mut Vec<Diagnostic>) {
    let mut seen = BTreeSet::new();
    diagnostics.retain(|d| d.severity != Severity::Info || seen.insert(d.message.clone()));
}

#[cfg(test)]
mod tests;
