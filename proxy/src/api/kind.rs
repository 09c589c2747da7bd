//! All objects of one kind, sorted by namespace and name.

use std::{fmt, sync::Arc};

use super::Object;

/// How many objects lie together at most.
const SHELF: usize = 128;

/// Objects by namespace and name. They bear both themselves, so that one costs a pointer here; and copies share what is equal
/// in them, so that those of ten thousand objects cost little.
pub struct Kind<S> {
    /// None is empty.
    shelves: Vec<Arc<Vec<Arc<Object<S>>>>>,
    len: usize,
}

/// Where an object lies, or would.
struct Place {
    shelf: usize,
    at: usize,
    there: bool,
}

impl<S> Kind<S> {
    #[must_use]
    pub fn get(&self, namespace: &str, name: &str) -> Option<&Arc<Object<S>>> {
        let Place { shelf, at, .. } = Some(self.place(namespace, name)).filter(|place| place.there)?;
        self.shelves.get(shelf)?.get(at)
    }

    #[must_use]
    pub fn contains(&self, namespace: &str, name: &str) -> bool {
        self.place(namespace, name).there
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn values(&self) -> impl DoubleEndedIterator<Item = &Arc<Object<S>>> + Clone {
        self.shelves.iter().flat_map(|shelf| shelf.iter())
    }

    /// Namespaces and names.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = (&str, &str)> {
        self.values().map(|object| key(object))
    }

    /// Those of one namespace.
    pub fn of_namespace<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Arc<Object<S>>> {
        let Place { shelf, at, .. } = self.place(namespace, "");
        let first = self.shelves.get(shelf).into_iter().flat_map(move |shelf| shelf.iter().skip(at));
        let others = self.shelves.iter().skip(shelf + 1).flat_map(|shelf| shelf.iter());
        first.chain(others).take_while(move |object| object.meta.namespace == namespace)
    }

    fn place(&self, namespace: &str, name: &str) -> Place {
        let wanted = (namespace, name);
        let after = self.shelves.partition_point(|shelf| shelf.first().is_some_and(|first| key(first) <= wanted));
        let shelf = after.saturating_sub(1);
        let found = self.shelves.get(shelf).map(|shelf| shelf.binary_search_by(|object| key(object).cmp(&wanted)));
        match found {
            Some(Ok(at)) => Place { shelf, at, there: true },
            Some(Err(at)) => Place { shelf, at, there: false },
            None => Place { shelf, at: 0, there: false },
        }
    }

    /// Adds an object, and answers the one of the same namespace and name that it replaces.
    pub fn insert(&mut self, object: Arc<Object<S>>) -> Option<Arc<Object<S>>> {
        let (namespace, name) = key(&object);
        let Place { shelf, at, there } = self.place(namespace, name);
        let last = shelf + 1 == self.shelves.len();
        let Some(objects) = self.shelves.get_mut(shelf).map(Arc::make_mut) else {
            self.shelves.push(Arc::new(vec![object]));
            self.len = 1;
            return None;
        };
        if there {
            return objects.get_mut(at).map(|old| std::mem::replace(old, object));
        }
        self.len += 1;
        if objects.len() < SHELF {
            objects.insert(at, object);
            return None;
        }
        // Who comes in order fills one shelf after the other.
        let middle = if last && at == SHELF { SHELF } else { SHELF / 2 };
        let mut rest = objects.split_off(middle);
        if at < middle {
            objects.insert(at, object);
        } else {
            rest.insert(at - middle, object);
        }
        self.shelves.insert(shelf + 1, Arc::new(rest));
        None
    }

    pub fn remove(&mut self, namespace: &str, name: &str) -> Option<Arc<Object<S>>> {
        let Place { shelf, at, there } = self.place(namespace, name);
        let objects = self.shelves.get_mut(shelf).filter(|_| there).map(Arc::make_mut)?;
        let object = objects.remove(at);
        if objects.is_empty() {
            self.shelves.remove(shelf);
        }
        self.len -= 1;
        Some(object)
    }
}

