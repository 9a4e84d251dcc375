//! The reference model: what is true of the files, seen from outside, and what a client may therefore be told.

use std::collections::BTreeMap;

use crate::{
    known::Known,
    rules::{Belongs, belongs},
};

/// Something that must not happen has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which rule: a few words, always the same.
    pub rule: &'static str,
    /// What exactly.
    pub text: String,
    /// It is known that the core does that.
    pub known: Option<Known>,
}

impl Violation {
    /// One.
    pub fn new(rule: &'static str, text: impl Into<String>) -> Self {
        Self { rule, text: text.into(), known: None }
    }

    /// What its rule belongs to.
    pub fn belongs(&self) -> Belongs {
        belongs(self.rule)
    }

    /// One that is known.
    pub fn known(self, known: Known) -> Self {
        Self { known: Some(known), ..self }
    }
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({}): {}", self.rule, self.belongs(), self.text)
    }
}

#[derive(Debug, Default)]
struct Write {
    start: u64,
    end: Option<u64>,
    acknowledged: bool,
    ordered: bool,
    /// Where nodes have put it.
    at: Vec<(u64, usize)>,
}

/// All that was asked for and done.
#[derive(Debug, Default)]
pub struct Oracle {
    clock: u64,
    writes: BTreeMap<u64, Write>,
    /// How often something that may be done once was: `create x`, `rename r`, `append 5`.
    deeds: BTreeMap<String, u32>,
    tags: u64,
    /// How often a name has changed.
    pub names: u64,
}

impl Oracle {
    /// A moment later than all before.
    pub fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// A number that was never used.
    pub fn tag(&mut self) -> u64 {
        self.tags += 1;
        self.tags
    }

    /// A client sends a WRITE.
    pub fn write_sent(&mut self, tag: u64) {
        let start = self.tick();
        self.writes.insert(tag, Write { start, ..Write::default() });
    }

    /// The client sends it alone: it is done in its turn.
    pub fn is_in_order(&mut self, tag: u64) {
        self.writes.entry(tag).or_default().ordered = true;
    }

    /// Whether that WRITE is to be done in its turn.
    pub fn is_ordered(&self, tag: u64) -> bool {
        self.writes.get(&tag).is_some_and(|write| write.ordered)
    }

    /// A node has executed one.
    pub fn written(&mut self, tag: u64, number: u64, block: usize) {
        let write = self.writes.entry(tag).or_default();
        if !write.at.contains(&(number, block)) {
            write.at.push((number, block));
        }
    }

    /// A WRITE is answered.
    pub fn write_answered(&mut self, tag: u64, success: bool) -> Result<(), Violation> {
        let now = self.tick();
        let write = self.writes.entry(tag).or_default();
        write.end = Some(now);
        write.acknowledged = success;
        if success && write.at.is_empty() {
            return Err(Violation::new(
                "lost write",
                format!("WRITE #{tag} was acknowledged, but never done"),
            ));
        }
        Ok(())
    }

    /// A READ that was sent at `start` brought this tag.
    pub fn read(&mut self, number: u64, block: usize, tag: u64, start: u64) -> Result<(), Violation> {
        let place = (number, block);
        let (from, until) = match self.writes.get(&tag) {
            Some(write) if write.at.contains(&place) => (write.start, write.end),
            _ if tag == 0 => (0, Some(0)),
            _ => {
                let text =
                    format!("READ of file {number}, block {block} brought #{tag}, which nobody wrote there");
                return Err(Violation::new("data from nowhere", text));
            }
        };
        if from > self.clock {
            return Err(Violation::new("data from the future", format!("#{tag}")));
        }
        // Another WRITE that began after this one was over, and was over before the READ began, hides it.
        let hides = |w: &Write| {
            w.acknowledged
                && w.at.contains(&place)
                && until.is_some_and(|until| w.start > until)
                && w.end.is_some_and(|end| end < start)
        };
        if let Some((newer, _)) = self.writes.iter().find(|(_, w)| hides(w)) {
            let text = format!(
                "READ of file {number}, block {block} brought #{tag} after #{newer} was acknowledged"
            );
            return Err(Violation::new("stale data", text));
        }
        Ok(())
    }

    /// A node did something that may be done once.
    pub fn done_once(&mut self, deed: String) -> Result<(), Violation> {
        let count = self.deeds.entry(deed).or_default();
        *count += 1;
        if *count > 1 {
            let deed = self.deeds.iter().find(|(_, n)| **n > 1).map(|(d, _)| d.clone()).unwrap_or_default();
            return Err(Violation::new("applied twice", format!("{deed} was done twice")));
        }
        Ok(())
    }

    /// How often that was done.
    pub fn count(&self, deed: &str) -> u32 {
        self.deeds.get(deed).copied().unwrap_or(0)
    }

    /// What a client is told of something that may be done once must be what became of it. `None`: nobody can tell.
    pub fn told(&self, deed: &str, success: Option<bool>) -> Result<(), Violation> {
        match (success, self.count(deed)) {
            (Some(true), 0) => {
                Err(Violation::new("told done", format!("{deed} was acknowledged, but never done")))
            }
            (Some(false), 1..) => Err(Violation::new("told undone", format!("{deed} was done, but refused"))),
            _ => Ok(()),
        }
    }
}
