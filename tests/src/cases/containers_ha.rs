//! Two containers of the proxy with what the chart renders for its example: etcd elects, a label on the pod says who serves, and
//! a Service leads there. The API server is a stand-in (tests/chart/api.py) that the proxies ask as pods do, by the token and the CA
//! of a service account; the Service is played here.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Case, Report, Scale,
    containers::{Site, with_podman},
};
use crate::rig::{
    copy::{sha256, write_noise},
    etcd::Etcd,
    kernel::Guest,
    net::{FLOATING, Net, run},
    podman::Podman,
    proxy::binary_for_clusters,
    wait_until,
};

pub(super) const CASES: &[Case] = &[Case {
    name: "containers-ha",
    shows: "of two proxies' containers the one that serves is killed, and told to stop: copies on a kernel mount go on at the \
            other, where a Service leads that follows the label, and who is told to stop ends well and in time",
    soak: 5,
    run: |scale| with_podman(&binary_for_clusters()?, |podman| outlive_their_proxies(scale, podman)),
}];

/// The pods, and the address of each.
const PODS: [(&str, &str); 2] = [("understudy-0", "10.77.0.41"), ("understudy-1", "10.77.0.42")];
/// Where the API server answers: the machine's own address.
const MACHINE: &str = "10.77.0.254";
/// Pods, by TLS.
const SECURE_PORT: &str = "6443";
/// The machine itself.
const API: &str = "10.77.0.254:8080";
/// Where a kubelet mounts what a pod needs to ask it.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const TOKEN: &str = "a-token-of-the-test";
/// Copies that fill the guest's memory show its limits, not the proxy's.
const LARGEST: u64 = 64 << 20;

/// A copy to the share, and one from it, each by one open file. The kernel comes back by itself, but fails a write that was on its
/// way: that piece is written again.
const COPIES: &str = r#"
cat >/tmp/copy.py <<'END'
import os, sys

source, target = (os.open(sys.argv[1], os.O_RDONLY), os.open(sys.argv[2], os.O_RDWR | os.O_CREAT))

def again(act):
    for _ in range(5):
        try:
            return act()
        except OSError as error:
            with open("/dev/tty1", "w") as console:
                console.write(f"@ again after {error.strerror}\n")
    sys.exit("it does not come back")

def put(piece, at):
    assert os.pwrite(target, piece, at) == len(piece)
    os.fsync(target)

at = 0
while piece := again(lambda: os.pread(source, 1 << 19, at)):
    again(lambda: put(piece, at))
    at += len(piece)
os.close(target)
END
try upload python3 /tmp/copy.py "$results/up.bin" "$share/up.bin"
await ready-for-download
try download python3 /tmp/copy.py "$share/down.bin" "$results/down.bin"
"#;

fn outlive_their_proxies(scale: &Scale, podman: Podman) -> Result<Report> {
    let len = scale.copy.min(LARGEST);
    let mut cluster = Cluster::new(podman)?;
    let root = cluster.site.dir.path().to_owned();
    let (share, results) = (root.join("projects"), Guest::prepare_in(&root)?);
    write_noise(&results.join("up.bin"), len)?;
    write_noise(&share.join("down.bin"), len)?;
    for node in ["samba-0", "samba-1"] {
        // Lest the copy be over before the fault.
        cluster.site.net.stretch_copies_at(node, len, Duration::from_secs(6))?;
    }
    fs::set_permissions(&share, fs::Permissions::from_mode(0o777))?;
    let options = "iocharset=utf8,vers=3.1.1,sign,hard,username=alice,password=understudy";
    let mount = format!("{FLOATING}/projects");
    let mut guest = Guest::boot_to(&cluster.site.net, &root, &mount, options, 1, COPIES)?;
    let mut report = Report::default();

    let (killed, _) = cluster.active()?;
    let stall = cluster.copy(&mut guest, ("upload", &share.join("up.bin"), len), |site| site.kill(killed))?;
    report.stalls_ms.push(stall.as_millis());
    // As a kubelet starts it again, in the same pod.
    cluster.start(killed)?;
    cluster.await_standby()?;

    let (stopped, _) = cluster.active()?;
    ensure!(stopped != killed, "{killed} was killed and serves");
    guest.allow("ready-for-download")?;
    let mut took = Duration::ZERO;
    let stall = cluster.copy(&mut guest, ("download", &results.join("down.bin"), len), |site| {
        took = site.stop_proxy(stopped)?;
        Ok(())
    })?;
    report.stalls_ms.push(stall.as_millis());
    let grace = cluster.site.object("StatefulSet", "understudy")?["spec"]["template"]["spec"]
        ["terminationGracePeriodSeconds"]
        .as_u64()
        .context("no grace")?;
    ensure!(took < Duration::from_secs(grace), "told to stop, the proxy took {took:?}");
    report.notes.push(format!("told to stop, the proxy ended after {} ms of {grace} s", took.as_millis()));

    let errors: Vec<_> = guest.all("again after ").collect();
    report.notes.push(format!("pieces that were copied again: {} {errors:?}", errors.len()));
    guest.finish()?.no_program_failed()?;
    for name in ["up.bin", "down.bin"] {
        ensure!(sha256(&results.join(name))? == sha256(&share.join(name))?, "{name}: the bytes differ");
    }
    let refused = fs::read_to_string(root.join("api.log"))?;
    ensure!(refused.is_empty(), "the API server says: {refused}");
    Ok(report)
}

