//! Where access-log lines go: standard output, standard error or a file, written by one thread.
//!
//! Between the data path and that thread lies a buffer bounded in bytes. A full buffer drops lines and counts them; the
//! data path never waits for a disk or for a reader. Nor does it wake the thread for each line: the first one after a
//! silence is written at once, then lines gather for a moment ([`ACCESS_LOG_PAUSE`]) before the thread looks again.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::{
        fd::AsFd as _,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use crate::limits::{ACCESS_LOG_BUFFER, ACCESS_LOG_FILE_CHECK, ACCESS_LOG_PAUSE};

/// The writing end that the data path sees. Dropping it lets the thread write what is left and end.
pub struct Output {
    shared: Arc<Shared>,
    path: PathBuf,
}

struct Shared {
    queue: Mutex<Queue>,
    /// The thread waits here for lines, and between two batches of them.
    filled: Condvar,
    /// [`Output::flush`] waits here.
    written: Condvar,
    reopen: AtomicBool,
    dropped: Arc<AtomicU64>,
}

#[derive(Default)]
struct Queue {
    lines: Vec<u8>,
    thread: Thread,
    /// Somebody waits for the lines to be written.
    hurry: bool,
    closed: bool,
}

/// What the thread does.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Thread {
    /// It writes what it took, or is about to look for more: no need to wake it.
    #[default]
    Awake,
    Writing,
    /// It lets lines gather, and looks by itself.
    Resting,
    /// It waits for the next line.
    Asleep,
}

impl Queue {
    /// Nothing handed over is left to be written.
    fn is_settled(&self) -> bool {
        self.lines.is_empty() && self.thread != Thread::Writing
    }

    /// No more gathering.
    fn is_urgent(&self) -> bool {
        self.hurry || self.closed || self.lines.len() >= ACCESS_LOG_BUFFER / 2
    }
}

impl Output {
    /// Starts the thread. The file is opened by it, so a FIFO without a reader or a dead network file system holds up
    /// nothing else; only a thread that cannot be started is an error.
    pub fn start(path: &Path, dropped: Arc<AtomicU64>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            filled: Condvar::new(),
            written: Condvar::new(),
            reopen: AtomicBool::new(false),
            dropped,
        });
        let writer = Writer { shared: shared.clone(), place: Place::new(path), mid_line: false, failing: false };
        std::thread::Builder::new().name("access-log".to_owned()).spawn(move || writer.run())?;
        Ok(Self { shared, path: path.to_owned() })
    }

    /// The path this output was started with.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Hands one whole line over.
    pub fn push(&self, line: &[u8]) {
        let mut queue = self.shared.queue.lock();
        if queue.lines.len() + line.len() > ACCESS_LOG_BUFFER {
            drop(queue);
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let was_urgent = queue.is_urgent();
        queue.lines.extend_from_slice(line);
        let wake = match queue.thread {
            Thread::Asleep => true,
            Thread::Resting => !was_urgent && queue.is_urgent(),
            Thread::Awake | Thread::Writing => false,
        };
        if wake {
            queue.thread = Thread::Awake;
        }
        drop(queue);
        if wake {
            self.shared.filled.notify_one();
        }
    }

    /// Opens the file anew before the next line (log rotation).
    pub fn reopen(&self) {
        self.shared.reopen.store(true, Ordering::Release);
    }

    /// Waits until all lines handed over are written, `limit` at most; answers whether they are.
    pub fn flush(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut queue = self.shared.queue.lock();
        while !queue.is_settled() {
            queue.hurry = true;
            self.shared.filled.notify_one();
            if self.shared.written.wait_until(&mut queue, deadline).timed_out() {
                return queue.is_settled();
            }
        }
        true
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared.filled.notify_one();
    }
}

/// The thread's side.
struct Writer {
    shared: Arc<Shared>,
    place: Place,
    /// The last write broke off inside a line.
    mid_line: bool,
    /// The last attempt failed and was said; said again only once it has worked in between.
    failing: bool,
}

impl Writer {
    fn run(mut self) {
        let mut batch = Vec::new();
        while self.take(&mut batch) {
            let result = self.write(&batch);
            self.settle(result);
            batch.clear();
        }
    }

