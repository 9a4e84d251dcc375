//! The bodies of all commands, one file a command (MS-SMB2 2.2.3 to 2.2.38, 2.2.44).
//!
//! Every `parse` takes a whole message and reads its body; the header has been read before. Answers that carry an
//! error have another body, whatever their command: see [`error`] and [`error::is_error_body`].

pub mod cancel;
pub mod change_notify;
pub mod close;
pub mod create;
pub mod echo;
pub mod error;
pub mod flush;
pub mod ioctl;
pub mod lock;
pub mod logoff;
pub mod negotiate;
pub mod notification;
pub mod oplock_break;
pub mod query_directory;
pub mod query_info;
pub mod read;
pub mod session_setup;
pub mod set_info;
pub mod tree_connect;
pub mod tree_disconnect;
pub mod write;

mod message;

pub use message::Message;
