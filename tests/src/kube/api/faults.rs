//! Faults on demand: what an API server does on a bad day.

use std::time::Duration;

use bytes::Bytes;

use super::{
    body::{Answer, Body, Writer, failed, written},
    failure::Failure,
    request::Asked,
    watch,
};

/// One fault, until it has happened often enough or is lifted.
#[derive(Clone, Debug)]
pub struct Fault {
    what: What,
    plural: Option<String>,
    verbs: Vec<String>,
    user: Option<String>,
    left: Option<usize>,
}

#[derive(Clone, Debug)]
enum What {
    Refuse(u16, Option<u64>),
    /// A watch that is told 410 as an event.
    GoneEvent,
    /// The connection ends in the middle of the body; a watch once it has said what there was to say at first.
    Cut,
    Silence,
    Slow(Duration),
}

impl Fault {
    fn new(what: What) -> Self {
        Self { what, plural: None, verbs: Vec::new(), user: None, left: None }
    }

    /// 410 Gone instead of an answer.
    #[must_use]
    pub fn gone() -> Self {
        Self::new(What::Refuse(410, None))
    }

    /// A watch that begins, and ends with an ERROR event of code 410.
    #[must_use]
    pub fn gone_event() -> Self {
        Self::new(What::GoneEvent).verbs(&["watch"])
    }

    /// 429 with `Retry-After` in seconds.
    #[must_use]
    pub fn too_many_requests(retry_after: u64) -> Self {
        Self::new(What::Refuse(429, Some(retry_after)))
    }

    /// 503 with `Retry-After` in seconds, as a server says that is about to end.
    #[must_use]
    pub fn unavailable(retry_after: u64) -> Self {
        Self::new(What::Refuse(503, Some(retry_after)))
    }

    /// Any other status.
    #[must_use]
    pub fn status(code: u16) -> Self {
        Self::new(What::Refuse(code, None))
    }

    /// The connection ends in the middle of the answer.
    #[must_use]
    pub fn cut() -> Self {
        Self::new(What::Cut)
    }

    /// The request is taken and never answered.
    #[must_use]
    pub fn silence() -> Self {
        Self::new(What::Silence)
    }

    /// The answer takes this long; a list of 14 s for one.
    #[must_use]
    pub fn slow(time: Duration) -> Self {
        Self::new(What::Slow(time))
    }

    /// Only for requests of this resource (plural, without group).
    #[must_use]
    pub fn on(mut self, plural: &str) -> Self {
        self.plural = Some(plural.to_owned());
        self
    }

    /// Only for these verbs, as RBAC names them.
    #[must_use]
    pub fn verbs(mut self, verbs: &[&str]) -> Self {
        self.verbs = verbs.iter().map(|verb| (*verb).to_owned()).collect();
        self
    }

    /// Only for this user.
    #[must_use]
    pub fn user(mut self, name: &str) -> Self {
        self.user = Some(name.to_owned());
        self
    }

    /// Only so many times; else until it is lifted.
    #[must_use]
    pub fn times(mut self, count: usize) -> Self {
        self.left = Some(count);
        self
    }

    fn meets(&self, asked: &Asked) -> bool {
        let plural = asked.target.as_ref().map_or("", |target| target.plural.as_str());
        self.left != Some(0)
            && self.plural.as_ref().is_none_or(|wanted| wanted == plural)
            && (self.verbs.is_empty() || self.verbs.iter().any(|verb| verb == asked.verb))
            && self.user.as_ref().is_none_or(|wanted| *wanted == asked.user.name)
    }
}

/// The faults in force, by the number that lifts them.
#[derive(Default)]
pub struct Faults {
    next: u64,
    all: Vec<(u64, Fault)>,
}

/// A fault that a request has met.
#[derive(Clone, Debug)]
pub struct Met(What);

/// The rest of a fault that ends a watch.
#[derive(Clone, Debug)]
pub struct Watched(What);

impl Faults {
    pub fn add(&mut self, fault: Fault) -> u64 {
        self.next += 1;
        self.all.push((self.next, fault));
        self.next
    }

    pub fn lift(&mut self, number: u64) {
        self.all.retain(|(other, _)| *other != number);
    }

    pub fn lift_all(&mut self) {
        self.all.clear();
    }

    /// The fault that this request meets; counts it.
    pub fn meet(&mut self, asked: &Asked) -> Option<Met> {
        let (_, fault) = self.all.iter_mut().find(|(_, fault)| fault.meets(asked))?;
        if let Some(left) = &mut fault.left {
            *left -= 1;
        }
        Some(Met(fault.what.clone()))
    }
}

impl Met {
    /// What is said instead of the answer; comes back late, or never, where that is the fault.
    pub async fn instead(&self) -> Option<Answer> {
        match &self.0 {
            What::Refuse(code, retry_after) => Some(failed(&refusal(*code, *retry_after))),
            What::Silence => std::future::pending().await,
            What::Slow(time) => {
                tokio::time::sleep(*time).await;
                None
            }
            What::GoneEvent | What::Cut => None,
        }
    }

    /// The fault's part that a watch carries out once it runs.
    pub fn watched(&self) -> Option<Watched> {
        matches!(self.0, What::GoneEvent | What::Cut).then(|| Watched(self.0.clone()))
    }

    /// Cuts a whole answer in two, and loses the second half.
    pub fn cut(&self, answer: Answer) -> Answer {
        let (parts, body) = answer.into_parts();
        match (&self.0, body) {
            (What::Cut, Body::Whole(Some(bytes))) => {
                let half = bytes.slice(..bytes.len() / 2);
                let (writer, answer) = written();
                tokio::spawn(async move {
                    let _ = writer.send(Ok(half)).await;
                    // The first half goes out before the connection ends.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    let _ = writer.send(Err(std::io::ErrorKind::UnexpectedEof.into())).await;
                });
                let (_, body) = answer.into_parts();
                Answer::from_parts(parts, body)
            }
            (_, body) => Answer::from_parts(parts, body),
        }
    }
}

impl Watched {
    /// Says the watch's last words.
    pub async fn end(&self, writer: &Writer) {
        let last = match self.0 {
            What::GoneEvent => Ok(Bytes::from(watch::error(&refusal(410, None)))),
            _ => {
                let _ = writer.send(Ok(Bytes::from_static(b"{\"type\":\"MODIFIED\",\"obj"))).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
                Err(std::io::ErrorKind::UnexpectedEof.into())
            }
        };
        let _ = writer.send(last).await;
    }
}

fn refusal(code: u16, retry_after: Option<u64>) -> Failure {
    let (reason, message) = match code {
        410 => ("Expired", "The resourceVersion for the provided watch is too old."),
        429 => ("TooManyRequests", "Too many requests, please try again later."),
        503 => ("ServiceUnavailable", "the server is currently unable to handle the request"),
        _ => ("InternalError", "Internal error occurred: etcdserver: request timed out"),
    };
    Failure { retry_after, ..Failure::new(code, reason, message) }
}
