//! Opens (MS-SMB2 3.3.1.10): what is known of each, so that it can be opened again.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Instant,
};

use smb_parse::{
    FileId,
    cmd::create,
    create_context::{Lease, RequestContext, ResponseContext},
    header::Status,
};

use crate::{
    files::{FileIdentity, FileKey, Name},
    ids::{Client, Node, NodeId, OpenToken, RELATED_FILE_ID, SessionId, TreeId},
    link::{
        birth::Birth,
        breaks::{Breaking, Level},
        lock_sequence::LockSequences,
        locks::LockTable,
        persist::Written,
        request::Request,
        watch::Watch,
    },
    takeover::cursor::Cursor,
};

/// RequestedOplockLevel / OplockLevel that says "see the lease context" (MS-SMB2 2.2.13).
pub(crate) const OPLOCK_LEASE: u8 = 0xff;
/// MAXIMUM_ALLOWED (MS-SMB2 2.2.13.1).
const MAXIMUM_ALLOWED: u32 = 0x0200_0000;

/// FILE_ATTRIBUTE_DIRECTORY (MS-FSCC 2.6).
const DIRECTORY: u32 = 0x10;
/// FILE_DIRECTORY_FILE (MS-SMB2 2.2.13).
const DIRECTORY_FILE: u32 = 0x1;
/// `SMB2_LEASE_FLAG_PARENT_LEASE_KEY_SET` (MS-SMB2 2.2.13.2.10).
const PARENT_KEY: u32 = 0x4;

/// How a handle may be got back after a lost connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durable {
    /// Not at all.
    No,
    /// DHnQ.
    V1,
    /// DH2Q, with the timeout granted in milliseconds, and the CreateGuid by which the node knows it.
    V2 { timeout: u32, create_guid: [u8; 16] },
}

/// What a node may have kept of an Open, by which it is asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Disconnected {
    pub(crate) durable: Durable,
    pub(crate) node_id: Node<FileId>,
    /// How often it has been.
    pub(crate) tries: u8,
}

/// Whether an Open exists on the present node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpenState {
    /// Yes.
    Live,
    /// Its node was lost and it is not back yet.
    Unreclaimed,
    /// It could not be had again: requests on it get STATUS_FILE_CLOSED.
    Lost,
    /// The same, and its node, which lives, has closed it when it lost its leg, and deleted its file with that, as the client had
    /// asked: a CLOSE has done its work.
    ClosedByNode,
}

/// FILE_DELETE_ON_CLOSE (MS-SMB2 2.2.13).
const DELETE_ON_CLOSE: u32 = 0x1000;

