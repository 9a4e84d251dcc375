//! What was measured, as a table and as JSON.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::{
    field::Road,
    quantity::{Quantity, Sample},
};

/// Everything measured so far.
#[derive(Debug)]
pub(crate) struct Report {
    mib: u64,
    rounds: u32,
    samples: Vec<(String, Road, Sample)>,
    /// No round was left out.
    pub(crate) complete: bool,
    /// All kinds of work were done.
    pub(crate) finished: bool,
}

impl Report {
    pub(crate) fn new(mib: u64, rounds: u32) -> Self {
        Self { mib, rounds, samples: Vec::new(), complete: true, finished: false }
    }

    pub(crate) fn add(&mut self, work: &str, road: Road, sample: Sample) {
        self.samples.push((work.to_owned(), road, sample));
    }

    fn is_complete(&self) -> bool {
        self.complete && self.finished
    }

    /// The kinds of work, in the order in which they were done.
    fn works(&self) -> Vec<&str> {
        let mut works: Vec<&str> = self.samples.iter().map(|(work, ..)| work.as_str()).collect();
        works.dedup();
        works
    }

    fn values(&self, work: &str, road: Road, quantity: Quantity) -> Vec<f64> {
        let of = self.samples.iter().filter(|(w, r, _)| w == work && *r == road);
        of.filter_map(|(.., sample)| sample.get(&quantity).copied()).collect()
    }

    fn median(&self, work: &str, road: Road, quantity: Quantity) -> Option<f64> {
        median(self.values(work, road, quantity))
    }

    /// The median of the ratios to HAProxy, round by round.
    fn ratio(&self, work: &str, road: Road, quantity: Quantity) -> Option<f64> {
        let (ours, theirs) = (self.values(work, road, quantity), self.values(work, Road::HaProxy, quantity));
        median(ours.iter().zip(&theirs).filter(|(_, theirs)| **theirs > 0.0).map(|(a, b)| a / b).collect())
    }

    /// The table of one kind of work: each quantity, and behind it its ratio to HAProxy's.
    pub(crate) fn table_of(&self, work: &str) -> String {
        let roads: Vec<Road> = Road::ALL
            .into_iter()
            .filter(|road| self.samples.iter().any(|s| s.0 == work && s.1 == *road))
            .collect();
        let quantities: Vec<Quantity> = Quantity::ALL
            .into_iter()
            .filter(|quantity| roads.iter().any(|road| self.median(work, *road, *quantity).is_some()))
            .collect();
        let mut text = format!("{work}\n  {:<22}", "");
        for quantity in &quantities {
            let _ = write!(text, " {:>12} {:>10}", quantity.title().0, ": haproxy");
        }
        text.push('\n');
        for road in roads {
            let _ = write!(text, "  {road:<22}");
            for quantity in &quantities {
                let value = shown(self.median(work, road, *quantity), quantity.title().1);
                let _ = write!(text, " {value:>12} {:>10}", shown(self.ratio(work, road, *quantity), 2));
            }
            text.push('\n');
        }
        text
    }

    /// All tables.
    pub(crate) fn text(&self) -> String {
        let state = if self.is_complete() { "" } else { " (not complete)" };
        let mut text =
            format!("{} MiB a copy, medians of {} interleaved rounds{state}\n\n", self.mib, self.rounds);
        for work in self.works() {
            text += &self.table_of(work);
            text.push('\n');
        }
        text + &self.aims()
    }

    /// What is aimed at in Relay, and where we are.
    pub(crate) fn aims(&self) -> String {
        let mut text = String::from("Understudy : HAProxy, and the aim\n");
        for work in self.works().into_iter().filter(|work| !work.contains("takeover")) {
            for quantity in Quantity::ALL {
                if let (Some(aim), Some(ratio)) =
                    (quantity.aim(), self.ratio(work, Road::Understudy, quantity))
                {
                    let what = format!("{work}, {}", quantity.title().0);
                    let _ = writeln!(text, "  {what:<44} {ratio:>5.2}  ({aim})");
                }
            }
        }
        text
    }

    /// All samples and the summary.
    pub(crate) fn json(&self) -> Value {
        let samples: Vec<_> = (self.samples.iter())
            .map(|(work, road, sample)| {
                let values: Map<String, Value> =
                    sample.iter().map(|(q, value)| (q.key().to_owned(), json!(value))).collect();
                json!({"work": work, "road": road.to_string(), "values": values})
            })
            .collect();
        let mut summary = Vec::new();
        for work in self.works() {
            for (road, quantity) in Road::ALL.into_iter().flat_map(|r| Quantity::ALL.map(|q| (r, q))) {
                if let Some(median) = self.median(work, road, quantity) {
                    summary.push(json!({"work": work, "road": road.to_string(), "quantity": quantity.key(),
                        "median": median, "to_haproxy": self.ratio(work, road, quantity)}));
                }
            }
        }
        json!({"complete": self.is_complete(), "mib": self.mib, "rounds": self.rounds, "summary": summary,
               "samples": samples})
    }
}

fn shown(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.decimals$}"))
}

/// The middle value; of an even number the lower middle.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len().checked_sub(1)? / 2).copied()
}
