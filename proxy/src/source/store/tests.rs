//! What stays in force when files change, break, move and vanish.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

use super::{Batch, Content, FileChange, Store};
use crate::{api::Objects, source::documents::parse_file};

fn file(path: &str, text: &str) -> FileChange {
    FileChange { path: PathBuf::from(path), content: Some(Content::Text(Ok(text.as_bytes().to_vec()))) }
}

fn removed(path: &str) -> FileChange {
    FileChange { path: PathBuf::from(path), content: None }
}

fn entry(name: &str, host: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}}}\nspec: {{hosts: ['{host}']}}\n---\n"
    )
}

/// `name=host` of every ServiceEntry in force.
fn hosts(store: &Store) -> Vec<String> {
    store.objects().service_entries.values().map(|o| format!("{}={}", o.id.name, o.spec.hosts.join("+"))).collect()
}

fn state(store: &Store, batch: &Batch) -> (Vec<String>, usize, bool) {
    (hosts(store), batch.rejected_now, batch.accepted)
}

fn of(hosts: &[&str], rejected: usize, accepted: bool) -> (Vec<String>, usize, bool) {
    (hosts.iter().map(|h| (*h).to_owned()).collect(), rejected, accepted)
}

#[test]
fn a_bad_object_keeps_its_last_good_version_and_a_new_one_is_absent() {
    let mut store = Store::default();
    let batch = store.apply(vec![file("a", &(entry("x", "x.one") + &entry("y", "y.one")))]);
    assert_eq!(state(&store, &batch), of(&["x=x.one", "y=y.one"], 0, true));
    let batch = store.apply(vec![file("a", &(entry("x", "*") + &entry("y", "y.two") + &entry("z", "*")))]);
    assert_eq!(state(&store, &batch), of(&["x=x.one", "y=y.two"], 2, false));
    assert_eq!(batch.diagnostics.len(), 2);
    // Another file changes: this one is no worse than it was, and still counted.
    let batch = store.apply(vec![file("b", &entry("b", "b.one"))]);
    assert_eq!(state(&store, &batch), of(&["b=b.one", "x=x.one", "y=y.two"], 2, true));
    assert!(batch.diagnostics.is_empty(), "told once");
    let batch = store.apply(vec![file("a", &entry("x", "x.three"))]);
    assert_eq!(state(&store, &batch), of(&["b=b.one", "x=x.three"], 0, true));
}

#[test]
fn what_is_not_yaml_takes_nothing_away() {
    let mut store = Store::default();
    store.apply(vec![file("a", &(entry("x", "x.one") + &entry("y", "y.one")))]);
    let batch = store.apply(vec![file("a", "spec: [\n")]);
    assert_eq!(state(&store, &batch), of(&["x=x.one", "y=y.one"], 1, false));
    let batch = store.apply(vec![FileChange { path: "a".into(), content: Some(Content::Text(Ok(vec![0xff, 0xfe]))) }]);
    assert_eq!(state(&store, &batch), of(&["x=x.one", "y=y.one"], 1, false));
    assert!(batch.diagnostics[0].message.contains("byte 0 is not UTF-8"), "{:?}", batch.diagnostics);
    let unreadable = FileChange {
        path: "a".into(),
        content: Some(Content::Text(Err(io::Error::from(io::ErrorKind::PermissionDenied)))),
    };
    let batch = store.apply(vec![unreadable]);
    assert_eq!(state(&store, &batch), of(&["x=x.one", "y=y.one"], 1, false));
    // One document is broken beyond telling which: it may be x. What can be read counts.
    let batch = store.apply(vec![file("a", &(entry("y", "y.two") + "spec: [\n---\n" + &entry("n", "n.one")))]);
    assert_eq!(state(&store, &batch), of(&["n=n.one", "x=x.one", "y=y.two"], 1, false));
    // The same where its name is missing.
    let batch = store.apply(vec![file("a", &(entry("y", "y.two") + "apiVersion: v1\nkind: Pod\nmetadata: {}\n"))]);
    assert_eq!(state(&store, &batch), of(&["n=n.one", "x=x.one", "y=y.two"], 1, false));
    let batch = store.apply(vec![file("a", "")]);
    assert_eq!(state(&store, &batch), of(&[], 0, true));
}

