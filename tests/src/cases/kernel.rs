//! A kernel mount that outlives its nodes.

use anyhow::Result;

use super::{Case, Report, Scale};
use crate::rig::{Rig, Site, kernel::Guest};

pub(super) const CASES: &[Case] = &[Case {
    name: "kernel-mount",
    shows: "the Linux kernel mounts through the proxy, lists, reads and writes",
    soak: 1,
    run: mount,
}];

fn mount(_: &Scale) -> Result<Report> {
    let rig = Rig::new(&Site::default())?;
    std::fs::write(rig.data().join("hello"), "hello\n")?;
    let guest = Guest::boot(
        &rig,
        "vers=3.1.1,sign",
        r#"
        try list ls -l "$share"
        try stat stat "$share/hello"
        try read grep -q hello "$share/hello"
        try write cp "$share/hello" "$share/copy"
        "#,
    )?;
    guest.finish()?.noticed_nothing()?;
    Ok(Report::default())
}
