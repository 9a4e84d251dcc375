//! What a node says of itself to whoever asks, and what clients of one node would find different on another.
//!
//! A client keeps what it was told by its first node for the life of its connection. [`TABLE`] says, for each thing that
//! may differ, whether a client that is moved would break. In Bridge each leg has its own negotiation, so that not
//! everything a client was told must be true of the next node.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use crate::{
    auth::ntlm::message::TargetNames,
    crypto::{Dialect, sealing::Cipher},
    link::connection::SIGNING_REQUIRED,
};

/// `SMB2_GLOBAL_CAP_*` (MS-SMB2 2.2.4), and whether a client that was told of one needs it ever after.
const CAPABILITIES: [(u32, &str, bool); 8] = [
    // Paths are sent with the flag for DFS, and taken literally by a node without.
    (0x01, "DFS", true),
    // Cached data would have to go back at once: every lease of the client is broken.
    (0x02, "LEASING", true),
    // A request of more than 64 KiB is an error without.
    (0x04, "LARGE_MTU", true),
    // The proxy refuses further channels anyway.
    (0x08, "MULTI_CHANNEL", false),
    (0x10, "PERSISTENT_HANDLES", true),
    (0x20, "DIRECTORY_LEASING", true),
    (0x40, "ENCRYPTION", true),
    (0x80, "NOTIFICATIONS", false),
];

/// What a NEGOTIATE answer grants in one dialect (MS-SMB2 2.2.4).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Granted {
    /// ServerGuid
    pub server_guid: [u8; 16],
    /// SecurityMode
    pub security_mode: u16,
    /// Capabilities
    pub capabilities: u32,
    /// MaxTransactSize, in bytes
    pub max_transact: u32,
    /// MaxReadSize, in bytes
    pub max_read: u32,
    /// MaxWriteSize, in bytes
    pub max_write: u32,
}

/// What is known of a share's volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Volume {
    /// VolumeSerialNumber (MS-FSCC 2.5.9).
    Serial(u32),
    /// The node did not tell; an NTSTATUS.
    Refused(u32),
}

/// One node as its clients see it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Profile {
    /// The dialects it accepts, and what it grants in each.
    pub dialects: BTreeMap<Dialect, Granted>,
    /// Signing algorithms that it accepts in 3.1.1 (MS-SMB2 2.2.3.1.7).
    pub signing: BTreeSet<u16>,
    /// Ciphers that it accepts in 3.1.1 (MS-SMB2 2.2.3.1.2).
    pub ciphers: BTreeSet<u16>,
    /// Its names. `None` if it does not speak NTLM.
    pub names: Option<TargetNames>,
    /// The shares that were looked at.
    pub volumes: BTreeMap<String, Volume>,
}

/// What may differ. Doubles as a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "they say themselves what they are")]
pub enum What {
    Dialects,
    SecurityMode,
    Capabilities,
    MaxTransact,
    MaxRead,
    MaxWrite,
    SigningAlgorithms,
    Ciphers,
    NetbiosName,
    Domain,
    VolumeSerial,
    ServerGuid,
    DnsName,
}

/// What a difference means to a client that is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// It does not mind, or does not come to know.
    Noticed,
    /// It would be refused, disconnected, or lose what it was promised.
    Breaks,
}

/// One thing in which two nodes differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What.
    pub what: What,
    /// Of the one, and of the other.
    pub values: [String; 2],
    /// What it means to clients of the one that are moved to the other.
    pub there: Severity,
    /// What it means to clients that are moved the opposite way.
    pub back: Severity,
}

/// One thing that is compared.
struct Row {
    what: What,
    label: &'static str,
    /// What to set in smb.conf.
    remedy: &'static str,
    /// Both values, if both are known and they differ.
    values: fn(&Profile, &Profile) -> Option<[String; 2]>,
    /// Whether clients of the first would break on the second.
    breaks: fn(&Profile, &Profile) -> bool,
}

