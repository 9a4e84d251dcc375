//! Preauthentication integrity: a hash over the messages that came before the keys (MS-SMB2 3.1.4.4.1).

use std::fmt;

use aws_lc_rs::digest::{Context, SHA512};

/// The running SHA-512 value over NEGOTIATE and SESSION_SETUP messages. Starts as 64 zero bytes.
#[derive(Clone)]
pub struct Preauth([u8; 64]);

impl Preauth {
    /// The value before any message.
    pub fn new() -> Self {
        Self([0; 64])
    }

    /// Takes one message in: the SMB2 message without the length prefix.
    pub fn update(&mut self, msg: &[u8]) {
        let mut context = Context::new(&SHA512);
        context.update(&self.0);
        context.update(msg);
        if let Ok(value) = context.finish().as_ref().try_into() {
            self.0 = value;
        }
    }

    /// The value now.
    pub fn value(&self) -> [u8; 64] {
        self.0
    }
}

impl Default for Preauth {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Preauth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Preauth(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_over_the_value_before() {
        let mut once = Preauth::new();
        once.update(b"ab");
        let mut twice = Preauth::new();
        twice.update(b"a");
        twice.update(b"b");
        assert_ne!(
            once.value(),
            twice.value(),
            "each message is hashed with the value before, not concatenated"
        );
        let direct = aws_lc_rs::digest::digest(&SHA512, &[&[0_u8; 64][..], b"ab"].concat());
        assert_eq!(&once.value()[..], direct.as_ref());
    }
}
