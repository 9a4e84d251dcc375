//! The table `[store]`: where state is kept, and what happens when it cannot be.

use std::{ops::Range, path::PathBuf};

use understudy_state::{EtcdOptions, EtcdTls};

use super::{
    StoreUrl,
    read::{Reader, Section},
};
use crate::persist::OnFailure;

const KEYS: &[&str] =
    &["url", "on_store_failure", "ca", "cert", "key", "user", "password_file", "prefix", "timeout"];
/// Keys that mean something to etcd only.
const OF_ETCD: &[&str] = &["ca", "cert", "key", "user", "password_file", "prefix", "timeout"];
const PREFIX: &str = "/understudy/";
/// Milliseconds that etcd has for a request.
const TIMEOUT: u64 = 5_000;

impl<'a> Reader<'a> {
    pub(super) fn store(
        &mut self,
        root: Section<'a>,
        demo: bool,
        nodes: usize,
    ) -> (Option<StoreUrl>, OnFailure) {
        let section = self.section(root, "store", KEYS);
        let on_failure = self.on_failure(section);
        let Some((section, (url, span))) = section.and_then(|s| Some((s, self.string(s, "url")?))) else {
            if section.is_none_or(|s| !s.table.contains_key("url")) {
                self.missing("[store] url is missing", "add [store] and url = \"file:/var/lib/understudy\"");
            }
            return (None, on_failure);
        };
        for (scheme, tls) in [("etcd://", false), ("etcds://", true)] {
            if let Some(place) = url.strip_prefix(scheme) {
                return (self.etcd(section, place, &span, tls).map(StoreUrl::Etcd), on_failure);
            }
        }
        for (key, _) in section.table.iter().filter(|(key, _)| OF_ETCD.contains(&key.get_ref().as_ref())) {
            let what = format!("`{}` is for a store in etcd", key.get_ref());
            self.wrong(&key.span(), what, "leave it out, or use url = \"etcd://...\"");
        }
        if let Some(path) = url.strip_prefix("file:").filter(|path| path.starts_with('/')) {
            return (Some(StoreUrl::File(path.into())), on_failure);
        }
        if url == "memory:" {
            if nodes > 1 && !demo {
                self.wrong(
                    &span,
                    "a memory store forgets which node serves when the proxy restarts",
                    "with two or more nodes use \"file:/var/lib/understudy\" (or start with --demo)",
                );
            }
            return (Some(StoreUrl::Memory), on_failure);
        }
        let remedy = "write \"file:/absolute/directory\", \"etcd://host:2379,host:2379\", or \"memory:\" for a single node";
        self.wrong(&span, format!("`{url}` is not a store"), remedy);
        (None, on_failure)
    }

    fn on_failure(&mut self, section: Option<Section<'a>>) -> OnFailure {
        match section.and_then(|s| self.string(s, "on_store_failure")) {
            None | Some(("serve", _)) => OnFailure::Serve,
            Some(("refuse", _)) => OnFailure::Refuse,
            Some((other, span)) => {
                self.wrong(
                    &span,
                    format!("`on_store_failure = \"{other}\"` is not known"),
                    "write \"serve\" or \"refuse\"",
                );
                OnFailure::Serve
            }
        }
    }

    /// What follows `etcd://`: members, and perhaps a prefix.
    fn etcd(
        &mut self,
        section: Section<'a>,
        place: &str,
        span: &Range<usize>,
        tls: bool,
    ) -> Option<EtcdOptions> {
        let (members, path) = place.split_at(place.find('/').unwrap_or(place.len()));
        let members: Vec<_> = members.split(',').map(ToOwned::to_owned).collect();
        let is_member = |member: &String| {
            member.rsplit_once(':').is_some_and(|(host, port)| {
                !host.is_empty() && !host.contains('@') && port.parse::<u16>().is_ok_and(|port| port != 0)
            })
        };
        if let Some(member) = members.iter().find(|member| !is_member(member)) {
            let remedy = "write \"etcd://host:2379,host:2379,host:2379\"; who logs in is named by user and password_file";
            self.wrong(span, format!("`{member}` is no etcd member with a port"), remedy);
            return None;
        }
        if let Some(twice) = members.iter().enumerate().find(|(at, member)| members[..*at].contains(member)) {
            self.wrong(span, format!("`{}` is named twice", twice.1), "name each member of etcd once");
        }
        let prefix = self.prefix(section, path);
        let timeout = self.duration(Some(section), "timeout", TIMEOUT, 100..60_001);
        let user = self.both(section, ["user", "password_file"]);
        let identity = self.both(section, ["cert", "key"]);
        let ca = self.string(section, "ca");
        if ca.is_none() && (tls || identity.is_some()) && !section.table.contains_key("ca") {
            let remedy = "add ca = \"/etc/understudy/etcd-ca.pem\", who signs the members' certificates";
            self.wrong(span, "TLS to etcd needs [store] ca", remedy);
        }
        Some(EtcdOptions {
            members,
            prefix,
            tls: ca.map(|(ca, _)| EtcdTls {
                ca: ca.into(),
                identity: identity.map(|(cert, key)| (cert.into(), key.into())),
            }),
            user: user.map(|(user, file)| (user.into(), PathBuf::from(file))),
            timeout,
        })
    }

    /// Begins and ends with a slash, so that `/a` and `/ab` are two stores.
    fn prefix(&mut self, section: Section<'a>, path: &str) -> String {
        let path = path.trim_matches('/');
        let key = self.string(section, "prefix");
        if let (Some((_, span)), false) = (&key, path.is_empty()) {
            self.wrong(span, "the prefix is given twice, here and in url", "give it once");
        }
        match key.map_or(path, |(prefix, _)| prefix.trim_matches('/')) {
            "" => PREFIX.into(),
            prefix => format!("/{prefix}/"),
        }
    }

    /// Two keys of which one is nothing without the other.
    fn both(&mut self, section: Section<'a>, keys: [&str; 2]) -> Option<(&'a str, &'a str)> {
        let [one, other] = keys.map(|key| self.string(section, key));
        let [has_one, has_other] = keys.map(|key| section.table.get(key));
        if let (Some(only), None) | (None, Some(only)) = (has_one, has_other) {
            let [one, other] = keys;
            self.wrong(&only.span(), format!("[store] has only one of {one} and {other}"), "give both");
        }
        Some((one?.0, other?.0))
    }
}
