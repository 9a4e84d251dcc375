//! One run: of a seed, or of a list of steps.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::{
    chance::Chance, coverage::Coverage, generate::Mood, oracle::Violation, plan::Step, setup::Setup,
    world::World,
};

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// What stayed the same.
    pub setup: Setup,
    /// What was done.
    pub steps: Vec<Step>,
    /// What went wrong.
    pub violation: Option<Violation>,
    /// What was hit.
    pub coverage: Coverage,
    /// The ladder, if it was asked for.
    pub story: Vec<String>,
    /// Steps in all.
    pub taken: u64,
}

fn outcome(setup: Setup, steps: Vec<Step>, world: World) -> Outcome {
    Outcome {
        setup,
        steps,
        violation: world.violation,
        coverage: world.coverage,
        story: world.story,
        taken: world.steps,
    }
}

fn panicked(cause: &(dyn std::any::Any + Send)) -> Violation {
    let text = cause.downcast_ref::<String>().cloned();
    let text = text.or_else(|| cause.downcast_ref::<&str>().map(|s| (*s).to_owned()));
    Violation::new("panic", text.unwrap_or_default())
}

/// Runs a seed.
pub fn seed(seed: u64, strict: bool) -> Outcome {
    let mut chance = Chance::new(seed);
    let setup = Setup { strict, ..Setup::drawn(seed, &mut chance) };
    let mood = Mood::drawn(&mut chance);
    let length = 100 + chance.below(400);
    let mut world = World::new(&setup);
    let mut steps = Vec::with_capacity(length);
    // Most faults are to hit clients that are at work.
    let at_work = !chance.one_in(6);
    let result = catch_unwind(AssertUnwindSafe(|| {
        if at_work {
            steps.push(Step::Settle);
            world.step(&Step::Settle);
        }
        while steps.len() < length && world.violation.is_none() {
            let step = mood.next(&world, &mut chance);
            steps.push(step);
            if let Some(step) = steps.last() {
                world.step(step);
            }
        }
        world.finish();
    }));
    if let Err(cause) = result {
        world.violation = Some(panicked(&*cause));
    }
    outcome(setup, steps, world)
}

/// Runs a list of steps; `trace`: with its story.
pub fn steps(setup: &Setup, steps: &[Step], trace: bool) -> Outcome {
    let mut world = World::new(&Setup { trace, ..setup.clone() });
    let result = catch_unwind(AssertUnwindSafe(|| {
        for step in steps {
            world.step(step);
        }
        world.finish();
    }));
    if let Err(cause) = result {
        world.violation = Some(panicked(&*cause));
    }
    outcome(setup.clone(), steps.to_vec(), world)
}
