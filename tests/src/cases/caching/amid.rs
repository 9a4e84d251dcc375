//! The node dies amid breaks.

use anyhow::{Context, Result, ensure};

use super::{
    Report, Scale, Stage, end,
    held::Held,
    party::{Clients, Party, Pending, QUIET, await_bytes},
};
use crate::rig::{Rig, net::FLOATING};

/// Where the acknowledgement is when the node dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Acknowledgement {
    /// With the client, until all is taken over.
    Late,
    /// On its way: sent before the next node answers.
    Early,
    /// In the node that dies.
    InFlight,
}

pub(super) fn amid_break(_: &Scale) -> Result<Report> {
    let mut stage = Stage::new(|rig, clients, party| {
        let mut amid = Amid::begin(rig, clients, party, "unharmed")?;
        party.clean(clients)?;
        amid.acknowledged = party.begin_acknowledge(clients, |_| true)?;
        amid.written = party.begin_overwrite(clients, is_uncontested)?;
        amid.finish(clients, party)
    })?;
    let (rig, clients) = (&mut stage.rig, &mut stage.clients);
    let ways = [Acknowledgement::InFlight, Acknowledgement::Early, Acknowledgement::Late];
    for (times, way) in ways.into_iter().enumerate() {
        let name = format!("{way:?}");
        let mut party = Party::meet(clients, FLOATING, &name, Some(&stage.unharmed))?;
        let dead = amid(rig, clients, &mut party, way, times + 1).with_context(|| name.clone())?;
        party.compare(&stage.unharmed).context(name)?;
        rig.restart(dead)?;
        let name = &rig.nodes.get(dead).context("no such node")?.name;
        rig.await_metric(&format!("node_up{{node=\"{name}\"}}"), 1.0)?;
    }
    Ok(Report::default())
}

fn amid(
    rig: &mut Rig,
    clients: &mut Clients,
    party: &mut Party,
    way: Acknowledgement,
    times: usize,
) -> Result<usize> {
    let mut amid = Amid::begin(rig, clients, party, &format!("{way:?}"))?;
    let dead = rig.serving()?;
    match way {
        Acknowledgement::Late => {
            rig.kill_serving()?;
            Stage::taken_over(rig, times)?;
            party.echo(clients)?;
            party.clean(clients)?;
            party.listen(clients, QUIET)?;
            // Whom the first client lets nobody share with may be refused before.
            party.check_held_back(clients, &amid.opened)?;
            amid.acknowledged = party.begin_acknowledge(clients, |_| true)?;
            amid.written = party.begin_overwrite(clients, is_uncontested)?;
        }
        Acknowledgement::Early => {
            party.clean(clients)?;
            let next = rig.nodes.iter().enumerate().find(|(index, _)| *index != dead);
            let next = next.context("no other node")?.0;
            rig.nodes.get(next).context("no such node")?.freeze(true);
            rig.kill_serving()?;
            amid.acknowledged = party.begin_acknowledge(clients, |_| true)?;
            amid.written = party.begin_overwrite(clients, is_uncontested)?;
            // The proxy answers by itself: so it has what was sent before.
            party.echo(clients)?;
            party.check_held_back(clients, &amid.opened)?;
            rig.nodes.get(next).context("no such node")?.freeze(false);
            Stage::taken_over(rig, times)?;
        }
        Acknowledgement::InFlight => {
            party.clean(clients)?;
            let node = rig.nodes.get(dead).context("no such node")?;
            node.freeze(true);
            amid.acknowledged = party.begin_acknowledge(clients, |_| true)?;
            amid.written = party.begin_overwrite(clients, is_uncontested)?;
            clients.first.sent()?;
            clients.second.sent()?;
            await_bytes(rig, &node.name)?;
            rig.kill_serving()?;
            Stage::taken_over(rig, times)?;
        }
    }
    amid.finish(clients, party)?;
    Ok(dead)
}

/// The second client opened it without a break.
fn is_uncontested(held: &Held) -> bool {
    held.theirs.is_some()
}

/// The second client waits to be let in.
struct Amid {
    shared: Pending,
    opened: Pending,
    acknowledged: Pending,
    written: Pending,
}

impl Amid {
    /// It is answered where it need not wait; all breaks have come, and none is acknowledged.
    fn begin(rig: &Rig, clients: &mut Clients, party: &mut Party, prefix: &str) -> Result<Self> {
        party.hold(rig, clients, prefix)?;
        let shared = party.begin_shared(clients)?;
        let opened = party.begin_opened(clients)?;
        party.rest(clients)?;
        ensure!(party.held.iter().any(|held| held.owed.is_some()), "no break is amid");
        let shared = party.finish_free(clients, "second opens to write", shared)?;
        let opened = party.finish_free(clients, "second opens", opened)?;
        Ok(Self { shared, opened, acknowledged: Vec::new(), written: Vec::new() })
    }

    fn finish(self, clients: &mut Clients, party: &mut Party) -> Result<()> {
        party.finish_acknowledge(clients, self.acknowledged)?;
        party.finish_second(clients, "second opens to write", self.shared)?;
        party.finish_second(clients, "second opens", self.opened)?;
        party.finish_second(clients, "second writes", self.written)?;
        party.go_on(clients)?;
        end(clients, party)
    }
}

impl Party {
    /// What the second client got where the first one owes nothing; the rest is still pending.
    fn finish_free(&mut self, clients: &mut Clients, what: &str, pending: Pending) -> Result<Pending> {
        let (waits, free): (Pending, Pending) = pending
            .into_iter()
            .partition(|(index, _)| self.held.get(*index).is_some_and(|held| held.owed.is_some()));
        self.check_held_back(clients, &waits)?;
        for (index, tag) in free {
            let said = clients.second.wait(tag)?;
            self.admit(index, what, &said)?;
        }
        Ok(waits)
    }
}
