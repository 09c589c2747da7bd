//! One file: its parts, and the last good versions of what is refused in it now.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::Arc,
};

use crate::{
    api::{AnyObject, Diagnostic, ObjectId, Severity},
    source::{
        documents::{
            Parsed, Refused, Shapes,
            parts::{self, Part, Read},
        },
        store::Content,
    },
};

#[derive(Debug, Default)]
pub struct File {
    pub parts: Vec<Part>,
    kept: HashMap<ObjectId, AnyObject>,
    /// Documents.
    pub refused: usize,
}

/// What a file's new content changed.
#[derive(Debug, Default)]
pub struct Difference {
    pub came: Vec<AnyObject>,
    pub went: Vec<AnyObject>,
    /// Documents lie on other lines than before.
    pub moved: bool,
}

impl File {
    /// Every object: of those with one identity the last counts.
    pub fn objects(&self) -> impl Iterator<Item = &AnyObject> {
        self.kept.values().chain(self.parts.iter().flat_map(Part::objects))
    }

    pub fn refused_ids(&self) -> impl Iterator<Item = &ObjectId> {
        let others = self.parts.iter().filter_map(Part::other);
        others.flat_map(|other| &other.refused).filter_map(|refused| refused.id.as_ref())
    }

    /// What its author broke in another file.
    pub fn keep(&mut self, object: AnyObject) {
        self.kept.insert(object.id().clone(), object);
    }

    /// The file with new content, in place of this one.
    pub fn read_again(self, path: &Path, content: Content, shapes: &mut Shapes) -> (Self, Difference) {
        let known = self.parts.iter().flat_map(Part::objects).next();
        let path = known.map_or_else(|| Arc::from(path), |object| object.origin().file.clone());
        let read = match content {
            Content::Object(json) => parts::read_object(&path, &json, self.parts, shapes),
            Content::Text(Ok(bytes)) => match String::from_utf8(bytes) {
                Ok(text) => parts::read(&path, &text, self.parts, shapes),
                Err(error) => {
                    let why = format!("not YAML: byte {} is not UTF-8", error.utf8_error().valid_up_to());
                    no_text(path, why, self.parts)
                }
            },
            Content::Text(Err(error)) => no_text(path, format!("cannot be read: {error}"), self.parts),
        };
        let mut difference = Difference { moved: read.moved, ..Difference::default() };
        difference.came.extend(read.fresh.iter().flat_map(|at| read.parts[*at].objects()).cloned());
        difference.went.extend(read.gone.iter().flat_map(Part::objects).cloned());
        let kept_before = self.kept;
        let mut file = Self { parts: read.parts, ..Self::default() };
        let others = file.parts.iter().filter_map(Part::other);
        file.refused = others.clone().map(|other| other.refused.len()).sum();
        if file.refused > 0 {
            // Where the text does not tell which object it is, it may be any.
            let unnamed =
                others.clone().any(|other| other.not_yaml || other.refused.iter().any(|refused| refused.id.is_none()));
            let refused: HashSet<&ObjectId> = file.refused_ids().collect();
            let there: HashSet<&ObjectId> = file.parts.iter().flat_map(Part::objects).map(AnyObject::id).collect();
            let was = kept_before.values().chain(&difference.went);
            let good = was.filter(|object| (unnamed || refused.contains(object.id())) && !there.contains(object.id()));
            file.kept = good.map(|object| (object.id().clone(), object.clone())).collect();
        }
        difference.went.extend(kept_before.into_values());
        difference.came.extend(file.kept.values().cloned());
        (file, difference)
    }
}

/// What is no text at all is refused as one document.
fn no_text(file: Arc<Path>, message: String, gone: Vec<Part>) -> Read {
    let (severity, field) = (Severity::Error, String::new());
    let error = Diagnostic { severity, object: None, file, line: 1, column: 1, field, message };
    let refused = vec![Refused { id: None, errors: vec![error] }];
    let parts = vec![Part::refused(Parsed { refused, not_yaml: true, ..Parsed::default() })];
    Read { parts, gone, ..Read::default() }
}