/// Two proxies, and what they need in a cluster. In the order in which it is taken down.
struct Cluster {
    service: Service,
    site: Site,
    _etcd: Etcd,
    _api: Process,
}

/// A process that goes with its owner.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Cluster {
    /// The first proxy serves, the second stands by.
    fn new(podman: Podman) -> Result<Self> {
        let mut site = Site::without_proxy(podman, str::to_owned)?;
        let root = site.dir.path().to_owned();
        let etcd = Etcd::start(&mut site.net, &root, 1, 0)?;
        site.net.add_hub_address(MACHINE)?;
        for (name, address) in PODS {
            site.net.add_host(name, address)?;
        }
        make_account(&root)?;
        let api = start_api(&site, &root)?;
        let service = Service::start(&site)?;
        let mut cluster = Self { service, site, _etcd: etcd, _api: api };
        let [(first, _), (second, _)] = PODS;
        cluster.start(first)?;
        cluster
            .until("the Service leads to the first", |c| c.active().is_ok_and(|(name, _)| name == first))?;
        cluster.start(second)?;
        cluster.await_standby()?;
        Ok(cluster)
    }

    /// Starts a proxy's container in its pod.
    fn start(&mut self, name: &str) -> Result<()> {
        let (_, address) = PODS.into_iter().find(|(known, _)| *known == name).context("no such pod")?;
        let mut container = self.site.proxy()?;
        container.name = name.to_owned();
        let spec = &self.site.object("StatefulSet", "understudy")?["spec"]["template"]["spec"];
        for variable in spec["containers"][0]["env"].as_array().into_iter().flatten() {
            let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
                Some("metadata.name") => name,
                Some("status.podIP") => address,
                _ => anyhow::bail!("not known here: {variable}"),
            };
            let key = variable["name"].as_str().context("a variable without a name")?;
            container.environment.push((key.to_owned(), value.to_owned()));
        }
        for (key, value) in [("HOST", MACHINE), ("PORT", SECURE_PORT)] {
            container.environment.push((format!("KUBERNETES_SERVICE_{key}"), value.to_owned()));
        }
        container.mounts.push((self.site.dir.path().join("account"), ACCOUNT, false));
        container.hosts.push(("etcd".into(), "10.77.0.31".into()));
        self.site.podman.start(&self.site.net, name, &container)
    }

    /// The pod that the Service leads to.
    fn active(&self) -> Result<(&'static str, &'static str)> {
        self.service.leads_to().context("the Service leads nowhere")
    }

    /// Waits until the one that serves is heard by another.
    fn await_standby(&self) -> Result<()> {
        self.until("somebody stands by", |c| {
            c.active().is_ok_and(|(name, _)| c.metric(name, "standbys").is_ok_and(|count| count == 1.0))
        })
    }

    fn until(&self, what: &str, is_so: impl Fn(&Self) -> bool) -> Result<()> {
        wait_until(what, Duration::from_secs(30), || is_so(self)).with_context(|| self.logs())
    }

    fn logs(&self) -> String {
        let log = |(name, _): (&str, _)| {
            let text = self.site.podman.logs(&self.site.net, name).unwrap_or_default();
            let from = text.len().saturating_sub(3000);
            format!("{name}: {}\n", text.get(from..).unwrap_or(&text))
        };
        PODS.into_iter().map(log).collect()
    }

    fn metric(&self, name: &str, series: &str) -> Result<f64> {
        let page = self.site.ask(name, "127.0.0.1", "/metrics")?;
        let line = page.lines().find_map(|line| line.strip_prefix(&format!("understudy_{series} ")));
        Ok(line.with_context(|| format!("no series {series}"))?.trim().parse()?)
    }

    /// Something befalls the proxy that serves when a third of a copy is done, and the copy ends. How long it stood still.
    fn copy(
        &self,
        guest: &mut Guest,
        (name, target, len): (&str, &Path, u64),
        fault: impl FnOnce(&Site) -> Result<()> + Send,
    ) -> Result<Duration> {
        // A file that is written in any order is as long as its end at once.
        let progress = || fs::metadata(target).map_or(0, |meta| meta.blocks() * 512);
        guest.until("a third is copied", |_| progress() >= len / 3)?;
        let (before, _) = self.active()?;
        let (mut last, mut moved, mut stall) = (progress(), Instant::now(), Duration::ZERO);
        let done = format!("done {name}");
        let (site, mut struck) = (&self.site, Ok(()));
        std::thread::scope(|scope| -> Result<()> {
            let fault = scope.spawn(move || fault(site));
            let copied = guest.until("the copy ends", |guest| {
                let now = progress();
                if now != last {
                    stall = stall.max(moved.elapsed());
                    (last, moved) = (now, Instant::now());
                }
                guest.has_said(&done)
            });
            struck = fault.join().map_err(|_| anyhow::anyhow!("a thread died"))?;
            copied.with_context(|| self.logs())
        })?;
        struck?;
        let (after, _) = self.active()?;
        ensure!(after != before, "the Service leads to {before} as before");
        let direction = if name == "upload" { "from_client" } else { "to_client" };
        let bytes = self.metric(after, &format!("bytes_total{{direction=\"{direction}\"}}"))?;
        ensure!(
            bytes >= len as f64 / 3.0,
            "{after} has had {bytes} bytes of {len}: the copy was over before"
        );
        Ok(stall)
    }
}

