//! One attempt on one connection.

use std::sync::atomic::Ordering;

use http::{HeaderValue, Request, Response, StatusCode, Uri, Version, header::HOST};
use hyper::{body::Incoming, client::conn::TrySendError};

use super::{Errand, Outgoing};
use crate::engine::http::{
    answer::{Answer, AnswerError},
    body::{RequestBody, Upload},
    h1::client::{Conn, Lost},
    pool::{Lease, Sender},
    service::{origin_form, origin_text},
};

/// How an attempt on a connection failed.
pub enum Failure {
    /// It never went out.
    Unsent,
    /// It went out on a connection that had been idle, and that closed before a single byte of an answer. The request is
    /// idempotent and bears no body.
    Idle,
    /// The upstream says that it has not processed it.
    Refused(AnswerError),
    Lost(AnswerError),
    TimedOut,
}

/// Sends the request on the connection and waits for the response's head.
pub async fn send(
    errand: &Errand,
    outgoing: &Outgoing,
    upload: &Upload,
    lease: &mut Lease,
    attempt: u32,
) -> Result<Response<Answer>, Failure> {
    if let Some(conn) = lease.take_own() {
        return send_own(errand, outgoing, conn, lease.reused, attempt).await;
    }
    // Boxed: what our own client sends needs no room for hyper's.
    Box::pin(send_hyper(errand, outgoing, upload, lease, attempt)).await
}

/// The same by hyper's client.
async fn send_hyper(
    errand: &Errand,
    outgoing: &Outgoing,
    upload: &Upload,
    lease: &mut Lease,
    attempt: u32,
) -> Result<Response<Answer>, Failure> {
    let bodiless = upload.is_empty();
    let before = lease.meta.read.load(Ordering::Relaxed);
    let (reused, read, tls) = (lease.reused, lease.meta.read.clone(), lease.meta.tls);
    let Some(sender) = lease.sender() else { return Err(Failure::Unsent) };
    let h2 = matches!(sender, Sender::H2(_));
    let mut request = outgoing.request(upload.reader(), h2, tls, &errand.authority);
    if let Some(mark) = errand.mark {
        mark(request.headers_mut(), attempt);
    }
    if outgoing.expects {
        let progress = outgoing.progress.clone();
        hyper::ext::on_informational(&mut request, move |response| {
            if response.status() == StatusCode::CONTINUE {
                progress.open();
            }
        });
    }
    let result = match sender {
        Sender::H1(sender) => wait(errand, outgoing, sender.try_send_request(request)).await,
        Sender::H2(sender) => {
            // h2 reports no informational responses here: do not let the two ends wait for each other.
            outgoing.progress.open();
            wait(errand, outgoing, sender.try_send_request(request)).await
        }
        Sender::Own(_) => return Err(Failure::Unsent),
    };
    result.map(|response| response.map(Answer::Hyper)).map_err(|mut error| {
        if error.take_message().is_some() {
            return Failure::Unsent;
        }
        let error = AnswerError::from(error.into_error());
        let silent = read.load(Ordering::Relaxed) == before;
        if h2 && error.unprocessed() {
            Failure::Refused(error)
        } else if !h2 && bodiless && reused && silent && outgoing.method.is_idempotent() && error.closed() {
            Failure::Idle
        } else {
            Failure::Lost(error)
        }
    })
}

/// The same on a connection of our own, for a request without body. The connection goes along with its response.
async fn send_own(
    errand: &Errand,
    outgoing: &Outgoing,
    mut conn: Box<Conn>,
    reused: bool,
    attempt: u32,
) -> Result<Response<Answer>, Failure> {
    let marked = errand.mark.map(|mark| {
        let mut headers = outgoing.headers.clone();
        mark(&mut headers, attempt);
        headers
    });
    let headers = marked.as_ref().unwrap_or(&outgoing.headers);
    match conn.exchange(&outgoing.method, &origin_text(&outgoing.uri), headers, &errand.authority).await {
        Ok(response) => Ok(response.map(|()| Answer::Own(conn))),
        Err(Lost { error, silent }) => {
            let idle = reused && silent && outgoing.method.is_idempotent() && error.closed();
            Err(if idle { Failure::Idle } else { Failure::Lost(error.into()) })
        }
    }
}

/// Waits for the response's head; meanwhile a client that was told to wait for a 100 may begin by itself (RFC 9110
/// section 10.1.1), and its body is then wanted upstream.
async fn wait<F>(errand: &Errand, outgoing: &Outgoing, sending: F) -> F::Output
where
    F: Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>>,
{
    let mut sending = std::pin::pin!(sending);
    if let Some(guard) = &errand.connection.guard
        && !outgoing.progress.is_open()
    {
        tokio::select! {
            biased;
            result = &mut sending => return result,
            // True: it has begun. False: it has gone; reading on is how hyper finds out.
            _ = guard.body_begun() => outgoing.progress.open(),
        }
    }
    sending.await
}

impl Outgoing {
    pub fn request(&self, body: RequestBody, h2: bool, tls: bool, authority: &str) -> Request<RequestBody> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.headers_mut() = self.headers.clone();
        let origin = origin_form(&self.uri);
        if h2 {
            request.headers_mut().remove(HOST);
            let scheme = if tls { "https" } else { "http" };
            let path = origin.path_and_query().map_or("/", |path| path.as_str());
            let uri = Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build();
            *request.uri_mut() = uri.unwrap_or(origin);
            *request.version_mut() = Version::HTTP_2;
        } else {
            *request.uri_mut() = origin;
            if !self.headers.contains_key(HOST) {
                if authority.is_empty() {
                    // HTTP/1.0 without Host, as the client sent it: an HTTP/1.1 request would need one.
                    *request.version_mut() = Version::HTTP_10;
                } else if let Ok(host) = HeaderValue::from_str(authority) {
                    request.headers_mut().insert(HOST, host);
                }
            }
        }
        request
    }
}
