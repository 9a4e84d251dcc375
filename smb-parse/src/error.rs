//! What can be wrong with a message.

use crate::header::Command;

/// A message that is too short, or whose offsets lead out of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}: field {field} at byte {at} is out of range", .command.map_or("SMB2", Command::name))]
pub struct ParseError {
    /// The command, if the header was read.
    pub command: Option<Command>,
    /// The field, in the words of MS-SMB2.
    pub field: &'static str,
    /// Where in the message.
    pub at: usize,
}
