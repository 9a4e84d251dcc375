//! Understudy.
fn main() {}
