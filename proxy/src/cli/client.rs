//! Asks the agent of this machine.

use std::{io, net::SocketAddr};

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;

use crate::limits::{CLI_ANSWER_BYTES, CLI_TIME};

/// A running agent that can be asked.
pub trait Ask {
    /// The body of a GET that was answered 200. Another status is an error whose text is the agent's own sentence.
    fn get(&self, path: &str) -> anyhow::Result<String>;
}

/// The agent behind an admin address.
pub struct Agent {
    pub address: SocketAddr,
}

impl Ask for Agent {
    fn get(&self, path: &str) -> anyhow::Result<String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let answer = runtime.block_on(async { tokio::time::timeout(CLI_TIME, self.fetch(path)).await });
        answer.unwrap_or_else(|_| {
            anyhow::bail!(
                "the agent on {} does not answer within {} s: look at its log",
                self.address,
                CLI_TIME.as_secs()
            )
        })
    }
}

impl Agent {
    async fn fetch(&self, path: &str) -> anyhow::Result<String> {
        let stream = tokio::net::TcpStream::connect(self.address).await.map_err(|error| self.absent(&error))?;
        let strange = || format!("what listens on {} is no egret agent: say where it is with --admin", self.address);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.with_context(strange)?;
        let connection = tokio::spawn(connection);
        let request = Request::get(path)
            .header(header::HOST, self.address.to_string())
            .header(header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await.with_context(strange)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), CLI_ANSWER_BYTES).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("the agent's answer broke off: {error}"))?.to_bytes();
        connection.abort();
        let body = String::from_utf8(body.to_vec()).with_context(strange)?;
        if !status.is_success() {
            anyhow::bail!("{}", body.trim_end());
        }
        Ok(body)
    }

    fn absent(&self, error: &io::Error) -> anyhow::Error {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => anyhow::anyhow!(
                "no agent runs on {}: start one with `egret run --config PATH`, or say with --admin where it listens",
                self.address
            ),
            _ => anyhow::anyhow!("cannot reach the agent on {}: {error}", self.address),
        }
    }
}