/// One Open.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) token: OpenToken,
    pub(crate) session: Client<SessionId>,
    pub(crate) tree: Client<TreeId>,
    pub(crate) client_id: Client<FileId>,
    pub(crate) node_id: Node<FileId>,
    /// The node that has given out `node_id`, once it is lost.
    pub(crate) had_by: Option<NodeId>,
    pub(crate) state: OpenState,
    /// Its name, renames by this handle followed; those by others when it is reclaimed.
    pub(crate) name: Name,
    /// What others have made of that name since.
    pub(crate) called: Option<Box<[u8]>>,
    /// When others have given it that name, if they have.
    pub(crate) moved_at: Option<Instant>,
    pub(crate) share: Arc<str>,
    pub(crate) desired_access: u32,
    /// What MAXIMUM_ALLOWED came to, if the node was asked.
    pub(crate) granted_access: Option<u32>,
    pub(crate) share_access: u32,
    pub(crate) create_options: u32,
    pub(crate) impersonation_level: u32,
    /// The level last granted or broken to; [`OPLOCK_LEASE`] if `lease` says.
    pub(crate) oplock_level: u8,
    pub(crate) lease: Option<Lease>,
    /// How the client may get it back.
    pub(crate) promised: Durable,
    /// How the proxy may get it back from the node.
    pub(crate) durable: Durable,
    /// For how long a client that is away may come back to it, whatever else was promised (MS-SMB2 3.3.1.10, IsResilient;
    /// milliseconds).
    pub(crate) resilient: Option<u32>,
    pub(crate) written: Written,
    /// The CreateGuid of the reclaim under way.
    pub(crate) reclaimed_as: [u8; 16],
    /// TWrp: a previous version.
    pub(crate) timewarp: Option<u64>,
    /// QFid, if the client or the proxy asked for it: 32 bytes, the first 8 the on-disk id.
    pub(crate) on_disk_id: Option<[u8; 32]>,
    pub(crate) birth: Birth,
    pub(crate) is_pipe: bool,
    /// Byte-range locks acknowledged.
    pub(crate) locks: LockTable,
    pub(crate) lock_sequences: LockSequences,
    /// The node that has given out `node_id` is not known to have those: it was lost before it said so.
    pub(crate) owes_locks: bool,
    /// A request that closes it was in flight when its node was lost.
    pub(crate) closing: bool,
    /// The client gave it a CreateGuid and has not used it since. Its node finds it by the CreateGuid until its FileId is used,
    /// by whomever.
    pub(crate) unused: bool,
    pub(crate) delete_pending: bool,
    /// Its file is gone, and requests in flight have deleted it.
    pub(crate) is_deleted: bool,
    /// To open the file again its read-only attribute was taken off, and is not known to be back.
    pub(crate) owes_read_only: bool,
    /// It has locks, and a node was asked for it by DHnC or DH2C, and has not answered: if its process ends over that, it is
    /// not asked again, unless its locks are still in the way there.
    pub(crate) reconnecting: Option<Box<Disconnected>>,
    pub(crate) cursor: Cursor,
    /// A break that the client has not acknowledged.
    pub(crate) breaking: Option<Breaking>,
    /// To this level went a break whose acknowledgement nobody waits for any more. It may still come.
    pub(crate) excused: Option<Level>,
    /// How much the epoch of the lease that the client knows is ahead of the present node's.
    pub(crate) epoch_shift: u16,
    pub(crate) is_directory: bool,
    pub(crate) watch: Watch,
    /// The present node has been asked for a resume key, since it has this Open of us.
    pub(crate) has_key: bool,
    /// Where the file ended when it was opened, in bytes.
    pub(crate) ended: u64,
    /// By it the file's end may have been changed otherwise than by appending.
    pub(crate) spoilt: bool,
}

impl Open {
    /// Whether it holds the lease of this key.
    pub(crate) fn has_lease(&self, key: [u8; 16]) -> bool {
        self.lease.is_some_and(|lease| lease.key == key)
    }

    /// Whether its file is to be deleted when it is closed.
    pub(crate) fn is_to_be_deleted(&self) -> bool {
        self.delete_pending || self.create_options & DELETE_ON_CLOSE != 0
    }

    /// Whether nobody knows what access it has.
    pub(crate) fn wants_access(&self) -> bool {
        self.desired_access & MAXIMUM_ALLOWED != 0 && self.granted_access.is_none()
    }

