//! A fixed number of damaged messages through everything: what `--example fuzz` does for longer.

#[path = "../examples/support/corpus.rs"]
#[allow(dead_code, reason = "shared")]
mod corpus;
#[path = "../examples/support/exercise.rs"]
mod exercise;
#[path = "../examples/support/mutate.rs"]
mod mutate;

const MESSAGES: usize = 40_000;

#[test]
fn damaged_messages_never_panic() {
    let corpus: Vec<_> = corpus::corpus().into_iter().map(|sample| sample.msg).collect();
    let mut rng = mutate::Rng::new(0x5eed);
    for _ in 0..MESSAGES {
        let msg = mutate::mutate(&mut rng, &corpus);
        exercise::exercise(&msg);
    }
}

#[test]
fn damage_reaches_both_outcomes() {
    let corpus: Vec<_> = corpus::corpus().into_iter().map(|sample| sample.msg).collect();
    let mut rng = mutate::Rng::new(1);
    let (mut good, mut bad) = (0, 0);
    for _ in 0..2_000 {
        let msg = mutate::mutate(&mut rng, &corpus);
        let outcome = smb_parse::header::Header::parse(&msg)
            .and_then(|header| smb_parse::walk::walk(&header, &msg, Some(37), &mut |_| {}));
        *if outcome.is_ok() { &mut good } else { &mut bad } += 1;
    }
    assert!(good > 200 && bad > 200, "the mutator is of no use: {good} good, {bad} bad");
}
