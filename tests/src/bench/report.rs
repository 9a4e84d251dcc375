//! What was measured, as a table and as JSON.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::{
    bulk::Work,
    field::Road,
    primitive::Primitive,
    quantity::{Quantity, Sample},
};

/// Everything measured so far.
#[derive(Debug)]
pub(crate) struct Report {
    mib: u64,
    rounds: u32,
    samples: Vec<(String, Road, Sample)>,
    /// What the cryptography alone costs.
    pub(crate) primitives: Vec<Primitive>,
    /// No round was left out.
    pub(crate) complete: bool,
    /// All kinds of work were done.
    pub(crate) finished: bool,
}

impl Report {
    pub(crate) fn new(mib: u64, rounds: u32) -> Self {
        Self { mib, rounds, samples: Vec::new(), primitives: Vec::new(), complete: true, finished: false }
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
        text + &self.primitives_text() + &self.aims()
    }

    /// What the cryptography alone costs.
    pub(crate) fn primitives_text(&self) -> String {
        let mut text = String::new();
        for primitive in &self.primitives {
            let _ = writeln!(text, "  {:<44} {:>6.3}", primitive.name, primitive.cpu_per_gib);
        }
        if text.is_empty() { text } else { format!("The cryptography alone, CPU s/GiB\n{text}\n") }
    }

    /// What a copy in Bridge costs over the same in Relay, as a multiple of what its cryptography alone costs.
    fn bridge_ratio(&self, work: Work) -> Option<f64> {
        let of = |name: &str| self.median(name, Road::Understudy, Quantity::CpuPerGib);
        let alone = self.primitives.iter().find(|p| p.of_copies == Some(work.protection))?.cpu_per_gib;
        Some((of(&work.in_bridge())? - of(&work.to_string())?) / alone)
    }

    /// What is aimed at, and where we are.
    pub(crate) fn aims(&self) -> String {
        let mut text = String::from("Understudy : HAProxy, and the aim\n");
        for work in self.works().into_iter().filter(|work| !work.contains("takeover")) {
            for quantity in Quantity::ALL {
                if let (Some(aim), Some(ratio)) =
                    (quantity.aim(work), self.ratio(work, Road::Understudy, quantity))
                {
                    let what = format!("{work}, {}", quantity.title().0);
                    let _ = writeln!(text, "  {what:<44} {ratio:>5.2}  ({aim})");
                }
            }
        }
        let ratios = Work::protected().filter_map(|work| Some((work, self.bridge_ratio(work)?)));
        let lines: String = ratios
            .map(|(work, ratio)| format!("  {:<44} {ratio:>5.2}  (at most 1.5)\n", work.in_bridge()))
            .collect();
        if !lines.is_empty() {
            text += "CPU in Bridge beyond that in Relay : the cryptography alone, and the aim\n";
        }
        text + &lines
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
        let primitives: Vec<_> = (self.primitives.iter())
            .map(|p| json!({"name": p.name, "cpu_seconds_per_gib": p.cpu_per_gib}))
            .collect();
        let bridge: Vec<_> = Work::protected()
            .map(|work| json!({"work": work.in_bridge(), "beyond_relay_to_primitive": self.bridge_ratio(work)}))
            .collect();
        json!({"complete": self.is_complete(), "mib": self.mib, "rounds": self.rounds, "summary": summary,
               "primitives": primitives, "bridge": bridge, "samples": samples})
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
