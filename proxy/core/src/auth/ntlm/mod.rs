//! NTLMv2 (MS-NLMP): the messages, the keys that follow from them, and a login.

mod login;
pub mod message;
pub mod proof;

pub(crate) use login::NtlmLogin;
