//! The objects, and a log of what happened to each resource.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use serde_json::{Value, json};
use tokio::sync::watch;

use super::kinds::{Id, Kind, built_in};

/// Namespace (empty where there is none) and name.
pub type Key = (String, String);
/// An object without `apiVersion` and `kind`: those depend on who asks.
pub type Object = Arc<Value>;

/// One change of one object.
#[derive(Clone)]
pub struct Event {
    pub version: u64,
    pub key: Key,
    pub before: Option<Object>,
    /// The new state; the last one, with the version of its removal, where the object is gone.
    pub object: Object,
    pub gone: bool,
}

/// All of one resource.
pub struct Table {
    pub kind: Arc<Kind>,
    pub objects: BTreeMap<Key, Object>,
    log: VecDeque<Event>,
    /// What happened up to this version is no longer in the log.
    pub compacted: u64,
    /// Told about each change, with its version; closed where the resource is withdrawn.
    pub changed: watch::Sender<u64>,
}

impl Table {
    /// What happened after `version`; None where the log no longer reaches back so far.
    pub fn since(&self, version: u64) -> Option<impl Iterator<Item = &Event>> {
        (version >= self.compacted)
            .then(|| self.log.range(self.log.partition_point(|event| event.version <= version)..))
    }

    /// The objects as they were at `version`.
    pub fn at(&self, version: u64) -> Option<BTreeMap<Key, Object>> {
        let mut objects = self.objects.clone();
        let events: Vec<_> = self.since(version)?.collect();
        for event in events.into_iter().rev() {
            match &event.before {
                Some(before) => objects.insert(event.key.clone(), before.clone()),
                None => objects.remove(&event.key),
            };
        }
        Some(objects)
    }
}

pub struct Store {
    pub version: u64,
    pub tables: HashMap<Id, Table>,
    /// Events kept of each resource.
    pub keep: usize,
    /// Objects by the uid of an owner of theirs.
    owned: HashMap<String, Vec<(Id, Key)>>,
    pub addresses: u16,
    /// PEM of the authority that the server's certificate is of.
    pub authority: String,
}

impl Store {
    pub fn new(authority: &str) -> Self {
        let mut store = Self {
            version: 1,
            tables: HashMap::new(),
            keep: 100_000,
            owned: HashMap::new(),
            addresses: 0,
            authority: authority.to_owned(),
        };
        for kind in built_in() {
            store.add_kind(kind);
        }
        store
    }

    /// Serves a kind, anew or in another shape.
    pub fn add_kind(&mut self, kind: Kind) {
        let compacted = self.version;
        match self.tables.get_mut(&kind.id()) {
            Some(table) => table.kind = Arc::new(kind),
            None => {
                let table = Table {
                    kind: Arc::new(kind.clone()),
                    objects: BTreeMap::new(),
                    log: VecDeque::new(),
                    compacted,
                    changed: watch::Sender::new(compacted),
                };
                self.tables.insert(kind.id(), table);
            }
        }
    }

    /// The resource of this group and plural in this version, if it is served.
    pub fn table(&self, group: &str, version: &str, plural: &str) -> Option<&Table> {
        let table = self.tables.get(&(group.to_owned(), plural.to_owned()))?;
        table.kind.versions.iter().any(|served| served == version).then_some(table)
    }

    pub fn get(&self, id: &Id, key: &Key) -> Option<&Object> {
        self.tables.get(id)?.objects.get(key)
    }

    pub fn core(&self, plural: &str, namespace: &str, name: &str) -> Option<&Object> {
        self.get(&(String::new(), plural.to_owned()), &(namespace.to_owned(), name.to_owned()))
    }

    /// Every object of a resource.
    pub fn all(&self, group: &str, plural: &str) -> impl Iterator<Item = (&Key, &Object)> {
        self.tables.get(&(group.to_owned(), plural.to_owned())).into_iter().flat_map(|table| &table.objects)
    }

    /// Writes an object under the next version.
    pub fn put(&mut self, id: &Id, key: Key, mut object: Value) -> Object {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        for owner in owners(&object) {
            let objects = self.owned.entry(owner).or_default();
            if !objects.iter().any(|(of, at)| of == id && *at == key) {
                objects.push((id.clone(), key.clone()));
            }
        }
        let object = Arc::new(object);
        let version = self.version;
        if let Some(table) = self.tables.get_mut(id) {
            let before = table.objects.insert(key.clone(), object.clone());
            record(table, Event { version, key, before, object: object.clone(), gone: false }, self.keep);
        }
        object
    }

    /// Removes an object, and what only it owned; hands back its last state.
    pub fn remove(&mut self, id: &Id, key: &Key) -> Option<Object> {
        let before = self.tables.get_mut(id)?.objects.remove(key)?;
        self.version += 1;
        let mut last = (*before).clone();
        last["metadata"]["resourceVersion"] = self.version.to_string().into();
        let (last, version) = (Arc::new(last), self.version);
        if let Some(table) = self.tables.get_mut(id) {
            let event = Event { version, key: key.clone(), before: Some(before), object: last.clone(), gone: true };
            record(table, event, self.keep);
        }
        let uid = last["metadata"]["uid"].as_str().unwrap_or_default();
        for (of, at) in self.owned.remove(uid).unwrap_or_default() {
            self.disown(&of, &at, uid);
        }
        Some(last)
    }

    /// The garbage collector's part: an object goes with the last of its owners.
    fn disown(&mut self, id: &Id, key: &Key, uid: &str) {
        let Some(object) = self.get(id, key) else { return };
        let others: Vec<Value> = object["metadata"]["ownerReferences"]
            .as_array()
            .map(|owners| owners.iter().filter(|owner| owner["uid"] != uid).cloned().collect())
            .unwrap_or_default();
        if object["metadata"]["ownerReferences"].as_array().is_none_or(|owners| owners.len() == others.len()) {
            return;
        }
        if others.is_empty() && object["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty) {
            self.remove(id, key);
            return;
        }
        let mut object = (**object).clone();
        if others.is_empty() {
            object["metadata"]["deletionTimestamp"] = super::now().into();
        } else {
            object["metadata"]["ownerReferences"] = json!(others);
        }
        self.put(id, key.clone(), object);
    }

    /// Withdraws a resource with all its objects.
    pub fn remove_kind(&mut self, id: &Id) {
        for key in
            self.tables.get(id).map(|table| table.objects.keys().cloned().collect::<Vec<_>>()).unwrap_or_default()
        {
            self.remove(id, &key);
        }
        self.tables.remove(id);
    }

    /// Forgets the log, as etcd's compaction does: whoever watches from an earlier version gets 410.
    pub fn compact(&mut self) {
        self.version += 1;
        for table in self.tables.values_mut() {
            table.log.clear();
            table.compacted = self.version;
        }
    }
}

fn record(table: &mut Table, event: Event, keep: usize) {
    let version = event.version;
    table.log.push_back(event);
    while table.log.len() > keep {
        if let Some(event) = table.log.pop_front() {
            table.compacted = event.version;
        }
    }
    table.changed.send_replace(version);
}

fn owners(object: &Value) -> Vec<String> {
    let owners = object["metadata"]["ownerReferences"].as_array().into_iter().flatten();
    owners.filter_map(|owner| owner["uid"].as_str().map(str::to_owned)).collect()
}