    /// Takes FileAccessInformation in (MS-FSCC 2.4.1).
    pub(crate) fn take_access(&mut self, buffer: &[u8]) {
        let flags = buffer.get(..4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
        self.granted_access = flags.or(self.granted_access);
    }

    /// What a request is told whose Open is lost: a pipe has lost its other end (MS-SMB2 3.3.5.12), as Samba says it when
    /// what serves the pipe has died, and clients open a new one.
    pub(crate) fn lost_status(&self) -> Status {
        if self.is_pipe { Status::PIPE_DISCONNECTED } else { Status::FILE_CLOSED }
    }

    /// Whether a client that is away may come back to it.
    pub(crate) fn is_lasting(&self) -> bool {
        self.promised != Durable::No || self.resilient.is_some()
    }

    /// The file as [`Files`](crate::files::Files) knows it.
    pub(crate) fn key(&self) -> FileKey {
        self.name.key.clone()
    }

    /// It is called so, in the version of the share in which it is.
    pub(crate) fn set_path(&mut self, path: &[u8]) {
        let name = Name::new(&self.share, path);
        self.name = match self.timewarp {
            Some(timestamp) => name.in_the_past(timestamp),
            None => name,
        };
    }

    /// Which file it is.
    pub(crate) fn file(&self) -> FileIdentity {
        // A version of the past may have the number of the present.
        FileIdentity::new(self.birth, self.on_disk_id.filter(|_| self.timewarp.is_none()))
    }

    /// The name that a rename or link gives, in full: that of a stream is told without its file's (MS-FSCC 2.4.42).
    pub(crate) fn full_name(&self, name: &[u8]) -> Vec<u8> {
        let colon = |unit: &[u8]| *unit == [b':', 0];
        if !name.get(..2).is_some_and(colon) {
            return name.to_vec();
        }
        let file = self.name.path.chunks(2).take_while(|unit| !colon(unit)).flatten();
        file.chain(name).copied().collect()
    }
}

/// Share and path, folded.
pub(crate) fn file_key(share: &str, name: &[u8]) -> FileKey {
    Name::new(share, name).key
}

/// All Opens of a Link.
#[derive(Debug, Default)]
pub(crate) struct Opens {
    /// Apart from each other: half of the places in the nodes of a map that grows at its end stay empty.
    by_token: BTreeMap<OpenToken, Box<Open>>,
    by_client: HashMap<Client<FileId>, OpenToken>,
    /// Those that are not known by the same FileId on both legs, as they are in Relay.
    by_node: HashMap<Node<FileId>, OpenToken>,
    /// By the key of the lease that they hold. It never becomes another.
    by_lease: BTreeSet<([u8; 16], OpenToken)>,
    /// How many are [`unused`](Open::unused).
    unused: usize,
    next: u64,
    /// Those that may have become others since their records were looked at.
    touched: BTreeSet<OpenToken>,
    /// Those that were written and are no more.
    removed: Vec<FileId>,
}

impl Opens {
    pub(crate) fn next_token(&mut self) -> OpenToken {
        self.next += 1;
        OpenToken(self.next)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_token.is_empty()
    }

    pub(crate) fn insert(&mut self, open: Open) {
        if open.node_id.0 == open.client_id.0 {
            self.by_node.remove(&open.node_id);
        } else {
            self.by_node.insert(open.node_id, open.token);
        }
        self.unused += usize::from(open.unused);
        self.insert_unreclaimed(open);
    }

    /// One that the present node does not have yet.
    pub(crate) fn insert_unreclaimed(&mut self, open: Open) {
        self.by_client.insert(open.client_id, open.token);
        self.by_lease.extend(open.lease.map(|lease| (lease.key, open.token)));
        self.touched.insert(open.token);
        self.by_token.insert(open.token, Box::new(open));
    }

    pub(crate) fn remove(&mut self, token: OpenToken) -> Option<Open> {
        let open = self.take(token)?;
        if open.written.is_there() {
            self.removed.push(open.client_id.0);
        }
        Some(open)
    }

    /// The same, but its record stays.
    pub(crate) fn take(&mut self, token: OpenToken) -> Option<Open> {
        let open = self.by_token.remove(&token)?;
        self.touched.remove(&token);
        self.unused -= usize::from(open.unused);
        self.by_client.remove(&open.client_id);
        if let Some(lease) = open.lease {
            self.by_lease.remove(&(lease.key, token));
        }
        if self.by_node.get(&open.node_id) == Some(&token) {
            self.by_node.remove(&open.node_id);
        }
        Some(*open)
    }

    pub(crate) fn get(&self, token: OpenToken) -> Option<&Open> {
        self.by_token.get(&token).map(|open| &**open)
    }

    pub(crate) fn get_mut(&mut self, token: OpenToken) -> Option<&mut Open> {
        let open = self.by_token.get_mut(&token)?;
        self.touched.insert(token);
        Some(&mut **open)
    }

    pub(crate) fn set_written(&mut self, token: OpenToken, written: Written) {
        if let Some(open) = self.by_token.get_mut(&token) {
            open.written = written;
        }
    }

    /// Those that may have become others since the last call.
    pub(crate) fn take_touched(&mut self) -> BTreeSet<OpenToken> {
        std::mem::take(&mut self.touched)
    }

    /// FileIds of those that were written and are no more.
    pub(crate) fn take_removed(&mut self) -> Vec<FileId> {
        std::mem::take(&mut self.removed)
    }

    /// Nothing is ever written.
    pub(crate) fn forget_touched(&mut self) {
        self.touched.clear();
        self.removed.clear();
    }

