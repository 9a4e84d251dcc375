//! Reading the TOML table by hand: serde would stop at the first mistake.

use std::{net::SocketAddr, ops::Range, path::PathBuf, time::Duration};

use toml::de::{DeTable, DeValue};
use understudy_core::link::SideChannelMode;

use super::{CompareConfig, Config, FenceMeans, LogFormat, Mistake, NodeConfig};

const TOP: &[&str] = &[
    "listen",
    "nodes",
    "credentials",
    "compare",
    "store",
    "ha",
    "vip",
    "fence",
    "admin",
    "health",
    "clients",
    "side_channel",
    "log",
    "takeover_deadline",
    "grace_park",
    "grace",
    "shutdown_grace",
    "leg_losses_per_minute",
    "workers",
];

const LEVELS: &[&str] = &["error", "warn", "info", "debug", "trace"];

pub(super) struct Reader<'a> {
    text: &'a str,
    /// The environment.
    pub(super) variable: Variable,
    mistakes: Vec<Mistake>,
}

/// What the environment says to a name.
pub(super) type Variable = fn(&str) -> Option<String>;

/// One table and where it stands.
#[derive(Clone, Copy)]
pub(super) struct Section<'a> {
    pub(super) name: &'a str,
    pub(super) table: &'a DeTable<'a>,
}

pub(super) fn parse(text: &str, demo: bool, variable: Variable) -> Result<Config, Vec<Mistake>> {
    let mut reader = Reader { text, variable, mistakes: Vec::new() };
    let root = match DeTable::parse(text) {
        Ok(root) => root,
        Err(error) => {
            let line = error.span().map(|span| reader.line(&span));
            let what = error.message().to_owned();
            return Err(vec![Mistake { line, what, remedy: "the file is not TOML from here on".into() }]);
        }
    };
    let root = Section { name: "", table: root.get_ref() };
    let config = reader.config(root, demo);
    reader.mistakes.sort_by_key(|m| m.line.unwrap_or(usize::MAX));
    match config {
        Some(config) if reader.mistakes.is_empty() => Ok(config),
        _ => Err(reader.mistakes),
    }
}

impl<'a> Reader<'a> {
    fn config(&mut self, root: Section<'a>, demo: bool) -> Option<Config> {
        self.only(root, TOP);
        let listen = self.address(root, "listen", true);
        let find = self.find_means(root);
        let nodes = self.nodes(root);
        let credentials = self.section(root, "credentials", &["ntlm", "keytab"]);
        let mut path = |key| Some(PathBuf::from(self.string(credentials?, key)?.0));
        let (ntlm, keytab) = (path("ntlm"), path("keytab"));
        let compare = self.section(root, "compare", &["user", "shares"]);
        let compare = compare.and_then(|s| self.compare(s, ntlm.is_some()));
        let (store, on_store_failure) = self.store(root, demo, if find.is_some() { 2 } else { nodes.len() });
        let ha = self.ha(root, store.as_ref());
        let vip = self.vip(root, listen);
        let fence = self.section(root, "fence", &["exec", "kubernetes", "timeout", "unfenced_silence"]);
        let fence_means = fence.and_then(|s| self.fence_means(s));
        let admin = self.section(root, "admin", &["listen"]);
        let health = self.section(root, "health", &["probe_interval", "silence_after"]);
        let clients = self.section(root, "clients", &["first_frame", "half_frame"]);
        let side_channel = self.section(root, "side_channel", &["open", "stuck_after"]);
        let log = self.section(root, "log", &["format", "level"]);
        let workers = self.integer(root, "workers", 1..257);
        let leg_losses_per_minute = self.integer(root, "leg_losses_per_minute", 1..1_000_001).unwrap_or(3);
        let fence_timeout = self.duration(fence, "timeout", 10_000, 100..600_001);
        let unfenced_silence = fence.and_then(|s| self.boolean(s, "unfenced_silence")).unwrap_or(false);
        let admin = admin.and_then(|s| self.address(s, "listen", false));
        let probe_interval = self.duration(health, "probe_interval", 500, 50..60_001);
        let silence_after = self.duration(health, "silence_after", 1500, 200..600_001);
        let takeover_deadline = self.duration(Some(root), "takeover_deadline", 60_000, 1_000..3_600_001);
        let grace = self.duration(Some(root), "grace", 60_000, 0..3_600_001);
        let grace_park = self.duration(Some(root), "grace_park", 10_000, 0..60_001);
        let shutdown_grace = self.duration(Some(root), "shutdown_grace", 10_000, 0..600_001);
        let first_frame = self.duration(clients, "first_frame", 30_000, 100..600_001);
        let half_frame = self.duration(clients, "half_frame", 60_000, 100..600_001);
        let stuck_after = self.duration(side_channel, "stuck_after", 10_000, 1_000..600_001);
        let side_channel = self.side_channel(side_channel);
        let log_format = self.log_format(log);
        let log_level = self.log_level(log);
        if let Some(find) = &find {
            self.fence_of_found(find, fence_means.as_ref(), unfenced_silence);
        }
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(16);
        if silence_after < probe_interval * 2 {
            self.missing(
                "[health] silence_after is less than twice probe_interval",
                "one slow answer would count as silence: give silence_after at least 2 × probe_interval",
            );
        }
        Some(Config {
            listen: listen?,
            nodes,
            find,
            ntlm,
            compare,
            keytab,
            store: store?,
            ha,
            vip,
            fence: fence_means,
            fence_timeout,
            unfenced_silence,
            admin,
            probe_interval,
            silence_after,
            takeover_deadline,
            grace_park,
            grace,
            on_store_failure,
            shutdown_grace,
            leg_losses_per_minute,
            first_frame,
            half_frame,
            side_channel,
            stuck_after,
            workers: workers.unwrap_or_else(cores),
            log_format,
            log_level: log_level.to_owned(),
        })
    }

