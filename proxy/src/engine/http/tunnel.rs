//! What follows a `101 Switching Protocols` (WebSocket and the like): bytes, both ways, until both sides have ended.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{Connection, log::RequestLog, pool::Lease};
use crate::telemetry::record::Flag;

/// Copies until both ends are through; then the record is written and the upstream connection let go.
pub fn open(of: Arc<Connection>, down: OnUpgrade, up: OnUpgrade, mut log: Box<RequestLog>, lease: Lease) {
    let in_flight = of.engine.enter();
    tokio::spawn(async move {
        let (received, sent) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let run = async {
            let (down, up) = tokio::try_join!(down, up).map_err(std::io::Error::other)?;
            let (down_read, down_write) = tokio::io::split(TokioIo::new(down));
            let (up_read, up_write) = tokio::io::split(TokioIo::new(up));
            tokio::try_join!(copy(down_read, up_write, &received), copy(up_read, down_write, &sent))?;
            Ok::<(), std::io::Error>(())
        };
        tokio::select! {
            result = run => if let Err(error) = result {
                log.flag(Flag::UC);
                log.with(|record| record.connection_termination_details = Some(error.to_string()));
            },
            () = of.pod.closed.cancelled() => log.flag(Flag::UC),
        }
        log.with(|record| record.bytes_received = received.load(Ordering::Relaxed));
        log.finish(sent.load(Ordering::Relaxed));
        drop((lease, in_flight));
    });
}

/// One direction; its end is passed on as a half-close.
async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    count: &AtomicU64,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..read]).await?;
        to.flush().await?;
        count.fetch_add(read as u64, Ordering::Relaxed);
    }
}
