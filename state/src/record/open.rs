//! Records of Opens and sessions: enough to give a client back what it had, and no secret.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{
    RecordError, Versioned,
    text::{self, Hex},
    versioned,
};
use crate::store::{Change, Key};

/// How a handle may be got back (MS-SMB2 3.3.1.10: IsDurable, CreateGuid, DurableOpenTimeout).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum DurableRecord {
    /// Not at all.
    #[default]
    No,
    /// By DHnC.
    V1,
    /// By DH2C with this CreateGuid, for so many milliseconds.
    V2 {
        /// Milliseconds.
        timeout: u32,
        /// CreateGuid.
        create_guid: Hex<16>,
    },
}

impl DurableRecord {
    /// Whether it is not durable.
    pub fn is_no(&self) -> bool {
        *self == Self::No
    }
}

/// A lease (MS-SMB2 3.3.1.12).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseRecord {
    /// LeaseKey.
    pub key: Hex<16>,
    /// LeaseState: 1 read, 2 handle, 4 write.
    pub state: u32,
    /// Flags of the context.
    pub flags: u32,
    /// ParentLeaseKey.
    pub parent_key: Hex<16>,
    /// Epoch, as the client knows it.
    pub epoch: u16,
    /// How much that is ahead of the node's.
    pub epoch_shift: u16,
    /// 1 or 2.
    pub version: u8,
}

/// A byte-range lock (MS-SMB2 2.2.26.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockRecord {
    /// Offset in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// Flags: 1 shared, 2 exclusive.
    pub flags: u32,
}

/// A FileId: its persistent and its volatile part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileIdRecord {
    /// Persistent.
    pub persistent: u64,
    /// Volatile.
    pub volatile: u64,
}

/// One Open of one client (one record in a store).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenRecord {
    /// Record version.
    pub v: u32,
    /// ClientGuid of the connection.
    pub client: Hex<16>,
    /// `DOMAIN\user` as the client named it.
    #[serde(with = "text::shared")]
    pub user: Arc<str>,
    /// The client's SessionId.
    pub session: Hex<8>,
    /// FileId as the client knows it.
    pub file_id: FileIdRecord,
    /// The share's name in lower case.
    #[serde(with = "text::shared")]
    pub share: Arc<str>,
    /// The path in the share, UTF-16LE.
    #[serde(with = "text::path")]
    pub path: Arc<[u8]>,
    /// The node that has, or had, the Open.
    #[serde(with = "text::shared")]
    pub node: Arc<str>,
    /// The epoch in which that node had it.
    pub epoch: u64,
    /// FileId as that node knows it.
    pub node_file_id: FileIdRecord,
    /// DesiredAccess of the CREATE.
    pub desired_access: u32,
    /// What MAXIMUM_ALLOWED came to, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub granted_access: Option<u32>,
    /// ShareAccess of the CREATE.
    pub share_access: u32,
    /// CreateOptions of the CREATE.
    pub create_options: u32,
    /// ImpersonationLevel of the CREATE.
    pub impersonation_level: u32,
    /// How the client may get it back.
    #[serde(default, skip_serializing_if = "DurableRecord::is_no")]
    pub durable: DurableRecord,
    /// How the proxy may get it back from the node.
    #[serde(default, skip_serializing_if = "DurableRecord::is_no")]
    pub node_durable: DurableRecord,
    /// For how long the client may come back to it whatever its oplock or lease (IsResilient; milliseconds).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resilient: Option<u32>,
    /// OplockLevel last granted; 255 if `lease` says.
    pub oplock: u8,
    /// The lease last granted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseRecord>,
    /// Byte-range locks that were acknowledged, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub locks: Vec<LockRecord>,
    /// TWrp: a previous version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timewarp: Option<u64>,
    /// QFid: the first 8 bytes are the file's number on the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_disk_id: Option<Hex<32>>,
    /// CreationTime, in units of 100 ns since 1601.
    pub created: u64,
    /// The node makes that time of the file's other times.
    #[serde(default, skip_serializing_if = "is_false")]
    pub created_derived: bool,
    /// It is a directory.
    #[serde(default, skip_serializing_if = "is_false")]
    pub directory: bool,
    /// The file is to be deleted when it is closed.
    #[serde(default, skip_serializing_if = "is_false")]
    pub delete_pending: bool,
    /// Until when the client, which is not connected, may come back: milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub away_until: Option<u64>,
}

fn is_false(flag: &bool) -> bool {
    !*flag
}

/// What an Open is found by: no two have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpenKey {
    /// ClientGuid.
    pub client: [u8; 16],
    /// FileId as the client knows it.
    pub file_id: FileIdRecord,
}

impl OpenKey {
    /// The prefix of all such keys.
    pub const PREFIX: &'static str = "open/";

    /// The change that removes the record.
    pub fn to_removal(&self) -> Change {
        Change::Delete(self.to_key())
    }

    fn to_key(self) -> Key {
        Key(format!("{}{}/{}", Self::PREFIX, Hex(self.client), self.file_id))
    }
}

impl Versioned for OpenRecord {
    fn version(&self) -> u32 {
        self.v
    }
}

impl OpenRecord {
    /// What it is found by.
    pub fn key(&self) -> OpenKey {
        OpenKey { client: self.client.0, file_id: self.file_id }
    }

    /// The change that stores the record.
    ///
    /// # Errors
    /// None in practice: the record has no value that JSON lacks.
    pub fn to_change(&self) -> Result<Change, RecordError> {
        Ok(Change::Put(self.key().to_key(), serde_json::to_vec(self)?))
    }

    /// Reads what [`Self::to_change`] stored.
    ///
    /// # Errors
    /// The bytes are no such record, or one of a newer build.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RecordError> {
        versioned(bytes)
    }
}

