//! No secret gets out: with everything logged that can be, neither the log nor the admin page nor the store holds a
//! password, a hash or a key, in any of the forms in which bytes are written down.

use std::{collections::BTreeSet, fs};

use anyhow::{Context, Result, ensure};
use md4::{Digest, Md4};
use serde_json::Value;
use understudy_core::crypto::{Dialect, sealing::Cipher};

use super::{Case, Report, Scale};
use crate::{
    client::{Client, FILE_OPEN_IF, File, Open, Secret, Setup, User, guid, utf16},
    rig::{
        Rig, Site,
        net::FLOATING,
        node::{PASSWORD, Settings},
    },
};

pub(super) const CASES: &[Case] = &[Case {
    name: "no-secrets",
    shows: "at level TRACE, with takeovers, no password, hash or key is in the log, the admin page or the store",
    soak: 3,
    run: no_secrets,
}];

/// Whose keys there are: each with a signing or a sealing of its own.
const SESSIONS: [(Dialect, Option<Cipher>); 7] = [
    (Dialect::SMB210, None),
    (Dialect::SMB302, None),
    (Dialect::SMB302, Some(Cipher::Aes128Ccm)),
    (Dialect::SMB311, None),
    (Dialect::SMB311, Some(Cipher::Aes128Gcm)),
    (Dialect::SMB311, Some(Cipher::Aes256Gcm)),
    (Dialect::SMB311, Some(Cipher::Aes256Ccm)),
];

fn no_secrets(_: &Scale) -> Result<Report> {
    let samba = Settings { global: vec!["debug encryption = yes"], ..Settings::default() };
    let config = "[log]\nformat = \"json\"\nlevel = \"trace\"\n".into();
    let mut rig = Rig::new(&Site { samba, config, ..Site::default() })?;
    let mut works = SESSIONS
        .into_iter()
        .enumerate()
        .map(|(index, (dialect, cipher))| Work::begin(&rig, index, dialect, cipher))
        .collect::<Result<Vec<_>>>()?;
    let dead = rig.kill_serving()?;
    works.iter_mut().try_for_each(Work::go_on).context("after a takeover")?;
    rig.restart(dead)?;
    // The second time a leg of the proxy's own is lost, not the client's.
    rig.kill_serving()?;
    works.iter_mut().try_for_each(Work::go_on).context("after a second takeover")?;

    let mut secrets = users_secrets();
    secrets.extend(works.iter().flat_map(|work| work.client.secrets().cloned()));
    let own = secrets.len();
    for node in &rig.nodes {
        secrets.extend(dumped_keys(&node.log()?));
    }
    // Each session of SMB 3 was logged in three times, twice by the proxy, and smbd names three keys of each at least.
    let logins = 3 * SESSIONS.iter().filter(|(dialect, _)| *dialect >= Dialect::SMB300).count();
    ensure!(secrets.len() - own >= 3 * logins, "smbd has told only {} keys", secrets.len() - own);
    let mut places = vec![("the log", rig.proxy.log_text().into_bytes())];
    for file in fs::read_dir(rig.dir.path().join("store"))? {
        places.push(("the store", fs::read(file?.path())?));
    }
    ensure!(places.len() > 1, "there is no store");
    for path in ["/", "/metrics", "/ready", "/live"] {
        places.push((path, rig.proxy.get(&rig.net, path)?.1.into_bytes()));
    }
    let below_info = |line: &&Value| line["level"] == "TRACE" || line["level"] == "DEBUG";
    let lines = rig.proxy.log().iter().filter(below_info).count();
    ensure!(lines > 0, "nothing was logged below INFO");
    let forms: Vec<_> =
        secrets.iter().flat_map(|s| forms(&s.bytes).into_iter().map(|f| (s.name, f))).collect();
    for (place, text) in &places {
        for (name, form) in &forms {
            ensure!(!contains(text, form), "{place} holds the {name}: {}", String::from_utf8_lossy(form));
        }
    }
    let note =
        format!("{} secrets in {} forms, {lines} lines of DEBUG and TRACE", secrets.len(), forms.len());
    Ok(Report { notes: vec![note], ..Report::default() })
}

/// A session with an open file.
struct Work {
    client: Client,
    file: File,
}

impl Work {
    fn begin(rig: &Rig, index: usize, dialect: Dialect, cipher: Option<Cipher>) -> Result<Self> {
        let sealing = cipher.is_some();
        let setup = Setup { dialect, cipher, sealing, client_guid: guid(), ..Setup::default() };
        let mut client = Client::connect(&rig.net, FLOATING, &setup)?;
        let at = client.enter(User::KNOWN, "share")?;
        let name = format!("secret-{index}.bin");
        let file = client.open(at, &Open { disposition: FILE_OPEN_IF, ..Open::of(&name) })?;
        client.write(file, 0, b"the first")?;
        Ok(Self { client, file })
    }

    fn go_on(&mut self) -> Result<()> {
        self.client.write(self.file, 0, b"and a later one")?;
        self.client.read(self.file, 0, 100).map(|_| ())
    }
}

/// What is known of the user before any login.
fn users_secrets() -> Vec<Secret> {
    let hash = Md4::digest(utf16(PASSWORD)).to_vec();
    [("password", PASSWORD.as_bytes().to_vec()), ("password", utf16(PASSWORD)), ("NT hash", hash)]
        .map(|(name, bytes)| Secret { name, bytes })
        .to_vec()
}