/// Everything that is compared.
const TABLE: [Row; 13] = [
    Row {
        what: What::Dialects,
        label: "dialects",
        remedy: "give both the same `server min protocol` and `server max protocol`",
        values: |a, b| unequal(&a.dialect_names(), &b.dialect_names()),
        breaks: |a, b| a.dialects.keys().any(|dialect| !b.dialects.contains_key(dialect)),
    },
    Row {
        what: What::SecurityMode,
        label: "security_mode",
        remedy: "give both the same `server signing`",
        values: |a, b| differing(a, b, |g| g.security_mode, |mode| security_mode(mode).into()),
        // Guests cannot sign.
        breaks: |a, b| any(a, b, |a, b| b.security_mode & !a.security_mode & SIGNING_REQUIRED != 0),
    },
    Row {
        what: What::Capabilities,
        label: "capabilities",
        remedy: "give both the same `smb2 leases`, `oplocks`, `host msdfs` and `server smb encrypt`",
        values: |a, b| differing(a, b, |g| g.capabilities, capabilities),
        breaks: |a, b| {
            let needed =
                CAPABILITIES.iter().filter(|(_, _, needed)| *needed).fold(0, |all, (bit, ..)| all | bit);
            any(a, b, |a, b| a.capabilities & !b.capabilities & needed != 0)
        },
    },
    Row {
        what: What::MaxTransact,
        label: "max_transact",
        remedy: "give both the same `smb2 max trans`",
        values: |a, b| differing(a, b, |g| g.max_transact, |size| size.to_string()),
        breaks: |a, b| any(a, b, |a, b| b.max_transact < a.max_transact),
    },
    Row {
        what: What::MaxRead,
        label: "max_read",
        remedy: "give both the same `smb2 max read`",
        values: |a, b| differing(a, b, |g| g.max_read, |size| size.to_string()),
        breaks: |a, b| any(a, b, |a, b| b.max_read < a.max_read),
    },
    Row {
        what: What::MaxWrite,
        label: "max_write",
        remedy: "give both the same `smb2 max write`",
        values: |a, b| differing(a, b, |g| g.max_write, |size| size.to_string()),
        breaks: |a, b| any(a, b, |a, b| b.max_write < a.max_write),
    },
    Row {
        what: What::SigningAlgorithms,
        label: "signing_algorithms",
        remedy: "give both the same `server smb3 signing algorithms`",
        values: |a, b| in_311(a, b).and_then(|()| unequal(&signing(&a.signing), &signing(&b.signing))),
        // The proxy offers the next node all that there are, and signs towards the client as before.
        breaks: |_, _| false,
    },
    Row {
        what: What::Ciphers,
        label: "ciphers",
        remedy: "give both the same `server smb3 encryption algorithms`",
        values: |a, b| in_311(a, b).and_then(|()| unequal(&ciphers(&a.ciphers), &ciphers(&b.ciphers))),
        // The proxy offers the next node the client's cipher and all that are as strong.
        breaks: |a, b| key_len(&b.ciphers) < key_len(&a.ciphers),
    },
    Row {
        what: What::NetbiosName,
        label: "netbios_name",
        remedy: "give both the same `netbios name`",
        values: |a, b| names(a, b, |names| &names.computer),
        // Another machine account, to which a client's Kerberos ticket means nothing.
        breaks: |_, _| true,
    },
    Row {
        what: What::Domain,
        label: "domain",
        remedy: "give both the same `workgroup` and `netbios name`",
        values: |a, b| names(a, b, |names| &names.domain),
        // Other users by the same name.
        breaks: |_, _| true,
    },
    Row {
        what: What::VolumeSerial,
        label: "volume_serial",
        remedy: "give both the same `netbios name` and the share the same name and `volume serial number`, and let the user in on both",
        values: volumes,
        // Files are known by it: to an application that compares, its open file has become another one.
        breaks: |_, _| true,
    },
    Row {
        what: What::ServerGuid,
        label: "server_guid",
        remedy: "give both the same `netbios name`: Samba makes the ServerGuid of it",
        values: |a, b| differing(a, b, |g| g.server_guid, guid),
        // In Bridge the proxy answers FSCTL_VALIDATE_NEGOTIATE_INFO by what the first node had said.
        breaks: |_, _| false,
    },
    Row {
        what: What::DnsName,
        label: "dns_name",
        remedy: "nothing need be done: it follows from the host's name",
        values: |a, b| {
            names(
                a,
                b,
                |names| if names.dns_computer.is_empty() { &names.dns_domain } else { &names.dns_computer },
            )
        },
        breaks: |_, _| false,
    },
];

impl What {
    /// All of them, those that break clients first.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.what)
    }

    fn row(self) -> Option<&'static Row> {
        TABLE.iter().find(|row| row.what == self)
    }

    /// The metric label.
    pub fn label(self) -> &'static str {
        self.row().map_or("", |row| row.label)
    }

    /// What to set in smb.conf.
    pub fn remedy(self) -> &'static str {
        self.row().map_or("", |row| row.remedy)
    }
}

