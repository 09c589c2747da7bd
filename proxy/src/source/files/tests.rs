//! Real files, real inotify: what editors, people and Kubernetes do to configuration.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use tempfile::TempDir;
use tokio::time::{Instant, timeout};

use super::{Changes, Files, FilesError};
use crate::{limits, source::Content};

/// Far longer than any change takes, short enough for a test.
const SOON: Duration = Duration::from_secs(5);

fn folder() -> TempDir {
    tempfile::tempdir().expect("temporary folder")
}

fn open(root: &Path) -> (Files, Vec<String>) {
    let (files, first) = Files::open(vec![root.to_owned()]).expect("open");
    (files, told(root, &Changes { files: first, extra: Vec::new() }))
}

/// Changes as `name=content`, `name gone` or `name!error`, relative to the root; certificates as `+name`.
fn told(root: &Path, changes: &Changes) -> Vec<String> {
    let name = |path: &PathBuf| path.strip_prefix(root).unwrap_or(path).display().to_string();
    let files = changes.files.iter().map(|change| match &change.content {
        Some(Content::Text(Ok(content))) => format!("{}={}", name(&change.path), String::from_utf8_lossy(content)),
        Some(Content::Text(Err(error))) => format!("{}!{error}", name(&change.path)),
        Some(Content::Object(_)) => unreachable!("files hold text"),
        None => format!("{} gone", name(&change.path)),
    });
    files.chain(changes.extra.iter().map(|path| format!("+{}", name(path)))).collect()
}

async fn next(root: &Path, files: &mut Files) -> Vec<String> {
    told(root, &timeout(SOON, files.next()).await.expect("a change within time"))
}

/// Asserts that nothing is told for a while.
async fn quiet(root: &Path, files: &mut Files) {
    if let Ok(changes) = timeout(limits::RELOAD_QUIET * 4, files.next()).await {
        panic!("unexpected {:?}", told(root, &changes));
    }
}

#[tokio::test]
async fn a_folder_is_read_and_its_files_come_change_and_go() {
    let dir = folder();
    let root = dir.path();
    fs::write(root.join("b.yaml"), "b").unwrap();
    fs::write(root.join("a.json"), "a").unwrap();
    fs::write(root.join("notes.txt"), "no").unwrap();
    fs::write(root.join(".b.yaml.swp"), "no").unwrap();
    fs::create_dir_all(root.join("sub/.git")).unwrap();
    fs::write(root.join("sub/c.yml"), "c").unwrap();
    fs::write(root.join("sub/.git/d.yaml"), "no").unwrap();
    let (mut files, first) = open(root);
    assert_eq!(first, ["a.json=a", "b.yaml=b", "sub/c.yml=c"]);

    fs::write(root.join("b.yaml"), "b2").unwrap();
    assert_eq!(next(root, &mut files).await, ["b.yaml=b2"]);
    fs::write(root.join("sub/e.yaml"), "e").unwrap();
    fs::remove_file(root.join("a.json")).unwrap();
    assert_eq!(next(root, &mut files).await, ["sub/e.yaml=e", "a.json gone"], "one batch");
    fs::write(root.join("notes.txt"), "still not").unwrap();
    fs::write(root.join("b.yaml"), "b2").unwrap();
    quiet(root, &mut files).await;
}

#[tokio::test]
async fn an_editors_rename_and_replace_is_one_change_of_the_new_content() {
    let dir = folder();
    let path = dir.path().join("mesh.yaml");
    fs::write(&path, "old").unwrap();
    let (mut files, first) = open(&path);
    assert_eq!(first, ["=old"]);
    for round in 0..3 {
        // vim: the old file becomes a backup, a new one takes its name, the backup goes.
        fs::rename(&path, dir.path().join("mesh.yaml~")).unwrap();
        fs::write(&path, format!("new{round}")).unwrap();
        fs::remove_file(dir.path().join("mesh.yaml~")).unwrap();
        assert_eq!(next(&path, &mut files).await, [format!("=new{round}")]);
        // Others write beside it and rename over it.
        fs::write(dir.path().join("tmp"), format!("over{round}")).unwrap();
        fs::rename(dir.path().join("tmp"), &path).unwrap();
        assert_eq!(next(&path, &mut files).await, [format!("=over{round}")]);
    }
    fs::write(dir.path().join("other.yaml"), "not ours").unwrap();
    quiet(&path, &mut files).await;
}

