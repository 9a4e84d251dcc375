//! Fuzzes every parser and patcher for so many seconds: `cargo run --profile fuzz -p smb-parse --example fuzz -- 60 [SEED]`.
//! Prints the seed first; a panic names the message. Stable Rust, no instrumentation.

use std::{
    env,
    error::Error,
    panic,
    time::{Duration, Instant},
};

#[path = "support/corpus.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod corpus;
#[path = "support/exercise.rs"]
mod exercise;
#[path = "support/mutate.rs"]
mod mutate;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = env::args().skip(1);
    let seconds = args.next().map_or(Ok(10), |s| s.parse())?;
    let seed = args.next().map_or(Ok(u64::from(std::process::id())), |s| s.parse())?;
    println!("seed {seed}");
    let corpus: Vec<_> = corpus::corpus().into_iter().map(|sample| sample.msg).collect();
    let mut rng = mutate::Rng::new(seed);
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut count = 0u64;
    while Instant::now() < end {
        for _ in 0..1000 {
            let msg = mutate::mutate(&mut rng, &corpus);
            if panic::catch_unwind(|| exercise::exercise(&msg)).is_err() {
                let hex: String = msg.iter().map(|byte| format!("{byte:02x}")).collect();
                return Err(format!("message {count} of seed {seed} panics: {hex}").into());
            }
            count += 1;
        }
    }
    println!("{count} messages, no panic");
    Ok(())
}
