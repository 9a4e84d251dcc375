//! The reference model: what is true of the files, seen from outside, and what a client may therefore be told.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    disk::{BLOCKS, POISON},
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
    /// When one did so last.
    done: Option<u64>,
    /// It is a CREATE that empties.
    empties: bool,
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
    tallies: BTreeMap<String, Tally>,
    standing: BTreeSet<String>,
    /// What files were called before they were renamed first.
    first_names: BTreeMap<u64, String>,
}

/// What is asked for and done many times, and whose single doings nobody can tell apart: `delete d0`.
#[derive(Debug, Default)]
struct Tally {
    asked: u32,
    /// Clients were told that they have done it.
    told: u32,
    /// Clients were told that they have not.
    refused: u32,
    done: u32,
    /// Done to a file that another client had given another name meanwhile: who had it open by the old one has deleted that file.
    elsewhere: u32,
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
        let now = self.tick();
        let write = self.writes.entry(tag).or_default();
        write.done = Some(now);
        if !write.at.contains(&(number, block)) {
            write.at.push((number, block));
        }
    }

    /// A client sends a CREATE that empties a file.
    pub fn empty_sent(&mut self, tag: u64) {
        let start = self.tick();
        self.writes.insert(tag, Write { start, empties: true, ..Write::default() });
    }

    /// A node has executed one. Twice is allowed as long as nobody was told meanwhile that something is in the file.
    pub fn emptied(&mut self, tag: u64, number: u64) -> Result<(), Violation> {
        let before = self.writes.get(&tag).and_then(|w| w.done);
        let since =
            |w: &Write| w.acknowledged && w.done > before && w.at.iter().any(|(file, _)| *file == number);
        let lost = self.writes.iter().find(|(other, w)| **other != tag && since(w)).map(|(other, _)| *other);
        if let (Some(_), Some(lost)) = (before, lost) {
            let text = format!("file {number} was emptied by #{tag} again, after #{lost} was acknowledged");
            return Err(Violation::new("applied twice", text));
        }
        for block in 0..BLOCKS {
            self.written(tag, number, block);
        }
        Ok(())
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

    /// A CREATE that empties is answered. What is empty as it is, it need not empty; but then nothing older may be read.
    pub fn empty_answered(&mut self, tag: u64, file: Option<u64>) -> Result<(), Violation> {
        let own = self.writes.entry(tag).or_default();
        if let Some(number) = file.filter(|_| own.at.is_empty()) {
            own.at = (0..BLOCKS).map(|block| (number, block)).collect();
        }
        self.write_answered(tag, file.is_some())
    }

    /// A READ that was sent at `start` brought this tag.
    pub fn read(&mut self, number: u64, block: usize, tag: u64, start: u64) -> Result<(), Violation> {
        let place = (number, block);
        if tag & POISON != 0 {
            return Err(Violation::new("unverified", "a client believes an answer that was tampered with"));
        }
        let (from, until) = match self.writes.get(&tag) {
            Some(write) if write.at.contains(&place) => (write.start, write.end),
            _ if tag == 0 => return self.read_nothing(place, start),
            _ => {
                let text =
                    format!("READ of file {number}, block {block} brought #{tag}, which nobody wrote there");
                return Err(Violation::new("data from nowhere", text));
            }
        };
        if from > self.clock {
            return Err(Violation::new("data from the future", format!("#{tag}")));
        }
        match self.hidden(place, until, start) {
            Some(newer) => {
                let text = format!(
                    "READ of file {number}, block {block} brought #{tag} after #{newer} was acknowledged"
                );
                Err(Violation::new("stale data", text))
            }
            None => Ok(()),
        }
    }

    /// Another WRITE that began after one was over, and was over before the READ began, hides it.
    fn hidden(&self, place: (u64, usize), until: Option<u64>, start: u64) -> Option<u64> {
        let hides = |w: &Write| {
            w.acknowledged
                && w.at.contains(&place)
                && until.is_some_and(|until| w.start > until)
                && w.end.is_some_and(|end| end < start)
        };
        self.writes.iter().find(|(_, w)| hides(w)).map(|(tag, _)| *tag)
    }

    /// A READ found a block that nobody has written yet, or since it was emptied.
    fn read_nothing(&self, place: (u64, usize), start: u64) -> Result<(), Violation> {
        let emptied = self.writes.values().filter(|w| w.empties && w.at.contains(&place)).map(|w| w.end);
        let newer = std::iter::once(Some(0))
            .chain(emptied)
            .map(|until| self.hidden(place, until, start))
            .reduce(|one, other| one.and(other));
        match newer.flatten() {
            Some(newer) => {
                let text = format!("READ of {place:?} brought nothing after #{newer} was acknowledged");
                Err(Violation::new("stale data", text))
            }
            None => Ok(()),
        }
    }

    /// A client asks for something of a tally.
    pub fn tally_asked(&mut self, what: &str) {
        self.tallies.entry(what.to_owned()).or_default().asked += 1;
    }

    /// A CREATE has made a name.
    pub fn made(&mut self, name: &str) {
        self.tallies.entry(format!("make {name}")).or_default().done += 1;
        self.standing.insert(name.to_owned());
    }

    /// A name was removed.
    pub fn removed(&mut self, number: u64, name: &str) {
        self.tallies.entry(format!("delete {name}")).or_default().done += 1;
        if let Some(first) = self.first_names.remove(&number).filter(|first| first != name) {
            self.tallies.entry(format!("delete {first}")).or_default().elsewhere += 1;
        }
        self.standing.remove(name);
    }

    /// A file does not have that name any more.
    pub fn moved(&mut self, number: u64, name: &str) {
        self.standing.remove(name);
        self.first_names.entry(number).or_insert_with(|| name.to_owned());
    }

    /// Whether a name that was made is there: nobody deletes what was never there.
    pub fn is_standing(&self, name: &str) -> bool {
        self.standing.contains(name)
    }

    /// A client is told. `None`: that nobody can tell.
    pub fn tally_told(&mut self, what: &str, success: Option<bool>) {
        let tally = self.tallies.entry(what.to_owned()).or_default();
        match success {
            Some(true) => tally.told += 1,
            Some(false) => tally.refused += 1,
            None => {}
        }
    }

    /// At the end: as often as clients were told, it was done; and not more often than may be.
    pub fn check_tallies(&self) -> Result<(), Violation> {
        for (what, tally) in &self.tallies {
            if tally.told > tally.done + tally.elsewhere {
                return Err(Violation::new("told done", format!("{what}: {tally:?}")));
            }
            if tally.asked > 0 && tally.done > tally.asked - tally.refused {
                return Err(Violation::new("told undone", format!("{what}: {tally:?}")));
            }
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
