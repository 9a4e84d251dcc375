//! A failing run, made as short as it can be: steps are left out as long as the same rule is broken.

use crate::{oracle::Violation, plan::Step, run, setup::Setup};

/// The fewest steps that still break the rule.
pub fn shrink(setup: &Setup, steps: &[Step], violation: &Violation) -> (Setup, Vec<Step>) {
    let fails = |setup: &Setup, steps: &[Step]| {
        run::steps(setup, steps, false).violation.is_some_and(|v| v.rule == violation.rule)
    };
    let (mut setup, mut steps) = (setup.clone(), steps.to_vec());
    if !fails(&setup, &steps) {
        return (setup, steps);
    }
    loop {
        let before = steps.len();
        let mut size = steps.len().div_ceil(2).max(1);
        loop {
            let mut at = 0;
            while at < steps.len() {
                let end = (at + size).min(steps.len());
                let fewer: Vec<Step> = steps[..at].iter().chain(&steps[end..]).cloned().collect();
                if fails(&setup, &fewer) { steps = fewer } else { at = end }
            }
            if size == 1 {
                break;
            }
            size = size.div_ceil(2);
        }
        for at in 0..steps.len() {
            if !matches!(steps[at], Step::Settle | Step::Client(..)) {
                let settled = [&steps[..at], &[Step::Settle], &steps[at + 1..]].concat();
                if fails(&setup, &settled) {
                    steps = settled;
                }
            }
        }
        steps.dedup_by(|a, b| *a == Step::Settle && *b == Step::Settle);
        for simpler in simpler(&setup) {
            if fails(&simpler, &steps) {
                setup = simpler;
            }
        }
        if steps.len() >= before {
            return (setup, steps);
        }
    }
}

/// Setups with one thing less.
fn simpler(setup: &Setup) -> Vec<Setup> {
    let plain = Setup::default();
    let mut all = vec![
        Setup { slow_every: 0, ..setup.clone() },
        Setup { split_every: 0, ..setup.clone() },
        Setup { side: plain.side, ..setup.clone() },
        Setup { window: plain.window, ..setup.clone() },
        Setup { nodes: plain.nodes, ..setup.clone() },
        Setup { gmac: false, ..setup.clone() },
        Setup { dialect: plain.dialect, ..setup.clone() },
        Setup { protection: plain.protection, ..setup.clone() },
    ];
    if setup.clients.len() > 1 {
        let fewer = setup.clients[..setup.clients.len() - 1].to_vec();
        all.push(Setup { clients: fewer, ..setup.clone() });
    }
    all
}