impl Difference {
    /// Whether clients would break, whichever way they are moved.
    pub fn breaks(&self) -> bool {
        self.there.max(self.back) == Severity::Breaks
    }
}

impl Profile {
    /// Everything in which the nodes differ, as far as it is known of both.
    pub fn differences(&self, other: &Self) -> Vec<Difference> {
        let severity = |breaks| if breaks { Severity::Breaks } else { Severity::Noticed };
        let difference = |row: &Row| {
            let values = (row.values)(self, other)?;
            let (there, back) = (severity((row.breaks)(self, other)), severity((row.breaks)(other, self)));
            Some(Difference { what: row.what, values, there, back })
        };
        TABLE.iter().filter_map(difference).collect()
    }

    /// Whether a client of this node would break on the other.
    pub fn breaks_on(&self, other: &Self) -> bool {
        TABLE.iter().any(|row| (row.values)(self, other).is_some() && (row.breaks)(self, other))
    }

    fn dialect_names(&self) -> String {
        listed(self.dialects.keys().map(|dialect| dialect_name(*dialect)))
    }
}

fn unequal(a: &str, b: &str) -> Option<[String; 2]> {
    (a != b).then(|| [a.to_owned(), b.to_owned()])
}

fn listed(items: impl Iterator<Item = String>) -> String {
    let all: Vec<_> = items.collect();
    if all.is_empty() { "none".into() } else { all.join(", ") }
}

/// The dialects that both accept, and what each grants in them; the newest first.
fn common<'a>(a: &'a Profile, b: &'a Profile) -> impl Iterator<Item = (Dialect, &'a Granted, &'a Granted)> {
    a.dialects.iter().rev().filter_map(|(dialect, one)| Some((*dialect, one, b.dialects.get(dialect)?)))
}

fn any(a: &Profile, b: &Profile, is_so: impl Fn(&Granted, &Granted) -> bool) -> bool {
    common(a, b).any(|(_, one, other)| is_so(one, other))
}

/// Both values of the newest dialect in which they differ.
fn differing<T: PartialEq>(
    a: &Profile,
    b: &Profile,
    get: fn(&Granted) -> T,
    show: fn(T) -> String,
) -> Option<[String; 2]> {
    let (dialect, one, other) = common(a, b).find(|(_, one, other)| get(one) != get(other))?;
    let shown = |granted| format!("{} ({})", show(get(granted)), dialect_name(dialect));
    Some([shown(one), shown(other)])
}

/// Algorithms are agreed on in no other dialect.
fn in_311(a: &Profile, b: &Profile) -> Option<()> {
    common(a, b).any(|(dialect, ..)| dialect == Dialect::SMB311).then_some(())
}

/// NetBIOS and DNS know no case.
fn names(a: &Profile, b: &Profile, get: fn(&TargetNames) -> &String) -> Option<[String; 2]> {
    let (one, other) = (get(a.names.as_ref()?), get(b.names.as_ref()?));
    if one.to_lowercase() == other.to_lowercase() { None } else { unequal(one, other) }
}

fn volumes(a: &Profile, b: &Profile) -> Option<[String; 2]> {
    let both = a.volumes.iter().filter_map(|(share, one)| Some((share, one, b.volumes.get(share)?)));
    let differing: Vec<_> = both.filter(|(_, one, other)| one != other).collect();
    let shown = |of_one: bool| {
        listed(differing.iter().map(|(share, one, other)| match if of_one { one } else { other } {
            Volume::Serial(serial) => format!("{share}: {serial:08X}"),
            Volume::Refused(status) => format!("{share}: refused with {status:#010x}"),
        }))
    };
    if differing.is_empty() { None } else { Some([shown(true), shown(false)]) }
}

fn dialect_name(dialect: Dialect) -> String {
    match dialect {
        Dialect::SMB202 => "2.0.2".into(),
        Dialect::SMB210 => "2.1".into(),
        Dialect::SMB300 => "3.0".into(),
        Dialect::SMB302 => "3.0.2".into(),
        Dialect::SMB311 => "3.1.1".into(),
        Dialect(other) => format!("{other:#06x}"),
    }
}

