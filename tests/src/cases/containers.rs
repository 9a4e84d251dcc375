//! The container images, run by podman in network namespaces as on machines of a cluster, with what the chart renders for its
//! example: configuration, Secret, arguments and capabilities.

use std::{
    fs,
    io::{Read, Write},
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;

use super::{Case, Report, Scale};
use crate::rig::{
    Scratch,
    copy::{sha256, write_noise},
    net::{FLOATING, Net},
    podman::{Container, Podman},
    proxy::binary,
    wait_until,
};

/// The user that the image runs as, and its group.
const NOBODY: u32 = 65532;
/// What the chart renders for helm/examples/values.yaml.
const RENDER: &str = include_str!("../../chart/golden/values.json");
/// Takeovers after the death of a node.
const TAKEN_OVER: &str = "takeovers_total{cause=\"crash\",result=\"ok\"}";
/// Where the nodes' addresses begin.
const SMBD: &str = "10.77.0.1";

pub(super) const CASES: &[Case] = &[Case {
    name: "containers",
    shows: "the images, read-only and without privileges, as the chart renders them: copies outlive killed Samba containers, \
            the chart's test opens a share, and a proxy that is told to stop ends well and in time",
    soak: 10,
    run: |scale| with_podman(&binary()?, |podman| outlive_their_nodes(scale, podman)),
}];

/// Does this where containers can be run; elsewhere it says so.
pub(super) fn with_podman(binary: &Path, act: impl FnOnce(Podman) -> Result<Report>) -> Result<Report> {
    match Podman::new(binary) {
        Ok(podman) => act(podman),
        Err(error) => {
            let note = format!("NOT RUN: no container can be run on this machine: {error:#}");
            eprintln!("{note}");
            Ok(Report { notes: vec![note], ..Report::default() })
        }
    }
}

fn outlive_their_nodes(scale: &Scale, podman: Podman) -> Result<Report> {
    let mut site = Site::new(podman)?;
    // Lest the copy be over before the kill.
    site.net.stretch_copies(scale.copy, Duration::from_secs(4))?;
    let mut report = Report::default();
    for download in [true, false] {
        let serving = site.serving()?;
        let before = site.metric(TAKEN_OVER)?;
        let stall = site.copy(download, scale.copy, |site| site.kill(&serving))?;
        report.stalls_ms.push(stall.as_millis());
        ensure!(site.metric(TAKEN_OVER)? > before, "the copy was not taken over");
        ensure!(site.serving()? != serving, "{serving} was killed and serves");
        site.start_node(&serving)?;
        site.await_up(&serving)?;
    }
    report.notes.push(site.run_test()?);
    for (space, address, path, status) in [
        ("hub", "127.0.0.1", "/store", 200),
        ("hub", FLOATING, "/store", 200),
        ("client", FLOATING, "/store", 403),
        ("client", FLOATING, "/metrics", 200),
        ("client", FLOATING, "/live", 200),
    ] {
        let answer = site.ask(space, address, path)?;
        let first = answer.lines().next().unwrap_or_default();
        ensure!(first.contains(&format!(" {status} ")), "{path} is answered {first} in {space}");
    }
    let took = site.stop_proxy("understudy")?;
    ensure!(took < Duration::from_secs(10), "the proxy took {took:?} to stop");
    report.notes.push(format!("told to stop, the proxy ended after {} ms", took.as_millis()));
    // The store is that of the one before, and so is the node that serves.
    let before = site.metric("epoch")?;
    site.start_proxy()?;
    ensure!(before.is_none(), "the proxy that was stopped answers");
    site.copy(true, 1 << 20, |_| Ok(()))?;
    Ok(report)
}

/// The configuration of a proxy that is the only one: its store is a directory, and it asks neither etcd nor an API server.
fn alone(text: &str) -> String {
    let mut section = "";
    let mut lines = Vec::new();
    for line in text.lines() {
        if line.starts_with('[') {
            section = line;
        }
        match (section, line.split(" = ").next()) {
            ("[ha]", _) | ("[store]", Some("prefix" | "timeout")) => {}
            ("[store]", Some("url")) if line.contains("etcd") => {
                lines.push("url = \"file:/var/lib/understudy\"")
            }
            _ => lines.push(line),
        }
    }
    lines.join("\n") + "\n"
}

/// Two Samba containers on one directory, and the proxies'.
pub(super) struct Site {
    pub(super) podman: Podman,
    objects: Vec<Value>,
    pub(super) net: Net,
    pub(super) dir: Scratch,
}

impl Site {
    /// With one proxy.
    fn new(podman: Podman) -> Result<Self> {
        let mut site = Self::without_proxy(podman, alone)?;
        site.start_proxy()?;
        for index in 0..2 {
            site.await_up(&format!("samba-{index}"))?;
        }
        Ok(site)
    }

    /// The nodes, and what is mounted into containers. `edit` is done to the configurations.
    pub(super) fn without_proxy(podman: Podman, edit: fn(&str) -> String) -> Result<Self> {
        let mut site =
            Self { podman, objects: serde_json::from_str(RENDER)?, net: Net::new()?, dir: Scratch::new()? };
        let root = site.dir.path();
        for sub in ["projects", "store", "local", "users", "config", "test"] {
            fs::create_dir_all(root.join(sub))?;
        }
        // As a kubelet mounts a volume for the group of the pod.
        chown(root.join("store"), Some(NOBODY), Some(NOBODY))?;
        let users = site.text("Secret", "example-users", "stringData", "smbpasswd")?;
        let file = root.join("users/smbpasswd");
        fs::write(&file, users)?;
        chown(&file, None, Some(NOBODY))?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o440))?;
        for (name, dir) in [("understudy", "config"), ("understudy-test", "test")] {
            let text = edit(&site.text("ConfigMap", name, "data", "understudy.toml")?);
            fs::write(root.join(dir).join("understudy.toml"), text)?;
        }
        for index in 0..2 {
            site.net.add_host(&format!("samba-{index}"), &format!("{SMBD}{}", index + 1))?;
            site.start_node(&format!("samba-{index}"))?;
        }
        Ok(site)
    }

    /// An object of the render.
    pub(super) fn object(&self, kind: &str, name: &str) -> Result<&Value> {
        let is_it = |object: &&Value| object["kind"] == kind && object["metadata"]["name"] == name;
        self.objects.iter().find(is_it).with_context(|| format!("no {kind} {name} is rendered"))
    }

    fn text(&self, kind: &str, name: &str, field: &str, key: &str) -> Result<String> {
        let text = self.object(kind, name)?[field][key].as_str();
        Ok(text.with_context(|| format!("{kind} {name} has no {key}"))?.to_owned())
    }

    /// The only container of a StatefulSet or Pod, with its arguments and security context.
    pub(super) fn container(&self, kind: &str, name: &str, image: &'static str) -> Result<Container> {
        let object = self.object(kind, name)?;
        let spec = if kind == "Pod" { &object["spec"] } else { &object["spec"]["template"]["spec"] };
        let container = &spec["containers"][0];
        let words = |value: &Value| -> Vec<String> {
            value.as_array().into_iter().flatten().filter_map(Value::as_str).map(ToOwned::to_owned).collect()
        };
        let security = &container["securityContext"];
        ensure!(security["capabilities"]["drop"][0] == "ALL", "{name} keeps capabilities");
        Ok(Container {
            name: name.into(),
            image,
            is_read_only: security["readOnlyRootFilesystem"] == true,
            capabilities: words(&security["capabilities"]["add"]),
            arguments: words(&container["args"]),
            ..Container::default()
        })
    }

    /// Where the nodes are found by the names that the chart gives them, and the proxy by its Service's.
    pub(super) fn hosts(&self) -> Vec<(String, String)> {
        let node = |index| {
            (format!("samba-{index}.samba.default.svc.cluster.local"), format!("{SMBD}{}", index + 1))
        };
        vec![node(0), node(1), ("understudy.default.svc.cluster.local".into(), FLOATING.into())]
    }

    fn start_node(&mut self, name: &str) -> Result<()> {
        let mut container = self.container("StatefulSet", "samba", "localhost/understudy-samba:dev")?;
        let root = self.dir.path();
        container.name = name.into();
        container.mounts = vec![
            (root.join("users"), "/etc/understudy/smbpasswd", false),
            (root.join("projects"), "/srv/projects", true),
        ];
        self.podman.start(&self.net, name, &container)
    }

    /// A proxy's.
    pub(super) fn proxy(&self) -> Result<Container> {
        let mut container = self.container("StatefulSet", "understudy", "localhost/understudy:dev")?;
        ensure!(container.is_read_only && container.capabilities.is_empty(), "the proxy has privileges");
        let root = self.dir.path();
        container.hosts = self.hosts();
        container.mounts = vec![
            (root.join("users"), "/etc/understudy/smbpasswd", false),
            (root.join("config"), "/etc/understudy/config", false),
        ];
        Ok(container)
    }

    fn start_proxy(&mut self) -> Result<()> {
        let mut container = self.proxy()?;
        container.mounts.push((self.dir.path().join("store"), "/var/lib/understudy", true));
        self.podman.start(&self.net, "hub", &container)?;
        let ready = wait_until("the proxy is ready", Duration::from_secs(20), || {
            self.get("/ready").is_ok_and(|answer| answer.contains("ready, "))
        });
        ready.map_err(|error| {
            anyhow::anyhow!("{error}: {}", self.podman.logs(&self.net, "understudy").unwrap_or_default())
        })
    }

    /// The test that `helm test` runs, from the clients' namespace. The Service is a name there, at the port of the pod.
    fn run_test(&self) -> Result<String> {
        let mut container = self.container("Pod", "understudy-test", "localhost/understudy:dev")?;
        let root = self.dir.path();
        let config = root.join("test/understudy.toml");
        let text = fs::read_to_string(&config)?;
        ensure!(text.contains(".cluster.local:445\""), "the test does not ask the Service: {text}");
        fs::write(&config, text.replace(".cluster.local:445\"", ".cluster.local:8445\""))?;
        container.hosts = self.hosts();
        container.mounts = vec![
            (root.join("users"), "/etc/understudy/smbpasswd", false),
            (root.join("test"), "/etc/understudy/config", false),
        ];
        let done = self.podman.finish(&self.net, "client", &container)?;
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        ensure!(done.status.success(), "the chart's test: {}: {said}", done.status);
        let opened = said.lines().find(|line| line.contains("projects at service: volume serial number"));
        Ok(format!("the chart's test: {}", opened.context("it has opened no share")?.trim()))
    }

    /// SIGTERM, with the time that the chart gives; how long it took. It has ended well.
    pub(super) fn stop_proxy(&self, name: &str) -> Result<Duration> {
        let grace = &self.object("StatefulSet", "understudy")?["spec"]["template"]["spec"];
        let grace = grace["terminationGracePeriodSeconds"].as_u64().context("no grace")?;
        let start = Instant::now();
        self.podman.signal(&self.net, name, Signal::TERM)?;
        let status = self.podman.await_end(&self.net, name, Duration::from_secs(grace))?;
        let took = start.elapsed();
        ensure!(status == "0", "the proxy ended with status {status}");
        Ok(took)
    }

    pub(super) fn kill(&self, name: &str) -> Result<()> {
        self.podman.signal(&self.net, name, Signal::KILL)
    }

    fn get(&self, path: &str) -> Result<String> {
        self.ask("hub", "127.0.0.1", path)
    }

    /// Asks the admin page from a namespace.
    pub(super) fn ask(&self, space: &str, address: &str, path: &str) -> Result<String> {
        let mut stream = self.net.connect(space, &format!("{address}:9645"))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    }

    /// A metric; `None` if nobody answers.
    fn metric(&self, name: &str) -> Result<Option<f64>> {
        let Ok(page) = self.get("/metrics") else { return Ok(None) };
        let line = page.lines().find_map(|line| line.strip_prefix(&format!("understudy_{name} ")));
        Ok(Some(line.with_context(|| format!("no series {name}"))?.trim().parse()?))
    }

    fn serving(&self) -> Result<String> {
        for name in ["samba-0", "samba-1"] {
            if self.metric(&format!("node_active{{node=\"{name}\"}}"))? == Some(1.0) {
                return Ok(name.into());
            }
        }
        bail!("no node serves")
    }

    fn await_up(&self, name: &str) -> Result<()> {
        let series = format!("node_up{{node=\"{name}\"}}");
        wait_until(&format!("{name} answers"), Duration::from_secs(30), || {
            self.metric(&series).is_ok_and(|value| value == Some(1.0))
        })
    }

    /// A copy, and what is done in its middle. How long it stood still after that.
    fn copy(
        &mut self,
        download: bool,
        len: u64,
        fault: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<Duration> {
        let root = self.dir.path().to_owned();
        let (share, local) = (root.join("projects/bulk.bin"), root.join("local/bulk.bin"));
        let (source, target) = if download { (&share, &local) } else { (&local, &share) };
        for file in [&share, &local] {
            let _ = fs::remove_file(file);
        }
        write_noise(source, len)?;
        fs::set_permissions(source, fs::Permissions::from_mode(0o666))?;
        let mut client = self.smbclient(download, &local)?;
        let progress = || fs::metadata(target).map_or(0, |meta| meta.len());
        let is_over = |client: &mut Child| client.try_wait().is_ok_and(|status| status.is_some());
        wait_until("the copy is under way", Duration::from_secs(60), || {
            progress() >= len / 3 || is_over(&mut client)
        })?;
        fault(self)?;
        let (mut last, mut moved, mut stall) = (progress(), Instant::now(), Duration::ZERO);
        let begun = Instant::now();
        let status = loop {
            let now = progress();
            if now != last {
                stall = stall.max(moved.elapsed());
                (last, moved) = (now, Instant::now());
            }
            if let Some(status) = client.try_wait()? {
                break status;
            }
            if begun.elapsed() > Duration::from_secs(120) {
                let _ = client.kill();
                bail!("the copy hangs at {now} of {len} bytes");
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        let log = || self.podman.logs(&self.net, "understudy").unwrap_or_default();
        ensure!(status.success(), "smbclient: {status}, at {last} of {len} bytes: {}", log());
        ensure!(sha256(source)? == sha256(target)?, "the bytes differ");
        Ok(stall)
    }

    fn smbclient(&self, download: bool, local: &Path) -> Result<Child> {
        let order = if download {
            format!("get bulk.bin {}", local.display())
        } else {
            format!("put {} bulk.bin", local.display())
        };
        let mut client: Command = self.net.command("client", "smbclient");
        client.args([&format!("//{FLOATING}/projects"), "-p", "8445", "-Ualice%understudy"]);
        client.args(["--client-protection=sign", "-t", "120", "-c", &order]).env("HOME", self.dir.path());
        client.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        client.spawn().context("starting smbclient")
    }
}
