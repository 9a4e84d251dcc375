//! Where the core gets its randomness from: it draws none itself.

/// A source of bytes nobody can foresee. The simulator gives it a seed, the shell the operating system.
pub trait Random {
    /// Fills the whole buffer.
    fn fill(&mut self, buf: &mut [u8]);
}