fn security_mode(mode: u16) -> &'static str {
    if mode & SIGNING_REQUIRED == 0 { "signing offered" } else { "signing required" }
}

fn capabilities(bits: u32) -> String {
    let known = CAPABILITIES.iter().fold(0, |all, (bit, ..)| all | bit);
    let named =
        CAPABILITIES.iter().filter(|(bit, ..)| bits & bit != 0).map(|(_, name, _)| (*name).to_owned());
    let rest = (bits & !known != 0).then(|| format!("{:#x}", bits & !known));
    listed(named.chain(rest))
}

fn signing(algorithms: &BTreeSet<u16>) -> String {
    listed(algorithms.iter().map(|id| match id {
        0 => "HMAC-SHA256".into(),
        1 => "AES-128-CMAC".into(),
        2 => "AES-128-GMAC".into(),
        other => other.to_string(),
    }))
}

fn ciphers(ciphers: &BTreeSet<u16>) -> String {
    listed(ciphers.iter().map(|id| match id {
        1 => "AES-128-CCM".into(),
        2 => "AES-128-GCM".into(),
        3 => "AES-256-CCM".into(),
        4 => "AES-256-GCM".into(),
        other => other.to_string(),
    }))
}

/// Of the strongest one, in bytes.
fn key_len(ciphers: &BTreeSet<u16>) -> usize {
    ciphers.iter().filter_map(|id| Cipher::from_wire(*id)).map(Cipher::key_len).max().unwrap_or(0)
}

