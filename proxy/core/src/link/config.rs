//! The knobs of a Link, and its counters.

use std::time::Duration;

use smb_parse::header::Command;

use crate::ids::NodeNames;

/// What every Link of a proxy has in common.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// How long a Link may be without a node before it is closed.
    pub takeover_deadline: Duration,
    /// How long a request may wait for another Link's Open before it is answered STATUS_SHARING_VIOLATION.
    pub grace_park: Duration,
    /// How many bytes of unanswered requests are kept before the client is no longer read.
    pub in_flight_bytes: usize,
    /// How old an unanswered request must be, during a takeover, to get our STATUS_PENDING.
    pub pending_after: Duration,
    /// How long requests in flight may still be answered once the proxy is told to stop.
    pub shutdown_grace: Duration,
    /// How long a client may be connected without a word.
    pub handshake_timeout: Duration,
    /// How many times within a minute a Link may lose its leg to a node that lives on.
    pub leg_losses_per_minute: usize,
    /// When a side channel is opened.
    pub side_channel: SideChannelMode,
    /// How old an Open must be to be worth a question on the side channel.
    pub side_channel_after: Duration,
    /// Whether Opens and sessions are stored.
    pub persist: bool,
    /// Every session is served by legs of the proxy's own from the start.
    pub bridge_always: bool,
    /// What the nodes are called, by their ids.
    pub nodes: NodeNames,
    /// How long the process at the end of a side channel is not heard until it is asked, and how long it may then take.
    pub stuck_after: Duration,
}

/// When a side channel is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SideChannelMode {
    /// Never.
    Off,
    /// For an Open about which there is something to ask.
    Auto,
    /// As soon as a session stands, so that a stuck process is noticed. On a dialect that has none the Link becomes
    /// Bridge then.
    Always,
}

impl Default for LinkConfig {
    fn default() -> Self {
        Self {
            takeover_deadline: Duration::from_secs(60),
            grace_park: Duration::from_secs(10),
            in_flight_bytes: 64 << 20,
            pending_after: Duration::from_secs(1),
            shutdown_grace: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(30),
            leg_losses_per_minute: 3,
            side_channel: SideChannelMode::Auto,
            side_channel_after: Duration::from_secs(1),
            persist: false,
            bridge_always: false,
            nodes: NodeNames::default(),
            stuck_after: Duration::from_secs(10),
        }
    }
}

/// Messages seen since the last [`take`](Counters::take), by command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Requests of the client. Index: the command's value; the last one counts unknown commands.
    pub requests: [u64; Command::COUNT + 1],
    /// Answers and notifications of the node.
    pub responses: [u64; Command::COUNT + 1],
    /// Sealed frames, either way.
    pub sealed: u64,
    /// Answers that were learned from on side channels.
    pub aside: u64,
    /// Whether anything was counted.
    pub any: bool,
}

impl Counters {
    pub(crate) fn request(&mut self, command: Command) {
        Self::count(&mut self.requests, command);
        self.any = true;
    }

    pub(crate) fn response(&mut self, command: Command) {
        Self::count(&mut self.responses, command);
        self.any = true;
    }

    pub(crate) fn sealed(&mut self) {
        self.sealed += 1;
        self.any = true;
    }

    pub(crate) fn aside(&mut self) {
        self.aside += 1;
        self.any = true;
    }

    /// What was counted, and begin anew.
    pub fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    fn count(table: &mut [u64; Command::COUNT + 1], command: Command) {
        let index = usize::from(command.0).min(Command::COUNT);
        if let Some(slot) = table.get_mut(index) {
            *slot += 1;
        }
    }
}
