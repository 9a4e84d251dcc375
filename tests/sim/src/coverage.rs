//! What the runs have hit: phases of takeovers, rows of the replay table, and more.

use std::collections::BTreeMap;

use smb_parse::{
    frame::PREFIX,
    header::{Command, Header, Status},
};
use understudy_core::event::TakeoverReport;

/// Counts by name.
#[derive(Debug, Clone, Default)]
pub struct Coverage(BTreeMap<String, u64>);

impl Coverage {
    pub(crate) fn count(&mut self, what: String) {
        *self.0.entry(what).or_default() += 1;
    }

    /// A request that was in flight when a node was lost is answered.
    pub(crate) fn replayed(&mut self, command: Command, deaths: u32, status: Status) {
        let what = match status {
            Status::INTERNAL_ERROR => "unknown",
            Status::FILE_CLOSED => "open lost",
            Status::NOTIFY_ENUM_DIR => "enumerate",
            Status::USER_SESSION_DELETED => "session lost",
            Status::SHARING_VIOLATION => "parked too long, or shared otherwise",
            s if s.is_success() => "done",
            _ => "an error of the node",
        };
        let deaths = if deaths > 1 { "several deaths" } else { "one death" };
        self.count(format!("replay of {:<15} {deaths:<14} {what}", command.name()));
    }

    pub(crate) fn takeover(&mut self, report: &TakeoverReport) {
        let end = report.failed.map_or("goes on", |reason| reason.label());
        self.count(format!("takeover: {} {end}", report.cause.label()));
        for (what, count) in [
            ("sessions", report.sessions),
            ("opens reclaimed", report.opens_reclaimed),
            ("opens kept", report.opens_kept),
            ("opens lost", report.opens_lost),
            ("requests replayed", report.replayed),
            ("requests failed", report.failed_requests),
        ] {
            *self.0.entry(format!("takeover: {what}")).or_default() += u64::from(count);
        }
    }

    /// The sum of both.
    pub fn add(&mut self, other: &Self) {
        for (what, count) in &other.0 {
            *self.0.entry(what.clone()).or_default() += count;
        }
    }

    /// How often exactly that was hit.
    pub fn count_of(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }

    /// All that was hit.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// How often anything that begins so was hit.
    pub fn of(&self, what: &str) -> u64 {
        self.0.iter().filter(|(name, _)| name.starts_with(what)).map(|(_, count)| count).sum()
    }

    /// One line each.
    pub fn text(&self) -> String {
        self.0.iter().map(|(what, count)| format!("{count:>12}  {what}\n")).collect()
    }
}

/// The command of a frame that is not sealed.
pub(crate) fn command_of(frame: &[u8]) -> &'static str {
    frame
        .get(PREFIX..)
        .and_then(|body| Header::parse(body).ok())
        .map_or("a sealed frame", |h| h.command.name())
}