/// In hexadecimal; Samba's is text, padded with zeros.
fn guid(guid: [u8; 16]) -> String {
    let text =
        guid.iter().rposition(|byte| *byte != 0).and_then(|last| guid.get(..=last)).unwrap_or_default();
    if !text.is_empty() && text.iter().all(u8::is_ascii_graphic) {
        return format!("\"{}\"", text.escape_ascii());
    }
    guid.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Profile {
        let granted = Granted {
            server_guid: *b"cluster\0\0\0\0\0\0\0\0\0",
            security_mode: 1,
            capabilities: 0x07,
            max_transact: 1 << 23,
            max_read: 1 << 23,
            max_write: 1 << 23,
        };
        let old = Granted {
            capabilities: 1,
            max_transact: 1 << 16,
            max_read: 1 << 16,
            max_write: 1 << 16,
            ..granted.clone()
        };
        let named = TargetNames {
            computer: "CLUSTER".into(),
            domain: "WG".into(),
            dns_computer: "a.example".into(),
            dns_domain: "example".into(),
        };
        Profile {
            dialects: [
                (Dialect::SMB202, old),
                (Dialect::SMB302, granted.clone()),
                (Dialect::SMB311, granted),
            ]
            .into(),
            signing: [0, 1, 2].into(),
            ciphers: [1, 2, 3, 4].into(),
            names: Some(named),
            volumes: [("share".into(), Volume::Serial(0x1234_abcd))].into(),
        }
    }

    /// Makes one node differ from a good one; what that is, what becomes of clients moved to it, and from it, and how it
    /// is shown.
    type Case = (fn(&mut Profile), What, [bool; 2], &'static str);

    fn granted(profile: &mut Profile) -> &mut Granted {
        profile.dialects.get_mut(&Dialect::SMB302).unwrap()
    }

    fn named(profile: &mut Profile) -> &mut TargetNames {
        profile.names.as_mut().unwrap()
    }

    const CASES: [Case; 22] = [
        (
            |p| {
                p.dialects.remove(&Dialect::SMB202);
            },
            What::Dialects,
            [true, false],
            "3.0.2, 3.1.1",
        ),
        (
            |p| {
                p.dialects.remove(&Dialect::SMB311);
            },
            What::Dialects,
            [true, false],
            "2.0.2, 3.0.2",
        ),
        (
            |p| {
                p.dialects.insert(Dialect::SMB210, Granted::default());
            },
            What::Dialects,
            [false, true],
            "2.0.2, 2.1, 3.0.2, 3.1.1",
        ),
        (|p| granted(p).security_mode = 3, What::SecurityMode, [true, false], "signing required (3.0.2)"),
        (|p| granted(p).capabilities &= !2, What::Capabilities, [true, false], "DFS, LARGE_MTU (3.0.2)"),
        (|p| granted(p).capabilities &= !4, What::Capabilities, [true, false], "DFS, LEASING (3.0.2)"),
        (
            |p| granted(p).capabilities |= 0x40,
            What::Capabilities,
            [false, true],
            "DFS, LEASING, LARGE_MTU, ENCRYPTION (3.0.2)",
        ),
        (
            |p| granted(p).capabilities |= 8,
            What::Capabilities,
            [false, false],
            "DFS, LEASING, LARGE_MTU, MULTI_CHANNEL (3.0.2)",
        ),
        (|p| granted(p).max_transact = 65536, What::MaxTransact, [true, false], "65536 (3.0.2)"),
        (|p| granted(p).max_read = 65536, What::MaxRead, [true, false], "65536 (3.0.2)"),
        (|p| granted(p).max_read = 1 << 24, What::MaxRead, [false, true], "16777216 (3.0.2)"),
        (|p| granted(p).max_write = 65536, What::MaxWrite, [true, false], "65536 (3.0.2)"),
        (
            |p| {
                p.signing.remove(&2);
            },
            What::SigningAlgorithms,
            [false, false],
            "HMAC-SHA256, AES-128-CMAC",
        ),
        (|p| p.ciphers = [1, 2].into(), What::Ciphers, [true, false], "AES-128-CCM, AES-128-GCM"),
        (|p| p.ciphers = [4].into(), What::Ciphers, [false, false], "AES-256-GCM"),
        (|p| p.ciphers.clear(), What::Ciphers, [true, false], "none"),
        (|p| named(p).computer = "OTHER".into(), What::NetbiosName, [true, true], "OTHER"),
        (|p| named(p).domain = "OTHER".into(), What::Domain, [true, true], "OTHER"),
        (
            |p| {
                p.volumes.insert("share".into(), Volume::Serial(7));
            },
            What::VolumeSerial,
            [true, true],
            "share: 00000007",
        ),
        (
            |p| {
                p.volumes.insert("share".into(), Volume::Refused(0xc000_00cc));
            },
            What::VolumeSerial,
            [true, true],
            "share: refused with 0xc00000cc",
        ),
        (
            |p| granted(p).server_guid = *b"other\0\0\0\0\0\0\0\0\0\0\0",
            What::ServerGuid,
            [false, false],
            "\"other\" (3.0.2)",
        ),
        (|p| named(p).dns_computer = "b.example".into(), What::DnsName, [false, false], "b.example"),
    ];

    #[test]
    fn every_difference_is_named_and_judged() {
        for (change, what, [there, back], shown) in CASES {
            let (good, mut other) = (good(), good());
            change(&mut other);
            let found = good.differences(&other);
            let [difference] = &found[..] else { panic!("{what:?}: {found:?}") };
            assert_eq!(difference.what, what);
            assert_eq!(difference.values[1], shown);
            let breaks = [difference.there, difference.back].map(|severity| severity == Severity::Breaks);
            assert_eq!(breaks, [there, back], "{what:?} {shown}");
            assert_eq!([good.breaks_on(&other), other.breaks_on(&good)], [there, back], "{what:?} {shown}");
            assert!(!what.remedy().is_empty());
        }
        let covered: BTreeSet<What> = CASES.iter().map(|(_, what, ..)| *what).collect();
        assert_eq!(covered, What::all().collect(), "a row without a case");
    }

    #[test]
    fn alike_is_alike_and_what_is_not_known_does_not_differ() {
        assert!(good().differences(&good()).is_empty());
        let mut named_in_lower_case = good();
        named(&mut named_in_lower_case).computer = "cluster".into();
        assert!(good().differences(&named_in_lower_case).is_empty());
        let silent = Profile { names: None, volumes: BTreeMap::new(), ..good() };
        assert!(good().differences(&silent).is_empty() && silent.differences(&good()).is_empty());
        // Without 3.1.1 nobody could tell what it accepts there.
        let mut old = good();
        old.dialects.remove(&Dialect::SMB311);
        old.ciphers.clear();
        old.signing.clear();
        assert_eq!(good().differences(&old).iter().map(|d| d.what).collect::<Vec<_>>(), [What::Dialects]);
    }

    #[test]
    fn a_guid_that_is_no_text_is_shown_in_hexadecimal() {
        assert_eq!(guid([0; 16]), "0".repeat(32));
        assert_eq!(guid([0xa7; 16]), "a7".repeat(16));
        assert_eq!(guid(*b"0123456789abcdef"), "\"0123456789abcdef\"");
    }
}
