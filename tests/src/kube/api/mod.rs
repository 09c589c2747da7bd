//! The inside of the API server: from a request to its answer.

mod body;
mod checks;
mod connection;
mod crds;
mod csr;
mod defaults;
mod discovery;
mod failure;
mod faults;
mod fields;
mod kinds;
mod merge;
mod pod_proxy;
mod rbac;
mod read;
mod request;
mod reviews;
mod schema;
mod selector;
mod store;
mod users;
mod watch;
mod write;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use serde_json::json;

use self::{
    body::{Answer, answer, failed, text},
    failure::Failure,
    faults::Faults,
    rbac::Question,
    read::Form,
    request::{Asked, Target},
    users::Tokens,
    write::Write,
};
pub use self::{connection::serve, faults::Fault, store::Store, users::User};

/// One request as the server saw it, for tests that ask what an agent does.
#[derive(Clone, Debug)]
pub struct Seen {
    pub user: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verb: String,
    pub group: String,
    /// Plural, with the subresource: `pods/status`.
    pub resource: String,
    /// Empty for all namespaces and for cluster-scoped objects.
    pub namespace: String,
    pub name: String,
    pub field_selector: String,
    pub label_selector: String,
    /// Path and query.
    pub uri: String,
    pub user_agent: String,
    pub code: u16,
    /// When it was answered.
    pub at: std::time::Instant,
}

/// All that outlives a restart of the server.
pub struct Shared {
    store: Mutex<Store>,
    tokens: Mutex<Tokens>,
    seen: Mutex<Vec<Seen>>,
    faults: Mutex<Faults>,
    bookmarks: Mutex<Duration>,
    /// Told where all open watches are to be cut.
    watches_dropped: tokio::sync::watch::Sender<u64>,
}

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// `authority`: the PEM that a cluster's ConfigMaps `kube-root-ca.crt` hold.
    pub fn new(authority: &str) -> Self {
        Self {
            store: Mutex::new(Store::new(authority)),
            tokens: Mutex::default(),
            seen: Mutex::default(),
            faults: Mutex::default(),
            // The real server sends one a minute; tests have less time.
            bookmarks: Mutex::new(Duration::from_secs(10)),
            watches_dropped: tokio::sync::watch::Sender::new(0),
        }
    }

    pub fn store(&self) -> MutexGuard<'_, Store> {
        lock(&self.store)
    }

    pub fn tokens(&self) -> MutexGuard<'_, Tokens> {
        lock(&self.tokens)
    }

    pub fn seen(&self) -> MutexGuard<'_, Vec<Seen>> {
        lock(&self.seen)
    }

    pub fn faults(&self) -> MutexGuard<'_, Faults> {
        lock(&self.faults)
    }

    pub fn bookmark_interval(&self) -> Duration {
        *lock(&self.bookmarks)
    }

    pub fn set_bookmark_interval(&self, interval: Duration) {
        *lock(&self.bookmarks) = interval;
    }

    pub fn drop_watches(&self) {
        self.watches_dropped.send_modify(|count| *count += 1);
    }
}

/// Answers one request.
pub async fn handle(shared: &Arc<Shared>, parts: http::request::Parts, body: Bytes) -> Answer {
    let authorization = parts.headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let user = shared.tokens().user(authorization);
    let known = user.is_some();
    let asked = Asked::new(user.unwrap_or_else(User::anonymous), parts, body);
    let answer =
        if known { answered(shared, &asked).await } else { failed(&Failure::new(401, "Unauthorized", "Unauthorized")) };
    note(shared, &asked, answer.status().as_u16());
    answer
}

async fn answered(shared: &Arc<Shared>, asked: &Asked) -> Answer {
    let met = shared.faults().meet(asked);
    if let Some(met) = &met
        && let Some(answer) = met.instead().await
    {
        return answer;
    }
    let Some(target) = &asked.target else { return outside(shared, asked) };
    let question = Question::of(asked.verb, target, asked.option("fieldSelector"));
    let allowed = reviews::is_review(target) || rbac::allowed(&shared.store(), &asked.user, &question);
    let result = if !allowed {
        Err(rbac::forbidden(&asked.user, &question))
    } else if target.subresource.as_deref() == Some("proxy") && target.plural == "pods" {
        pod_proxy::forward(shared, asked, target).await
    } else {
        operate(shared, asked, target, met.as_ref())
    };
    let answer = result.unwrap_or_else(|failure| failed(&failure));
    match met {
        Some(met) => met.cut(answer),
        None => answer,
    }
}

/// Paths that are no resource: open to everybody who is somebody.
fn outside(shared: &Arc<Shared>, asked: &Asked) -> Answer {
    let path = asked.uri.path();
    let open = matches!(path, "/version" | "/readyz" | "/livez" | "/healthz");
    if !open && asked.user == User::anonymous() {
        let message = format!("forbidden: User \"system:anonymous\" cannot get path \"{path}\"");
        return failed(&Failure::new(403, "Forbidden", message));
    }
    discovery::page(&shared.store(), path).unwrap_or_else(|| text(404, "404 page not found\n"))
}

