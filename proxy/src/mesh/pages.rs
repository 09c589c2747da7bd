//! Names to values in pages that copies share, so that a table of which little has changed is copied at little cost.

use std::{collections::BTreeMap, fmt, hash::BuildHasher as _, sync::Arc};

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use serde::{Serialize, Serializer};

/// A hash map whose copies share what is equal in them: a change copies one page. Clients ask for names, and only who may
/// write objects puts them in: the hash is chosen for speed, its seed by chance.
#[derive(Clone)]
pub struct Names<T> {
    /// As many as a power of two; none while it is empty.
    pages: Vec<Arc<Page<T>>>,
    len: usize,
    hasher: RandomState,
}

type Page<T> = HashTable<(Arc<str>, T)>;

/// How many names a page has on average at most; then there are twice as many pages.
const PAGE: usize = 64;

/// Which of `pages` (a power of two) holds what has this hash. Within a page the lowest and the highest bits count.
fn page_of(hash: u64, pages: usize) -> usize {
    (hash >> 32) as usize & pages.wrapping_sub(1)
}

impl<T> Names<T> {
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&T> {
        self.get_key_value(name).map(|(_, value)| value)
    }

    /// With the name as it is kept, to share it.
    #[must_use]
    pub fn get_key_value(&self, name: &str) -> Option<(&Arc<str>, &T)> {
        let hash = self.hasher.hash_one(name);
        let page = self.pages.get(page_of(hash, self.pages.len()))?;
        page.find(hash, |(known, _)| **known == *name).map(|(name, value)| (name, value))
    }

    #[must_use]
    pub fn contains_key(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// In no order.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &T)> {
        self.pages.iter().flat_map(|page| page.iter()).map(|(name, value)| (name, value))
    }

    /// In no order.
    pub fn keys(&self) -> impl Iterator<Item = &Arc<str>> {
        self.iter().map(|(name, _)| name)
    }

    /// In no order.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.iter().map(|(_, value)| value)
    }
}

impl<T: Clone> Names<T> {
    pub fn get_mut(&mut self, name: &str) -> Option<&mut T> {
        let hash = self.hasher.hash_one(name);
        let count = self.pages.len();
        let page = Arc::make_mut(self.pages.get_mut(page_of(hash, count))?);
        page.find_mut(hash, |(known, _)| **known == *name).map(|(_, value)| value)
    }

    /// What was there is replaced and returned.
    pub fn insert(&mut self, name: impl Into<Arc<str>>, value: T) -> Option<T> {
        let name = name.into();
        if let Some(there) = self.get_mut(&name) {
            return Some(std::mem::replace(there, value));
        }
        if self.len == PAGE * self.pages.len() {
            self.grow();
        }
        let hash = self.hasher.hash_one(&*name);
        let at = page_of(hash, self.pages.len());
        let hasher = &self.hasher;
        Arc::make_mut(&mut self.pages[at]).insert_unique(hash, (name, value), |(name, _)| hasher.hash_one(&**name));
        self.len += 1;
        None
    }

    /// The value of `name`, which is put in where it is not there.
    pub fn get_or_default(&mut self, name: &str) -> &mut T
    where
        T: Default,
    {
        if !self.contains_key(name) {
            self.insert(name, T::default());
        }
        self.get_mut(name).expect("it was put in where it was not there")
    }

    pub fn remove(&mut self, name: &str) -> Option<T> {
        let hash = self.hasher.hash_one(name);
        // A page without this name stays shared.
        self.get(name)?;
        let count = self.pages.len();
        let page = Arc::make_mut(self.pages.get_mut(page_of(hash, count))?);
        let ((_, value), _) = page.find_entry(hash, |(known, _)| **known == *name).ok()?.remove();
        self.len -= 1;
        Some(value)
    }

    fn grow(&mut self) {
        let count = (2 * self.pages.len()).max(1);
        let mut pages: Vec<Page<T>> = std::iter::repeat_with(HashTable::new).take(count).collect();
        for page in std::mem::take(&mut self.pages) {
            for (name, value) in Arc::unwrap_or_clone(page) {
                let hash = self.hasher.hash_one(&*name);
                let hasher = &self.hasher;
                let to = &mut pages[page_of(hash, count)];
                to.insert_unique(hash, (name, value), |(name, _)| hasher.hash_one(&**name));
            }
        }
        self.pages = pages.into_iter().map(Arc::new).collect();
    }
}

impl<T> Default for Names<T> {
    fn default() -> Self {
        Self { pages: Vec::new(), len: 0, hasher: RandomState::default() }
    }
}

impl<T: Clone, N: Into<Arc<str>>> Extend<(N, T)> for Names<T> {
    fn extend<I: IntoIterator<Item = (N, T)>>(&mut self, all: I) {
        for (name, value) in all {
            self.insert(name, value);
        }
    }
}

impl<T: Clone, N: Into<Arc<str>>> FromIterator<(N, T)> for Names<T> {
    fn from_iter<I: IntoIterator<Item = (N, T)>>(all: I) -> Self {
        let mut new = Self::default();
        new.extend(all);
        new
    }
}

impl<T: PartialEq> PartialEq for Names<T> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().all(|(name, value)| other.get(name) == Some(value))
    }
}

impl<T: Eq> Eq for Names<T> {}

impl<T: fmt::Debug> fmt::Debug for Names<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<T: Serialize> Serialize for Names<T> {
    /// By name.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let sorted: BTreeMap<&str, &T> = self.iter().map(|(name, value)| (&**name, value)).collect();
        sorted.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_map_and_a_change_copies_one_page() {
        let name = |n: u32| format!("h{n}.example.com");
        let mut map = Names::default();
        for n in 0..10_000 {
            assert_eq!(map.insert(name(n), n), None);
        }
        let before = map.clone();
        assert_eq!(map.insert(name(7), 70), Some(7));
        assert_eq!(map.remove(&name(8)), Some(8));
        assert_eq!(map.remove(&name(8)), None);
        assert_eq!((map.len(), before.len()), (9_999, 10_000));
        let own = map.pages.iter().zip(&before.pages).filter(|(a, b)| !Arc::ptr_eq(a, b)).count();
        assert!((1..=2).contains(&own), "{own} of {} pages are copied", map.pages.len());
        for n in 0..10_000 {
            assert_eq!(before.get(&name(n)), Some(&n));
            let want = if n == 7 { Some(70) } else { (n != 8).then_some(n) };
            assert_eq!(map.get(&name(n)).copied(), want);
        }
        assert_eq!(map.get(""), None);
        assert_eq!(Names::<u8>::default().get(""), None);
        assert_eq!(map.iter().count(), 9_999);
        assert_ne!(map, before);
        map.extend([(name(7), 7), (name(8), 8)]);
        assert_eq!(map, before, "though the pages are others");
    }
}