/// The keys that smbd has dumped, those of the proxy's logins among them: lines like `[0000] 01 02 .. 0F 10   ..text..`
/// behind the name of each.
fn dumped_keys(log: &str) -> BTreeSet<Secret> {
    let mut keys = BTreeSet::new();
    let mut bytes = Vec::new();
    for line in log.lines().chain(["end"]) {
        let Some((before, dump)) = line.split_once("[00") else {
            keys.extend(dumped(std::mem::take(&mut bytes)));
            continue;
        };
        if dump.starts_with("00]") {
            keys.extend(dumped(std::mem::take(&mut bytes)));
        }
        // A key has its name before it, or is the second line of one.
        if before.contains("Key") || !bytes.is_empty() {
            let words = dump.get(3..).unwrap_or_default().split_whitespace();
            bytes.extend(
                words
                    .map_while(|word| u8::from_str_radix(word, 16).ok().filter(|_| word.len() == 2))
                    .take(16),
            );
        }
    }
    keys
}

/// A key of a length that keys have.
fn dumped(bytes: Vec<u8>) -> Option<Secret> {
    [16, 32].contains(&bytes.len()).then_some(Secret { name: "key that smbd has dumped", bytes })
}

/// How bytes are written down: as they are, in hexadecimal, in Base64, and as Rust prints a slice.
fn forms(bytes: &[u8]) -> Vec<Vec<u8>> {
    let joined = |separator: &str, one: &dyn Fn(&u8) -> String| {
        bytes.iter().map(one).collect::<Vec<_>>().join(separator).into_bytes()
    };
    let (lower, upper) = (|b: &u8| format!("{b:02x}"), |b: &u8| format!("{b:02X}"));
    let mut forms = vec![bytes.to_vec(), joined(", ", &|b| b.to_string()), joined(",", &|b| b.to_string())];
    for separator in ["", " ", ":", ", ", ", 0x"] {
        forms.push(joined(separator, &lower));
        forms.push(joined(separator, &upper));
    }
    forms.extend((0..3).map(|shift| base64(bytes, shift)));
    forms
}

/// The characters that these bytes, and nothing before or behind them, come to in Base64 `shift` bytes behind the start
/// of a group.
fn base64(bytes: &[u8], shift: usize) -> Vec<u8> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let skip = (6 - shift * 8 % 6) % 6;
    let bits: Vec<u8> = bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)).collect();
    let groups = bits.get(skip..).unwrap_or_default().chunks_exact(6);
    groups
        .map(|group| group.iter().fold(0, |sum, bit| sum << 1 | bit))
        .map(|at: u8| ALPHABET[usize::from(at)])
        .collect()
}

fn contains(text: &[u8], form: &[u8]) -> bool {
    let Some(first) = form.first() else { return false };
    let starts = text.iter().enumerate().filter(|(_, byte)| *byte == first);
    starts.map(|(at, _)| at).any(|at| text.get(at..).is_some_and(|rest| rest.starts_with(form)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 16] = *b"\x00\x01\xfe0123456789\xff\xaa\x0b";

    /// Each way of giving a key away is found, wherever it stands.
    #[test]
    fn every_form_is_found() {
        let given_away = [
            format!("key={KEY:?}").into_bytes(),
            format!("key={KEY:02x?}").into_bytes(),
            format!("key={KEY:02X?}").into_bytes(),
            b"key=0001fe30313233343536373839ffaa0b.".to_vec(),
            b"key=0001FE30313233343536373839FFAA0B.".to_vec(),
            b"key=00:01:fe:30:31:32:33:34:35:36:37:38:39:ff:aa:0b".to_vec(),
            [&b"key="[..], &KEY, b"."].concat(),
            // What base64(1) makes of the key, and of it behind one and two other bytes.
            b"key=AAH+MDEyMzQ1Njc4Of+qCw==".to_vec(),
            b"key=eAAB/jAxMjM0NTY3ODn/qgs=".to_vec(),
            b"key=eHgAAf4wMTIzNDU2Nzg5/6oL".to_vec(),
        ];
        for text in given_away {
            let found = forms(&KEY).iter().any(|form| contains(&text, form));
            assert!(found, "{}", String::from_utf8_lossy(&text));
        }
        assert!(!forms(&KEY).iter().any(|form| contains(b"SessionKey(***) 0001fe30", form)));
    }

    #[test]
    fn dumped_keys_are_read() {
        let log = "  debug encryption: dumping generated session keys\n\
                   Session Id    [0000] 8A 34 1A 46 00 00 00 00                            .4.F....\n\
                   Session Key   [0000] 00 01 02 03 04 05 06 07   08 09 0A 0B 0C 0D 0E 0F   ........ ........\n\
                   ServerIn Key  [0000] 10 01 02 03 04 05 06 07   08 09 0A 0B 0C 0D 0E 0F   ........ ........\n\
                   [0010] 20 01 02 03 04 05 06 07   08 09 0A 0B 0C 0D 0E 0F   ........ ........\n";
        let keys: Vec<_> = dumped_keys(log).into_iter().map(|key| key.bytes).collect();
        let line = |first: u8| [&[first][..], &(1..16).collect::<Vec<u8>>()].concat();
        assert_eq!(keys, [line(0), [line(0x10), line(0x20)].concat()]);
    }
}
