//! A Python client on strings (tests/python/puppet.py): any number of requests in flight, and break notifications that are
//! acknowledged only when a case says so.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Rig,
    copy::python,
    node::{PASSWORD, USER},
    wait_until,
};

/// A running puppet: one process, any number of connections.
#[derive(Debug)]
pub(crate) struct Puppet {
    library: &'static str,
    child: Child,
    orders: ChildStdin,
    replies: BufReader<ChildStdout>,
    /// What its library complains of.
    complaints: PathBuf,
    /// Orders whose replies have not been read.
    unread: usize,
    next_tag: u64,
}

/// Where a client goes, and as whom.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Visit<'a> {
    pub(crate) server: &'a str,
    pub(crate) dialect: &'a str,
    pub(crate) user: &'a str,
    pub(crate) guid: [u8; 16],
    pub(crate) previous: u64,
}

/// As puppets write bytes.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A request that was sent, and not waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tag(u64);

impl Puppet {
    /// Starts one in the clients' namespace, made of this library.
    pub(crate) fn start(rig: &Rig, library: &'static str) -> Result<Self> {
        let complaints = rig.dir.path().join(format!("{library}.log"));
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/puppet.py");
        let mut child = rig
            .net
            .command("client", &python()?.display().to_string())
            .arg(script)
            .args([library, USER, PASSWORD])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&complaints)?)
            .spawn()
            .with_context(|| format!("starting a puppet of {library}"))?;
        let orders = child.stdin.take().context("a puppet has no stdin")?;
        let replies = BufReader::new(child.stdout.take().context("a puppet has no stdout")?);
        Ok(Self { library, child, orders, replies, complaints, unread: 0, next_tag: 0 })
    }

    /// A connection with a session and the share, named `name`.
    pub(crate) fn connect(&mut self, name: &str, server: &str, dialect: &str) -> Result<()> {
        self.ask(&json!({"do": "connect", "as": name, "server": server, "dialect": dialect})).map(|_| ())
    }

    /// The same for a client that says who it is: `guid` is its ClientGuid, `previous` the session of an earlier connection that
    /// it wants ended, or 0. The id of its new session.
    pub(crate) fn enter(&mut self, name: &str, visit: &Visit<'_>) -> Result<u64> {
        let said = self.ask(&json!({
            "do": "connect", "as": name, "server": visit.server, "dialect": visit.dialect, "user": visit.user,
            "guid": hex(&visit.guid), "previous": visit.previous,
        }))?;
        said["session"].as_u64().context("no session")
    }

    /// Ends a connection, and nothing else.
    pub(crate) fn leave(&mut self, name: &str) -> Result<()> {
        self.ask(&json!({"do": "drop", "as": name})).map(|_| ())
    }

    /// Waits until somebody else has ended a connection.
    pub(crate) fn await_end(&mut self, name: &str) -> Result<()> {
        let mut failed = None;
        wait_until(&format!("the connection {name} has ended"), Duration::from_secs(30), || {
            match self.ask(&json!({"do": "gone", "as": name})) {
                Ok(said) => said["gone"] == true,
                Err(error) => {
                    failed = Some(error);
                    true
                }
            }
        })?;
        failed.map_or(Ok(()), Err)
    }

    /// Has a request sent. It may not be sent yet when this returns.
    pub(crate) fn begin(&mut self, connection: &str, mut order: Value) -> Result<Tag> {
        self.next_tag += 1;
        order["as"] = connection.into();
        order["tag"] = self.next_tag.into();
        self.tell(&order)?;
        Ok(Tag(self.next_tag))
    }

    /// Returns once everything that was begun is sent.
    pub(crate) fn sent(&mut self) -> Result<()> {
        while self.unread > 0 {
            self.reply()?;
        }
        Ok(())
    }

    /// Whether the final answer is there.
    pub(crate) fn is_ready(&mut self, tag: Tag) -> Result<bool> {
        let said = self.ask(&json!({"do": "ready", "tag": tag.0}))?;
        said["ready"].as_bool().context("neither ready nor not")
    }

    /// The final answer.
    pub(crate) fn wait(&mut self, tag: Tag) -> Result<Value> {
        self.ask(&json!({"do": "wait", "tag": tag.0}))
    }

    /// A request and its final answer.
    pub(crate) fn call(&mut self, connection: &str, order: Value) -> Result<Value> {
        let tag = self.begin(connection, order)?;
        self.wait(tag)
    }

    /// All break notifications of a connection so far, once there are `count`, or after `seconds`.
    pub(crate) fn breaks(&mut self, connection: &str, count: usize, seconds: f64) -> Result<Vec<Value>> {
        let said =
            self.ask(&json!({"do": "breaks", "as": connection, "count": count, "seconds": seconds}))?;
        said["breaks"].as_array().cloned().context("no list of breaks")
    }

    fn tell(&mut self, order: &Value) -> Result<()> {
        self.unread += 1;
        writeln!(self.orders, "{order}").with_context(|| self.trouble())
    }

    fn ask(&mut self, order: &Value) -> Result<Value> {
        self.sent()?;
        self.tell(order)?;
        self.reply()
    }

    fn reply(&mut self) -> Result<Value> {
        let mut line = String::new();
        let len = self.replies.read_line(&mut line)?;
        ensure!(len > 0, "{}", self.trouble());
        self.unread -= 1;
        Ok(serde_json::from_str(&line)?)
    }

    /// Why it does not answer.
    fn trouble(&self) -> String {
        let said = fs::read_to_string(&self.complaints).unwrap_or_default();
        let last = said.lines().rev().take(12).collect::<Vec<_>>();
        let last = last.into_iter().rev().collect::<Vec<_>>().join("\n");
        format!("the puppet of {} has ended: {last}", self.library)
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