#[test]
fn a_removed_file_takes_its_objects_along() {
    let mut store = Store::default();
    store.apply(vec![file("a", &entry("x", "x.one")), file("b", &entry("y", "*"))]);
    let batch = store.apply(vec![removed("a"), removed("b")]);
    assert_eq!(state(&store, &batch), of(&[], 0, true));
}

#[test]
fn of_two_files_the_last_path_counts_whatever_the_order_of_reading() {
    let mut store = Store::default();
    store.apply(vec![file("b", &entry("x", "from.b"))]);
    let batch = store.apply(vec![file("a", &entry("x", "from.a"))]);
    assert_eq!(state(&store, &batch), of(&["x=from.b"], 0, true));
    let said: Vec<_> = batch.diagnostics.iter().map(ToString::to_string).collect();
    assert_eq!(said, ["a:1:1: warning: ServiceEntry default/x: is in b:1 too, and that one counts (the last path)"]);
    // The winner breaks: its own last good version stays, not that of the other file.
    let batch = store.apply(vec![file("b", &entry("x", "*"))]);
    assert_eq!(state(&store, &batch), of(&["x=from.b"], 1, false));
    let batch = store.apply(vec![removed("b")]);
    assert_eq!(state(&store, &batch), of(&["x=from.a"], 0, true));
    let batch = store.apply(vec![file("a", &(entry("x", "first.a") + &entry("x", "second.a")))]);
    assert_eq!(state(&store, &batch), of(&["x=second.a"], 0, true));
    assert!(batch.diagnostics[0].message.contains("is on line 6 of this file too"), "{:?}", batch.diagnostics);
}

#[test]
fn moved_and_broken_in_one_go_is_still_in_force() {
    let mut store = Store::default();
    store.apply(vec![file("a", &entry("x", "x.one"))]);
    let batch = store.apply(vec![removed("a"), file("b", &entry("x", "*"))]);
    assert_eq!(state(&store, &batch), of(&["x=x.one"], 1, false));
    let batch = store.apply(vec![file("b", &entry("x", "x.two"))]);
    assert_eq!(state(&store, &batch), of(&["x=x.two"], 0, true));
}

#[test]
fn a_kind_that_is_skipped_is_told_once_for_all_files() {
    let deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n";
    let batch = Store::default().apply(vec![file("a", deployment), file("b", deployment)]);
    assert_eq!(batch.diagnostics.len(), 1, "{:?}", batch.diagnostics);
}

