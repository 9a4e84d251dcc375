//! What can be wrong with a message: it is too short, an offset leads out of it, or a size is not the one defined.

use crate::header::Command;

/// Where a message cannot be read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}: field {field} at byte {at} is missing or out of range", .command.map_or("SMB2", Command::name))]
pub struct ParseError {
    /// The command, if the header was read.
    pub command: Option<Command>,
    /// The field, in the words of MS-SMB2.
    pub field: &'static str,
    /// Where in the message.
    pub at: usize,
}
