//! The real core of Understudy against a model of an SMB server, on virtual time and without sockets.
//!
//! A [`world::World`] is clients, their [`Link`](understudy_core::link::Link)s, nodes on one disk, and the wires between them.
//! [`generate`] draws a step at a time from a seed; everything may go wrong at any of them. The clients and the nodes check
//! what they are told, and [`oracle`] what is true. A run that breaks a rule is shrunk to a scenario file.
#![allow(clippy::missing_errors_doc, reason = "a test")]

pub mod chance;
pub mod client;
mod cover;
pub mod coverage;
pub mod disk;
pub mod generate;
pub mod known;
pub mod node;
pub mod oracle;
#[allow(missing_docs, reason = "the variants read as they are written in scenario files")]
pub mod plan;
pub mod required;
pub mod rules;
pub mod run;
pub mod scenario;
pub mod setup;
pub mod shrink;
mod story;
pub mod users;
pub mod world;
