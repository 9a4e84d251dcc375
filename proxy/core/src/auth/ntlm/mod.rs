//! NTLMv2 (MS-NLMP): the messages, and the keys that follow from them.

pub mod message;
pub mod proof;
