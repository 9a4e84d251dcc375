//! The lists of what passes that stand in the repository (`tests/torture`), and the ledger of a run under way.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::trial::{Finding, Outcome};

/// What a list says of a test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) outcome: Outcome,
    /// Why it does not pass although it passes without what the list is about. Empty if nobody has said so.
    pub(super) cause: String,
}

/// A list: one line a test, `name  outcome cause`; `#` begins a comment.
#[derive(Debug, Default)]
pub(super) struct List {
    head: String,
    lines: BTreeMap<String, Line>,
}

impl List {
    /// Reads a list; one that is not there is empty.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = if path.exists() { fs::read_to_string(path)? } else { String::new() };
        let mut list = Self::default();
        for (number, line) in text.lines().enumerate() {
            if line.starts_with('#') {
                list.head += &format!("{line}\n");
            } else if !line.trim().is_empty() {
                let (name, entry) = parse(line)
                    .with_context(|| format!("{}:{}: {line:?} is no line", path.display(), number + 1))?;
                list.lines.insert(name, entry);
            }
        }
        Ok(list)
    }

    pub(super) fn get(&self, test: &str) -> Option<&Line> {
        self.lines.get(test)
    }

    /// Puts down how a test has ended. A cause stands as long as the test does not pass.
    pub(super) fn set(&mut self, test: &str, outcome: Outcome) {
        let line = self.lines.entry(test.to_owned()).or_insert(Line { outcome, cause: String::new() });
        line.outcome = outcome;
        if outcome == Outcome::Pass {
            line.cause.clear();
        }
    }

    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let lines = self.lines.iter().map(|(name, line)| {
            let text = format!("{name:<52}  {:<7} {}", line.outcome.word(), line.cause);
            format!("{}\n", text.trim_end())
        });
        let text = self.head.clone() + &lines.collect::<String>();
        fs::write(path, text).with_context(|| path.display().to_string())
    }
}

fn parse(line: &str) -> Option<(String, Line)> {
    // A name may have a space in it.
    let (name, rest) = line.split_once("  ")?;
    let rest = rest.trim_start();
    let (word, cause) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let outcome = Outcome::from_word(word)?;
    Some((name.to_owned(), Line { outcome, cause: cause.trim().to_owned() }))
}

/// What has been run already, so that a run that was cut off goes on. Only what the same `build` did counts.
#[derive(Debug)]
pub(super) struct Ledger {
    path: PathBuf,
    build: String,
    done: BTreeMap<String, Finding>,
}

impl Ledger {
    pub(super) fn open(path: PathBuf, build: &str) -> Result<Self> {
        let text = if path.exists() { fs::read_to_string(&path)? } else { String::new() };
        let runs = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let done = runs
            .filter(|run| run["build"] == build)
            .filter_map(|run| {
                let finding = Finding {
                    outcome: Outcome::from_word(run["outcome"].as_str()?)?,
                    said: run["said"].as_str()?.to_owned(),
                    took: Duration::from_millis(run["ms"].as_u64()?),
                    takeovers: run["takeovers"].as_u64()?.try_into().ok()?,
                };
                Some((run["test"].as_str()?.to_owned(), finding))
            })
            .collect();
        Ok(Self { path, build: build.to_owned(), done })
    }

    pub(super) fn get(&self, test: &str) -> Option<&Finding> {
        self.done.get(test)
    }

    pub(super) fn add(&mut self, test: &str, finding: &Finding) -> Result<()> {
        let run = json!({
            "build": self.build, "test": test, "outcome": finding.outcome.word(),
            "ms": u64::try_from(finding.took.as_millis())?, "said": finding.said,
            "takeovers": finding.takeovers,
        });
        let mut file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        writeln!(file, "{run}").with_context(|| self.path.display().to_string())?;
        self.done.insert(test.to_owned(), finding.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_it_is_written() {
        let line = |outcome, cause: &str| Line { outcome, cause: cause.into() };
        assert_eq!(parse("smb2.a   pass"), Some(("smb2.a".into(), line(Outcome::Pass, ""))));
        let lost = Some(("smb2.b x".into(), line(Outcome::Fail, "binding is refused")));
        assert_eq!(parse("smb2.b x  fail    binding is refused"), lost);
        assert_eq!(parse("smb2.b"), None);
        assert_eq!(parse("smb2.b  perhaps"), None);
    }

    #[test]
    fn a_cause_stands_until_the_test_passes() {
        let mut list = List::default();
        list.lines.insert("t".into(), Line { outcome: Outcome::Fail, cause: "why".into() });
        list.set("t", Outcome::Timeout);
        assert_eq!(list.get("t").map(|l| l.cause.as_str()), Some("why"));
        list.set("t", Outcome::Pass);
        assert_eq!(list.get("t").map(|l| l.cause.as_str()), Some(""));
    }
}
