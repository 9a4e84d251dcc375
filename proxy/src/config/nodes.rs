//! `[nodes]`, a table instead of a list: by what nodes are found, and what else that takes.

use std::{fmt, net::IpAddr};

use toml::de::DeValue;

use super::{
    FenceMeans,
    read::{Reader, Section},
};

/// By what nodes are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FindMeans {
    /// A name that has all their addresses, with the port.
    Dns(String),
    /// A Service in Kubernetes.
    Slices(SlicesConfig),
}

/// Whose EndpointSlices are watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SlicesConfig {
    pub(crate) namespace: String,
    pub(crate) service: String,
    /// Where the pods' smbd listens.
    pub(crate) port: u16,
}

impl fmt::Display for FindMeans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => write!(f, "[nodes] dns = \"{name}\""),
            Self::Slices(SlicesConfig { namespace, service, .. }) => {
                write!(f, "[nodes] endpoint_slices of the Service {namespace}/{service}")
            }
        }
    }
}

impl<'a> Reader<'a> {
    /// `None`: the nodes are listed, or wrong.
    pub(super) fn find_means(&mut self, root: Section<'a>) -> Option<FindMeans> {
        let DeValue::Table(table) = root.table.get("nodes")?.get_ref() else { return None };
        let section = Section { name: "nodes", table };
        self.only(section, &["dns", "endpoint_slices"]);
        let dns = self.string(section, "dns").map(|(name, span)| {
            let is_good = name.rsplit_once(':').is_some_and(|(host, port)| {
                let is_name = !host.is_empty() && !host.contains(':') && host.parse::<IpAddr>().is_err();
                is_name && port.parse::<u16>().is_ok_and(|port| port != 0)
            });
            if !is_good {
                let remedy = "write a name and a port: \"samba.files.svc.cluster.local:445\"";
                self.wrong(&span, format!("`dns = \"{name}\"` is no name with a port"), remedy);
            }
            FindMeans::Dns(name.into())
        });
        let slices = self.slices(section);
        match (dns, slices) {
            (Some(_), Some(_)) => {
                let span = root.table.get("nodes").map(toml::Spanned::span).unwrap_or_default();
                self.wrong(&span, "`dns` and `endpoint_slices` are both given", "choose one");
                None
            }
            (None, None) if table.is_empty() => {
                let span = root.table.get("nodes").map(toml::Spanned::span).unwrap_or_default();
                let remedy = "write [[nodes]] with two brackets for a list, or give dns or endpoint_slices";
                self.wrong(&span, "[nodes] does not say by what they are found", remedy);
                None
            }
            (dns, slices) => slices.or(dns),
        }
    }

    fn slices(&mut self, section: Section<'a>) -> Option<FindMeans> {
        let value = section.table.get("endpoint_slices")?;
        let example = "endpoint_slices = { namespace = \"files\", service = \"samba\" }";
        let DeValue::Table(table) = value.get_ref() else {
            let remedy = format!("write {example}");
            self.wrong(&value.span(), "`endpoint_slices` does not name a Service", remedy);
            return None;
        };
        if !cfg!(feature = "k8s") {
            let remedy = "build it with --features k8s, or take the container image";
            self.wrong(&value.span(), "this understudy was built without Kubernetes", remedy);
        }
        let section = Section { name: "nodes.endpoint_slices", table };
        self.only(section, &["namespace", "service", "port"]);
        let [namespace, service] = ["namespace", "service"].map(|key| self.string(section, key));
        let (Some(namespace), Some(service)) = (namespace, service) else {
            let remedy = format!("give both: {example}");
            self.wrong(&value.span(), "`endpoint_slices` lacks its namespace or its service", remedy);
            return None;
        };
        for (key, (text, span)) in [("namespace", &namespace), ("service", &service)] {
            let is_name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            if text.is_empty() || !text.bytes().all(is_name) {
                let remedy = "write its name alone, without a domain";
                self.wrong(span, format!("`{key} = \"{text}\"` is no name in Kubernetes"), remedy);
            }
        }
        let port = self.integer(section, "port", 1..65536).and_then(|port| u16::try_from(port).ok());
        let (namespace, service) = (namespace.0.into(), service.0.into());
        Some(FindMeans::Slices(SlicesConfig { namespace, service, port: port.unwrap_or(445) }))
    }

