//! Finds configuration files and reads them: what is there now, without watching.

use std::{
    collections::{BTreeSet, HashSet},
    ffi::OsStr,
    fs, io,
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::store::{Content, FileChange};
use crate::limits;

/// Why configuration cannot be read from the start.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A PATH of the command line is not there: most likely it is misspelt.
    #[error("{path}: no such file or folder; --config takes files and folders that exist")]
    Missing { path: PathBuf },
    /// It is there and cannot be looked at.
    #[error("{path}: {source}")]
    Unreadable { path: PathBuf, source: io::Error },
}

/// What the roots hold.
#[derive(Debug, Default)]
pub struct Listing {
    pub files: BTreeSet<PathBuf>,
    /// Every folder looked into, roots included.
    pub folders: BTreeSet<PathBuf>,
    /// Folders that are there and cannot be read: nothing is known about what is beneath them.
    pub unreadable: Vec<(PathBuf, io::Error)>,
    /// Links in folders that lead nowhere now.
    pub dangling: Vec<PathBuf>,
    /// Roots that are not there.
    pub missing: Vec<PathBuf>,
}

/// Lists every configuration file of files and folders. In a folder these are `*.yaml`, `*.yml` and `*.json`, in its
/// subfolders too; names that start with a dot (`..data` of a Kubernetes mount, an editor's swap file) are passed over, the
/// links that lead into `..data` are followed.
#[must_use]
pub fn list(roots: &[PathBuf]) -> Listing {
    let mut listing = Listing::default();
    let mut visited = HashSet::new();
    for root in roots {
        match fs::metadata(root) {
            Ok(meta) if meta.is_dir() => folder(root, &meta, &mut visited, &mut listing),
            Ok(_) => drop(listing.files.insert(root.clone())),
            Err(error) if gone(&error) => listing.missing.push(root.clone()),
            Err(error) => listing.unreadable.push((root.clone(), error)),
        }
    }
    listing
}

fn folder(path: &Path, meta: &fs::Metadata, visited: &mut HashSet<(u64, u64)>, listing: &mut Listing) {
    // A link to an enclosing folder would lead around for ever.
    if !visited.insert((meta.dev(), meta.ino())) {
        return;
    }
    listing.folders.insert(path.to_owned());
    let entries = match fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>) {
        Ok(entries) => entries,
        Err(error) if gone(&error) => return,
        Err(error) => return listing.unreadable.push((path.to_owned(), error)),
    };
    let mut names: Vec<_> = entries.into_iter().map(|entry| entry.file_name()).collect();
    names.sort();
    for name in names.iter().filter(|name| !hidden(name)) {
        let path = path.join(name);
        match fs::metadata(&path) {
            Ok(meta) if meta.is_dir() => folder(&path, &meta, visited, listing),
            Ok(_) if is_configuration(&path) => drop(listing.files.insert(path)),
            Err(error) if gone(&error) => listing.dangling.push(path),
            _ => {}
        }
    }
}

/// Names that start with a dot.
fn hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

/// True of a name that files with configuration have, where it does not start with a dot.
#[must_use]
pub fn is_configuration(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml" || extension == "json")
}

/// True where the path, or a part of it, is not there.
#[must_use]
pub fn gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Every file of the roots with its content, as `egret check` wants them.
///
/// # Errors
/// A root that is missing or cannot be looked at.
pub fn load(roots: &[PathBuf]) -> Result<Vec<FileChange>, FilesError> {
    let listing = start(roots)?;
    Ok(listing.files.into_iter().map(|path| FileChange { content: Some(Content::Text(read(&path))), path }).collect())
}

/// A listing that holds all of its roots.
///
/// # Errors
/// A root that is missing or cannot be looked at.
pub fn start(roots: &[PathBuf]) -> Result<Listing, FilesError> {
    let mut listing = list(roots);
    if let Some(path) = listing.missing.pop() {
        return Err(FilesError::Missing { path });
    }
    match listing.unreadable.pop() {
        Some((path, source)) => Err(FilesError::Unreadable { path, source }),
        None => Ok(listing),
    }
}

/// Reads a regular file, bounded.
///
/// # Errors
/// Those of the file system; `InvalidData` for a pipe or device, `FileTooLarge` beyond [`limits::CONFIG_FILE_BYTES`].
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    // Opening a pipe would wait for its writer.
    let meta = fs::metadata(path)?;
    if !meta.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "is not a regular file"));
    }
    let room = meta.len().min(limits::CONFIG_FILE_BYTES) + 1;
    let mut content = Vec::with_capacity(usize::try_from(room).unwrap_or_default());
    fs::File::open(path)?.take(limits::CONFIG_FILE_BYTES + 1).read_to_end(&mut content)?;
    if content.len() as u64 > limits::CONFIG_FILE_BYTES {
        let message = format!("is larger than {} MiB", limits::CONFIG_FILE_BYTES / 1024 / 1024);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(content)
}

/// What `stat` says of a file: where two are equal, so is the content, unless the file was written a moment ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// None where the file is not there (or cannot be looked at).
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        let meta = fs::metadata(path).ok()?;
        let (modified, changed) = ((meta.mtime(), meta.mtime_nsec()), (meta.ctime(), meta.ctime_nsec()));
        Some(Self { device: meta.dev(), inode: meta.ino(), size: meta.size(), modified, changed })
    }

    /// True where the file changed within `age`: clocks of file systems are coarse, and two writes may bear one time.
    #[must_use]
    pub fn younger(&self, age: Duration) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let since = |(seconds, nanos): (i64, i64)| {
            let at =
                Duration::new(u64::try_from(seconds).unwrap_or_default(), u32::try_from(nanos).unwrap_or_default());
            now.saturating_sub(at)
        };
        since(self.modified) < age || since(self.changed) < age
    }
}
