//! The tables `[ha]` and `[vip]`: several proxies, and the address of the one that serves.

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
    ops::Range,
};

use toml::de::DeValue;

use super::{
    HaConfig, PodsConfig, StoreUrl, VipConfig,
    read::{Reader, Section, words},
};

/// The longest name of an interface (IFNAMSIZ).
const INTERFACE: usize = 15;

impl<'a> Reader<'a> {
    pub(super) fn ha(&mut self, root: Section<'a>, store: Option<&StoreUrl>) -> Option<HaConfig> {
        let known = ["heartbeat", "name", "lease", "silence", "confirm", "kubernetes", "selector"];
        let section = self.section(root, "ha", &known)?;
        let (key, _) = section.table.iter().next()?;
        if store.is_some_and(|store| !matches!(store, StoreUrl::Etcd(_))) {
            let remedy = "several proxies elect one of them by etcd: [store] url = \"etcd://host:2379,...\"";
            self.wrong(&key.span(), "[ha] needs a store in etcd", remedy);
        }
        let name = self.string(section, "name").map(|(text, span)| (self.filled("name", text, &span), span));
        if let Some((_, span)) = name.as_ref().filter(|(name, _)| name.is_empty()) {
            self.wrong(span, "`name` is empty", "leave it out, and it is the name of the host");
        }
        let name = name.map_or_else(host_name, |(name, _)| name.into_owned());
        let pods = self.pods(section, &name);
        let lease = self.duration(Some(section), "lease", 3_000, 2_000..60_001);
        let silence = self.duration(Some(section), "silence", 500, 200..30_001);
        let confirm = self.duration(Some(section), "confirm", 600, 200..30_001);
        if confirm >= lease {
            let remedy = "a leader must stop before its lease can end: make confirm shorter, or lease longer";
            self.wrong(&key.span(), "[ha] confirm is not less than lease", remedy);
        }
        if !section.table.contains_key("heartbeat") {
            let remedy = "add heartbeat = \"10.0.0.21:9646\", an address of this machine that the other proxies can reach";
            self.wrong(&key.span(), "[ha] lacks heartbeat", remedy);
        }
        let heartbeat = self.heartbeat(section)?;
        Some(HaConfig { name, heartbeat, lease, silence, confirm, pods })
    }

