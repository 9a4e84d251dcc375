//! Names and ends of files made and changed by many clients while their node dies: never twice, never lost, and each client
//! is told right.

mod deeds;

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use self::deeds::{Actor, Asked, Deed, Told};
use super::{Case, Report, Scale};
use crate::{
    client::{Client, Setup, User, guid},
    rig::{Rig, Site, net::FLOATING},
};

/// Names of each kind, for each client and in each round.
const NAMES: usize = 8;

pub(super) const CASES: &[Case] = &[Case {
    name: "names-in-flight",
    shows: "creates, overwrites, renames, links, deletes and appends of several clients in flight at a crash, by handles and \
            by compounds: each done once, each told so",
    soak: 1,
    run: storm,
}];

/// Draws the same numbers for the same seed.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn draw(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or(0) % limit
    }
}

/// How often each kind was told what.
#[derive(Debug, Default)]
struct Counts {
    all: usize,
    done: usize,
    untold: usize,
}

fn storm(scale: &Scale) -> Result<Report> {
    let (clients, rounds) = if scale.soak { (4, 40) } else { (4, 4) };
    // How long it takes is not the claim.
    let mut rig = Rig::new(&Site { config: "grace_park = \"60s\"\n".into(), ..Site::default() })?;
    let mut actors = (0..clients)
        .map(|number| {
            let setup = Setup { client_guid: guid(), credits: 512, ..Setup::default() };
            let mut client = Client::connect(&rig.net, FLOATING, &setup)?;
            let at = client.enter(User::KNOWN, "share")?;
            Ok(Actor::new(client, at, number))
        })
        .collect::<Result<Vec<_>>>()?;
    let mut counts: BTreeMap<Deed, Counts> = BTreeMap::new();
    let (mut in_flight, mut told) = (0, 0);
    for round in 0..rounds {
        let mut dice = Dice(round);
        for actor in &mut actors {
            actor.prepare(round)?;
        }
        let orders = orders(&mut dice, clients);
        let kill_at = dice.draw(orders.len());
        let mut dead = 0;
        for (sent, (number, asked)) in orders.iter().enumerate() {
            if sent == kill_at {
                in_flight += actors.iter().map(|actor| actor.client.pending()).sum::<usize>();
                dead = rig.kill_serving()?;
            }
            actors.get_mut(*number).context("no such client")?.ask(round, *asked)?;
        }
        judge(&rig, &mut actors, round, &mut counts).with_context(|| format!("round {round}"))?;
        told += 1;
        rig.await_takeovers("crash", clients * told)?;
        rig.restart(dead)?;
    }
    let mut notes = vec![format!("{rounds} crashes, {in_flight} requests in flight at them")];
    for (deed, Counts { all, done, untold }) in &counts {
        notes.push(format!("{deed:?}: {all}, {done} done, {untold} not told"));
        // It is to be the exception.
        ensure!(untold * 20 <= *all, "{deed:?}: of {all}, {untold} were not told");
    }
    Ok(Report { notes, ..Report::default() })
}

/// What all clients ask in one round, mixed; what one client asks of one name stays in its order.
fn orders(dice: &mut Dice, clients: usize) -> Vec<(usize, Asked)> {
    let mut orders: Vec<_> = (0..clients)
        .flat_map(|client| {
            let each = |n| Deed::ALL.map(|deed| Asked { deed, n });
            (0..NAMES).flat_map(each).map(move |asked| (client, asked))
        })
        .collect();
    for last in (1..orders.len()).rev() {
        orders.swap(last, dice.draw(last + 1));
    }
    orders
}

/// Every outcome of a round against what stands on the disk.
fn judge(rig: &Rig, actors: &mut [Actor], round: u64, counts: &mut BTreeMap<Deed, Counts>) -> Result<()> {
    // Of what only one may have, who has it; and how many were not told.
    let mut winners: BTreeMap<Asked, (usize, usize)> = BTreeMap::new();
    for actor in &mut *actors {
        for (asked, told) in actor.hear()? {
            let number = actor.number;
            let what = || format!("client {number}, {asked:?}: {told:?}");
            let count = counts.entry(asked.deed).or_default();
            count.all += 1;
            count.done += usize::from(told == Told::Done);
            count.untold += usize::from(told == Told::Unknown);
            if asked.deed.is_contended() {
                let (won, untold) = winners.entry(asked).or_default();
                *won += usize::from(told == Told::Done);
                *untold += usize::from(told == Told::Unknown);
            } else {
                ensure!(told != Told::Refused, what());
            }
            if told == Told::Done {
                actor.inspect(rig, round, asked).with_context(what)?;
            }
        }
        actor.tidy()?;
    }
    for (asked, (won, untold)) in winners {
        ensure!(
            won == 1 || won == 0 && untold > 0,
            "{asked:?}: {won} clients have done it, {untold} do not know"
        );
    }
    Ok(())
}