/// What a kubelet mounts into a pod, and the API server's certificate, which the CA in it has signed.
fn make_account(root: &Path) -> Result<()> {
    let (account, tls) = (root.join("account"), root.join("tls"));
    for dir in [&account, &tls] {
        fs::create_dir_all(dir)?;
    }
    fs::write(account.join("token"), TOKEN)?;
    fs::write(account.join("namespace"), "default")?;
    let [ca, ca_key, key, certificate] =
        [account.join("ca.crt"), tls.join("ca.key"), tls.join("key"), tls.join("certificate")]
            .map(|path| path.display().to_string());
    let made = |subject, key, out| {
        let new = ["openssl", "req", "-x509", "-nodes", "-subj", subject, "-newkey", "ec"];
        [&new[..], &["-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", key, "-out", out]].concat()
    };
    run(&made("/CN=cluster", &ca_key, &ca))?;
    let name = format!("subjectAltName=IP:{MACHINE}");
    let signed = ["-CA", &ca, "-CAkey", &ca_key, "-addext", &name, "-addext", "basicConstraints=CA:FALSE"];
    run(&[&made("/CN=kube-apiserver", &key, &certificate)[..], &signed].concat())
}

/// Starts the stand-in, which knows the proxies' pods and lets through what the chart's role grants.
fn start_api(site: &Site, root: &Path) -> Result<Process> {
    let labels = &site.object("StatefulSet", "understudy")?["spec"]["template"]["metadata"]["labels"];
    let pods: Value = PODS.iter().map(|(name, _)| ((*name).to_owned(), labels.clone())).collect();
    let rules = &site.object("Role", "understudy-label")?["rules"];
    let file = root.join("api.json");
    let tls = json!({
        "address": format!("{MACHINE}:{SECURE_PORT}"), "token": TOKEN,
        "certificate": root.join("tls/certificate"), "key": root.join("tls/key"),
    });
    fs::write(&file, json!({"rules": rules, "pods": pods, "tls": tls}).to_string())?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("chart/api.py");
    let child = site
        .net
        .command("hub", "python3")
        .arg(script)
        .arg(API)
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(root.join("api.log"))?)
        .spawn()
        .context("starting the stand-in for the API server")?;
    let api = Process(child);
    wait_until("the API server answers", Duration::from_secs(20), || site.net.connect("hub", API).is_ok())?;
    Ok(api)
}

