//! Storage that becomes slow when a case wants it to.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result};

use super::{Scratch, net::run};

const SOURCE: &str = include_str!("../../slow_storage.c");
const LIBRARY: &str = "slow_storage.so";
const DELAY: &str = "delay";

/// What a node's smbd is started with, so that its storage can be slowed down.
#[derive(Debug)]
pub(crate) struct SlowStorage {
    dir: Scratch,
}

impl SlowStorage {
    /// Builds the library.
    pub(crate) fn new() -> Result<Self> {
        let dir = Scratch::new()?;
        let [source, library] = ["slow_storage.c", LIBRARY].map(|name| dir.path().join(name));
        fs::write(&source, SOURCE)?;
        let [from, to] = [&source, &library].map(|path| path.display().to_string());
        run(&["cc", "-O2", "-shared", "-fPIC", "-o", &to, &from, "-ldl"])?;
        Ok(Self { dir })
    }

    /// For [`Settings`](super::node::Settings).
    pub(crate) fn environment(&self) -> Vec<(&'static str, PathBuf)> {
        vec![("LD_PRELOAD", self.dir.path().join(LIBRARY)), ("SLOW_STORAGE", self.dir.path().join(DELAY))]
    }

    /// From now on every larger read and write takes so much longer; at zero, none does.
    pub(crate) fn set_delay(&self, delay: Duration) -> Result<()> {
        // Renamed into place: a reader must not find it empty.
        let new = self.dir.path().join("new");
        fs::write(&new, delay.as_millis().to_string())?;
        fs::rename(&new, self.dir.path().join(DELAY)).context("setting the delay")
    }
}
