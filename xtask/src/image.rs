//! `cargo xtask image`: an OCI image that holds egret and what it needs to run, made without a daemon.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use egret_tests::image;

use crate::{
    root, setup,
    steps::{self, go_on},
};

#[derive(clap::Args)]
pub struct Arguments {
    /// Name and tag inside the archive, by which `kind load`, `ctr import` or `skopeo copy` know it
    #[arg(long, default_value = concat!("egret:", env!("CARGO_PKG_VERSION")))]
    name: String,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    setup::need_root("building an image")?;
    setup::for_building()?;
    setup::for_images()?;
    steps::cargo(&["build", "--release", "-p", "egret"])?;
    let target = root().join("target");
    let image = Image { work: target.join("image") };
    let archive = target.join("egret-image.tar");
    image.build(&target.join("release/egret"), &arguments.name, &archive)?;
    let size = std::fs::metadata(&archive)?.len() >> 20;
    println!("Built {} ({size} MiB, {}). For example:", archive.display(), arguments.name);
    println!("  kind load image-archive {}", archive.display());
    println!("  k3s ctr images import {}", archive.display());
    Ok(())
}

/// An image in the making: buildah's own storage lies in `work`, so that nothing of it is left on the machine.
struct Image {
    work: PathBuf,
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.work);
    }
}

impl Image {
    fn build(&self, binary: &Path, name: &str, archive: &Path) -> Result<()> {
        let tree = self.work.join("tree");
        image::lay(binary, &tree)?;
        go_on()?;
        let container = self.buildah(&[OsStr::new("from"), OsStr::new("scratch")])?;
        let container = container.trim();
        self.buildah(&["copy".as_ref(), container.as_ref(), tree.as_os_str(), "/".as_ref()])?;
        let entrypoint = format!("[{:?}]", image::ENTRYPOINT);
        let settings = ["config", "--entrypoint", &entrypoint, "--env", "PATH=/usr/bin", container];
        self.buildah(&settings.map(OsStr::new))?;
        go_on()?;
        // An archive that is there is not written over.
        let _ = std::fs::remove_file(archive);
        let to = format!("docker-archive:{}:{name}", archive.display());
        self.buildah(&["commit", "--rm", container, &to].map(OsStr::new))?;
        Ok(())
    }

    fn buildah(&self, args: &[&OsStr]) -> Result<String> {
        let mut command = Command::new("buildah");
        command.args(["--storage-driver", "vfs", "--root"]).arg(self.work.join("storage"));
        command.arg("--runroot").arg(self.work.join("run")).args(args);
        run_quietly(&mut command)
    }
}

fn run_quietly(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
