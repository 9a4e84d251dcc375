//! Randomness of the operating system.

use aws_lc_rs::rand;
use understudy_core::random::Random;

/// The system's generator.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SystemRandom;

impl Random for SystemRandom {
    fn fill(&mut self, buf: &mut [u8]) {
        // The library's generator fails only where the system has none at all; keys must not come from elsewhere.
        if rand::fill(buf).is_err() {
            tracing::error!("the system gives no randomness; stopping, for no key could be trusted");
            std::process::abort();
        }
    }
}