/// Builds what the kubelet mounts: `x.yaml -> ..data/x.yaml`, `..data -> ..<time>`, and swaps `..data` atomically.
fn kubelet(root: &Path, time: &str, content: &str) {
    fs::create_dir(root.join(time)).unwrap();
    fs::write(root.join(time).join("x.yaml"), content).unwrap();
    symlink(time, root.join("..data_tmp")).unwrap();
    fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
}

#[tokio::test]
async fn a_kubernetes_mount_is_swapped_as_one() {
    let dir = folder();
    let root = dir.path();
    kubelet(root, "..1", "one");
    symlink("..data/x.yaml", root.join("x.yaml")).unwrap();
    let (mut files, first) = open(root);
    assert_eq!(first, ["x.yaml=one"]);
    for round in 2..5 {
        kubelet(root, &format!("..{round}"), &format!("v{round}"));
        fs::remove_dir_all(root.join(format!("..{}", round - 1))).unwrap();
        assert_eq!(next(root, &mut files).await, [format!("x.yaml=v{round}")]);
    }
    // The same mount again, its one file named by itself, as `--config /etc/egret/x.yaml`.
    let path = root.join("x.yaml");
    let (mut files, _) = open(&path);
    kubelet(root, "..9", "nine");
    assert_eq!(next(&path, &mut files).await, ["=nine"]);
}

#[tokio::test]
async fn a_link_to_a_file_elsewhere_is_followed_to_its_end() {
    let dir = folder();
    let root = dir.path().join("config");
    let elsewhere = dir.path().join("elsewhere");
    fs::create_dir(&root).unwrap();
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("real"), "1").unwrap();
    symlink("../elsewhere/real", root.join("a.yaml")).unwrap();
    let (mut files, first) = open(&root);
    assert_eq!(first, ["a.yaml=1"]);
    fs::write(elsewhere.join("real"), "2").unwrap();
    assert_eq!(next(&root, &mut files).await, ["a.yaml=2"]);
    // The target goes and comes back.
    fs::remove_file(elsewhere.join("real")).unwrap();
    assert_eq!(next(&root, &mut files).await, ["a.yaml gone"]);
    fs::write(elsewhere.join("real"), "3").unwrap();
    assert_eq!(next(&root, &mut files).await, ["a.yaml=3"]);
}

#[tokio::test]
async fn a_folder_removed_and_made_again_is_watched_again() {
    let dir = folder();
    let root = dir.path().join("conf.d");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("a.yaml"), "1").unwrap();
    let (mut files, _) = open(&root);
    fs::remove_dir_all(&root).unwrap();
    assert_eq!(next(&root, &mut files).await, ["a.yaml gone"]);
    fs::create_dir_all(root.join("deep/er")).unwrap();
    fs::write(root.join("deep/er/b.yaml"), "2").unwrap();
    assert_eq!(next(&root, &mut files).await, ["deep/er/b.yaml=2"]);
    fs::write(root.join("deep/er/b.yaml"), "3").unwrap();
    assert_eq!(next(&root, &mut files).await, ["deep/er/b.yaml=3"]);
    // Faster than it is looked at, under the same name: only the difference counts.
    fs::remove_dir_all(&root).unwrap();
    fs::create_dir_all(root.join("deep/er")).unwrap();
    fs::write(root.join("deep/er/b.yaml"), "3").unwrap();
    fs::write(root.join("c.yaml"), "4").unwrap();
    assert_eq!(next(&root, &mut files).await, ["c.yaml=4"]);
}

#[tokio::test]
async fn a_root_that_is_a_link_may_lead_elsewhere() {
    let dir = folder();
    for version in ["v1", "v2"] {
        fs::create_dir(dir.path().join(version)).unwrap();
        fs::write(dir.path().join(version).join("a.yaml"), version).unwrap();
    }
    let root = dir.path().join("current");
    symlink("v1", &root).unwrap();
    let (mut files, first) = open(&root);
    assert_eq!(first, ["a.yaml=v1"]);
    symlink("v2", dir.path().join("next")).unwrap();
    fs::rename(dir.path().join("next"), &root).unwrap();
    assert_eq!(next(&root, &mut files).await, ["a.yaml=v2"]);
    fs::write(dir.path().join("v2/a.yaml"), "v3").unwrap();
    assert_eq!(next(&root, &mut files).await, ["a.yaml=v3"]);
}