    fn line(&self, span: &Range<usize>) -> usize {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        before.bytes().filter(|&byte| byte == b'\n').count() + 1
    }

    pub(super) fn wrong(&mut self, span: &Range<usize>, what: impl Into<String>, remedy: impl Into<String>) {
        let line = Some(self.line(span));
        self.mistakes.push(Mistake { line, what: what.into(), remedy: remedy.into() });
    }

    /// How many there are.
    pub(super) fn mistakes(&self) -> usize {
        self.mistakes.len()
    }

    pub(super) fn missing(&mut self, what: impl Into<String>, remedy: impl Into<String>) {
        self.mistakes.push(Mistake { line: None, what: what.into(), remedy: remedy.into() });
    }

    /// Refuses keys that are not known, and says which known one is near.
    pub(super) fn only(&mut self, section: Section<'a>, known: &[&str]) {
        for (key, _) in section.table {
            let name = key.get_ref().as_ref();
            if !known.contains(&name) {
                let near = known.iter().min_by_key(|k| distance(k, name)).filter(|k| distance(k, name) <= 3);
                let remedy = match near {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("known here: {}", known.join(", ")),
                };
                let place =
                    if section.name.is_empty() { String::new() } else { format!(" in [{}]", section.name) };
                self.wrong(&key.span(), format!("unknown key `{name}`{place}"), remedy);
            }
        }
    }

