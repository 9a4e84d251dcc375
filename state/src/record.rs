//! The records, as JSON objects that carry their version in `v`.

mod open;
mod text;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub use self::{
    open::{DurableRecord, FileIdRecord, LeaseRecord, LockRecord, OpenKey, OpenRecord, SessionRecord},
    text::Hex,
};
use crate::store::{Change, Key};

/// The version this build writes, and the newest it reads.
pub const VERSION: u32 = 1;

/// Where the clients of this cluster are served (one record in a store).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlacementRecord {
    /// Record version.
    pub v: u32,
    /// Grows by one whenever the serving node changes or has lost its state.
    pub epoch: u64,
    /// The configured name of the node.
    pub node: String,
    /// How far the change has come.
    pub phase: Phase,
    /// Nodes that were left while silent, without a fence: they may still execute old requests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dirty: Vec<String>,
}

/// The steps of a change of node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The node serves and holds what clients have open.
    Serving,
    /// The node before it is being fenced.
    Fencing,
    /// Clients' Opens are being re-established on the node.
    Reclaiming,
}

/// A value in the store that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Not the JSON of a record.
    #[error("the record is damaged: {0}")]
    Damaged(#[from] serde_json::Error),
    /// Written by a newer build.
    #[error(
        "the record has version {0}, this build reads up to {VERSION}: run the newer build, or remove the store"
    )]
    TooNew(u32),
}

impl PlacementRecord {
    /// Where it is kept.
    pub const KEY: &'static str = "placement";

    /// The change that stores the record.
    ///
    /// # Errors
    /// None in practice: the record has no value that JSON lacks.
    pub fn to_change(&self) -> Result<Change, RecordError> {
        Ok(Change::Put(Key::from(Self::KEY), serde_json::to_vec(self)?))
    }

    /// Reads what [`Self::to_change`] stored.
    ///
    /// # Errors
    /// The bytes are no such record, or one of a newer build.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RecordError> {
        versioned(bytes)
    }
}

/// A record, which says in which version it is.
pub(crate) trait Versioned: DeserializeOwned {
    fn version(&self) -> u32;
}

impl Versioned for PlacementRecord {
    fn version(&self) -> u32 {
        self.v
    }
}

/// Reads a record; of one that is too new for this build only the version counts.
pub(crate) fn versioned<T: Versioned>(bytes: &[u8]) -> Result<T, RecordError> {
    #[derive(Deserialize)]
    struct Version {
        v: u32,
    }
    let read: Result<T, _> = serde_json::from_slice(bytes);
    let v = match &read {
        Ok(record) => record.version(),
        Err(_) => serde_json::from_slice::<Version>(bytes)?.v,
    };
    if v > VERSION {
        return Err(RecordError::TooNew(v));
    }
    Ok(read?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stored_form_is_pinned() {
        let record = PlacementRecord {
            v: VERSION,
            epoch: 7,
            node: "samba-1".into(),
            phase: Phase::Reclaiming,
            dirty: vec!["samba-0".into()],
        };
        let Change::Put(_, bytes) = record.to_change().unwrap() else { panic!("a record is put") };
        assert_eq!(
            String::from_utf8(bytes.clone()).unwrap(),
            r#"{"v":1,"epoch":7,"node":"samba-1","phase":"reclaiming","dirty":["samba-0"]}"#
        );
        assert_eq!(PlacementRecord::from_bytes(&bytes).unwrap(), record);
    }

    #[test]
    fn a_newer_record_is_refused_by_its_version() {
        let error = PlacementRecord::from_bytes(br#"{"v":2,"something":"else"}"#).unwrap_err();
        assert!(matches!(error, RecordError::TooNew(2)), "{error}");
        assert!(matches!(PlacementRecord::from_bytes(b"{").unwrap_err(), RecordError::Damaged(_)));
    }
}
