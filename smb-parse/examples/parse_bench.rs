//! What reading a frame costs: `cargo run --release -p smb-parse --example parse_bench [MILLISECONDS]`.
//!
//! Nanoseconds a frame by kind, the best of several rounds: the header alone, the iteration over the compound with the
//! typed body of its command and all contexts, and the rewriting of all its FileIds in place.

use std::{
    env,
    error::Error,
    hint::black_box,
    time::{Duration, Instant},
};

use smb_parse::{compound::elements, encode, header::Header, patch};

#[path = "support/corpus.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod corpus;

const ROUNDS: u32 = 7;
const BATCH: u32 = 1000;

fn main() -> Result<(), Box<dyn Error>> {
    let millis: u64 = env::args().nth(1).map_or(Ok(20), |n| n.parse())?;
    let round = Duration::from_millis(millis) / ROUNDS;
    let mut samples: Vec<_> = (corpus::corpus().into_iter())
        .map(|sample| (format!("{}{}", sample.name, class(sample.class)), sample.msg, sample.class))
        .collect();
    samples.push(("write of 1 MiB".into(), bulk_write(), None));
    let three: Vec<_> = ["create RqLs 2", "query info", "close"]
        .iter()
        .filter_map(|name| samples.iter().find(|(n, ..)| n == name).map(|(_, msg, _)| msg.clone()))
        .collect();
    samples.push(("compound create, query info, close".into(), encode::compound(&three), None));
    println!("{:<40} {:>7} {:>9} {:>9} {:>9}", "frame", "bytes", "header", "whole", "patch ids");
    for (name, msg, class) in &mut samples {
        let header = best(round, || {
            let _ = black_box(Header::parse(black_box(msg)));
        });
        let whole = best(round, || {
            for element in elements(black_box(msg)).map_while(Result::ok) {
                let _ = black_box(smb_parse::walk::walk(&element.header, element.msg, *class, &mut |_| {}));
            }
        });
        let ids = best(round, || {
            patch::rewrite_file_ids(black_box(msg), &mut |id| black_box(id));
        });
        println!("{name:<40} {:>7} {header:>6.1} ns {whole:>6.1} ns {ids:>6.1} ns", msg.len());
    }
    Ok(())
}

fn class(class: Option<u8>) -> String {
    class.map_or_else(String::new, |class| format!(", class {class}"))
}

fn bulk_write() -> Vec<u8> {
    encode::write(&corpus::ask(smb_parse::header::Command::WRITE), corpus::ID, 0, 0, &vec![7; 1 << 20])
}

/// Nanoseconds a call in the best round.
fn best(round: Duration, mut f: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let (start, mut calls) = (Instant::now(), 0u32);
        while start.elapsed() < round {
            (0..BATCH).for_each(|_| f());
            calls += BATCH;
        }
        best = best.min(start.elapsed().as_secs_f64() * 1e9 / f64::from(calls.max(1)));
    }
    best
}
