//! The `proxy` subresource of a pod: a request passed on to a port of the pod.

use std::{net::IpAddr, sync::Arc, time::Duration};

use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{
    Shared,
    body::{Answer, written},
    failure::Failure,
    request::{Asked, Target},
};

/// How long the pod may take to take the connection.
const CONNECT_TIME: Duration = Duration::from_secs(10);

pub async fn forward(shared: &Arc<Shared>, asked: &Asked, target: &Target) -> Result<Answer, Failure> {
    // `NAME:PORT` or `http:NAME:PORT`.
    let said = target.name.clone().unwrap_or_default();
    let said = said.strip_prefix("http:").unwrap_or(&said);
    let (name, port) = said.split_once(':').unwrap_or((said, "80"));
    let port: u16 = port.parse().map_err(|_| Failure::bad_request(format!("invalid pod request {said:?}")))?;
    let address: IpAddr = {
        let store = shared.store();
        let pod = store
            .core("pods", target.namespace.as_deref().unwrap_or_default(), name)
            .ok_or_else(|| Failure::new(404, "NotFound", format!("pods \"{name}\" not found")))?;
        let at = if pod["spec"]["hostNetwork"] == true { &pod["status"]["hostIP"] } else { &pod["status"]["podIP"] };
        at.as_str()
            .and_then(|address| address.parse().ok())
            .ok_or_else(|| Failure::bad_request(format!("address not allowed: pod {name} has no address")))?
    };
    let unreachable = |error: &dyn std::fmt::Display| {
        let message = format!("error trying to reach service: dial tcp {address}:{port}: {error}");
        Failure::new(503, "ServiceUnavailable", message)
    };
    let stream = match tokio::time::timeout(CONNECT_TIME, TcpStream::connect((address, port))).await {
        Ok(connected) => connected.map_err(|error| unreachable(&error))?,
        Err(late) => return Err(unreachable(&late)),
    };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| unreachable(&error))?;
    tokio::spawn(connection);
    let query = asked.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut request = Request::builder().method(asked.method.clone()).uri(format!("/{}{query}", target.rest));
    for (header, value) in
        asked.headers.iter().filter(|(header, _)| !matches!(header.as_str(), "authorization" | "host"))
    {
        request = request.header(header, value);
    }
    let request = request
        .header("host", format!("{address}:{port}"))
        .body(Full::new(asked.body.clone()))
        .map_err(|error| Failure::bad_request(error.to_string()))?;
    let (parts, mut body) = sender.send_request(request).await.map_err(|error| unreachable(&error))?.into_parts();
    let (writer, answer) = written();
    tokio::spawn(async move {
        while let Some(frame) = body.frame().await {
            let chunk = match frame {
                Ok(frame) => frame.into_data().map_err(|_| std::io::ErrorKind::InvalidData.into()),
                Err(error) => Err(std::io::Error::other(error)),
            };
            if writer.send(chunk).await.is_err() {
                return;
            }
        }
    });
    let (mut head, body) = answer.into_parts();
    head.status = parts.status;
    head.headers = parts.headers;
    for hop_by_hop in ["connection", "keep-alive", "transfer-encoding"] {
        head.headers.remove(hop_by_hop);
    }
    Ok(Answer::from_parts(head, body))
}
