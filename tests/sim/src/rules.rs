//! The rules that a run may break, and what each belongs to: one of the ten things that must always hold, or what a client
//! or the protocol expects beside them.
//!
//! 1. No client sees a durable grant without its record stored; nor has it an Open of which nothing is known.
//! 2. Each request gets exactly one final answer and at most one interim, or the connection is closed.
//! 3. Credits are conserved on each leg.
//! 4. No non-idempotent request is applied twice; and nobody is told of one what is not so.
//! 5. No id of a node reaches a client, and no id of a client a node, in Bridge.
//! 6. After its epoch a node executes nothing, given that its fence did what it said.
//! 7. A client never believes more of its oplocks, leases and locks than the node has granted, or others are kept out.
//! 8. No acknowledged change is lost or undone by a node's death, and changes of a file are made again in their order. There
//!    is no journal yet, and the model's storage forgets nothing: what is checked is what the proxy itself could lose or
//!    undo.
//! 9. Nothing unverified is signed.
//! 10. No request of a Link reaches a file while an Open of it, of whatever Link, is unreclaimed.

/// What a rule belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Belongs {
    /// To one of the ten. See the module.
    Invariant(u8),
    /// To what a client expects of any server.
    Client,
    /// To what a node expects of any client.
    Protocol,
    /// To the run itself.
    Run,
}

use Belongs::{Client, Invariant, Protocol, Run};

/// Every rule.
pub const RULES: &[(&str, Belongs)] = &[
    ("open not recorded", Invariant(1)),
    ("durable not stored", Invariant(1)),
    ("answered twice", Invariant(2)),
    ("answer to nothing", Invariant(2)),
    ("two interims", Invariant(2)),
    ("interim", Invariant(2)),
    ("never answered", Invariant(2)),
    ("credits", Invariant(3)),
    ("applied twice", Invariant(4)),
    ("told done", Invariant(4)),
    ("told undone", Invariant(4)),
    ("not found out", Invariant(4)),
    ("foreign id", Invariant(5)),
    ("after its epoch", Invariant(6)),
    ("more than asked", Invariant(7)),
    ("more than granted", Invariant(7)),
    ("more than had", Invariant(7)),
    ("break raises", Invariant(7)),
    ("epoch falls", Invariant(7)),
    ("lease", Invariant(7)),
    ("stale names", Invariant(7)),
    ("lock", Invariant(7)),
    ("lock not had again", Invariant(7)),
    ("stale names", Invariant(7)),
    ("lost write", Invariant(8)),
    ("stale data", Invariant(8)),
    ("data from nowhere", Invariant(8)),
    ("data from the future", Invariant(8)),
    ("order of writes", Invariant(8)),
    ("unverified", Invariant(9)),
    ("barrier", Invariant(10)),
    ("barrier for ever", Client),
    ("break covered", Client),
    ("client guid", Protocol),
    ("enumeration", Client),
    ("id twice", Client),
    ("login not signed", Client),
    ("not sealed", Client),
    ("not signed", Client),
    ("wrong command", Client),
    ("wrong status", Client),
    ("wrong signature", Protocol),
    ("wrong seal", Protocol),
    ("malformed", Protocol),
    ("nonce", Protocol),
    ("not SMB2", Protocol),
    ("busy timer", Run),
    ("endless", Run),
    ("expectation", Run),
    ("panic", Run),
];

/// What a rule belongs to.
pub fn belongs(rule: &str) -> Belongs {
    RULES.iter().find(|(name, _)| *name == rule).map_or(Run, |(_, belongs)| *belongs)
}

impl std::fmt::Display for Belongs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Invariant(number) => write!(f, "invariant {number}"),
            Client => write!(f, "client"),
            Protocol => write!(f, "protocol"),
            Run => write!(f, "run"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    fn rules_in(dir: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                rules_in(&path, found);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let text = text.split("#[cfg(test)]").next().unwrap();
            for call in ["Violation::new(", "offend("] {
                for behind in text.split(call).skip(1) {
                    let literal = behind.trim_start().strip_prefix('"').and_then(|s| s.split('"').next());
                    found.extend(literal.map(str::to_owned));
                }
            }
        }
    }

    #[test]
    fn every_rule_is_in_the_list_and_every_one_of_the_list_exists() {
        let mut found = vec!["login not signed".to_owned()];
        rules_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
        for rule in &found {
            assert!(RULES.iter().any(|(name, _)| name == rule), "{rule} is not in the list");
        }
        for (rule, _) in RULES {
            assert!(found.iter().any(|name| name == rule), "{rule} is never said");
        }
        for number in 1..=10 {
            assert!(RULES.iter().any(|(_, b)| *b == Invariant(number)), "nothing checks invariant {number}");
        }
    }
}