    /// Waits for lines and takes them; false: there will be none.
    fn take(&self, batch: &mut Vec<u8>) -> bool {
        let mut queue = self.shared.queue.lock();
        if queue.thread == Thread::Writing {
            queue.thread = Thread::Resting;
            if queue.lines.is_empty() {
                self.shared.written.notify_all();
            }
            let rested = Instant::now() + ACCESS_LOG_PAUSE;
            while !queue.is_urgent() && !self.shared.filled.wait_until(&mut queue, rested).timed_out() {}
        }
        if queue.lines.is_empty() {
            // A silence: the memory goes back.
            *batch = Vec::new();
            queue.lines = Vec::new();
        }
        while queue.lines.is_empty() {
            if queue.closed {
                return false;
            }
            queue.thread = Thread::Asleep;
            self.shared.filled.wait(&mut queue);
        }
        queue.thread = Thread::Writing;
        queue.hurry = false;
        std::mem::swap(&mut queue.lines, batch);
        true
    }

    /// Writes a batch; on failure answers how many lines of it were lost.
    fn write(&mut self, batch: &[u8]) -> Result<(), (io::Error, u64)> {
        let reopen = self.shared.reopen.swap(false, Ordering::AcqRel);
        let file = self.place.file(reopen).map_err(|error| (error, count_lines(batch)))?;
        let mut rest = batch;
        if self.mid_line {
            // Best effort: should it fail, so does the write below, which is accounted for.
            let _ = file.write(b"\n");
            self.mid_line = false;
        }
        while !rest.is_empty() {
            match file.write(rest) {
                Ok(0) => return Err((io::ErrorKind::WriteZero.into(), count_lines(rest))),
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A FIFO that is full, or a pipe that another holder made non-blocking. Where the output was replaced
                // meanwhile, the thread does not wait for a reader that may never come.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !self.shared.queue.lock().closed => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => {
                    let done = batch.len() - rest.len();
                    self.mid_line = done > 0 && batch[done - 1] != b'\n';
                    return Err((error, count_lines(rest)));
                }
            }
        }
        Ok(())
    }

    fn settle(&mut self, result: Result<(), (io::Error, u64)>) {
        match result {
            Ok(()) => self.failing = false,
            Err((error, lost)) => {
                self.shared.dropped.fetch_add(lost, Ordering::Relaxed);
                self.place.forget();
                if !std::mem::replace(&mut self.failing, true) {
                    log::warn!(
                        "access log: cannot write to {}: {error}; its lines are dropped until that works again",
                        self.place.path.display()
                    );
                }
            }
        }
    }
}

fn count_lines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|byte| **byte == b'\n').count() as u64
}

/// The open file behind a path.
struct Place {
    path: PathBuf,
    kind: Kind,
    open: Option<Open>,
}

enum Kind {
    Stdout,
    Stderr,
    File,
}

struct Open {
    file: File,
    /// Device and inode, to see that the file was rotated away.
    identity: (u64, u64),
    checked: Instant,
}

impl Place {
    fn new(path: &Path) -> Self {
        let kind = match path.to_str() {
            Some("/dev/stdout" | "/proc/self/fd/1" | "/dev/fd/1") => Kind::Stdout,
            Some("/dev/stderr" | "/proc/self/fd/2" | "/dev/fd/2") => Kind::Stderr,
            _ => Kind::File,
        };
        Self { path: path.to_owned(), kind, open: None }
    }

    /// The file, opened where need be: at first, when asked to, or when the path leads to another file by now.
    fn file(&mut self, reopen: bool) -> io::Result<&mut File> {
        if matches!(self.kind, Kind::File)
            && let Some(open) = &mut self.open
            && (reopen || open.checked.elapsed() >= ACCESS_LOG_FILE_CHECK)
        {
            open.checked = Instant::now();
            let same = std::fs::metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == open.identity);
            if reopen || !same {
                self.open = None;
            }
        }
        let open = match self.open.take() {
            Some(open) => open,
            None => self.open()?,
        };
        Ok(&mut self.open.insert(open).file)
    }

    fn open(&self) -> io::Result<Open> {
        let file = match self.kind {
            // A duplicate of the descriptor: opening /dev/stdout fails where it is a socket, as under systemd.
            Kind::Stdout => File::from(io::stdout().as_fd().try_clone_to_owned()?),
            Kind::Stderr => File::from(io::stderr().as_fd().try_clone_to_owned()?),
            // Request paths may hold tokens: not for everybody to read. O_NONBLOCK: a FIFO without a reader is an error
            // (its lines are counted as dropped) and not a wait without end; on regular files it means nothing.
            Kind::File => OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o640)
                .custom_flags(libc::O_NONBLOCK)
                .open(&self.path)?,
        };
        let metadata = file.metadata()?;
        Ok(Open { file, identity: (metadata.dev(), metadata.ino()), checked: Instant::now() })
    }

    /// After a failure: the next line tries from the start.
    fn forget(&mut self) {
        self.open = None;
    }
}