    pub(super) fn section(
        &mut self,
        root: Section<'a>,
        name: &'a str,
        known: &[&str],
    ) -> Option<Section<'a>> {
        let value = root.table.get(name)?;
        let DeValue::Table(table) = value.get_ref() else {
            self.wrong(
                &value.span(),
                format!("`{name}` is not a table"),
                format!("write [{name}] on a line of its own"),
            );
            return None;
        };
        let section = Section { name, table };
        self.only(section, known);
        Some(section)
    }

    pub(super) fn string(&mut self, section: Section<'a>, key: &str) -> Option<(&'a str, Range<usize>)> {
        let value = section.table.get(key)?;
        if let DeValue::String(text) = value.get_ref() {
            Some((text.as_ref(), value.span()))
        } else {
            self.wrong(&value.span(), format!("`{key}` is not a string"), "put it in double quotes");
            None
        }
    }

    fn boolean(&mut self, section: Section<'a>, key: &str) -> Option<bool> {
        let value = section.table.get(key)?;
        if let DeValue::Boolean(value) = value.get_ref() {
            Some(*value)
        } else {
            self.wrong(
                &value.span(),
                format!("`{key}` is neither true nor false"),
                "write true or false, no quotes",
            );
            None
        }
    }

    pub(super) fn integer(&mut self, section: Section<'a>, key: &str, range: Range<usize>) -> Option<usize> {
        let value = section.table.get(key)?;
        let number = match value.get_ref() {
            DeValue::Integer(number) => number.as_str().parse::<usize>().ok().filter(|n| range.contains(n)),
            _ => None,
        };
        if number.is_none() {
            let remedy = format!("write a number from {} to {}", range.start, range.end - 1);
            self.wrong(&value.span(), format!("`{key}` is out of range or not a number"), remedy);
        }
        number
    }

    pub(super) fn duration(
        &mut self,
        section: Option<Section<'a>>,
        key: &str,
        default: u64,
        range: Range<u64>,
    ) -> Duration {
        let Some((text, span)) = section.and_then(|s| self.string(s, key)) else {
            return Duration::from_millis(default);
        };
        match milliseconds(text).filter(|ms| range.contains(ms)) {
            Some(ms) => Duration::from_millis(ms),
            None => {
                let remedy = format!(
                    "write it like \"500ms\" or \"2s\", from {}ms to {}ms",
                    range.start,
                    range.end - 1
                );
                self.wrong(&span, format!("`{key} = \"{text}\"` is no duration that fits"), remedy);
                Duration::from_millis(default)
            }
        }
    }

    pub(super) fn address(&mut self, section: Section<'a>, key: &str, needed: bool) -> Option<SocketAddr> {
        let Some((text, span)) = self.string(section, key) else {
            if needed && !section.table.contains_key(key) {
                self.missing(
                    format!("`{key}` is missing"),
                    format!(
                        "add {key} = \"10.0.0.100:445\" with the floating address, or \"[::]:445\" for all"
                    ),
                );
            }
            return None;
        };
        let parsed = text.parse().ok();
        if parsed.is_none() {
            let remedy = "write an IP address and a port, like \"10.0.0.100:445\" or \"[::]:445\"";
            self.wrong(&span, format!("`{key} = \"{text}\"` is not an address with a port"), remedy);
        }
        parsed
    }

    fn nodes(&mut self, root: Section<'a>) -> Vec<NodeConfig> {
        let mut nodes: Vec<NodeConfig> = Vec::new();
        let Some(value) = root.table.get("nodes") else {
            self.missing(
                "no [[nodes]]",
                "add one [[nodes]] table per Samba node, each with a name and an address",
            );
            return nodes;
        };
        let DeValue::Array(array) = value.get_ref() else {
            if matches!(value.get_ref(), DeValue::Table(_)) {
                return nodes; // They are found.
            }
            self.wrong(&value.span(), "`nodes` is not a list of tables", "write [[nodes]] with two brackets");
            return nodes;
        };
        for entry in array.iter() {
            let DeValue::Table(table) = entry.get_ref() else {
                self.wrong(&entry.span(), "a node is not a table", "write [[nodes]], then name and address");
                continue;
            };
            let section = Section { name: "nodes", table };
            self.only(section, &["name", "address"]);
            let name = self.string(section, "name");
            let address = self.string(section, "address");
            let (Some((name, name_span)), Some((address, span))) = (name, address) else {
                self.wrong(
                    &entry.span(),
                    "a node lacks its name or address",
                    "give both: name = \"...\", address = \"host:445\"",
                );
                continue;
            };
            let port = address.rsplit_once(':').and_then(|(host, port)| {
                let port = port.parse::<u16>().ok()?;
                (!host.is_empty() && port != 0).then_some(port)
            });
            if port.is_none() {
                self.wrong(&span, format!("`{address}` has no port"), format!("write \"{address}:445\""));
            }
            if nodes.iter().any(|n| n.name == name) {
                self.wrong(
                    &name_span,
                    format!("two nodes are called `{name}`"),
                    "give each node a name of its own",
                );
            }
            if nodes.iter().any(|n| n.address == address) {
                self.wrong(
                    &span,
                    format!("two nodes have the address `{address}`"),
                    "a node can be listed only once",
                );
            }
            nodes.push(NodeConfig { name: name.into(), address: address.into(), uid: None });
        }
        if nodes.is_empty() {
            self.wrong(&value.span(), "no node is usable", "add [[nodes]] with name and address");
        }
        nodes
    }

    fn compare(&mut self, section: Section<'a>, has_hashes: bool) -> Option<CompareConfig> {
        let user = self.string(section, "user");
        let shares = section.table.get("shares");
        let (Some((user, user_span)), Some(shares)) = (user, shares) else {
            if let Some((key, _)) = section.table.iter().next() {
                let remedy = "give both: user = \"alice\", shares = [\"projects\"]";
                self.wrong(&key.span(), "[compare] lacks its user or its shares", remedy);
            }
            return None;
        };
        if !has_hashes {
            let remedy = "give [credentials] ntlm, a file that has the user";
            self.wrong(&user_span, "[compare] user needs a hash to log in with", remedy);
        }
        let is_name = |name: &String| !name.is_empty() && !name.contains(['\\', '/']);
        let Some(names) = words(shares.get_ref()).filter(|w| !w.is_empty() && w.iter().all(is_name)) else {
            let remedy = "write their names, without server or path: [\"projects\", \"home\"]";
            self.wrong(&shares.span(), "`shares` is no list of shares", remedy);
            return None;
        };
        Some(CompareConfig { user: user.into(), shares: names })
    }

    fn fence_means(&mut self, section: Section<'a>) -> Option<FenceMeans> {
        let exec = self.exec(section).map(FenceMeans::Exec);
        let Some((namespace, span)) = self.string(section, "kubernetes") else { return exec };
        self.namespace(namespace, &span, "write the namespace of the Samba pods, whose names are the nodes'");
        if section.table.contains_key("exec") {
            self.wrong(&span, "`exec` and `kubernetes` are both given", "choose one fence");
        }
        Some(FenceMeans::Kubernetes(namespace.into()))
    }

    /// Refuses what is no namespace, and any in a build that knows none.
    pub(super) fn namespace(&mut self, namespace: &str, span: &Range<usize>, remedy: &str) {
        if !cfg!(feature = "k8s") {
            let remedy = "build it with --features k8s, or take the container image";
            self.wrong(span, "this understudy was built without Kubernetes", remedy);
        }
        if namespace.is_empty() || !namespace.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            self.wrong(span, format!("`kubernetes = \"{namespace}\"` is no namespace"), remedy);
        }
    }

    fn exec(&mut self, section: Section<'a>) -> Option<Vec<String>> {
        let value = section.table.get("exec")?;
        match words(value.get_ref()) {
            Some(words) if words.first().is_some_and(|program| program.starts_with('/')) => Some(words),
            _ => {
                self.wrong(
                    &value.span(),
                    "`exec` is not a command",
                    "write a list with an absolute path first: [\"/usr/local/sbin/fence-node\", \"{name}\"]",
                );
                None
            }
        }
    }

    fn log_level(&mut self, section: Option<Section<'a>>) -> &'a str {
        let Some((level, span)) = section.and_then(|s| self.string(s, "level")) else { return "info" };
        if !LEVELS.contains(&level) {
            let remedy = format!(
                "write one of {}; RUST_LOG in the environment takes finer filters",
                LEVELS.join(", ")
            );
            self.wrong(&span, format!("`level = \"{level}\"` is not known"), remedy);
        }
        level
    }

    fn side_channel(&mut self, section: Option<Section<'a>>) -> SideChannelMode {
        match section.and_then(|s| self.string(s, "open")) {
            None | Some(("auto", _)) => SideChannelMode::Auto,
            Some(("off", _)) => SideChannelMode::Off,
            Some(("always", _)) => SideChannelMode::Always,
            Some((other, span)) => {
                self.wrong(
                    &span,
                    format!("`open = \"{other}\"` is not known"),
                    "write \"auto\", \"off\" or \"always\"",
                );
                SideChannelMode::Auto
            }
        }
    }

    fn log_format(&mut self, section: Option<Section<'a>>) -> LogFormat {
        match section.and_then(|s| self.string(s, "format")) {
            None | Some(("human", _)) => LogFormat::Human,
            Some(("json", _)) => LogFormat::Json,
            Some((other, span)) => {
                self.wrong(
                    &span,
                    format!("`format = \"{other}\"` is not known"),
                    "write \"human\" or \"json\"",
                );
                LogFormat::Human
            }
        }
    }
}

