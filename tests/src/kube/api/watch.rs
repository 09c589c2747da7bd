//! Watches: the events after a version, with selectors, bookmarks and streaming lists.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::{sync::watch, time::Instant};

use super::{
    Shared,
    body::{Answer, Writer, written},
    failure::Failure,
    faults::Watched,
    kinds::Id,
    read::{Form, namespace_of, parse_version, select},
    request::{Asked, Target},
    selector::Selector,
    store::{Event, Table},
};

/// How long a watch lasts that does not say; the real server takes 30 to 60 minutes.
const LIFETIME: Duration = Duration::from_secs(1800);

/// An open watch.
struct Watch {
    shared: Arc<Shared>,
    id: Id,
    namespace: Option<String>,
    selector: Selector,
    form: Form,
    /// What `kind` and `apiVersion` a bookmark bears.
    bookmark_head: Value,
    bookmarks: bool,
    cursor: u64,
    fault: Option<Watched>,
}

/// Opens a watch on a table, and hands back the answer that it is written to.
pub fn open(
    shared: &Arc<Shared>,
    table: &Table,
    version: u64,
    asked: &Asked,
    target: &Target,
    fault: Option<Watched>,
) -> Result<Answer, Failure> {
    let mut fields = asked.option("fieldSelector").to_owned();
    if let Some(name) = &target.name {
        fields = format!("metadata.name={name}");
    }
    let selector = Selector::parse(asked.option("labelSelector"), &fields)?;
    let initial = asked.flag("sendInitialEvents");
    match (initial, asked.option("resourceVersionMatch")) {
        (true, "NotOlderThan") | (false, "") => {}
        (true, _) => {
            return Err(invalid(
                "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            ));
        }
        (false, _) if asked.query.contains_key("sendInitialEvents") => {}
        (false, _) => {
            return Err(invalid(
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            ));
        }
    }
    let from = match asked.option("resourceVersion") {
        "" | "0" => None,
        text => Some(parse_version(text)?),
    };
    let kind = &table.kind;
    let form = Form::of(kind, &target.version, asked.metadata_only());
    let bookmark_head = serde_json::from_str(&form.render(&json!({"metadata": {}}))).unwrap_or_default();
    let mut watch = Watch {
        shared: shared.clone(),
        id: kind.id(),
        namespace: namespace_of(kind, target).map(str::to_owned),
        selector,
        form,
        bookmark_head,
        bookmarks: asked.flag("allowWatchBookmarks"),
        cursor: from.unwrap_or(version),
        fault,
    };
    let mut first = String::new();
    // Without a version: what there is now comes first, and then what changes.
    let skip_initial = asked.option("sendInitialEvents") == "false";
    if initial || (from.is_none() && !skip_initial) {
        for (_, object) in select(&table.objects, watch.namespace.as_deref(), &watch.selector) {
            first.push_str(&watch.line("ADDED", object));
        }
        watch.cursor = version;
        if initial && watch.bookmarks {
            first.push_str(&watch.bookmark(json!({"k8s.io/initial-events-end": "true"})));
        }
    } else if table.since(watch.cursor).is_none() {
        let message = format!("too old resource version: {} ({})", watch.cursor, table.compacted);
        first.push_str(&error(&Failure::gone(message)));
        let (writer, answer) = written();
        tokio::spawn(async move { writer.send(Ok(Bytes::from(first))).await });
        return Ok(answer);
    }
    let lifetime = asked.option("timeoutSeconds").parse().map_or(LIFETIME, Duration::from_secs);
    let (writer, answer) = written();
    tokio::spawn(watch.run(first, table.changed.subscribe(), writer, Instant::now() + lifetime));
    Ok(answer)
}

fn invalid(message: &str) -> Failure {
    Failure::new(422, "Invalid", format!("ListOptions.meta.k8s.io \"\" is invalid: {message}"))
}

/// A watch event of type ERROR.
pub fn error(failure: &Failure) -> String {
    format!("{}\n", json!({"type": "ERROR", "object": failure.status()}))
}

impl Watch {
    async fn run(mut self, first: String, mut changed: watch::Receiver<u64>, writer: Writer, end: Instant) {
        let mut dropped = self.shared.watches_dropped.subscribe();
        let mut next_bookmark = Instant::now() + self.shared.bookmark_interval();
        if !first.is_empty() && writer.send(Ok(Bytes::from(first))).await.is_err() {
            return;
        }
        if let Some(fault) = &self.fault {
            // Nothing but the watch's own end may keep it from its fault.
            return fault.end(&writer).await;
        }
        loop {
            changed.mark_unchanged();
            match self.news() {
                Ok(lines) if lines.is_empty() => {}
                Ok(lines) => {
                    if writer.send(Ok(Bytes::from(lines))).await.is_err() {
                        return;
                    }
                    continue;
                }
                Err(last_words) => {
                    let _ = writer.send(Ok(Bytes::from(last_words))).await;
                    return;
                }
            }
            tokio::select! {
                change = changed.changed() => if change.is_err() {
                    // The resource is withdrawn: what was still to be told is told.
                    return;
                },
                () = tokio::time::sleep_until(next_bookmark), if self.bookmarks => {
                    next_bookmark = Instant::now() + self.shared.bookmark_interval();
                    let line = self.bookmark(Value::Null);
                    if writer.send(Ok(Bytes::from(line))).await.is_err() {
                        return;
                    }
                }
                () = tokio::time::sleep_until(end) => return,
                _ = dropped.changed() => {
                    let _ = writer.send(Err(std::io::ErrorKind::ConnectionReset.into())).await;
                    return;
                }
                () = writer.closed() => return,
            }
        }
    }

    /// What has happened since the cursor, which moves to now. An error is the last that the watch has to say.
    fn news(&mut self) -> Result<String, String> {
        let shared = self.shared.clone();
        let store = shared.store();
        let Some(table) = store.tables.get(&self.id) else { return Err(String::new()) };
        let Some(events) = table.since(self.cursor) else {
            let message = format!("too old resource version: {} ({})", self.cursor, table.compacted);
            return Err(error(&Failure::gone(message)));
        };
        let mut lines = String::new();
        for event in events {
            if let Some(line) = self.event(event) {
                lines.push_str(&line);
            }
        }
        self.cursor = self.cursor.max(store.version);
        Ok(lines)
    }

    fn event(&self, event: &Event) -> Option<String> {
        if self.namespace.as_ref().is_some_and(|wanted| event.key.0 != *wanted) {
            return None;
        }
        let was = event.before.as_ref().is_some_and(|before| self.selector.matches(before));
        let is = !event.gone && self.selector.matches(&event.object);
        match (was, is) {
            (false, false) => None,
            (false, true) => Some(self.line("ADDED", &event.object)),
            (true, true) => Some(self.line("MODIFIED", &event.object)),
            (true, false) if event.gone => Some(self.line("DELETED", &event.object)),
            (true, false) => {
                // Out of the selector's sight: told in its last state that matched, under the version of the change.
                let mut last = event.before.as_deref()?.clone();
                last["metadata"]["resourceVersion"] = event.version.to_string().into();
                Some(self.line("DELETED", &last))
            }
        }
    }

    fn line(&self, kind: &str, object: &Value) -> String {
        format!("{{\"type\":\"{kind}\",\"object\":{}}}\n", self.form.render(object))
    }

    fn bookmark(&self, annotations: Value) -> String {
        let mut object = self.bookmark_head.clone();
        object["metadata"] = json!({"resourceVersion": self.cursor.to_string(), "creationTimestamp": null});
        if !annotations.is_null() {
            object["metadata"]["annotations"] = annotations;
        }
        format!("{}\n", json!({"type": "BOOKMARK", "object": object}))
    }
}
