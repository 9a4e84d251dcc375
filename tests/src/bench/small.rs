//! Small operations, one after the other: a file of 4 KiB is opened, read and closed.

use std::{fs, time::Instant};

use anyhow::{Context, Result, ensure};

use super::{
    field::{Field, Road},
    quantity::{Quantity, Sample},
};
use crate::client::{At, Client, Open, READ, Setup, User};

const FILES: usize = 32;
const LEN: usize = 4096;
/// How many operations a road does before it is the next one's turn.
const BATCH: usize = 25;
/// How often it is a road's turn in a round.
const TURNS: usize = 24;

/// One round on all roads at once, in turns of a few operations, so that all see the same weather.
pub(crate) fn round(field: &Field, roads: &[Road], signed: bool) -> Result<Vec<(Road, Sample)>> {
    let bytes = vec![0x5a; LEN];
    for file in 0..FILES {
        fs::write(field.rig.data().join(name(file)), &bytes)?;
    }
    let mut riders = Vec::new();
    for road in roads {
        riders.push(Rider::new(field, *road, signed).with_context(|| road.to_string())?);
    }
    for _ in 0..TURNS {
        for rider in &mut riders {
            rider.ride(field, &bytes).with_context(|| rider.road.to_string())?;
        }
    }
    Ok(riders.into_iter().map(|rider| (rider.road, rider.sample())).collect())
}

fn name(file: usize) -> String {
    format!("small-{file}.bin")
}

/// A client on one road.
struct Rider {
    road: Road,
    client: Client,
    at: At,
    micros: Vec<f64>,
    cpu: Option<f64>,
}

impl Rider {
    fn new(field: &Field, road: Road, signed: bool) -> Result<Self> {
        let setup = Setup { signing: signed, ..Setup::default() };
        let mut client = Client::connect(&field.rig.net, field.address(road), &setup)?;
        let at = client.enter(User::KNOWN, "share")?;
        Ok(Self { road, client, at, micros: Vec::new(), cpu: None })
    }

    /// A batch of operations.
    fn ride(&mut self, field: &Field, bytes: &[u8]) -> Result<()> {
        let before = field.cpu(self.road)?;
        for turn in 0..BATCH {
            let name = name((self.micros.len() + turn) % FILES);
            let begun = Instant::now();
            let file = self.client.open(self.at, &Open { access: READ, ..Open::of(&name) })?;
            let read = self.client.read(file, 0, LEN as u32)?;
            self.client.close(file)?;
            self.micros.push(begun.elapsed().as_secs_f64() * 1e6);
            ensure!(read == bytes, "{name}: the bytes differ");
        }
        let spent = before.zip(field.cpu(self.road)?).map(|(before, after)| after - before);
        self.cpu = spent.map(|spent| self.cpu.unwrap_or_default() + spent);
        Ok(())
    }

    fn sample(mut self) -> Sample {
        self.micros.sort_by(f64::total_cmp);
        let count = self.micros.len();
        let rank = |percent: usize| self.micros.get(count * percent / 100).copied();
        let cpu = self.cpu.map(|seconds| seconds * 1e6 / count as f64);
        [(Quantity::P50, rank(50)), (Quantity::P99, rank(99)), (Quantity::CpuPerOperation, cpu)]
            .into_iter()
            .filter_map(|(quantity, value)| Some((quantity, value?)))
            .collect()
    }
}
