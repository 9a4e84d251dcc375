//! Damages valid messages the way a fuzzer does: deterministic, one seed one sequence.

/// xorshift64*: enough to fuzz with.
#[derive(Debug, Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    /// Any seed but 0.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.max(1))
    }

    /// The next value.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `bound`; 0 if that is 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() >> 16).unwrap_or(0).checked_rem(bound).unwrap_or(0)
    }
}

/// Values that lengths and offsets are wrong by.
const NASTY: [u32; 12] =
    [0, 1, 7, 8, 63, 64, 0x7fff, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_fff8, 0xffff_ffff];

/// One to four changes.
pub(crate) fn mutate(rng: &mut Rng, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut msg = corpus[rng.below(corpus.len())].clone();
    for _ in 0..=rng.below(4) {
        let at = rng.below(msg.len());
        match rng.below(8) {
            0 => msg.truncate(at),
            1 => msg.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << rng.below(8)),
            2 => msg.iter_mut().skip(at).take(1).for_each(|byte| *byte = rng.next() as u8),
            3 | 4 => overwrite(&mut msg, at & !1, &NASTY[rng.below(NASTY.len())].to_le_bytes()),
            5 => overwrite(&mut msg, at & !1, &(NASTY[rng.below(NASTY.len())] as u16).to_le_bytes()),
            6 => {
                let other = &corpus[rng.below(corpus.len())];
                msg.extend_from_slice(&other[rng.below(other.len())..]);
            }
            _ => {
                // Fixed part of one kind, header of another.
                let command = rng.below(20) as u16;
                overwrite(&mut msg, 12, &command.to_le_bytes());
            }
        }
    }
    msg
}

fn overwrite(msg: &mut [u8], at: usize, bytes: &[u8]) {
    for (to, from) in msg.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}