/// On a clock of its own: on a busy machine the writer might rest after all. (Events of files are there before it moves.)
#[tokio::test(start_paused = true)]
async fn changes_that_never_rest_are_told_all_the_same() {
    let dir = folder();
    let root = dir.path().to_owned();
    let (mut files, _) = open(&root);
    let writer = tokio::spawn({
        let root = root.clone();
        async move {
            for round in 0.. {
                fs::write(root.join("busy.yaml"), round.to_string()).unwrap();
                tokio::time::sleep(limits::RELOAD_QUIET / 4).await;
            }
        }
    });
    let start = Instant::now();
    next(&root, &mut files).await;
    let waited = start.elapsed();
    writer.abort();
    assert!(waited >= limits::RELOAD_LONGEST / 2, "it waited for rest first: {waited:?}");
    assert!(waited < limits::RELOAD_LONGEST * 3, "{waited:?}");
}

#[tokio::test]
async fn certificates_are_watched_apart_from_configuration() {
    let dir = folder();
    let root = dir.path().join("config");
    let certs = dir.path().join("certs");
    fs::create_dir(&root).unwrap();
    fs::create_dir(&certs).unwrap();
    fs::write(root.join("a.yaml"), "1").unwrap();
    let (mut files, _) = open(&root);
    let (present, absent) = (certs.join("tls.crt"), certs.join("later/ca.crt"));
    fs::write(&present, "x").unwrap();
    files.watch_extra(BTreeSet::from([present.clone(), absent.clone()]));
    // It was written a moment ago: its reader may have missed that, so it is told once.
    assert_eq!(next(&certs, &mut files).await, ["+tls.crt"]);
    quiet(&certs, &mut files).await;
    fs::write(&present, "y").unwrap();
    assert_eq!(next(&certs, &mut files).await, ["+tls.crt"]);
    fs::create_dir(certs.join("later")).unwrap();
    fs::write(&absent, "z").unwrap();
    assert_eq!(next(&certs, &mut files).await, ["+later/ca.crt"]);
    // Both kinds in one batch.
    fs::remove_file(&present).unwrap();
    fs::write(root.join("a.yaml"), "2").unwrap();
    assert_eq!(next(dir.path(), &mut files).await, ["config/a.yaml=2", "+certs/tls.crt"]);
    // No longer wanted: no longer told.
    files.watch_extra(BTreeSet::new());
    fs::write(&present, "w").unwrap();
    quiet(&certs, &mut files).await;
}

#[tokio::test(start_paused = true)]
async fn cancelling_loses_nothing() {
    let dir = folder();
    let root = dir.path();
    let (mut files, _) = open(root);
    fs::write(root.join("a.yaml"), "1").unwrap();
    for _ in 0..20 {
        // Shorter than the quiet time: each cancels the wait that it began.
        let _ = timeout(Duration::from_millis(1), files.next()).await;
    }
    assert_eq!(next(root, &mut files).await, ["a.yaml=1"]);
}

#[tokio::test]
async fn without_inotify_it_looks_again_and_again() {
    let dir = folder();
    let root = dir.path();
    let (mut files, _) = open(root);
    files.watcher.lose();
    fs::write(root.join("a.yaml"), "1").unwrap();
    assert_eq!(next(root, &mut files).await, ["a.yaml=1"]);
}

#[tokio::test]
async fn what_cannot_be_read_is_an_error_of_that_file() {
    let dir = folder();
    let root = dir.path();
    fs::write(root.join("a.yaml"), "1").unwrap();
    let made = std::process::Command::new("mkfifo").arg(root.join("pipe.yaml")).status().expect("mkfifo");
    assert!(made.success());
    let (_files, first) = open(root);
    assert_eq!(first, ["a.yaml=1", "pipe.yaml!is not a regular file"]);
    let missing = Files::open(vec![root.join("nope")]).expect_err("missing");
    assert!(matches!(&missing, FilesError::Missing { path } if path.ends_with("nope")));
    assert!(missing.to_string().contains("no such file or folder"), "{missing}");
}

