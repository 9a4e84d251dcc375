//! The same copies in Bridge: the node dies under the idle connection, then the copy begins.

use std::{io::Write, time::Duration};

use anyhow::{Context, Result};

use super::{
    bulk::{Bulk, Work},
    field::{Field, Road},
    quantity::Sample,
};
use crate::rig::{Rig, wait_until};

const PATIENCE: Duration = Duration::from_secs(20);
const CONNECTED: &str = "understudy_messages_total{command=\"tree_connect\",direction=\"response\"}";
const TAKEN_OVER: &str = "understudy_takeovers_total{cause=\"crash\",result=\"ok\"}";

/// Copies once by a connection that has outlived its node.
pub(crate) fn copy(field: &mut Field, bulk: &Bulk, work: Work) -> Result<Sample> {
    let connected = count(&field.rig, CONNECTED);
    let mut child =
        bulk.smbclient(field, field.address(Road::Understudy), work).spawn().context("smbclient")?;
    let mut orders = child.stdin.take().context("no stdin")?;
    let measure = || {
        wait_until("smbclient is connected", PATIENCE, || count(&field.rig, CONNECTED) > connected)?;
        let taken_over = count(&field.rig, TAKEN_OVER);
        let dead = field.rig.kill_serving()?;
        wait_until("the takeover is done", PATIENCE, || count(&field.rig, TAKEN_OVER) > taken_over)?;
        field.rig.restart(dead)?;
        let before = field.cpu(Road::Understudy)?;
        writeln!(orders, "{}", bulk.order(work))?;
        drop(orders);
        let rate = bulk.finish(&mut child, work)?;
        Ok(bulk.sample(rate, before, field.cpu(Road::Understudy)?))
    };
    let measured = measure();
    if measured.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    measured
}

/// A counter of the proxy's; 0 while it does not exist.
fn count(rig: &Rig, series: &str) -> f64 {
    rig.proxy.metrics(&rig.net).ok().and_then(|m| m.get(series).copied()).unwrap_or_default()
}