fn key<S>(object: &Object<S>) -> (&str, &str) {
    (&object.meta.namespace, &object.meta.name)
}

impl<S> Default for Kind<S> {
    fn default() -> Self {
        Self { shelves: Vec::new(), len: 0 }
    }
}

impl<S> Clone for Kind<S> {
    fn clone(&self) -> Self {
        Self { shelves: self.shelves.clone(), len: self.len }
    }
}

impl<S: fmt::Debug> fmt::Debug for Kind<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.values()).finish()
    }
}

impl<S> Extend<Arc<Object<S>>> for Kind<S> {
    fn extend<I: IntoIterator<Item = Arc<Object<S>>>>(&mut self, objects: I) {
        for object in objects {
            self.insert(object);
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt as _, SeedableRng, rngs::StdRng};

    use super::*;
    use crate::api::{ObjectId, ObjectMeta, Origin, Positions, Start};

    fn object(namespace: &str, name: &str) -> Arc<Object<u32>> {
        let meta = ObjectMeta { name: name.into(), namespace: namespace.into(), ..ObjectMeta::default() };
        let origin = Origin {
            file: Arc::from(std::path::Path::new("test.yaml")),
            start: Start::new((1, 1)),
            positions: Arc::new(Positions::default()),
            made_from: Origin::not_made(),
        };
        Arc::new(Object { id: ObjectId::new("Test", namespace, name), meta, spec: 0, origin })
    }

    #[test]
    fn it_is_a_sorted_map_whose_copies_share() {
        let mut random = StdRng::seed_from_u64(3);
        let (mut kind, mut oracle) = (Kind::default(), std::collections::BTreeMap::new());
        for step in 0..6_000 {
            let namespace = format!("n{}", random.random_range(0..3));
            let name = format!("o{}", random.random_range(0..900));
            let key = (namespace.clone(), name.clone());
            // First mostly more, then mostly less.
            if random.random_bool(if step < 3_000 { 0.8 } else { 0.2 }) {
                let new = object(&namespace, &name);
                assert_eq!(kind.insert(new.clone()).is_some(), oracle.insert(key, new).is_some());
            } else {
                assert_eq!(kind.remove(&namespace, &name).is_some(), oracle.remove(&key).is_some());
            }
            assert_eq!(kind.len(), oracle.len());
            if step % 100 == 0 {
                let all: Vec<_> = oracle.keys().map(|(namespace, name)| (namespace.as_str(), name.as_str())).collect();
                assert_eq!(kind.keys().collect::<Vec<_>>(), all);
                for (namespace, name) in &all {
                    assert!(kind.get(namespace, name).is_some());
                }
                for namespace in ["n", "n0", "n1", "n2", "n3"] {
                    let own: Vec<_> = kind.of_namespace(namespace).map(|object| object.meta.name.as_str()).collect();
                    let want = all.iter().filter(|(of, _)| *of == namespace).map(|(_, name)| *name);
                    assert_eq!(own, want.collect::<Vec<_>>());
                }
            }
        }
        assert!(kind.shelves.iter().all(|shelf| !shelf.is_empty() && shelf.len() <= SHELF));
        let before = kind.clone();
        kind.insert(object("n9", "o"));
        assert!(kind.contains("n9", "o") && !before.contains("n9", "o"));
        let own = kind.shelves.iter().zip(&before.shelves).filter(|(a, b)| !Arc::ptr_eq(a, b)).count();
        assert!(own <= 1, "{own} of {} shelves are copied", kind.shelves.len());
    }

    #[test]
    fn who_comes_in_order_fills_shelves() {
        let mut kind = Kind::default();
        kind.extend((0..SHELF * 3).map(|n| object("n", &format!("{n:05}"))));
        assert_eq!(kind.shelves.len(), 3);
        assert!(kind.get("n", "00200").is_some() && kind.get("n", "x").is_none() && kind.get("", "").is_none());
    }
}
