//! What a campaign has to have hit: every row of the replay table, and every stage of a takeover, also by a further loss.

use crate::coverage::Coverage;

/// The rows of the replay table: kind of request, what is known of it, what becomes of it.
const ROWS: &[[&str; 3]] = &[
    ["idempotent", "unknown", "resend"],
    ["idempotent", "unknown", "synthesize"],
    ["idempotent", "open_lost", "synthesize"],
    ["idempotent", "second_death", "fail"],
    ["open", "unknown", "resend"],
    ["open", "second_death", "fail"],
    ["open_if", "done", "resend"],
    ["open_if", "undone", "resend"],
    ["open_if", "partly", "fail"],
    ["open_if", "unclear", "resend"],
    ["open_if", "second_death", "fail"],
    ["exclusive_create", "done", "resend"],
    ["exclusive_create", "undone", "resend"],
    ["exclusive_create", "unclear", "fail"],
    ["exclusive_create", "second_death", "fail"],
    ["overwrite", "done", "resend"],
    ["overwrite", "undone", "resend"],
    ["overwrite", "unclear", "fail"],
    ["overwrite", "second_death", "fail"],
    ["append", "done", "synthesize"],
    ["append", "undone", "resend"],
    ["append", "unclear", "fail"],
    ["append", "open_lost", "synthesize"],
    ["append", "second_death", "fail"],
    ["rename", "unknown", "fail"],
    ["rename", "undone", "resend"],
    ["rename", "done", "synthesize"],
    ["rename", "unclear", "fail"],
    ["rename", "open_lost", "synthesize"],
    ["rename", "second_death", "fail"],
    ["link", "undone", "resend"],
    ["link", "done", "synthesize"],
    ["link", "unclear", "fail"],
    ["link", "open_lost", "synthesize"],
    ["link", "second_death", "fail"],
    ["delete", "unknown", "resend"],
    ["delete", "undone", "resend"],
    ["delete", "done", "synthesize"],
    ["delete", "unclear", "fail"],
    ["delete", "open_lost", "synthesize"],
    ["delete", "second_death", "fail"],
    ["close", "unknown", "resend"],
    ["close", "open_lost", "closed"],
    ["close", "open_lost", "fail"],
    ["close", "second_death", "fail"],
    ["notify", "unknown", "synthesize"],
    ["notify", "open_lost", "synthesize"],
    ["teardown", "unknown", "resend"],
    ["teardown", "second_death", "fail"],
    ["login", "unknown", "resend"],
    ["login", "second_death", "fail"],
    ["other_ioctl", "unknown", "fail"],
    ["other_ioctl", "open_lost", "synthesize"],
];

/// The stages of a takeover that can last.
const STAGES: &[&str] =
    &["waiting", "connecting", "negotiating", "authenticating", "trees", "reclaiming", "barrier"];

/// The names under which that is counted.
fn names() -> impl Iterator<Item = String> {
    let rows = ROWS.iter().map(|[request, known, verdict]| row(request, known, verdict));
    let entered = STAGES.iter().map(|stage| stage_entered(stage));
    // While it waits there is nothing to lose.
    let lost = STAGES.iter().filter(|stage| **stage != "waiting").map(|stage| stage_lost(stage));
    rows.chain(entered).chain(lost)
}

/// A row that was taken.
pub(crate) fn row(request: &str, known: &str, verdict: &str) -> String {
    format!("row {request}, {known}: {verdict}")
}

/// A stage that was entered.
pub(crate) fn stage_entered(stage: &str) -> String {
    format!("stage {stage}: entered")
}

/// A stage in which the leg was lost.
pub(crate) fn stage_lost(stage: &str) -> String {
    format!("stage {stage}: lost again")
}

/// What was hit fewer than so many times; and rows that are not in the list.
pub fn missing(coverage: &Coverage, least: u64) -> Vec<String> {
    let rare = names().map(|name| (coverage.count_of(&name), name)).filter(|(count, _)| *count < least);
    let rare = rare.map(|(count, name)| format!("{name}: {count} times, not {least}"));
    let known: Vec<String> = names().collect();
    let new = coverage.names().filter(|name| {
        (name.starts_with("row ") || name.starts_with("stage ") && name.ends_with("entered"))
            && !known.iter().any(|k| k == name)
    });
    rare.chain(new.map(|name| format!("{name}: not in the list of what is required"))).collect()
}