/// What was told is in force, and nothing changes for a while.
async fn rested(files: &mut Files) {
    assert!(timeout(limits::RELOAD_QUIET * 2, files.next()).await.is_err());
}

/// A paused clock moves only where everybody waits: what passes is what was waited for.
#[tokio::test(start_paused = true)]
async fn a_file_that_was_there_is_told_as_soon_as_it_is_whole() {
    let dir = folder();
    let root = dir.path();
    for name in ["a.yaml", "b.yaml", "link.yaml.target"] {
        fs::write(root.join(name), "1").unwrap();
    }
    let (mut files, _) = open(root);
    let rest = async |files: &mut Files, change: &dyn Fn(), want: &[&str]| {
        rested(files).await;
        change();
        let start = Instant::now();
        assert_eq!(next(root, files).await, want);
        start.elapsed() < limits::RELOAD_QUIET / 2
    };
    let write = |name: &str, text: &str| fs::write(root.join(name), text).unwrap();
    assert!(rest(&mut files, &|| write("a.yaml", "2"), &["a.yaml=2"]).await, "written and closed");
    let replace = || {
        write(".a.yaml.tmp", "3");
        fs::rename(root.join(".a.yaml.tmp"), root.join("a.yaml")).unwrap();
    };
    assert!(rest(&mut files, &replace, &["a.yaml=3"]).await, "replaced");
    let both = || {
        write("a.yaml", "4");
        write("b.yaml", "4");
    };
    assert!(rest(&mut files, &both, &["a.yaml=4", "b.yaml=4"]).await, "two in one go");
    let open = fs::File::options().write(true).open(root.join("a.yaml")).unwrap();
    let part = || std::io::Write::write_all(&mut &open, b"5").unwrap();
    assert!(!rest(&mut files, &part, &["a.yaml=5"]).await, "it may still be being written");
    drop(open);
    let _ = timeout(limits::RELOAD_QUIET * 2, files.next()).await;
    assert!(!rest(&mut files, &|| write("c.yaml", "1"), &["c.yaml=1"]).await, "what is new may be one of several");
    assert!(!rest(&mut files, &|| fs::remove_file(root.join("b.yaml")).unwrap(), &["b.yaml gone"]).await, "gone");
    // What another file follows is one of several: the others are told in one batch.
    write("a.yaml", "6");
    next(root, &mut files).await;
    write("c.yaml", "2");
    let start = Instant::now();
    assert_eq!(next(root, &mut files).await, ["c.yaml=2"]);
    assert!(start.elapsed() >= limits::RELOAD_QUIET, "{:?}", start.elapsed());
    symlink("link.yaml.target", root.join("link.yaml")).unwrap();
    next(root, &mut files).await;
    assert!(!rest(&mut files, &|| write("a.yaml", "8"), &["a.yaml=8"]).await, "links may lead elsewhere now");
}

/// One file that is written again and again: reloads take half of the time, and each version is told soon.
#[tokio::test(start_paused = true)]
async fn a_file_that_goes_on_changing_is_told_as_often_as_reloads_allow() {
    let dir = folder();
    let root = dir.path();
    fs::write(root.join("a.yaml"), "0").unwrap();
    let (mut files, _) = open(root);
    for (version, takes) in [(1, 0), (2, 30), (3, 30), (4, 5000), (5, 0)].map(|(n, ms)| (n, Duration::from_millis(ms)))
    {
        fs::write(root.join("a.yaml"), version.to_string()).unwrap();
        assert_eq!(next(root, &mut files).await, [format!("a.yaml={version}")]);
        // What comes while a reload takes its time is told after the pause.
        tokio::time::sleep(takes).await;
        fs::write(root.join("a.yaml"), "between").unwrap();
        let start = Instant::now();
        assert_eq!(next(root, &mut files).await, ["a.yaml=between"]);
        let pause = takes.clamp(limits::RELOAD_PAUSE, limits::RELOAD_QUIET);
        let (waited, most) = (start.elapsed(), pause + limits::RELOAD_PAUSE);
        assert!(waited >= pause && waited <= most, "after {takes:?}: {waited:?}");
        rested(&mut files).await;
    }
}
