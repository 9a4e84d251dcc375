//! The floating address, taken by this process while it serves.
//!
//! One of several proxies takes it for a few seconds at a time only, and goes on as long as it is known to lead: a process that
//! was killed or stopped, or hears nothing from the store, loses it without anybody's doing.

mod netlink;
mod packets;

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use rustix::{
    net::{AddressFamily, SocketType, netdevice::name_to_index},
    thread::{CapabilitySet, capabilities},
};
use tokio::time::{Instant, sleep, sleep_until};

use self::{netlink::Netlink, packets::Mac};
use crate::{config::VipConfig, ha::Gate};

/// How long an address is taken for at a time.
const LIFETIME: Duration = Duration::from_secs(3);
/// How often that is renewed.
const EVERY: Duration = Duration::from_millis(700);
/// When, after it was taken, that is told to others.
const ANNOUNCEMENTS: [u64; 7] = [50, 150, 400, 800, 1400, 2000, 3500];

/// The addresses of `[vip]`.
#[derive(Debug)]
pub(crate) struct Vip {
    config: VipConfig,
}

/// The interface as it is now.
struct Interface {
    netlink: Netlink,
    index: u32,
    /// `None`: nobody asks for it there.
    mac: Option<Mac>,
}

impl Vip {
    /// Looks whether all that is needed is there, and removes what a process before this one has left.
    ///
    /// # Errors
    /// The interface is not there, or this process may not do that.
    pub(crate) fn prepare(config: VipConfig) -> anyhow::Result<Self> {
        let vip = Self { config };
        if vip.remove()? {
            tracing::warn!("an address of [vip] was left by an earlier run, and is removed");
        }
        Ok(vip)
    }

    /// Who has the addresses now, by hardware address, but for this machine itself; changes nothing.
    ///
    /// # Errors
    /// The interface is not there, or this process may not take an address.
    pub(crate) fn owners(config: VipConfig) -> anyhow::Result<Vec<(IpAddr, Option<String>)>> {
        let vip = Self { config };
        let interface = vip.interface()?;
        if !may_take() {
            return Err(vip.explain(&io::ErrorKind::PermissionDenied.into()));
        }
        let addresses = vip.config.addresses.iter().map(|(ip, _)| *ip);
        addresses
            .map(|ip| match interface.mac {
                Some(mac) => packets::is_taken(interface.index, mac, ip)
                    .map(|owner| (ip, owner))
                    .map_err(|error| vip.explain(&error)),
                None => Ok((ip, None)),
            })
            .collect()
    }

    fn interface(&self) -> anyhow::Result<Interface> {
        let name = &self.config.interface;
        let any = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
        let index = name_to_index(&any, name).map_err(|error| self.explain(&error.into()))?;
        let netlink = Netlink::open().context("netlink")?;
        let text = fs::read_to_string(format!("/sys/class/net/{name}/address")).unwrap_or_default();
        Ok(Interface { netlink, index, mac: hardware_address(text.trim()) })
    }

