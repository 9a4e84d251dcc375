//! What a guest tells when its workload has ended.

use std::{fmt, fs, path::Path};

use anyhow::{Result, bail};

/// The results of a guest.
#[derive(Debug)]
pub(crate) struct Findings {
    /// Commands that did not end with 0.
    failures: String,
    errors: String,
    debug_data: String,
    stats: String,
    dmesg: String,
}

impl Findings {
    pub(super) fn read(results: &Path) -> Self {
        let read = |name: &str| {
            let bytes = fs::read(results.join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        Self {
            failures: read("failures"),
            errors: read("errors"),
            debug_data: read("DebugData"),
            stats: read("Stats"),
            dmesg: read("dmesg"),
        }
    }

    /// No command failed, whatever the kernel had to do for that.
    pub(crate) fn no_program_failed(&self) -> Result<()> {
        if !self.failures.is_empty() {
            bail!("a program in the guest saw an error\n{self}");
        }
        Ok(())
    }

    /// No command failed, and the kernel never connected again: neither TCP connection, session nor share.
    pub(crate) fn noticed_nothing(&self) -> Result<()> {
        self.noticed_nothing_on(1)
    }

    /// The same where there are so many connections.
    pub(crate) fn noticed_nothing_on(&self, connections: usize) -> Result<()> {
        self.no_program_failed()?;
        let instances: Vec<&str> =
            self.debug_data.split("Instance: ").skip(1).filter_map(|s| s.split_whitespace().next()).collect();
        if instances != vec!["1"; connections] {
            bail!("a connection of the guest's was replaced\n{self}");
        }
        if !self.stats.contains("\n0 session 0 share reconnects") {
            bail!("the guest's session or share was set up again\n{self}");
        }
        Ok(())
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kernel: Vec<&str> = self.dmesg.lines().filter(|l| l.contains("CIFS")).collect();
        for (title, text) in [
            ("failures", self.failures.trim()),
            ("errors", self.errors.trim()),
            ("DebugData", self.debug_data.trim()),
            ("Stats", self.stats.lines().take(6).collect::<Vec<_>>().join("\n").trim()),
            ("kernel", &kernel.join("\n")),
        ] {
            if !text.is_empty() {
                writeln!(f, "{title}:\n{text}")?;
            }
        }
        Ok(())
    }
}
