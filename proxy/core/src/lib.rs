//! The protocol brain of Understudy: everything is decided here, and nothing is done.
//!
//! No sockets, no clock, no store, no runtime. [`link::Link`] takes inputs by `handle_*` and is drained by
//! `poll_*`; [`fleet::Fleet`] says which node serves; [`files::Files`] knows what crosses Links. The shell (package
//! `understudy`) carries bytes, time and news between them.

pub mod auth;
pub mod crypto;
pub mod effect;
pub mod event;
pub mod files;
pub mod fleet;
pub mod ids;
pub mod link;
pub mod random;
mod takeover;