    fn explain(&self, error: &io::Error) -> anyhow::Error {
        let name = &self.config.interface;
        if error.kind() == io::ErrorKind::PermissionDenied {
            return anyhow!(
                "[vip]: {error}; to take an address needs CAP_NET_ADMIN and CAP_NET_RAW (systemd: AmbientCapabilities=), \
                 or leave [vip] out and let something else move it"
            );
        }
        if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) {
            return anyhow!("[vip] interface = \"{name}\" is not there; `ip link` lists those that are");
        }
        anyhow!("[vip] interface = \"{name}\": {error}")
    }

    /// Takes the addresses from the interface. Whether it had one.
    fn remove(&self) -> anyhow::Result<bool> {
        let interface = self.interface()?;
        let mut had = false;
        for address in &self.config.addresses {
            had |=
                interface.netlink.remove(interface.index, *address).map_err(|error| self.explain(&error))?;
        }
        Ok(had)
    }

    /// Gives the addresses back.
    pub(crate) fn release(&self) {
        match self.remove() {
            Ok(_) => tracing::info!(addresses = ?self.names(), "the floating address is released"),
            Err(error) => tracing::error!("the floating address could not be released: {error:#}"),
        }
    }

    fn names(&self) -> Vec<String> {
        self.config.addresses.iter().map(|(ip, prefix)| format!("{ip}/{prefix}")).collect()
    }

    /// Takes the addresses: all of them or none. `wary`: nobody is to have them. `gate`: they are lost when that shuts.
    ///
    /// # Errors
    /// Somebody else has one, or it may not be taken.
    pub(crate) async fn take(self: &Arc<Self>, wary: bool, gate: &Gate) -> anyhow::Result<()> {
        let (vip, lifetime) = (Arc::clone(self), lifetime(gate));
        tokio::task::spawn_blocking(move || vip.take_now(wary, lifetime)).await??;
        tracing::info!(addresses = ?self.names(), interface = self.config.interface, "the floating address is taken");
        Ok(())
    }

    fn take_now(&self, wary: bool, lifetime: Option<Duration>) -> anyhow::Result<()> {
        let interface = self.interface()?;
        if let Some(mac) = interface.mac.filter(|_| wary) {
            for (ip, _) in &self.config.addresses {
                let owner =
                    packets::is_taken(interface.index, mac, *ip).map_err(|error| self.explain(&error))?;
                if let Some(owner) = owner {
                    bail!(
                        "[vip] address {ip} is in use by {owner} on the network of {}; take it away there, or choose another",
                        self.config.interface
                    );
                }
            }
        }
        let result = self.config.addresses.iter().try_for_each(|address| {
            interface.netlink.set(interface.index, *address, lifetime).map_err(|error| self.explain(&error))
        });
        if result.is_err() {
            let _ = self.remove();
        }
        result
    }

    /// Tells everybody where the addresses are, and `clients` that their connections are gone, until a process that was killed
    /// has them no more.
    pub(crate) async fn announce(self: Arc<Self>, port: u16, clients: Vec<SocketAddr>) {
        let begun = Instant::now();
        for after in ANNOUNCEMENTS {
            sleep_until(begun + Duration::from_millis(after)).await;
            self.announce_once(port, &clients).await;
        }
    }

    /// The same, once and now.
    pub(crate) async fn announce_once(self: &Arc<Self>, port: u16, clients: &[SocketAddr]) {
        let (vip, clients) = (Arc::clone(self), clients.to_vec());
        let told = tokio::task::spawn_blocking(move || vip.announce_now(port, &clients)).await;
        if let Ok(Err(error)) = told {
            tracing::warn!("the floating address could not be announced: {error:#}");
        }
    }

    fn announce_now(&self, port: u16, clients: &[SocketAddr]) -> anyhow::Result<()> {
        let interface = self.interface()?;
        for (ip, _) in &self.config.addresses {
            if let Some(mac) = interface.mac {
                packets::announce(interface.index, mac, *ip).map_err(|error| self.explain(&error))?;
            }
            for client in clients.iter().filter(|client| client.is_ipv4() == ip.is_ipv4()) {
                // One that cannot be reached is told nothing.
                let _ = packets::tickle(SocketAddr::new(*ip, port), *client);
            }
        }
        Ok(())
    }

    /// Keeps the addresses as long as the gate is open.
    ///
    /// # Errors
    /// They cannot be had any more.
    pub(crate) async fn keep(self: Arc<Self>, gate: Arc<Gate>, port: u16) -> anyhow::Error {
        if !gate.is_guarded() {
            std::future::pending::<()>().await;
        }
        let mut renewed = Instant::now();
        loop {
            sleep(EVERY).await;
            if !gate.is_open() {
                continue;
            }
            let vip = Arc::clone(&self);
            match tokio::task::spawn_blocking(move || vip.take_now(false, Some(LIFETIME))).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return error,
                Err(error) => return error.into(),
            }
            if renewed.elapsed() > LIFETIME - Duration::from_secs(1) {
                tracing::warn!("the floating address was lost for a while, and is announced anew");
                self.announce_once(port, &[]).await;
                tokio::spawn(Arc::clone(&self).announce(port, Vec::new()));
            }
            renewed = Instant::now();
        }
    }
}

/// Whether this process has CAP_NET_ADMIN and CAP_NET_RAW, as far as the system tells.
fn may_take() -> bool {
    let needed = CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW;
    capabilities(None).map_or(true, |sets| sets.effective.contains(needed))
}

fn lifetime(gate: &Gate) -> Option<Duration> {
    gate.is_guarded().then_some(LIFETIME)
}

/// An address like 02:00:00:00:00:01. That of a loopback is none.
fn hardware_address(text: &str) -> Option<Mac> {
    let mut mac = Mac::default();
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    (parts.next().is_none() && mac != Mac::default()).then_some(mac)
}
