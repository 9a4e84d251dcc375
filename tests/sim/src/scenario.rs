//! Scenario files: a setup and steps, one a line; `#` begins a comment.

use anyhow::{Context, Result, bail};

use crate::{plan::Step, setup::Setup};

/// Reads one.
pub fn parse(text: &str) -> Result<(Setup, Vec<Step>)> {
    let (mut setup, mut steps) = (Setup::default(), Vec::new());
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default();
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [] => {}
            ["setup:", rest @ ..] => {
                setup = Setup::parse(rest).with_context(|| format!("line {}: {line}", number + 1))?;
            }
            words => match Step::parse(words) {
                Some(step) => steps.push(step),
                None => bail!("line {}: {line}", number + 1),
            },
        }
    }
    Ok((setup, steps))
}

/// Writes one.
pub fn text(setup: &Setup, steps: &[Step]) -> String {
    let lines: Vec<_> = steps.iter().map(Step::text).collect();
    format!("{}\n{}\n", setup.text(), lines.join("\n"))
}