/// A list of strings.
pub(super) fn words(value: &DeValue<'_>) -> Option<Vec<String>> {
    let DeValue::Array(array) = value else { return None };
    let word = |word: &toml::Spanned<DeValue<'_>>| match word.get_ref() {
        DeValue::String(text) => Some(text.to_string()),
        _ => None,
    };
    array.iter().map(word).collect()
}

fn milliseconds(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let number: u64 = number.parse().ok()?;
    match unit.trim() {
        "ms" => Some(number),
        "s" => number.checked_mul(1000),
        "m" | "min" => number.checked_mul(60_000),
        _ => None,
    }
}

/// Levenshtein distance, for suggestions.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
        for (j, y) in b.bytes().enumerate() {
            let up = row.get(j + 1).copied().unwrap_or(0);
            let left = row.get(j).copied().unwrap_or(0);
            let next = (diagonal + usize::from(x != y)).min(up + 1).min(left + 1);
            diagonal = up;
            if let Some(cell) = row.get_mut(j + 1) {
                *cell = next;
            }
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use understudy_state::EtcdTls;

    use crate::{config::StoreUrl, persist::OnFailure};

    fn parse(text: &str, demo: bool) -> Result<Config, Vec<Mistake>> {
        super::parse(text, demo, |_| None)
    }

    const GOOD: &str = r#"
listen = "10.0.0.100:445"
[[nodes]]
name = "samba-0"
address = "10.0.0.10:445"
[[nodes]]
name = "samba-1"
address = "node-1.example:445"
[credentials]
ntlm = "/etc/understudy/smbpasswd"
keytab = "/etc/understudy/krb5.keytab"
[store]
url = "file:/var/lib/understudy"
[fence]
exec = ["/usr/local/sbin/fence-node", "{name}"]
[admin]
listen = "127.0.0.1:9645"
"#;

    #[test]
    fn the_documented_file_is_read() {
        let config = parse(GOOD, false).unwrap();
        assert_eq!(config.nodes.len(), 2);
        assert_eq!(config.keytab, Some("/etc/understudy/krb5.keytab".into()));
        assert_eq!(config.nodes[1].address, "node-1.example:445");
        assert_eq!(config.store, StoreUrl::File("/var/lib/understudy".into()));
        assert!(matches!(config.fence, Some(FenceMeans::Exec(words)) if words[1] == "{name}"));
        assert!(!config.unfenced_silence);
        assert_eq!(config.silence_after, Duration::from_millis(1500));
        assert_eq!(config.half_frame, Duration::from_secs(60));
    }

    #[test]
    fn patience_with_clients_is_configured() {
        let config =
            parse(&format!("{GOOD}[clients]\nfirst_frame = \"2s\"\nhalf_frame = \"500ms\"\n"), false)
                .unwrap();
        assert_eq!(
            (config.first_frame, config.half_frame),
            (Duration::from_secs(2), Duration::from_millis(500))
        );
    }

    #[test]
    fn how_many_legs_may_be_lost_is_configured() {
        let config = parse(&format!("leg_losses_per_minute = 100\n{GOOD}"), false).unwrap();
        assert_eq!(config.leg_losses_per_minute, 100);
        let mistakes = parse(&format!("leg_losses_per_minute = 0\n{GOOD}"), false).unwrap_err();
        assert!(matches!(&mistakes[..], [only] if only.line == Some(1)), "{mistakes:#?}");
    }

    #[test]
    fn the_side_channel_is_configured() {
        let config =
            parse(&format!("{GOOD}[side_channel]\nopen = \"off\"\nstuck_after = \"1s\"\n"), false).unwrap();
        assert_eq!((config.side_channel, config.stuck_after), (SideChannelMode::Off, Duration::from_secs(1)));
        let mistakes = parse(&format!("{GOOD}[side_channel]\nopen = \"yes\"\n"), false).unwrap_err();
        assert!(matches!(&mistakes[..], [only] if only.what.contains("\"yes\"")), "{mistakes:#?}");
    }

    #[test]
    fn volumes_are_compared_by_a_user_whose_hash_is_there() {
        let compare = "[compare]\nuser = \"alice\"\nshares = [\"projects\"]\n";
        let config = parse(&format!("{GOOD}{compare}"), false).unwrap();
        assert_eq!(
            config.compare,
            Some(CompareConfig { user: "alice".into(), shares: vec!["projects".into()] })
        );
        let without_hashes = GOOD.replace("ntlm = \"/etc/understudy/smbpasswd\"\n", "");
        for (text, wrong) in [
            (format!("{without_hashes}{compare}"), "needs a hash"),
            (format!("{GOOD}[compare]\nuser = \"alice\"\n"), "lacks its user or its shares"),
            (format!("{GOOD}[compare]\nshares = [\"a\"]\n"), "lacks its user or its shares"),
            (format!("{GOOD}[compare]\nuser = \"alice\"\nshares = []\n"), "no list of shares"),
            (format!("{GOOD}[compare]\nuser = \"alice\"\nshares = [\"//a/b\"]\n"), "no list of shares"),
        ] {
            let mistakes = parse(&text, false).unwrap_err();
            assert!(matches!(&mistakes[..], [only] if only.what.contains(wrong)), "{wrong}: {mistakes:#?}");
        }
    }

    #[test]
    fn every_mistake_is_named_with_its_line() {
        let text = "listne = \"x\"\nlisten = \"nowhere\"\n[[nodes]]\nname = \"a\"\naddress = \"host\"\n[[nodes]]\nname = \"a\"\n\
                    address = 5\n[store]\nurl = \"redis:\"\n[fence]\nunfenced_silence = \"yes\"\n[health]\nsilence_after = \"soon\"\n\
                    [log]\nlevel = \"loud\"\n";
        let mistakes = parse(text, false).unwrap_err();
        let lines: Vec<_> = mistakes.iter().filter_map(|m| m.line).collect();
        assert_eq!(lines, [1, 2, 5, 6, 8, 10, 12, 14, 16], "{mistakes:#?}");
        assert!(mistakes[0].remedy.contains("`listen`"));
    }

    #[test]
    fn pods_are_fenced_by_their_namespace() {
        let of = |fence: &str| {
            let text = GOOD.replace("exec = [\"/usr/local/sbin/fence-node\", \"{name}\"]\n", fence);
            parse(&text, false)
        };
        let good = of("kubernetes = \"files\"\n");
        if cfg!(feature = "k8s") {
            assert_eq!(good.unwrap().fence, Some(FenceMeans::Kubernetes("files".into())));
            for (fence, wrong) in [
                ("kubernetes = \"\"\n", "no namespace"),
                ("kubernetes = \"a/b\"\n", "no namespace"),
                ("kubernetes = \"files\"\nexec = [\"/bin/true\"]\n", "both given"),
            ] {
                let mistakes = of(fence).unwrap_err();
                assert!(
                    matches!(&mistakes[..], [only] if only.what.contains(wrong)),
                    "{wrong}: {mistakes:#?}"
                );
            }
        } else {
            assert!(good.unwrap_err()[0].what.contains("without Kubernetes"));
        }
    }

    #[test]
    fn a_memory_store_needs_one_node_or_a_demo() {
        let text = GOOD.replace("file:/var/lib/understudy", "memory:");
        assert!(parse(&text, false).unwrap_err()[0].what.contains("memory store"));
        assert_eq!(parse(&text, true).unwrap().store, StoreUrl::Memory);
    }

    fn with_store(lines: &str) -> Result<Config, Vec<Mistake>> {
        parse(&GOOD.replace("url = \"file:/var/lib/understudy\"", lines), false)
    }

    #[test]
    fn a_store_in_etcd_is_configured() {
        let etcd = |lines: &str| match with_store(lines).unwrap().store {
            StoreUrl::Etcd(options) => options,
            other => panic!("{other:?}"),
        };
        let plain = etcd("url = \"etcd://10.0.0.1:2379,[::1]:2379\"");
        assert_eq!(plain.members, ["10.0.0.1:2379", "[::1]:2379"]);
        assert_eq!((plain.prefix.as_str(), plain.timeout), ("/understudy/", Duration::from_secs(5)));
        assert_eq!((plain.tls, plain.user), (None, None));
        let full = etcd(
            "url = \"etcd://a:1,b:2,c:3\"\nca = \"/ca\"\ncert = \"/cert\"\nkey = \"/key\"\nuser = \"u\"\n\
             password_file = \"/pw\"\nprefix = \"site/one\"\ntimeout = \"7s\"",
        );
        let tls = EtcdTls { ca: "/ca".into(), identity: Some(("/cert".into(), "/key".into())) };
        assert_eq!((full.tls, full.user), (Some(tls), Some(("u".into(), "/pw".into()))));
        assert_eq!((full.prefix.as_str(), full.timeout), ("/site/one/", Duration::from_secs(7)));
        assert_eq!(etcd("url = \"etcd://a:1/x\"").prefix, "/x/");
        assert_eq!(etcd("url = \"etcds://a:1/x/\"\nca = \"/ca\"").to_string(), "etcds://a:1/x/");
        assert_eq!(
            with_store("url = \"etcd://a:1\"\non_store_failure = \"refuse\"").unwrap().on_store_failure,
            OnFailure::Refuse
        );
        assert_eq!(parse(GOOD, false).unwrap().on_store_failure, OnFailure::Serve);
    }

    #[test]
    fn mistakes_about_the_store_are_named() {
        for (lines, wrong) in [
            ("url = \"etcd://\"", "no etcd member"),
            ("url = \"etcd://a\"", "`a` is no etcd member"),
            ("url = \"etcd://a:1,\"", "no etcd member"),
            ("url = \"etcd://u:p@a:1\"", "no etcd member"),
            ("url = \"etcd://a:1,b:2,a:1\"", "`a:1` is named twice"),
            ("url = \"etcd://a:1/x\"\nprefix = \"y\"", "prefix is given twice"),
            ("url = \"etcds://a:1\"", "needs [store] ca"),
            ("url = \"etcd://a:1\"\ncert = \"/c\"\nkey = \"/k\"", "needs [store] ca"),
            ("url = \"etcd://a:1\"\nca = \"/ca\"\ncert = \"/c\"", "only one of cert and key"),
            ("url = \"etcd://a:1\"\npassword_file = \"/p\"", "only one of user and password_file"),
            ("url = \"etcd://a:1\"\ntimeout = \"0s\"", "no duration that fits"),
            ("url = \"file:/var/lib/understudy\"\nca = \"/ca\"", "`ca` is for a store in etcd"),
            ("url = \"file:/var/lib/understudy\"\ntimeout = \"2s\"", "`timeout` is for a store in etcd"),
            ("url = \"file:relative\"", "is not a store"),
            ("url = \"etcd://a:1\"\non_store_failure = \"wait\"", "is not known"),
        ] {
            let mistakes = with_store(lines).unwrap_err();
            assert!(matches!(&mistakes[..], [only] if only.what.contains(wrong)), "{lines}: {mistakes:#?}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let mistakes = parse("", false).unwrap_err();
        let all = mistakes.iter().map(|m| m.what.as_str()).collect::<Vec<_>>().join("; ");
        for word in ["listen", "[[nodes]]", "[store]"] {
            assert!(all.contains(word), "{word}: {all}");
        }
    }

    #[test]
    fn broken_toml_is_said_with_its_line() {
        let mistakes = parse("listen = \"a\"\n[[nodes\n", false).unwrap_err();
        assert_eq!(mistakes[0].line, Some(2));
    }

    /// The annotated configuration of the README.
    fn sample() -> &'static str {
        let readme = include_str!("../../../README.md");
        readme.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap()
    }

    #[test]
    fn the_readme_shows_the_defaults() {
        let bare = "listen = \"10.0.0.100:445\"\n[[nodes]]\nname = \"samba-0\"\naddress = \"10.0.0.10:445\"\n\
                    [[nodes]]\nname = \"samba-1\"\naddress = \"10.0.0.11:445\"\n\
                    [store]\nurl = \"file:/var/lib/understudy\"\n";
        assert_eq!(
            format!("{:?}", parse(sample(), false).unwrap()),
            format!("{:?}", parse(bare, false).unwrap())
        );
    }

    #[test]
    fn the_readme_shows_every_key_and_none_that_is_not() {
        // Of the two stores the one with more options.
        let without_file: Vec<_> =
            sample().lines().filter(|line| !line.starts_with("url = \"file:")).collect();
        let uncommented = without_file.join("\n").replace("\n# ", "\n");
        // One fence at a time, and what is of Kubernetes not in every build.
        let anywhere = uncommented.replace("\nkubernetes = ", "\n# kubernetes = ");
        parse(&anywhere.replace("\nselector = ", "\n# selector = "), false).unwrap();
        let known = |text: &str| -> Vec<String> {
            let mistakes = parse(text, false).unwrap_err();
            let list = mistakes.iter().find_map(|m| m.remedy.strip_prefix("known here: ")).unwrap();
            list.split(", ").map(ToOwned::to_owned).collect()
        };
        for key in known("never-a-key = 1") {
            let table = format!("[{key}]");
            if !uncommented.contains(&table) {
                assert!(uncommented.contains(&format!("\n{key} = ")) || key == "listen", "{key}");
            } else if key != "nodes" {
                for inner in known(&format!("{table}\nnever-a-key = 1")) {
                    let section = uncommented.split(&table).nth(1).unwrap();
                    let section = section.split("\n[").next().unwrap();
                    assert!(section.contains(&format!("\n{inner} = ")), "{table} {inner}");
                }
            }
        }
    }
}