/// Documents of some files are added, taken away, changed, moved about and doubled at random. What is read again in parts must
/// be what reading all of it for the first time gives, to the last line number.
#[test]
fn reading_again_is_reading_anew() {
    let places = |objects: &Objects| {
        let entries = objects.service_entries.values();
        let all =
            entries.map(|o| format!("{} {:?} {:?} {:?}", o.id, o.spec, o.origin.locate("spec.hosts"), o.origin.file));
        all.collect::<Vec<_>>()
    };
    for seed in 0..60 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut files: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        let mut store = Store::default();
        for _ in 0..40 {
            let mut changes = Vec::new();
            for path in ["a.yaml", "b.yaml", "c.json"] {
                if random.random_bool(0.4) {
                    continue;
                }
                let documents = files.entry(path).or_default();
                for _ in 0..random.random_range(0..4) {
                    let at = random.random_range(0..=documents.len());
                    let name = format!("e{}", random.random_range(0..25));
                    let lines = "# line\n".repeat(random.random_range(0..3));
                    let made = match random.random_range(0..8) {
                        0 => "# nothing\n".to_owned(),
                        1 => "apiVersion: v1\nkind: Odd\n---\n".to_owned(),
                        2 => entry(&name, "more.com").replace("spec: {", "spec: {wrong: 1, "),
                        _ => lines + &entry(&name, &format!("h{}.com", random.random_range(0..5))),
                    };
                    match random.random_range(0..4) {
                        0 if at < documents.len() => drop(documents.remove(at)),
                        1 if at < documents.len() => documents[at] = made,
                        2 if at < documents.len() => {
                            let taken = documents.remove(at);
                            documents.insert(random.random_range(0..=documents.len()), taken);
                        }
                        _ => documents.insert(at, made),
                    }
                }
                let end = *["", "---", "---\n", "...\n"].choose(&mut random).unwrap();
                let text = documents.concat() + end;
                changes.push(file(path, &text));
            }
            let texts: Vec<_> = changes
                .iter()
                .map(|change| match &change.content {
                    Some(Content::Text(Ok(text))) => (change.path.clone(), String::from_utf8(text.clone()).unwrap()),
                    _ => unreachable!(),
                })
                .collect();
            let before = places(store.objects());
            let batch = store.apply(changes);
            let mut anew = Store::default();
            let all = files.iter().map(|(path, documents)| file(path, &documents.concat())).collect();
            anew.apply(all);
            assert_eq!(places(store.objects()), places(anew.objects()), "seed {seed}");
            assert!(batch.moved || !batch.changed.is_empty() || before == places(store.objects()));
            for (path, text) in texts {
                let path: Arc<Path> = path.into();
                let said = parse_file(path.clone(), &text).diagnostics;
                let known =
                    batch.diagnostics.iter().filter(|d| d.file == path && !d.message.contains("that one counts"));
                let strip = |d: &crate::api::Diagnostic| d.to_string();
                let mut said: Vec<_> =
                    said.iter().filter(|d| d.severity != crate::api::Severity::Info).map(strip).collect();
                let mut known: Vec<_> = known.filter(|d| d.severity != crate::api::Severity::Info).map(strip).collect();
                said.sort();
                known.sort();
                assert_eq!(known, said, "seed {seed}");
            }
        }
    }
}

#[test]
fn an_object_of_an_api_server_is_as_good_as_a_file() {
    let object = |json: &str| FileChange {
        path: "kubernetes/DestinationRule/default/x".into(),
        content: Some(Content::Object(json.as_bytes().to_vec())),
    };
    let rule = |mode: &str| {
        format!(
            r#"{{"apiVersion":"networking.istio.io/v1","kind":"DestinationRule","metadata":{{"name":"x","namespace":"default"}},"spec":{{"host":"a.b","trafficPolicy":{{"tls":{{"mode":"{mode}"}}}}}}}}"#
        )
    };
    let mut store = Store::default();
    let batch = store.apply(vec![object(&rule("SIMPLE"))]);
    assert!(batch.accepted && batch.diagnostics.is_empty(), "{batch:?}");
    assert_eq!(batch.changed.len(), 1);
    assert!(store.apply(vec![object(&rule("SIMPLE"))]).changed.is_empty(), "nothing has changed");
    let batch = store.apply(vec![object(&rule("SIMPEL"))]);
    assert_eq!((batch.accepted, batch.rejected_now, store.objects().destination_rules.len()), (false, 1, 1));
    let said = batch.diagnostics[0].to_string();
    let begins = "kubernetes/DestinationRule/default/x: error: spec.trafficPolicy.tls.mode: ";
    assert!(said.starts_with(begins), "{said}");
    let rule = store.objects().destination_rules.values().next().unwrap();
    assert_eq!(rule.origin.locate("spec.host"), (0, 0));
    assert!(rule.origin.positions.get("spec.host").is_some(), "what was written is known");
    store.apply(vec![removed("kubernetes/DestinationRule/default/x")]);
    assert_eq!(store.objects().count(), 0);
}