    pub(crate) fn by_client(&self, id: FileId) -> Option<&Open> {
        self.get(*self.by_client.get(&Client(id))?)
    }

    pub(crate) fn by_node(&self, id: FileId) -> Option<&Open> {
        match self.by_node.get(&Node(id)) {
            Some(token) => self.get(*token),
            None => self.by_client(id).filter(|o| o.node_id == Node(id) && o.state == OpenState::Live),
        }
    }

    /// The Open a request is about. A request's FileId is the client's while it is raw, else the node's.
    pub(crate) fn of(&self, request: &Request) -> Option<&Open> {
        match request.file_id()? {
            RELATED_FILE_ID => self.by_client(request.related_file?),
            id if request.raw => self.by_client(id),
            id => self.by_node(id),
        }
    }

    /// The Open that a request is the first to use, if that matters.
    pub(crate) fn first_use(&mut self, request: &Request) -> Option<OpenToken> {
        if self.unused == 0 {
            return None;
        }
        let token = self.of(request)?.token;
        let was_unused = std::mem::take(&mut self.get_mut(token)?.unused);
        self.unused -= usize::from(was_unused);
        was_unused.then_some(token)
    }

    /// The Open has a new id on the node.
    pub(crate) fn set_node_id(&mut self, token: OpenToken, id: FileId) {
        if let Some(open) = self.get_mut(token) {
            open.node_id = Node(id);
            self.by_node.insert(Node(id), token);
        }
    }

