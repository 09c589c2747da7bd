//! Bytes carried both ways between two streams: half-close carried through, buffers that grow only while reads fill
//! them and are let go while nothing flows, an idle limit and a limit on the whole. Where much flows between two bare sockets
//! the kernel moves it ([`super::splice`]).

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use super::splice::{Pipe, Spliceable};
use crate::limits;

/// Why copying ended.
#[derive(Debug)]
pub enum End {
    /// Both sides have ended.
    Done,
    /// Reading from or writing to the downstream failed.
    Downstream(io::Error),
    /// Reading from or writing to the upstream failed.
    Upstream(io::Error),
    /// Nothing flowed for the idle time.
    Idle,
    /// The longest time a connection may last.
    Duration,
}

/// Bytes carried, also of a copy that failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// From the downstream to the upstream.
    pub received: u64,
    /// From the upstream to the downstream.
    pub sent: u64,
}

/// Limits of one copy.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Zero: none.
    pub idle: Duration,
    pub until: Option<Instant>,
}

/// Copies until both sides have ended, or one fails, or a limit is reached. The caller closes both.
pub async fn both_ways<D, U>(downstream: &mut D, upstream: &mut U, limits: Limits) -> (End, Carried)
where
    D: AsyncRead + AsyncWrite + Spliceable + Unpin,
    U: AsyncRead + AsyncWrite + Spliceable + Unpin,
{
    let mut up = OneWay::default();
    let mut down = OneWay::default();
    let mut clock = Clock::new(limits);
    let end = poll_fn(|cx| {
        let before = up.carried + down.carried;
        let there = up.poll(cx, downstream, upstream);
        let back = down.poll(cx, upstream, downstream);
        match (there, back) {
            (Poll::Ready(Err(Side::Reading(error))), _) | (_, Poll::Ready(Err(Side::Writing(error)))) => {
                return Poll::Ready(End::Downstream(error));
            }
            (Poll::Ready(Err(Side::Writing(error))), _) | (_, Poll::Ready(Err(Side::Reading(error)))) => {
                return Poll::Ready(End::Upstream(error));
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(End::Done),
            _ => {}
        }
        if up.carried + down.carried != before {
            clock.traffic();
        }
        let over = ready!(clock.poll(cx, [&mut up, &mut down]));
        Poll::Ready(over)
    })
    .await;
    (end, Carried { received: up.carried, sent: down.carried })
}

/// Wakes at the idle limit, at the limit on the whole, and a while after traffic stopped to let buffers go. One timer
/// serves all three. It is not moved with each byte: it looks, when it fires, at when the last one came.
struct Clock {
    limits: Limits,
    active: Instant,
    /// Traffic has stopped and the buffers are gone.
    resting: bool,
    sleep: Pin<Box<Sleep>>,
}

impl Clock {
    fn new(limits: Limits) -> Self {
        let now = Instant::now();
        let mut clock = Self { limits, active: now, resting: false, sleep: Box::pin(sleep_until(now)) };
        clock.set();
        clock
    }

    fn traffic(&mut self) {
        self.active = Instant::now();
        if self.resting {
            self.resting = false;
            self.set();
        }
    }

    fn set(&mut self) {
        let mut next = self.limits.until;
        let mut sooner = |at: Instant| next = Some(next.map_or(at, |next| next.min(at)));
        if !self.resting {
            sooner(self.active + limits::COPY_REST);
        }
        if !self.limits.idle.is_zero() {
            sooner(self.active + self.limits.idle);
        }
        // With no limit at all the connection is looked at once in a long while.
        self.sleep.as_mut().reset(next.unwrap_or(self.active + limits::IDLE_TIMEOUT));
    }

    fn poll(&mut self, cx: &mut Context<'_>, ways: [&mut OneWay; 2]) -> Poll<End> {
        ready!(self.sleep.as_mut().poll(cx));
        let now = Instant::now();
        if self.limits.until.is_some_and(|until| now >= until) {
            return Poll::Ready(End::Duration);
        }
        let rested = now.duration_since(self.active);
        if !self.limits.idle.is_zero() && rested >= self.limits.idle {
            return Poll::Ready(End::Idle);
        }
        if rested >= limits::COPY_REST {
            ways.into_iter().for_each(OneWay::rest);
            self.resting = true;
        }
        self.set();
        // The timer was moved: it must be polled once more to wake this task.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Which side of one direction failed.
enum Side {
    Reading(io::Error),
    Writing(io::Error),
}

#[derive(Default)]
struct OneWay {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// The size that the next buffer gets.
    size: usize,
    /// In place of the buffer, while much flows between bare sockets.
    pipe: Option<Pipe>,
    /// No pipe was to be had.
    no_pipe: bool,
    carried: u64,
    read_done: bool,
    unflushed: bool,
    finished: bool,
}

impl OneWay {
    fn poll<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut W) -> Poll<Result<(), Side>>
    where
        R: AsyncRead + Spliceable + Unpin,
        W: AsyncWrite + Spliceable + Unpin,
    {
        // A fast pair of streams must not keep the other direction and the clock waiting.
        for _ in 0..limits::COPY_ROUNDS {
            if self.finished {
                return Poll::Ready(Ok(()));
            }
            if let (Some(pipe), Some(to)) = (&mut self.pipe, writer.socket()) {
                while !pipe.is_empty() {
                    self.carried += ready!(pipe.poll_drain(cx, to)).map_err(Side::Writing)? as u64;
                }
            }
            if self.start == self.end && !self.read_done && self.poll_fill(cx, reader, writer)?.is_pending() {
                if self.unflushed {
                    ready!(Pin::new(&mut *writer).poll_flush(cx)).map_err(Side::Writing)?;
                    self.unflushed = false;
                }
                return Poll::Pending;
            }
            while self.start < self.end {
                let chunk = &self.buffer[self.start..self.end];
                let count = ready!(Pin::new(&mut *writer).poll_write(cx, chunk)).map_err(Side::Writing)?;
                if count == 0 {
                    return Poll::Ready(Err(Side::Writing(io::ErrorKind::WriteZero.into())));
                }
                self.start += count;
                self.carried += count as u64;
                self.unflushed = true;
            }
            if self.read_done {
                ready!(Pin::new(&mut *writer).poll_shutdown(cx)).map_err(Side::Writing)?;
                self.buffer = Vec::new();
                self.pipe = None;
                self.finished = true;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_fill<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &W) -> Result<Poll<()>, Side>
    where
        R: AsyncRead + Spliceable + Unpin,
        W: Spliceable,
    {
        if self.size >= limits::COPY_SPLICE
            && let (Some(from), Some(_)) = (reader.socket(), writer.socket())
            && let Some(pipe) = self.pipe()
        {
            let filled = pipe.poll_fill(cx, from).map_err(Side::Reading)?;
            return Ok(filled.map(|count| self.read_done = count == 0));
        }
        self.size = self.size.max(limits::COPY_BUFFER_LEAST);
        if self.buffer.len() < self.size {
            self.buffer = vec![0; self.size];
        }
        let mut room = ReadBuf::new(&mut self.buffer);
        match Pin::new(reader).poll_read(cx, &mut room) {
            Poll::Pending => {
                if self.buffer.len() <= limits::COPY_BUFFER_LEAST {
                    // Cheap to get again, and an idle connection holds none.
                    self.buffer = Vec::new();
                }
                Ok(Poll::Pending)
            }
            Poll::Ready(Err(error)) => Err(Side::Reading(error)),
            Poll::Ready(Ok(())) => {
                let count = room.filled().len();
                (self.start, self.end) = (0, count);
                self.read_done = count == 0;
                if count == self.buffer.len() {
                    self.size = (self.size * 2).min(limits::COPY_BUFFER_MOST);
                }
                Ok(Poll::Ready(()))
            }
        }
    }

    /// The pipe, where one can be had. From then on there is no buffer.
    fn pipe(&mut self) -> Option<&mut Pipe> {
        if self.pipe.is_none() && !self.no_pipe {
            match Pipe::new() {
                Ok(pipe) => {
                    self.pipe = Some(pipe);
                    self.buffer = Vec::new();
                }
                Err(error) => {
                    log::debug!("bytes are copied, as there is no pipe for them: {error}");
                    self.no_pipe = true;
                }
            }
        }
        self.pipe.as_mut()
    }

    /// Nothing flows: lets buffer and pipe go, unless the other side is slow to take what is in them.
    fn rest(&mut self) {
        if self.start == self.end && self.pipe.as_ref().is_none_or(Pipe::is_empty) {
            self.buffer = Vec::new();
            self.pipe = None;
            self.size = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, Sink, duplex},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    impl Spliceable for DuplexStream {}
    impl Spliceable for &[u8] {}
    impl Spliceable for Sink {}

    impl Spliceable for TcpStream {
        fn socket(&self) -> Option<&TcpStream> {
            Some(self)
        }
    }

    /// Both ends of a connection over loopback.
    async fn tcp() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    fn data(bytes: u32) -> Vec<u8> {
        (0..bytes).map(|i| ((i * 31) >> 3) as u8).collect()
    }

    const NONE: Limits = Limits { idle: Duration::ZERO, until: None };

    #[tokio::test]
    async fn half_close_is_carried_each_way() {
        let (mut client, mut client_side) = duplex(64);
        let (mut server, mut server_side) = duplex(64);
        let copy = tokio::spawn(async move { both_ways(&mut client_side, &mut server_side, NONE).await });
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = String::new();
        server.read_to_string(&mut question).await.unwrap();
        assert_eq!(question, "question");
        // The client has ended its side; the answer still comes.
        server.write_all(b"the answer").await.unwrap();
        server.shutdown().await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "the answer");
        let (end, carried) = copy.await.unwrap();
        assert!(matches!(end, End::Done));
        assert_eq!(carried, Carried { received: 8, sent: 10 });
    }

    #[tokio::test]
    async fn much_data_through_a_slow_reader_stays_whole() {
        let (mut client, mut client_side) = duplex(1 << 20);
        let (mut server, mut server_side) = duplex(100);
        let copy = tokio::spawn(async move { both_ways(&mut client_side, &mut server_side, NONE).await });
        let data = data(3_000_000);
        let expected = data.clone();
        tokio::spawn(async move {
            client.write_all(&data).await.unwrap();
            client.shutdown().await.unwrap();
            let _ = client.read(&mut [0]).await;
        });
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.unwrap();
        assert!(got == expected);
        drop(server);
        assert_eq!(copy.await.unwrap().1.received, 3_000_000);
    }

    #[tokio::test(start_paused = true)]
    async fn idle_counts_from_the_last_byte() {
        let (mut client, mut client_side) = duplex(64);
        let (_server, mut server_side) = duplex(64);
        let idle = Duration::from_secs(60);
        let started = Instant::now();
        let copy = tokio::spawn(async move {
            let end = both_ways(&mut client_side, &mut server_side, Limits { idle, until: None }).await;
            (end, Instant::now())
        });
        tokio::time::sleep(Duration::from_secs(40)).await;
        client.write_all(b"x").await.unwrap();
        let ((end, _), ended) = copy.await.unwrap();
        assert!(matches!(end, End::Idle));
        assert_eq!(ended - started, Duration::from_secs(100));
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_time_shorter_than_the_rest_is_kept() {
        let (_client, mut client_side) = duplex(64);
        let (_server, mut server_side) = duplex(64);
        let started = Instant::now();
        let limits = Limits { idle: Duration::from_millis(200), until: None };
        let (end, _) = both_ways(&mut client_side, &mut server_side, limits).await;
        assert!(matches!(end, End::Idle));
        assert!(started.elapsed() < Duration::from_millis(250), "{:?}", started.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_duration_ends_a_busy_connection() {
        let (mut client, mut client_side) = duplex(64);
        let (mut server, mut server_side) = duplex(64);
        let started = Instant::now();
        tokio::spawn(async move {
            while client.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(10)).await
            }
        });
        tokio::spawn(async move { tokio::io::copy(&mut server, &mut tokio::io::sink()).await });
        let limits = Limits { idle: Duration::from_secs(3600), until: Some(started + Duration::from_secs(5)) };
        let (end, carried) = both_ways(&mut client_side, &mut server_side, limits).await;
        assert!(matches!(end, End::Duration));
        assert_eq!(started.elapsed(), Duration::from_secs(5));
        assert!(carried.received > 400);
    }

    #[tokio::test]
    async fn buffers_grow_only_while_full_and_are_let_go() {
        let mut way = OneWay::default();
        let data = vec![7; 1 << 20];
        let mut reader = data.as_slice();
        poll_fn(|cx| way.poll(cx, &mut reader, &mut tokio::io::sink())).await.map_err(|_| ()).unwrap();
        assert_eq!(way.carried, 1 << 20);
        assert_eq!(way.size, limits::COPY_BUFFER_MOST);
        let mut small = OneWay::default();
        let mut reader = &data[..100];
        poll_fn(|cx| small.poll(cx, &mut reader, &mut tokio::io::sink())).await.map_err(|_| ()).unwrap();
        assert_eq!(small.size, limits::COPY_BUFFER_LEAST);
        assert!(small.buffer.is_empty());
    }

    /// Between sockets the kernel moves the bytes; what a slow reader has not taken waits, and the answer comes after the end
    /// of the other side.
    #[tokio::test]
    async fn much_data_between_sockets_stays_whole() {
        let (mut client, mut client_side) = tcp().await;
        let (mut server, mut server_side) = tcp().await;
        let copy = tokio::spawn(async move { both_ways(&mut client_side, &mut server_side, NONE).await });
        let data = data(20_000_000);
        let expected = data.clone();
        let asking = tokio::spawn(async move {
            client.write_all(&data).await.unwrap();
            client.shutdown().await.unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            answer
        });
        let mut got = vec![0; 5_000_000];
        server.read_exact(&mut got).await.unwrap();
        // All buffers between the two are full now.
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.read_to_end(&mut got).await.unwrap();
        assert!(got == expected);
        server.write_all(&got[..9_000_000]).await.unwrap();
        drop(server);
        assert!(asking.await.unwrap() == expected[..9_000_000]);
        let (end, carried) = copy.await.unwrap();
        assert!(matches!(end, End::Done), "{end:?}");
        assert_eq!(carried, Carried { received: 20_000_000, sent: 9_000_000 });
    }

    #[tokio::test]
    async fn a_reset_between_sockets_is_told_with_its_side() {
        for upstream in [true, false] {
            let (mut sending, mut near) = tcp().await;
            let (mut receiving, mut far) = tcp().await;
            let copy = tokio::spawn(async move {
                if upstream {
                    both_ways(&mut near, &mut far, NONE).await
                } else {
                    both_ways(&mut far, &mut near, NONE).await
                }
            });
            let flood = tokio::spawn(async move { while sending.write_all(&[7; 100_000]).await.is_ok() {} });
            receiving.read_exact(&mut vec![0; 10_000_000]).await.unwrap();
            super::super::stream::reset_on_close(&receiving);
            drop(receiving);
            let (end, carried) = copy.await.unwrap();
            assert!(matches!((upstream, &end), (true, End::Upstream(_)) | (false, End::Downstream(_))), "{end:?}");
            assert!(carried.received.max(carried.sent) >= 10_000_000);
            flood.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_pipe_is_held_only_while_much_flows() {
        let (mut client, mut near) = tcp().await;
        let (mut far, mut server) = tcp().await;
        let mut way = OneWay::default();
        let writer = tokio::spawn(async move {
            client.write_all(&vec![7; 5_000_000]).await.unwrap();
            client
        });
        let reader = tokio::spawn(async move {
            server.read_exact(&mut vec![0; 5_000_000]).await.unwrap();
            server
        });
        poll_fn(|cx| match way.poll(cx, &mut near, &mut far) {
            Poll::Pending if way.carried == 5_000_000 => Poll::Ready(()),
            Poll::Pending => Poll::Pending,
            Poll::Ready(_) => panic!("nobody has ended"),
        })
        .await;
        assert!(way.pipe.is_some() && way.buffer.is_empty());
        way.rest();
        assert!(way.pipe.is_none() && way.size == 0);
        drop((writer.await.unwrap(), reader.await.unwrap()));
    }
}
