//! One request to the API server, and how it can fail.

use std::{fmt::Write as _, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{Request, Response, header::RETRY_AFTER};
use http_body_util::BodyExt as _;
use kube::{Client, client::Body};
use rand::RngExt as _;
use thiserror::Error;
use tokio::time::timeout;

use super::trim::Status;
use crate::limits;

/// Why a request gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Failure {
    /// No answer: no connection, or a broken one.
    #[error("{0}")]
    Unreachable(String),
    #[error("nothing came for {0} s")]
    Silent(u64),
    #[error("{code}: {message}")]
    Refused {
        code: u16,
        message: String,
        /// How long to wait before asking again (`Retry-After`, RFC 9110 section 10.2.3, in seconds).
        retry_after: Option<Duration>,
    },
    /// Not what an API server says.
    #[error("unexpected answer: {0}")]
    Unreadable(String),
}

impl Failure {
    #[must_use]
    pub fn is(&self, wanted: u16) -> bool {
        matches!(self, Self::Refused { code, .. } if *code == wanted)
    }

    /// No fault of what was asked for.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Silent(_))
    }

    /// How long the server, which has too much to do, wants to be left alone: no longer than
    /// [`limits::API_RETRY_AFTER_MOST`], and never the same on two nodes.
    #[must_use]
    pub fn pause(&self) -> Duration {
        match self {
            Self::Refused { code: 429 | 503, retry_after: Some(time), .. } => {
                limits::API_RETRY_AFTER_MOST.min(*time).mul_f64(rand::rng().random_range(1.0..1.25))
            }
            _ => Duration::ZERO,
        }
    }

    fn of(status: Status, code: u16, header: Option<Duration>) -> Self {
        let message = if status.message.is_empty() { status.reason } else { status.message };
        let retry_after = header.or_else(|| Some(Duration::from_secs(status.details?.retry_after_seconds?)));
        Self::Refused { code: if status.code == 0 { code } else { status.code }, message, retry_after }
    }

    /// An ERROR event of a watch.
    #[must_use]
    pub fn in_watch(text: &str) -> Self {
        match serde_json::from_str::<Status>(text) {
            Ok(status) => Self::of(status, 500, None),
            Err(error) => Self::from(error),
        }
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::Unreadable(error.to_string())
    }
}

/// `path?name=value&…`
#[must_use]
pub fn url(path: &str, query: &[(&str, &str)]) -> String {
    let mut url = path.to_owned();
    for (i, (name, value)) in query.iter().enumerate() {
        url.push(if i == 0 { '?' } else { '&' });
        url.push_str(name);
        url.push('=');
        for byte in value.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => url.push(byte.into()),
                _ => drop(write!(url, "%{byte:02X}")),
            }
        }
    }
    url
}

/// The answer to a GET, if it is 2xx (or 304, for a request that says what is known).
///
/// # Errors
/// See [`Failure`].
pub async fn get(client: &Client, url: &str, headers: &[(http::HeaderName, &str)]) -> Result<Response<Body>, Failure> {
    let mut request = Request::get(url);
    for (name, value) in headers {
        request = request.header(name, *value);
    }
    let request = request.body(Body::empty()).map_err(|error| Failure::Unreachable(error.to_string()))?;
    let answer = match timeout(limits::API_ANSWER, client.send(request)).await {
        Err(_) => return Err(Failure::Unreachable(format!("no answer within {} s", limits::API_ANSWER.as_secs()))),
        Ok(Err(error)) => return Err(Failure::Unreachable(root_cause(&error))),
        Ok(Ok(answer)) => answer,
    };
    let code = answer.status();
    if code.is_success() || code == http::StatusCode::NOT_MODIFIED {
        return Ok(answer);
    }
    let header = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let body = whole(answer).await.unwrap_or_default();
    let status = serde_json::from_slice(&body).unwrap_or_else(|_| Status {
        message: String::from_utf8_lossy(body.get(..body.len().min(200)).unwrap_or_default()).trim().to_owned(),
        ..Status::default()
    });
    Err(Failure::of(status, code.as_u16(), header.map(Duration::from_secs)))
}

/// The innermost of the errors tells what happened; those around it say where in the client.
fn root_cause(error: &kube::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// The body of an answer that ends.
///
/// # Errors
/// It broke off, or nothing came for [`limits::API_SILENCE`].
pub async fn whole(answer: Response<Body>) -> Result<Vec<u8>, Failure> {
    let mut body = answer.into_body();
    let mut bytes = Vec::new();
    while let Some(chunk) = chunk(&mut body, limits::API_SILENCE).await? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

async fn chunk(body: &mut Body, silence: Duration) -> Result<Option<Bytes>, Failure> {
    loop {
        match timeout(silence, body.frame()).await {
            Err(_) => return Err(Failure::Silent(silence.as_secs())),
            Ok(None) => return Ok(None),
            Ok(Some(Err(error))) => return Err(Failure::Unreachable(root_cause(&error))),
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// The lines of a watch as they come.
pub struct Lines {
    body: Body,
    buffer: BytesMut,
    /// Bytes that were looked at and have no newline.
    looked: usize,
}

impl Lines {
    #[must_use]
    pub fn new(answer: Response<Body>) -> Self {
        Self { body: answer.into_body(), buffer: BytesMut::new(), looked: 0 }
    }

    /// The next line; None at the end.
    ///
    /// # Errors
    /// It broke off, or nothing came for so long.
    pub async fn next(&mut self, silence: Duration) -> Result<Option<Bytes>, Failure> {
        loop {
            let fresh = self.buffer.get(self.looked..).unwrap_or_default();
            if let Some(at) = fresh.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(self.looked + at + 1).freeze();
                self.looked = 0;
                return Ok(Some(line));
            }
            self.looked = self.buffer.len();
            match chunk(&mut self.body, silence).await? {
                Some(data) => self.buffer.extend_from_slice(&data),
                // A line without an end was cut short.
                None => return Ok(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_selectors_hold_is_escaped() {
        let url = url("/api/v1/pods", &[("fieldSelector", "spec.nodeName!=a-1,x=é"), ("watch", "true")]);
        assert_eq!(url, "/api/v1/pods?fieldSelector=spec.nodeName%21%3Da-1%2Cx%3D%C3%A9&watch=true");
    }
    #[test]
    fn a_server_that_asks_for_time_gets_it_within_bounds() {
        let told = |code, seconds| {
            let text = format!("{{\"code\": {code}, \"details\": {{\"retryAfterSeconds\": {seconds}}}}}");
            Failure::in_watch(&text).pause().as_secs_f64()
        };
        let most = limits::API_RETRY_AFTER_MOST.as_secs_f64();
        for (pause, least, bound) in [
            (told(429, 2), 2.0, 2.5),
            (told(503, 7), 7.0, 8.75),
            (told(429, u64::MAX), most, most * 1.25),
            (told(410, 9), 0.0, 0.0),
        ] {
            assert!((least..=bound).contains(&pause), "{pause} instead of {least} to {bound}");
        }
        assert_eq!(Failure::in_watch("{\"code\": 429}").pause(), Duration::ZERO);
    }
}