/// A verb on a resource.
fn operate(shared: &Arc<Shared>, asked: &Asked, target: &Target, met: Option<&faults::Met>) -> Result<Answer, Failure> {
    let mut store = shared.store();
    if reviews::is_review(target) {
        return reviews::answer(&store, asked, target);
    }
    let Some(table) = store.table(&target.group, &target.version, &target.plural) else {
        return Ok(text(404, "404 page not found\n"));
    };
    let kind = table.kind.clone();
    if target.subresource.as_ref().is_some_and(|sub| !kind.subresources.contains(sub)) {
        return Ok(text(404, "404 page not found\n"));
    }
    let form = Form::of(&kind, &target.version, asked.metadata_only());
    let ok = |code: u16, body: String| answer(code, "application/json", body);
    match asked.verb {
        "get" if asked.flag("watch") => {
            watch::open(shared, table, store.version, asked, target, met.and_then(faults::Met::watched))
        }
        "get" => Ok(ok(200, read::get(table, target, &form)?)),
        "list" => Ok(ok(200, read::list(&store, table, asked, target, &form)?)),
        "watch" => watch::open(shared, table, store.version, asked, target, met.and_then(faults::Met::watched)),
        "create" if target.subresource.as_deref() == Some("token") => reviews::token(&store, shared, asked, target),
        "create" if target.subresource.as_deref() == Some("binding") => reviews::bind(&mut store, asked, target),
        verb @ ("create" | "update" | "patch") => {
            let before = store.version;
            let existed = target
                .name
                .as_ref()
                .is_some_and(|name| table.objects.contains_key(&read::key(&kind, target.namespace.as_deref(), name)));
            // Server-side apply of what is not there yet makes it.
            let makes = Question::of("create", target, "");
            if verb == "patch" && !existed && asked.is_apply() && !rbac::allowed(&store, &asked.user, &makes) {
                return Err(rbac::forbidden(&asked.user, &makes));
            }
            let mut write = Write { store: &mut store, kind, asked, target };
            let object = match verb {
                "create" => write.create()?,
                "update" => write.update()?,
                _ => write.patch()?,
            };
            let created = verb == "create" || (!existed && store.version != before);
            Ok(ok(if created { 201 } else { 200 }, form.render(&object)))
        }
        "delete" => {
            let mut write = Write { store: &mut store, kind: kind.clone(), asked, target };
            let (object, gone) = write.delete()?;
            if gone && kind.plural != "pods" {
                let details = json!({"name": target.name, "group": kind.group, "kind": kind.plural, "uid": object["metadata"]["uid"]});
                let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
                return Ok(body::json(200, &status));
            }
            Ok(ok(200, form.render(&object)))
        }
        "deletecollection" => {
            let selector = selector::Selector::parse(asked.option("labelSelector"), asked.option("fieldSelector"))?;
            let keys: Vec<_> = read::select(&table.objects, read::namespace_of(&kind, target), &selector)
                .map(|(key, _)| key.clone())
                .collect();
            for (namespace, name) in keys {
                let target = Target { namespace: Some(namespace), name: Some(name), ..target.clone() };
                Write { store: &mut store, kind: kind.clone(), asked, target: &target }.delete()?;
            }
            Ok(ok(200, form.list(&json!({"resourceVersion": store.version.to_string()}), &[])))
        }
        _ => Err(Failure::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )),
    }
}

fn note(shared: &Shared, asked: &Asked, code: u16) {
    let target = asked.target.clone().unwrap_or_default();
    let resource = match &target.subresource {
        Some(sub) => format!("{}/{sub}", target.plural),
        None => target.plural,
    };
    shared.seen().push(Seen {
        user: asked.user.name.clone(),
        verb: asked.verb.to_owned(),
        group: target.group,
        resource,
        namespace: target.namespace.unwrap_or_default(),
        name: target.name.unwrap_or_default(),
        field_selector: asked.option("fieldSelector").to_owned(),
        label_selector: asked.option("labelSelector").to_owned(),
        uri: asked.uri.to_string(),
        user_agent: asked.header("user-agent").to_owned(),
        code,
        at: std::time::Instant::now(),
    });
}

/// As the API writes times: whole seconds, UTC.
pub fn now() -> String {
    later(0)
}

fn later(seconds: u64) -> String {
    let at = jiff::Timestamp::now() + Duration::from_secs(seconds);
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `bytes` random bytes, from the kernel.
pub fn random_hex(bytes: usize) -> String {
    let mut random = vec![0; bytes];
    let filled = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
    assert_eq!(filled.ok(), Some(bytes), "the kernel has random bytes");
    random.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A UUID of version 4 (RFC 9562).
pub fn uid() -> String {
    let hex = random_hex(16);
    format!("{}-{}-4{}-a{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..])
}
