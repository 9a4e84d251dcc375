//! Credits of the client leg (MS-SMB2 3.3.1.1, 3.3.1.2).

/// The largest window a client is given, Samba's `smb2 max credits`.
const WINDOW: u32 = 8192;

/// How many MessageIds the client may still use. In Relay the node grants and this only counts along; in Bridge
/// the proxy grants.
#[derive(Debug)]
pub(crate) struct ClientCredits {
    window: u32,
}

impl ClientCredits {
    pub(crate) fn new() -> Self {
        Self { window: 1 }
    }

    /// A request took this many MessageIds.
    pub(crate) fn consumed(&mut self, charge: u32) {
        self.window = self.window.saturating_sub(charge);
    }

    /// The node granted this many (Relay).
    pub(crate) fn granted(&mut self, credits: u16) {
        self.window = self.window.saturating_add(u32::from(credits)).min(u32::from(u16::MAX));
    }

    /// How many to grant with a final answer of ours. Never fewer than the request took, so that no window runs
    /// dry; never so many that the window grows over [`WINDOW`], except by that.
    pub(crate) fn grant(&mut self, charge: u32, requested: u16) -> u16 {
        let room = WINDOW.saturating_sub(self.window);
        let wanted = u32::from(requested).max(charge);
        let grant = wanted.min(room).max(charge.min(u32::from(u16::MAX))).max(u32::from(self.window == 0));
        self.window += grant;
        u16::try_from(grant).unwrap_or(u16::MAX)
    }
}

/// A request's CreditCharge as MessageIds: 0 counts as 1 (MS-SMB2 3.3.5.2.3).
pub(crate) fn charge(credit_charge: u16) -> u32 {
    u32::from(credit_charge.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_neither_runs_dry_nor_over() {
        let mut credits = ClientCredits::new();
        for requested in [0u16, 1, 31, 512, 8192, u16::MAX] {
            for taken in [1u32, 16, 128] {
                credits.granted(u16::try_from(taken).unwrap());
                credits.consumed(taken);
                let before = credits.window;
                let grant = u32::from(credits.grant(taken, requested));
                assert!(grant >= taken, "never less than was taken");
                assert!(before + grant <= WINDOW + taken, "window {before} + {grant}");
            }
        }
    }

    #[test]
    fn an_empty_window_gets_a_credit_whatever_was_asked() {
        let mut credits = ClientCredits::new();
        credits.consumed(1);
        assert_eq!(credits.grant(0, 0), 1);
    }
}