    /// No Open has an id on any node any more.
    pub(crate) fn forget_node_ids(&mut self) {
        self.by_node.clear();
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Open> {
        self.by_token.values().map(|open| &**open)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Open> {
        self.touched.extend(self.by_token.keys());
        self.by_token.values_mut().map(|open| &mut **open)
    }

    /// Those that share a lease.
    pub(crate) fn with_lease(&self, key: [u8; 16]) -> impl Iterator<Item = &Open> {
        self.tokens_with_lease(key).filter_map(|token| self.get(token))
    }

    /// The same, to change them.
    pub(crate) fn with_lease_mut(&mut self, key: [u8; 16]) -> impl Iterator<Item = &mut Open> {
        let tokens: Vec<_> = self.tokens_with_lease(key).collect();
        let all =
            tokens.first().zip(tokens.last()).map(|(first, last)| self.by_token.range_mut(first..=last));
        self.touched.extend(tokens);
        all.into_iter().flatten().map(|(_, open)| &mut **open).filter(move |open| open.has_lease(key))
    }

    fn tokens_with_lease(&self, key: [u8; 16]) -> impl Iterator<Item = OpenToken> {
        let all = (key, OpenToken(0))..=(key, OpenToken(u64::MAX));
        self.by_lease.range(all).map(|(_, token)| *token)
    }

    /// A CREATE brought this state of a lease: it is that of every Open that holds it (MS-SMB2 3.3.5.9.8, 3.3.5.9.11).
    pub(crate) fn share_lease(&mut self, lease: Lease) {
        for open in self.with_lease_mut(lease.key) {
            if let Some(held) = &mut open.lease {
                (held.state, held.epoch) = (lease.state, lease.epoch);
            }
            open.keep_to_break();
        }
    }
}

/// Where an Open hangs.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) session: SessionId,
    pub(crate) tree: TreeId,
    pub(crate) share: Arc<str>,
    pub(crate) is_pipe: bool,
}

impl Open {
    /// One of which nothing is known but where it hangs.
    pub(crate) fn new(
        token: OpenToken,
        place: Place,
        client_id: Client<FileId>,
        node_id: Node<FileId>,
    ) -> Self {
        Self {
            token,
            session: Client(place.session),
            tree: Client(place.tree),
            client_id,
            node_id,
            had_by: None,
            state: OpenState::Live,
            name: Name::new(&place.share, &[]),
            called: None,
            moved_at: None,
            share: place.share,
            desired_access: 0,
            granted_access: None,
            share_access: 0,
            create_options: 0,
            impersonation_level: 0,
            oplock_level: 0,
            lease: None,
            promised: Durable::No,
            durable: Durable::No,
            resilient: None,
            written: Written::default(),
            reclaimed_as: [0; 16],
            timewarp: None,
            on_disk_id: None,
            birth: Birth::set(0),
            is_pipe: place.is_pipe,
            locks: LockTable::default(),
            lock_sequences: LockSequences::default(),
            owes_locks: false,
            closing: false,
            unused: false,
            delete_pending: false,
            is_deleted: false,
            owes_read_only: false,
            reconnecting: None,
            cursor: Cursor::default(),
            breaking: None,
            excused: None,
            epoch_shift: 0,
            is_directory: false,
            watch: Watch::Off,
            has_key: false,
            ended: 0,
            spoilt: false,
        }
    }
}

/// The record of an Open, from the CREATE and its successful answer.
pub(crate) fn open_from(
    token: OpenToken,
    place: Place,
    request: &[u8],
    response: &[u8],
    client_id: Client<FileId>,
) -> Option<Open> {
    let asked = create::Request::parse(request).ok()?;
    let granted = create::Response::parse(response).ok()?;
    let mut open = Open {
        desired_access: asked.desired_access,
        share_access: asked.share_access,
        create_options: asked.create_options,
        impersonation_level: asked.impersonation_level,
        oplock_level: granted.oplock_level,
        birth: Birth::of(&granted),
        is_directory: granted.file_attributes & DIRECTORY != 0 || asked.create_options & DIRECTORY_FILE != 0,
        ended: granted.end_of_file,
        ..Open::new(token, place, client_id, Node(granted.file_id))
    };
    let mut guid = [0; 16];
    let mut asked_lease = None;
    for context in asked.contexts().filter_map(Result::ok) {
        match RequestContext::parse(&context) {
            RequestContext::Timewarp { timestamp } => open.timewarp = Some(timestamp),
            RequestContext::Lease(lease) => asked_lease = Some(lease),
            RequestContext::DurableV2 { create_guid, .. } => {
                guid = create_guid;
                open.unused = true;
            }
            // What was durable stays so; the answer does not say it again (MS-SMB2 3.3.5.9.7, 3.3.5.9.12).
            RequestContext::DurableReconnect { .. } => open.durable = Durable::V1,
            RequestContext::DurableReconnectV2 { create_guid, .. } => {
                open.durable = Durable::V2 { timeout: 0, create_guid };
            }
            _ => {}
        }
    }
    for context in granted.contexts().filter_map(Result::ok) {
        match ResponseContext::parse(&context) {
            ResponseContext::Lease(lease) => open.lease = Some(lease),
            ResponseContext::Durable => open.durable = Durable::V1,
            ResponseContext::DurableV2 { timeout, .. } => {
                open.durable = Durable::V2 { timeout, create_guid: guid };
            }
            ResponseContext::OnDiskId(id) => open.on_disk_id = known_id(id),
            _ => {}
        }
    }
    open.set_path(asked.name.0);
    open.promised = open.durable;
    if let (Some(lease), Some(asked)) = (&mut open.lease, asked_lease) {
        // What only the client can say, and not every node repeats. A break that was in progress is no wish.
        (lease.flags, lease.parent_key) = (asked.flags & PARENT_KEY, asked.parent_key);
    }
    Some(open)
}

/// An on-disk id, if it tells one file from another: Samba tells Apple's clients 0 of every file (`fruit:zero_file_id`).
pub(crate) fn known_id(id: [u8; 32]) -> Option<[u8; 32]> {
    id.iter().take(8).any(|byte| *byte != 0).then_some(id)
}

/// A TreeId of the proxy's own, from a number that is not used again soon.
pub(crate) fn minted_tree_id(number: u64) -> TreeId {
    const MARK: TreeId = 0x5500_0000;
    MARK | TreeId::try_from(number & 0xff_ffff).unwrap_or(0)
}

/// A FileId of the proxy's own: never the same twice in a Link, and unlike any node's. A client that comes back is known by the
/// persistent part, so it is unlike those of other Links too, of earlier runs of the proxy among them: `link` is drawn by lot.
pub(crate) fn minted_file_id(link: u32, number: u64) -> FileId {
    const MARK: u64 = 0x5553_0000_0000_0000;
    let lot = u64::from(link & 0xff_ffff) << 24;
    FileId { persistent: MARK | lot | (number & 0xff_ffff), volatile: MARK | (number & 0xffff_ffff_ffff) }
}
