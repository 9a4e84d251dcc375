//! The real core of Understudy against a model of an SMB server, on virtual time and without sockets.
//!
//! A [`world::World`] is clients, their [`Link`](understudy_core::link::Link)s, the
//! [`Fleet`](understudy_core::fleet::Fleet), nodes on one disk, and the wires between them. [`generate`] draws a step at a time
//! from a seed; everything may go wrong at any of them:
//!
//! | fault | step |
//! |---|---|
//! | a node dies before or after it has executed something | its frames are hops of their own: it dies before one, or after one with so many of its answers still on their way |
//! | an answer is lost | it dies, or the leg breaks, with fewer answers kept |
//! | part of a frame | a leg that ends amid a frame: the shell hands over whole frames only, so that it is lost as a whole |
//! | silence | the node does nothing, and nobody knows; a probe finds it out, and the fence works, or fails |
//! | a node that goes on | it wakes, before or after its fence was asked for |
//! | restart | it starts again, having forgotten everything, also before anybody has missed it |
//! | slow storage, other clients' breaks, locks | the node answers STATUS_PENDING, and later |
//! | a further loss during a takeover | any of these at any stage |
//! | somebody on the wire | requests and answers are changed |
//!
//! Clients and nodes check what they are told, [`oracle`] what is true, and the world compares both, after every step. Each
//! rule belongs to one of ten invariants or to what clients and protocol want besides: [`rules`]. What a campaign has to have
//! hit stands in [`required`]. A run that breaks a rule is shrunk to a scenario file. Faults that are made on purpose, to see
//! that they are found, are in `mutants/`.
//!
//! What is not modelled: storage that forgets (there is no journal), clients that come back after their connection was lost,
//! more than one directory.
#![allow(clippy::missing_errors_doc, reason = "a test")]

mod aim;
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
