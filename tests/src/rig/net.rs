//! Network namespaces: one for the proxy with a bridge in it, one for each node, one for the clients.

use std::{
    fs::{self, File},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The floating address.
pub(crate) const FLOATING: &str = "10.77.0.100";
/// The hub's own, where the floating one is not.
const HUB: &str = "10.77.0.254";
/// The clients' address.
pub(crate) const CLIENT: &str = "10.77.0.1";

/// The namespaces of one rig. Dropped, they are gone.
#[derive(Debug)]
pub(crate) struct Net {
    tag: String,
    spaces: Vec<String>,
}

impl Net {
    /// The hub with the floating address, and a namespace for the clients.
    pub(crate) fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let tag = format!("us{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut net = Self { tag, spaces: Vec::new() };
        let hub = net.add_space("hub")?;
        run(&["ip", "-n", &hub, "link", "add", "br0", "type", "bridge"])?;
        run(&["ip", "-n", &hub, "addr", "add", &format!("{FLOATING}/24"), "dev", "br0"])?;
        run(&["ip", "-n", &hub, "link", "set", "br0", "up"])?;
        net.add_host("client", CLIENT)?;
        Ok(net)
    }

    /// The full name of a namespace.
    pub(crate) fn space(&self, name: &str) -> String {
        format!("{}-{name}", self.tag)
    }

    fn add_space(&mut self, name: &str) -> Result<String> {
        let space = self.space(name);
        run(&["ip", "netns", "add", &space])?;
        self.spaces.push(space.clone());
        run(&["ip", "-n", &space, "link", "set", "lo", "up"])?;
        // What Debian and Ubuntu have, whatever this machine has: with another, what is measured is its pacing.
        let cubic = "echo cubic >/proc/sys/net/ipv4/tcp_congestion_control";
        run(&["ip", "netns", "exec", &space, "sh", "-c", cubic])?;
        Ok(space)
    }

    /// A further namespace with one address on the bridge.
    pub(crate) fn add_host(&mut self, name: &str, address: &str) -> Result<()> {
        let hub = self.space("hub");
        let space = self.add_space(name)?;
        let port = format!("v-{name}");
        run(&[
            "ip", "-n", &hub, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &space,
        ])?;
        run(&["ip", "-n", &hub, "link", "set", &port, "master", "br0", "up"])?;
        run(&["ip", "-n", &space, "addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
        run(&["ip", "-n", &space, "link", "set", "eth0", "up"])
    }

    /// Makes accounts known to the programs of a namespace, and to no others: `ip netns exec` puts what is in
    /// /etc/netns in the place of /etc.
    pub(crate) fn add_accounts(&self, name: &str, users: &[(String, u32)]) -> Result<()> {
        let mut text = fs::read_to_string("/etc/passwd")?;
        for (user, id) in users {
            text += &format!("{user}:x:{id}:65534::/nonexistent:/usr/sbin/nologin\n");
        }
        self.write_etc(name, "passwd", &text).context("writing the accounts of a namespace")
    }

    /// Makes host names known to the programs of a namespace, in the same way.
    pub(crate) fn add_names(&self, name: &str, hosts: &[(&str, &str)]) -> Result<()> {
        let mut text = String::from("127.0.0.1 localhost\n");
        for (address, host) in hosts {
            text += &format!("{address} {host}\n");
        }
        self.write_etc(name, "hosts", &text).context("writing the host names of a namespace")
    }

    fn write_etc(&self, name: &str, file: &str, text: &str) -> Result<()> {
        let dir = self.etc(name);
        fs::create_dir_all(&dir)?;
        Ok(fs::write(dir.join(file), text)?)
    }

    fn etc(&self, name: &str) -> PathBuf {
        Path::new("/etc/netns").join(self.space(name))
    }

    /// A further address of the hub.
    pub(crate) fn add_hub_address(&self, address: &str) -> Result<()> {
        run(&["ip", "-n", &self.space("hub"), "addr", "add", &format!("{address}/24"), "dev", "br0"])
    }

    /// A tap on the bridge, for a guest whose processes run in the hub.
    pub(crate) fn add_tap(&self, tap: &str) -> Result<()> {
        let hub = self.space("hub");
        let add = ["ip", "netns", "exec", &hub, "ip", "tuntap", "add", "dev", tap, "mode", "tap"];
        run(&add).context("making a tap, which needs /dev/net/tun")?;
        run(&["ip", "-n", &hub, "link", "set", tap, "master", "br0", "up"])
    }

    /// The floating address is somebody else's from now on; the hub has one of its own.
    pub(crate) fn give_floating_away(&self) -> Result<()> {
        self.add_hub_address(HUB)?;
        run(&["ip", "-n", &self.space("hub"), "addr", "del", &format!("{FLOATING}/24"), "dev", "br0"])?;
        // It goes with the first address of its network.
        let _ = self.add_hub_address(HUB);
        Ok(())
    }

    /// Nothing that a host sends to these addresses leaves it, or does again.
    pub(crate) fn set_blackhole(&self, name: &str, addresses: &[&str], on: bool) -> Result<()> {
        let space = self.space(name);
        for address in addresses {
            let what = if on { "add" } else { "del" };
            run(&["ip", "-n", &space, "route", what, "blackhole", &format!("{address}/32")])?;
        }
        Ok(())
    }

    /// A further address of a host.
    pub(crate) fn add_address(&self, name: &str, address: &str) -> Result<()> {
        run(&["ip", "-n", &self.space(name), "addr", "add", &format!("{address}/24"), "dev", "eth0"])
    }

    /// The addresses of a host, as `ip` tells them.
    pub(crate) fn addresses(&self, name: &str) -> Result<String> {
        let output = self.command(name, "ip").args(["-o", "addr", "show", "dev", "eth0"]).output()?;
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Cuts a host's cable, or mends it.
    pub(crate) fn set_link(&self, name: &str, up: bool) -> Result<()> {
        let state = if up { "up" } else { "down" };
        run(&["ip", "-n", &self.space("hub"), "link", "set", &format!("v-{name}"), state])
    }

    /// Makes the clients' cable so narrow that a copy of `bytes` takes this long, lest it be over before all its faults
    /// have come.
    pub(crate) fn stretch_copies(&self, bytes: u64, over: Duration) -> Result<()> {
        self.stretch_copies_at("client", bytes, over)
    }

    /// The same with the cable of another host.
    pub(crate) fn stretch_copies_at(&self, name: &str, bytes: u64, over: Duration) -> Result<()> {
        let rate = format!("{}kbit", bytes * 8 / u64::try_from(over.as_millis())?);
        for (space, device) in [("hub", format!("v-{name}").as_str()), (name, "eth0")] {
            let space = self.space(space);
            let bucket = ["root", "tbf", "rate", &rate, "burst", "256kb", "latency", "100ms"];
            run(&[&["tc", "-n", &space, "qdisc", "replace", "dev", device][..], &bucket].concat())?;
        }
        Ok(())
    }

    /// A command that runs in a namespace.
    pub(crate) fn command(&self, name: &str, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.space(name), program]);
        command
    }

    /// A TCP connection made from within a namespace.
    pub(crate) fn connect(&self, name: &str, address: &str) -> Result<TcpStream> {
        self.connect_many(name, address, 1)?.pop().context("no connection was made")
    }

    /// Many of them. One thread makes them all, for it takes milliseconds to go into a namespace.
    pub(crate) fn connect_many(&self, name: &str, address: &str, count: usize) -> Result<Vec<TcpStream>> {
        let address = address.to_owned();
        self.within(name, move || {
            let connect =
                |_| TcpStream::connect(&address).with_context(|| format!("connecting to {address}"));
            (0..count).map(connect).collect()
        })
    }

    /// Listens in a namespace.
    pub(crate) fn listen(&self, name: &str, address: &str) -> Result<TcpListener> {
        let address = address.to_owned();
        self.within(name, move || {
            TcpListener::bind(&address).with_context(|| format!("listening at {address}"))
        })
    }

    /// Does this on a thread that is in a namespace.
    pub(crate) fn within<T: Send + 'static>(
        &self,
        name: &str,
        act: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let made = self.spawn_within(name, act);
        made.join().map_err(|_| anyhow::anyhow!("a thread in a namespace died"))?
    }

    /// The same, and does not wait for it. What that thread starts is in the namespace, too.
    pub(crate) fn spawn_within<T: Send + 'static>(
        &self,
        name: &str,
        act: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> JoinHandle<Result<T>> {
        let path = format!("/var/run/netns/{}", self.space(name));
        std::thread::spawn(move || {
            let space = File::open(&path).with_context(|| path.clone())?;
            move_into_link_name_space(std::os::fd::AsFd::as_fd(&space), Some(LinkNameSpaceType::Network))?;
            act()
        })
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for space in &self.spaces {
            let _ = run(&["ip", "netns", "del", space]);
            let _ = fs::remove_dir_all(Path::new("/etc/netns").join(space));
        }
    }
}

/// Runs a command to its end; its errors are ours.
pub(crate) fn run(words: &[&str]) -> Result<()> {
    let (program, arguments) = words.split_first().context("no command")?;
    let output =
        Command::new(program).args(arguments).output().with_context(|| format!("running {program}"))?;
    if !output.status.success() {
        bail!("{}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