/// What a cluster makes of a Service: whoever comes to its address is led to a pod that it selects, as kube-proxy does it.
/// Connections that are there stay where they are.
struct Service {
    leads_to: Arc<Mutex<Option<(&'static str, &'static str)>>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Service {
    fn start(site: &Site) -> Result<Self> {
        let service = &site.object("Service", "understudy")?["spec"];
        let selector = service["selector"].as_object().context("no selector")?;
        let selector =
            selector.iter().map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()));
        let selector = selector.collect::<Vec<_>>().join(",").replace('=', "%3D").replace(',', "%2C");
        let (port, target) = (&service["ports"][0]["port"], &service["ports"][0]["targetPort"]);
        let container =
            &site.object("StatefulSet", "understudy")?["spec"]["template"]["spec"]["containers"][0];
        let ports = container["ports"].as_array().context("no ports")?;
        let target = ports.iter().find(|port| port["name"] == *target).context("no such port")?;
        let rule = format!(
            "add rule ip service to ip daddr {FLOATING} tcp dport {port} dnat to {{address}}:{}",
            target["containerPort"]
        );
        prepare_hub(&site.net)?;
        let (leads_to, is_over) = (Arc::new(Mutex::new(None)), Arc::new(AtomicBool::new(false)));
        let (told, over) = (Arc::clone(&leads_to), Arc::clone(&is_over));
        let thread = site.net.spawn_within("hub", move || {
            while !over.load(Ordering::Relaxed) {
                // Of two either will do: who does not lead refuses.
                let now = selected(&selector)?.into_iter().next();
                if now != *told.lock().unwrap_or_else(PoisonError::into_inner) {
                    let rule = now.map(|(_, address)| rule.replace("{address}", address)).unwrap_or_default();
                    run(&["nft", &format!("flush chain ip service to; {rule}")])?;
                    *told.lock().unwrap_or_else(PoisonError::into_inner) = now;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(())
        });
        Ok(Self { leads_to, is_over, thread: Some(thread) })
    }

    fn leads_to(&self) -> Option<(&'static str, &'static str)> {
        *self.leads_to.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(Ok(Err(error))) = self.thread.take().map(JoinHandle::join) {
            eprintln!("the Service has ended: {error:#}");
        }
    }
}

/// The hub forwards what it rewrites, and sends nobody past itself.
fn prepare_hub(net: &Net) -> Result<()> {
    let rules = "add table ip service; add chain ip service to { type nat hook prerouting priority dstnat; }; \
                 add chain ip service from { type nat hook postrouting priority srcnat; }; \
                 add rule ip service from ct status dnat masquerade";
    let sysctls = "cd /proc/sys/net/ipv4; echo 1 >ip_forward; \
                   for conf in conf/*; do echo 0 >$conf/send_redirects; done";
    for words in [["nft", rules, ""], ["sh", "-c", sysctls]] {
        let [program, arguments @ ..] = words;
        let mut command: Command = net.command("hub", program);
        let done = command.args(arguments.iter().filter(|word| !word.is_empty())).output()?;
        ensure!(done.status.success(), "{program}: {}", String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(())
}

/// The pods that have these labels, as the API server says.
fn selected(selector: &str) -> Result<Vec<(&'static str, &'static str)>> {
    let mut stream = TcpStream::connect(API)?;
    write!(
        stream,
        "GET /api/v1/namespaces/default/pods?labelSelector={selector} HTTP/1.1\r\nConnection: close\r\n\r\n"
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (_, body) = text.split_once("\r\n\r\n").context("no answer")?;
    let list: Value = serde_json::from_str(body)?;
    let items = list["items"].as_array().with_context(|| format!("no list: {body}"))?;
    let is_listed = |name: &str| items.iter().any(|pod| pod["metadata"]["name"] == name);
    Ok(PODS.into_iter().filter(|(name, _)| is_listed(name)).collect())
}