    /// A node that is found may be gone for good: nobody is at its address to say that it is dead.
    pub(super) fn fence_of_found(&mut self, find: &FindMeans, fence: Option<&FenceMeans>, unfenced: bool) {
        match (find, fence) {
            (_, None) if !unfenced => self.missing(
                "[nodes]: nodes that are found need a fence",
                "an address that is gone says nothing ever after, and clients would wait for it: give [fence] kubernetes or exec, \
                 or unfenced_silence = true; README.md says what that may mean",
            ),
            (FindMeans::Dns(_), Some(FenceMeans::Kubernetes(_))) => self.missing(
                "[fence] kubernetes does not know the nodes: DNS does not tell what their pods are called",
                "find them by endpoint_slices, or give [fence] exec",
            ),
            (FindMeans::Slices(slices), Some(FenceMeans::Kubernetes(namespace)))
                if slices.namespace != *namespace =>
            {
                self.missing(
                    format!(
                        "[fence] kubernetes = \"{namespace}\" is not where the nodes are found: {}",
                        slices.namespace
                    ),
                    "write the namespace of the Samba pods in both",
                );
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Mistake, NodeConfig};

    use super::*;

    const REST: &str = "listen = \"10.0.0.100:445\"\n[store]\nurl = \"file:/var/lib/understudy\"\n";
    const SLICES: &str = "[nodes]\nendpoint_slices = { namespace = \"files\", service = \"samba\" }\n";
    const DNS: &str = "[nodes]\ndns = \"samba.files.svc:445\"\n";
    const FENCE: &str = "[fence]\nkubernetes = \"files\"\n";
    const UNFENCED: &str = "[fence]\nunfenced_silence = true\n";

    fn parse(nodes: &str, fence: &str) -> Result<Config, Vec<Mistake>> {
        Config::parse(&format!("{REST}{nodes}{fence}"), false)
    }

    #[test]
    fn nodes_are_found_by_dns() {
        for fence in [UNFENCED, "[fence]\nexec = [\"/bin/true\"]\n"] {
            let config = parse(DNS, fence).unwrap();
            assert_eq!(config.find, Some(FindMeans::Dns("samba.files.svc:445".into())));
            assert!(config.nodes.is_empty());
        }
    }

    #[cfg(feature = "k8s")]
    #[test]
    fn nodes_are_found_by_endpoint_slices() {
        let of = |port| SlicesConfig { namespace: "files".into(), service: "samba".into(), port };
        assert_eq!(parse(SLICES, FENCE).unwrap().find, Some(FindMeans::Slices(of(445))));
        let other = SLICES.replace(" }", ", port = 1445 }");
        assert_eq!(parse(&other, UNFENCED).unwrap().find, Some(FindMeans::Slices(of(1445))));
        let table = "[nodes.endpoint_slices]\nnamespace = \"files\"\nservice = \"samba\"\n";
        assert_eq!(parse(table, FENCE).unwrap().find, Some(FindMeans::Slices(of(445))));
    }

    #[cfg(not(feature = "k8s"))]
    #[test]
    fn endpoint_slices_take_a_build_with_kubernetes() {
        let mistakes = parse(SLICES, UNFENCED).unwrap_err();
        assert!(matches!(&mistakes[..], [only] if only.what.contains("without Kubernetes")), "{mistakes:#?}");
    }

    #[test]
    fn mistakes_about_finding_are_named() {
        let slices = |what: &str| format!("[nodes]\nendpoint_slices = {what}\n");
        let mut cases = vec![
            ("[nodes]\n".to_owned(), UNFENCED, "does not say"),
            ("[nodes]\nname = \"a\"\n".to_owned(), UNFENCED, "unknown key `name` in [nodes]"),
            ("[nodes]\nDNS = \"a:445\"\n".to_owned(), UNFENCED, "unknown key `DNS`"),
            ("[nodes]\ndns = \"samba\"\n".to_owned(), UNFENCED, "no name with a port"),
            ("[nodes]\ndns = \"10.0.0.1:445\"\n".to_owned(), UNFENCED, "no name with a port"),
            ("[nodes]\ndns = \"samba:0\"\n".to_owned(), UNFENCED, "no name with a port"),
            ("[nodes]\ndns = 5\n".to_owned(), UNFENCED, "not a string"),
            (DNS.to_owned(), "", "need a fence"),
        ];
        if cfg!(feature = "k8s") {
            cases.extend([
                (DNS.to_owned(), FENCE, "DNS does not tell"),
                (format!("{DNS}{}", &SLICES["[nodes]\n".len()..]), UNFENCED, "both given"),
                (slices("\"samba\""), UNFENCED, "does not name a Service"),
                (slices("{ namespace = \"files\" }"), UNFENCED, "lacks its namespace or its service"),
                (slices("{ namespace = \"files\", service = \"a.b\" }"), UNFENCED, "no name in Kubernetes"),
                (slices("{ namespace = \"a\", service = \"b\", prot = 5 }"), UNFENCED, "unknown key `prot`"),
                (
                    slices("{ namespace = \"a\", service = \"b\", port = 0 }"),
                    UNFENCED,
                    "`port` is out of range",
                ),
                (SLICES.to_owned(), "", "need a fence"),
                (SLICES.replace("files", "elsewhere"), FENCE, "is not where the nodes are found"),
            ]);
        }
        for (nodes, fence, wrong) in cases {
            let mistakes = parse(&nodes, fence).unwrap_err();
            assert!(
                matches!(&mistakes[..], [only] if only.what.contains(wrong)),
                "{nodes}: {wrong}: {mistakes:#?}"
            );
        }
    }

    #[test]
    fn a_memory_store_does_for_found_nodes_in_a_demo_only() {
        let text = format!("{REST}{DNS}{UNFENCED}").replace("file:/var/lib/understudy", "memory:");
        assert!(Config::parse(&text, false).unwrap_err()[0].what.contains("memory store"));
        assert!(Config::parse(&text, true).is_ok());
    }

    #[test]
    fn a_pod_that_was_found_keeps_its_uid() {
        let found = understudy_core::fleet::Found {
            name: "samba-0".into(),
            uid: Some("u".into()),
            address: "10.0.0.1:445".into(),
            leaving: false,
        };
        assert_eq!(NodeConfig::from(found).uid.as_deref(), Some("u"));
    }

    /// What the README shows of them.
    #[cfg(feature = "k8s")]
    #[test]
    fn the_readme_shows_both_ways() {
        let readme = include_str!("../../../README.md");
        let block =
            readme.split("```toml\n[nodes]\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        let lines: Vec<_> = block.lines().map(|line| line.trim_start_matches("# ")).collect();
        let keys: Vec<_> =
            lines.iter().filter_map(|line| line.split_once(" = ").map(|(key, _)| key)).collect();
        assert_eq!(keys, ["endpoint_slices", "dns"]);
        for line in lines {
            parse(&format!("[nodes]\n{line}\n"), UNFENCED).unwrap();
        }
    }
}