/// One session of one client, without its keys (one record in a store).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionRecord {
    /// Record version.
    pub v: u32,
    /// ClientGuid of the connection.
    pub client: Hex<16>,
    /// `DOMAIN\user` as the client named it.
    pub user: String,
    /// The client's SessionId.
    pub session: Hex<8>,
    /// The node that has the session.
    pub node: String,
    /// The epoch in which that node has it.
    pub epoch: u64,
    /// SessionId as that node knows it.
    pub node_session: Hex<8>,
    /// The client's end of its connection, `ip:port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

impl Versioned for SessionRecord {
    fn version(&self) -> u32 {
        self.v
    }
}

impl SessionRecord {
    /// The prefix of all such keys.
    pub const PREFIX: &'static str = "session/";

    /// What the record of a session is found by.
    pub fn key(client: [u8; 16], session: u64) -> Key {
        Key(format!("{}{}/{}", Self::PREFIX, Hex(client), Hex(session.to_be_bytes())))
    }

    /// The change that stores the record.
    ///
    /// # Errors
    /// None in practice: the record has no value that JSON lacks.
    pub fn to_change(&self) -> Result<Change, RecordError> {
        let key = Self::key(self.client.0, u64::from_be_bytes(self.session.0));
        Ok(Change::Put(key, serde_json::to_vec(self)?))
    }

    /// Reads what [`Self::to_change`] stored.
    ///
    /// # Errors
    /// The bytes are no such record, or one of a newer build.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RecordError> {
        versioned(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::VERSION;

    fn record() -> OpenRecord {
        OpenRecord {
            v: VERSION,
            client: Hex([0xab; 16]),
            user: "DOM\\anna".into(),
            session: Hex(7_u64.to_be_bytes()),
            file_id: FileIdRecord { persistent: 0x1234, volatile: 0xffff_0000_0000_0001 },
            share: "data".into(),
            path: "dir\\caf\u{e9}.txt".encode_utf16().flat_map(u16::to_le_bytes).collect(),
            node: "samba-0".into(),
            epoch: 3,
            node_file_id: FileIdRecord { persistent: 9, volatile: 10 },
            desired_access: 0x12019f,
            granted_access: None,
            share_access: 7,
            create_options: 0x40,
            impersonation_level: 2,
            durable: DurableRecord::V2 { timeout: 60_000, create_guid: Hex([1; 16]) },
            node_durable: DurableRecord::V1,
            resilient: Some(30_000),
            oplock: 255,
            lease: Some(LeaseRecord {
                key: Hex([2; 16]),
                state: 7,
                flags: 0,
                parent_key: Hex([0; 16]),
                epoch: 4,
                epoch_shift: 1,
                version: 2,
            }),
            locks: vec![LockRecord { offset: 0, length: 10, flags: 2 }],
            timewarp: None,
            on_disk_id: Some(Hex([3; 32])),
            created: 133_000_000_000_000_000,
            created_derived: false,
            directory: false,
            delete_pending: true,
            away_until: Some(1_700_000_000_000),
        }
    }

    #[test]
    fn the_stored_form_of_an_open_is_pinned() {
        let Change::Put(key, bytes) = record().to_change().unwrap() else { panic!("a record is put") };
        assert_eq!(key.0, "open/abababababababababababababababab/0000000000001234:ffff000000000001");
        let golden = include_str!("../../tests/golden/open-v1.json").trim_end();
        assert_eq!(String::from_utf8(bytes.clone()).unwrap(), golden);
        assert_eq!(OpenRecord::from_bytes(&bytes).unwrap(), record());
        assert_eq!(record().key().to_removal(), Change::Delete(key));
    }

    #[test]
    fn a_path_that_is_no_unicode_survives() {
        let mut record = record();
        record.path = [0x00, 0xd8, b'x', 0].into();
        let Change::Put(_, bytes) = record.to_change().unwrap() else { panic!("a record is put") };
        assert!(String::from_utf8_lossy(&bytes).contains(r#""path":"?00d87800""#));
        assert_eq!(OpenRecord::from_bytes(&bytes).unwrap().path, record.path);
    }

    #[test]
    fn the_stored_form_of_a_session_is_pinned() {
        let record = SessionRecord {
            v: VERSION,
            client: Hex([0xab; 16]),
            user: "anna".into(),
            session: Hex(7_u64.to_be_bytes()),
            node: "samba-0".into(),
            epoch: 3,
            node_session: Hex(8_u64.to_be_bytes()),
            address: Some("10.0.0.1:50000".into()),
        };
        let Change::Put(key, bytes) = record.to_change().unwrap() else { panic!("a record is put") };
        assert_eq!(key.0, "session/abababababababababababababababab/0000000000000007");
        let golden = include_str!("../../tests/golden/session-v1.json").trim_end();
        assert_eq!(String::from_utf8(bytes.clone()).unwrap(), golden);
        assert_eq!(SessionRecord::from_bytes(&bytes).unwrap(), record);
    }

    #[test]
    fn what_a_record_lacks_or_has_too_much_is_said() {
        let Change::Put(_, bytes) = record().to_change().unwrap() else { panic!("a record is put") };
        let text = String::from_utf8(bytes).unwrap();
        for damaged in [text.replace(r#""epoch":3,"#, ""), text.replace("{\"v\"", "{\"secret\":1,\"v\"")] {
            assert!(matches!(OpenRecord::from_bytes(damaged.as_bytes()), Err(RecordError::Damaged(_))));
        }
        let newer = text.replace("\"v\":1", "\"v\":2");
        assert!(matches!(OpenRecord::from_bytes(newer.as_bytes()), Err(RecordError::TooNew(2))));
    }
}
