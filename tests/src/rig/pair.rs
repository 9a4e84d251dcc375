//! Two proxies, each a host of its own; one serves, the other stands by.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result};

use super::{
    Rig,
    net::{FLOATING, Net},
    node::Node,
    proxy::{Door, Orders, Proxy},
    wait_until,
};

/// Namespace and address of each.
pub(crate) const HOSTS: [(&str, &str); 2] = [("proxy-0", "10.77.0.41"), ("proxy-1", "10.77.0.42")];

/// Starts both. The first serves.
pub(super) fn start(
    net: &mut Net,
    dir: &Path,
    nodes: &[Node],
    orders: &Orders<'_>,
) -> Result<(Proxy, Proxy)> {
    for (name, address) in HOSTS {
        net.add_host(name, address)?;
    }
    let [first, second] = HOSTS;
    let mut proxy = spawn(net, dir, nodes, orders, first)?;
    proxy.await_ready(net)?;
    let standby = spawn(net, dir, nodes, orders, second)?;
    standby.await_standby(net)?;
    await_heard(net, &proxy)?;
    Ok((proxy, standby))
}

/// Waits until the one that stands by hears the one that serves.
fn await_heard(net: &Net, proxy: &Proxy) -> Result<()> {
    wait_until("it is heard", Duration::from_secs(20), || {
        let metrics = proxy.metrics(net);
        metrics.is_ok_and(|all| all.get("understudy_standbys").is_some_and(|count| *count > 0.0))
    })
}

fn spawn(
    net: &Net,
    dir: &Path,
    nodes: &[Node],
    orders: &Orders<'_>,
    (space, address): (&'static str, &str),
) -> Result<Proxy> {
    let dir = dir.join(space);
    fs::create_dir_all(&dir)?;
    let config = format!(
        "{}\n[ha]\nname = \"{space}\"\nheartbeat = \"{address}:9646\"\n\
         [vip]\naddress = \"{FLOATING}/24\"\ninterface = \"eth0\"\n",
        orders.config
    );
    let own = Orders { config: &config, ..orders.clone() };
    Proxy::spawn_at(net, &dir, nodes, &own, Door { space, ..Door::MAIN })
}

impl Rig {
    /// Waits until the one that stands by serves; the other stands in its place.
    pub(crate) fn await_successor(&mut self) -> Result<()> {
        let mut next = self.standby.take().context("nobody stands by")?;
        let result = next.await_ready(&self.net);
        std::mem::swap(&mut self.proxy, &mut next);
        self.standby = Some(next);
        result
    }

    /// Starts the one that stood by, or served before, again.
    pub(crate) fn restart_standby(&mut self) -> Result<()> {
        let standby = self.standby.as_mut().context("nobody stands by")?;
        standby.spawn_again(&self.net)?;
        standby.await_standby(&self.net)
    }

    /// Waits until it hears the one that serves.
    pub(crate) fn await_heard(&self) -> Result<()> {
        await_heard(&self.net, &self.proxy)
    }

    /// Waits until a host has the floating address, or has it no more.
    pub(crate) fn await_floating(&self, host: &str, has: bool) -> Result<()> {
        wait_until(&format!("{host} has the address: {has}"), Duration::from_secs(20), || {
            self.net.addresses(host).is_ok_and(|all| all.contains(&format!(" {FLOATING}/")) == has)
        })
    }
}
