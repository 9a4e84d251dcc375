//! Encryption (MS-SMB2 3.1.4.3): which messages are sealed, and with what.

use std::{collections::BTreeSet, fmt, sync::Arc};

use anyhow::{Context, Result, ensure};
use smb_parse::transform;
use understudy_core::{
    auth::keys::SessionKey,
    crypto::{
        kdf::{self, Direction},
        preauth::Preauth,
        sealing::{HEADROOM, Nonces, SealingKey},
        signing::SigningKey,
    },
};

use super::{At, Client, Draft, login::System};

/// A key, by what it is called.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Secret {
    pub(crate) name: &'static str,
    pub(crate) bytes: Vec<u8>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}(***)", self.name)
    }
}

/// All that a session's key makes.
pub(super) struct Keys {
    pub(super) signing: SigningKey,
    pub(super) seals: Option<Seals>,
    pub(super) secrets: Vec<Secret>,
}

/// What a session seals and opens with.
#[derive(Debug)]
pub(super) struct Seals {
    to_server: Arc<SealingKey>,
    to_client: Arc<SealingKey>,
    nonces: Nonces,
    /// Everything, or what is for these trees.
    whole: bool,
    trees: BTreeSet<u32>,
}

impl Seals {
    pub(super) fn of_session(self, whole: bool) -> Self {
        Self { whole, ..self }
    }

    /// The same keys for a further connection, with nonces of its own.
    pub(super) fn shared(&self) -> Self {
        Self {
            to_server: Arc::clone(&self.to_server),
            to_client: Arc::clone(&self.to_client),
            nonces: Nonces::default(),
            whole: self.whole,
            trees: self.trees.clone(),
        }
    }

    pub(super) fn add_tree(&mut self, tree: u32) {
        self.trees.insert(tree);
    }
}

impl Client {
    /// The keys of a session.
    pub(super) fn derive(&self, key: &SessionKey, preauth: &Preauth) -> Keys {
        let (dialect, hash) = (self.setup.dialect, preauth.value());
        let signing = kdf::signing_key(dialect, key, &hash);
        let mut secrets = vec![
            Secret { name: "session key", bytes: key.bytes().to_vec() },
            Secret { name: "signing key", bytes: signing.to_vec() },
        ];
        let seals = self.setup.cipher.map(|cipher| {
            let [to_server, to_client] = [Direction::ToServer, Direction::ToClient].map(|direction| {
                let bytes = kdf::sealing_key(dialect, cipher, direction, key, &hash);
                secrets.push(Secret { name: "sealing key", bytes: bytes.to_vec() });
                Arc::new(SealingKey::new(cipher, &bytes))
            });
            Seals { to_server, to_client, nonces: Nonces::default(), whole: false, trees: BTreeSet::new() }
        });
        Keys { signing: SigningKey::new(self.signing, &signing), seals, secrets }
    }

    /// The keys of all sessions.
    pub(crate) fn secrets(&self) -> impl Iterator<Item = &Secret> {
        self.sessions.values().flat_map(|session| &session.secrets)
    }

    /// Whether what goes there is sealed.
    pub(crate) fn is_sealed(&self, at: At) -> bool {
        let seals = self.sessions.get(&at.session).and_then(|session| session.seals.as_ref());
        seals.is_some_and(|seals| seals.whole || seals.trees.contains(&at.tree))
    }

    pub(super) fn sealed_frame(&mut self, draft: &Draft) -> Result<Vec<u8>> {
        let session = self.sessions.get_mut(&draft.session).context("no such session")?;
        let seals = session.seals.as_mut().context("the session has no keys to seal with")?;
        let mut frame = vec![0; HEADROOM];
        frame.extend_from_slice(&draft.bytes);
        let nonce = seals.nonces.next(&mut System);
        ensure!(seals.to_server.seal(&mut frame, draft.session, nonce), "sealing failed");
        Ok(frame)
    }

    /// What a sealed body holds.
    pub(super) fn opened(&self, body: &[u8]) -> Result<Vec<u8>> {
        let id = transform::Header::parse(body)?.session_id;
        let session = self.sessions.get(&id).with_context(|| format!("sealed for session {id:#x}"))?;
        let seals = session.seals.as_ref().context("sealed, and we have no keys")?;
        let frame = seals.to_client.open(body).context("sealed wrongly")?;
        Ok(frame.get(HEADROOM..).context("nothing was sealed")?.to_vec())
    }
}