    /// `$VARIABLE` stands for what the environment says: of several proxies with one file each has its own.
    fn filled(&mut self, key: &str, text: &'a str, span: &Range<usize>) -> Cow<'a, str> {
        let Some(name) = text.strip_prefix('$') else { return text.into() };
        (self.variable)(name).filter(|value| !value.is_empty()).map_or_else(
            || {
                let what = format!("`{key} = \"{text}\"`: {name} is not in the environment");
                let remedy = "in a pod a fieldRef sets it: metadata.name, or status.podIP";
                self.wrong(span, what, remedy);
                text.into()
            },
            Cow::from,
        )
    }

    fn heartbeat(&mut self, section: Section<'a>) -> Option<SocketAddr> {
        let (text, span) = self.string(section, "heartbeat")?;
        let heartbeat = match text.strip_prefix('$').and_then(|_| text.rsplit_once(':')) {
            None => self.address(section, "heartbeat", false)?,
            Some((variable, port)) => {
                let before = self.mistakes();
                let ip = self.filled("heartbeat", variable, &span);
                let address = ip.parse().ok().zip(port.parse().ok());
                if address.is_none() && self.mistakes() == before {
                    let what = format!("`heartbeat = \"{text}\"` is `{ip}:{port}`, no address with a port");
                    self.wrong(&span, what, "the variable is to be an IP address, and a port follows it");
                }
                address.map(|(ip, port)| SocketAddr::new(ip, port))?
            }
        };
        if heartbeat.ip().is_unspecified() || heartbeat.port() == 0 {
            let remedy = "the other proxies are told this address: write the very one, with its port";
            self.wrong(&span, format!("`heartbeat = \"{text}\"` cannot be reached by others"), remedy);
        }
        Some(heartbeat)
    }

    fn pods(&mut self, section: Section<'a>, own: &str) -> Option<PodsConfig> {
        let selector = self.string(section, "selector");
        let Some((namespace, span)) = self.string(section, "kubernetes") else {
            if let Some((_, span)) = selector {
                let remedy = "add kubernetes = \"...\" with the namespace of the proxies' pods";
                self.wrong(&span, "`selector` is for `kubernetes`", remedy);
            }
            return None;
        };
        self.namespace(namespace, &span, "write the namespace of the proxies' pods");
        let Some((selector, selector_span)) = selector else {
            let remedy = "add selector = \"app=understudy\", which selects the pods of all proxies";
            self.wrong(&span, "[ha] kubernetes lacks its selector", remedy);
            return None;
        };
        if selector.is_empty() || selector.contains(char::is_whitespace) {
            let remedy = "write labels like \"app=understudy,site=a\"";
            self.wrong(&selector_span, format!("`selector = \"{selector}\"` selects no pods"), remedy);
        }
        Some(PodsConfig { namespace: namespace.into(), selector: selector.into(), own: own.into() })
    }

    pub(super) fn vip(&mut self, root: Section<'a>, listen: Option<SocketAddr>) -> Option<VipConfig> {
        let section = self.section(root, "vip", &["address", "interface"])?;
        let (key, _) = section.table.iter().next()?;
        let (Some(address), Some((interface, interface_span))) =
            (section.table.get("address"), self.string(section, "interface"))
        else {
            let remedy = "give both: address = \"10.0.0.100/24\", interface = \"eth0\"";
            self.wrong(&key.span(), "[vip] lacks its address or its interface", remedy);
            return None;
        };
        if interface.is_empty() || interface.len() > INTERFACE || interface.contains(['/', ' ']) {
            let remedy = "`ip link` lists them";
            self.wrong(&interface_span, format!("`{interface}` is no name of an interface"), remedy);
        }
        let written = match address.get_ref() {
            DeValue::String(one) => Some(vec![one.to_string()]),
            list => words(list).filter(|list| !list.is_empty()),
        };
        let addresses: Option<Vec<_>> =
            written.and_then(|list| list.iter().map(|text| with_prefix(text)).collect());
        let Some(addresses) = addresses else {
            let remedy =
                "write \"10.0.0.100/24\", with the length of its network's prefix, or a list of such";
            self.wrong(&address.span(), "`address` is no address with a prefix", remedy);
            return None;
        };
        if let Some(listen) = listen
            && !listen.ip().is_unspecified()
            && !addresses.iter().any(|(ip, _)| *ip == listen.ip())
        {
            let remedy = format!("listen on one of them, or on \"[::]:{}\"", listen.port());
            self.wrong(&address.span(), format!("`listen` is {listen}, which is none of [vip]"), remedy);
        }
        Some(VipConfig { addresses, interface: interface.to_owned() })
    }
}

fn with_prefix(text: &str) -> Option<(IpAddr, u8)> {
    let (ip, prefix) = text.split_once('/')?;
    let (ip, prefix): (IpAddr, u8) = (ip.parse().ok()?, prefix.parse().ok()?);
    let longest = if ip.is_ipv4() { 32 } else { 128 };
    let is_one = !ip.is_unspecified() && !ip.is_multicast() && !ip.is_loopback();
    (is_one && (1..=longest).contains(&prefix)).then_some((ip, prefix))
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{Config, Mistake};

    const ETCD: &str = "[store]\nurl = \"etcd://a:1\"\n";
    const FILE: &str = "[store]\nurl = \"file:/var/lib/understudy\"\n";

    fn with(store: &str, lines: &str) -> Result<Config, Vec<Mistake>> {
        let text = format!(
            "listen = \"10.0.0.100:445\"\n[[nodes]]\nname = \"a\"\naddress = \"h:445\"\n{store}{lines}"
        );
        super::super::read::parse(&text, false, |name| match name {
            "POD_NAME" => Some("proxy-1".into()),
            "POD_IP" => Some("fd00::7".into()),
            _ => None,
        })
    }

    #[test]
    fn several_proxies_are_configured() {
        let bare = with(ETCD, "[ha]\nheartbeat = \"10.0.0.21:9646\"\n").unwrap().ha.unwrap();
        assert_eq!(bare.name, host_name());
        assert_eq!(bare.heartbeat, "10.0.0.21:9646".parse().unwrap());
        let times = [bare.lease, bare.silence, bare.confirm].map(|time| time.as_millis());
        assert_eq!(times, [3_000, 500, 600]);
        let full = "[ha]\nheartbeat = \"[fd00::1]:1\"\nname = \"p\"\nlease = \"10s\"\nsilence = \"2s\"\nconfirm = \"3s\"\n";
        let full = with(ETCD, full).unwrap().ha.unwrap();
        assert_eq!((full.name.as_str(), full.confirm), ("p", Duration::from_secs(3)));
        assert_eq!(with(ETCD, "[ha]\n").unwrap().ha, None);
    }

    #[test]
    fn the_environment_tells_several_proxies_with_one_file_apart() {
        let config =
            with(ETCD, "[ha]\nname = \"$POD_NAME\"\nheartbeat = \"$POD_IP:9646\"\n").unwrap().ha.unwrap();
        assert_eq!((config.name.as_str(), config.heartbeat), ("proxy-1", "[fd00::7]:9646".parse().unwrap()));
    }

    #[test]
    fn the_pod_that_serves_can_have_a_label() {
        let of = |lines: &str| {
            with(ETCD, &format!("[ha]\nname = \"$POD_NAME\"\nheartbeat = \"10.0.0.21:9646\"\n{lines}"))
        };
        let good = of("kubernetes = \"files\"\nselector = \"app=x,site=a\"\n");
        if !cfg!(feature = "k8s") {
            assert!(good.unwrap_err()[0].what.contains("without Kubernetes"));
            return;
        }
        let pods =
            PodsConfig { namespace: "files".into(), selector: "app=x,site=a".into(), own: "proxy-1".into() };
        assert_eq!(good.unwrap().ha.unwrap().pods, Some(pods));
        for (lines, wrong) in [
            ("kubernetes = \"files\"\n", "lacks its selector"),
            ("kubernetes = \"a/b\"\nselector = \"app=x\"\n", "no namespace"),
            ("kubernetes = \"files\"\nselector = \"app = x\"\n", "selects no pods"),
            ("selector = \"app=x\"\n", "is for `kubernetes`"),
        ] {
            let mistakes = of(lines).unwrap_err();
            assert!(matches!(&mistakes[..], [only] if only.what.contains(wrong)), "{lines}: {mistakes:#?}");
        }
    }

    #[test]
    fn addresses_to_be_taken_are_configured() {
        let one = "[vip]\naddress = \"10.0.0.100/24\"\ninterface = \"eth0\"\n";
        let one = with(FILE, one).unwrap().vip.unwrap();
        assert_eq!(one.addresses, [("10.0.0.100".parse().unwrap(), 24)]);
        let two = "[vip]\naddress = [\"10.0.0.100/24\", \"fd00::1/64\"]\ninterface = \"eth0\"\n";
        let two = with(FILE, two).unwrap().vip.unwrap();
        assert_eq!((two.addresses.len(), two.interface.as_str()), (2, "eth0"));
        assert_eq!(with(FILE, "[vip]\n").unwrap().vip, None);
    }

    #[test]
    fn mistakes_are_named() {
        let vip = |address: &str| format!("[vip]\naddress = {address}\ninterface = \"eth0\"\n");
        let ha = |lines: &str| format!("[ha]\nheartbeat = \"10.0.0.21:9646\"\n{lines}\n");
        for (store, lines, wrong) in [
            (FILE, ha(""), "needs a store in etcd"),
            (ETCD, ha("confirm = \"3s\""), "not less than lease"),
            (ETCD, ha("lease = \"1s\""), "no duration that fits"),
            (ETCD, ha("name = \"\""), "is empty"),
            (ETCD, "[ha]\nname = \"p\"\n".into(), "lacks heartbeat"),
            (ETCD, "[ha]\nheartbeat = \"[::]:9646\"\n".into(), "cannot be reached"),
            (ETCD, "[ha]\nheartbeat = \"p:9646\"\n".into(), "is not an address"),
            (ETCD, "[ha]\nheartbeat = \"$HOST_IP:9646\"\n".into(), "HOST_IP is not in the environment"),
            (ETCD, "[ha]\nheartbeat = \"$POD_NAME:9646\"\n".into(), "is `proxy-1:9646`, no address"),
            (ETCD, ha("name = \"$NAME\""), "NAME is not in the environment"),
            (FILE, vip("\"10.0.0.100\""), "no address with a prefix"),
            (FILE, vip("\"10.0.0.100/33\""), "no address with a prefix"),
            (FILE, vip("[]"), "no address with a prefix"),
            (FILE, vip("\"127.0.0.1/8\""), "no address with a prefix"),
            (FILE, vip("\"10.0.0.101/24\""), "none of [vip]"),
            (FILE, "[vip]\ninterface = \"eth0\"\n".into(), "lacks its address"),
            (FILE, "[vip]\naddress = \"10.0.0.100/24\"\ninterface = \"a/b\"\n".into(), "no name of"),
        ] {
            let mistakes = with(store, &lines).unwrap_err();
            assert!(matches!(&mistakes[..], [only] if only.what.contains(wrong)), "{lines}: {mistakes:#?}");
        }
    }
}
