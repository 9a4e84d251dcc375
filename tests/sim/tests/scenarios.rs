//! Every scenario file does what it says: those in `scenarios/` break no rule, those in `scenarios/known/` the one that
//! they are named after.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use understudy_sim::{known::Known, run, run::Outcome, scenario, setup::Setup};

fn files(under: &str) -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(under);
    let entries = fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries.filter(|path| path.extension().is_some_and(|e| e == "txt")).collect();
    files.sort();
    files
}

fn play(file: &Path) -> Outcome {
    let (setup, steps) = scenario::parse(&fs::read_to_string(file).unwrap()).unwrap();
    run::steps(&Setup { strict: true, ..setup }, &steps, true)
}

#[test]
fn no_scenario_breaks_a_rule() {
    let files = files("scenarios");
    assert!(!files.is_empty());
    for file in files {
        let outcome = play(&file);
        if let Some(violation) = outcome.violation {
            panic!("{}: {violation:?}\n{}", file.display(), outcome.story.join("\n"));
        }
    }
}

#[test]
fn every_trap_is_in_the_index_and_the_index_names_what_is_there() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let index = fs::read_to_string(dir.join("README.md")).unwrap();
    let links = || index.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    links().for_each(|name| assert!(dir.join(name).exists(), "{name} is not there"));
    for file in files("scenarios") {
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(!name.starts_with("trap-") || links().any(|link| link == name), "{name} is not in the index");
    }
}

#[test]
fn what_is_known_to_be_wrong_is_still_wrong() {
    let mut left: Vec<_> = Known::ALL.iter().map(|known| known.label()).collect();
    for file in files("scenarios/known") {
        let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
        let outcome = play(&file);
        let known = outcome.violation.as_ref().and_then(|v| v.known).map(Known::label);
        assert_eq!(
            known,
            Some(name.as_str()),
            "{:?}: is it right now? Then its entry in known.rs goes",
            outcome.violation
        );
        left.retain(|label| *label != name);
    }
    assert!(left.is_empty(), "{left:?} have no scenario");
}

#[test]
fn a_scenario_reads_as_it_was_written() {
    for seed in 0..200 {
        let outcome = run::seed(seed, false);
        let text = scenario::text(&outcome.setup, &outcome.steps);
        let (setup, steps) = scenario::parse(&text).unwrap();
        assert_eq!((setup, &steps), (outcome.setup.clone(), &outcome.steps));
        let again = run::steps(&outcome.setup, &steps, false);
        assert_eq!(
            (again.taken, again.violation),
            (outcome.taken, outcome.violation),
            "seed {seed} runs otherwise"
        );
    }
}
