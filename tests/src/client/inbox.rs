//! What comes in: answers sorted by MessageId, and the rules that a server has to keep.

use std::{
    collections::hash_map::Entry,
    io::{ErrorKind, Read},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, poll};
use smb_parse::{
    cmd::oplock_break::Notification,
    compound::elements,
    frame::{PREFIX, Protocol, frame_len, protocol},
    header::{Command, Flags, Header, Status},
};

use super::Client;

/// The MessageId of what nobody asked for.
const UNSOLICITED: u64 = u64::MAX;

/// A final answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) header: Header,
    /// The message, header included.
    pub(crate) msg: Vec<u8>,
}

impl Answer {
    pub(crate) fn status(&self) -> Status {
        Status(self.header.status)
    }

    /// The answer, if it is a success.
    pub(crate) fn success(self) -> Result<Self> {
        let status = self.status();
        ensure!(status.is_success(), "{}: {status:x?}", self.header.command.name());
        Ok(self)
    }

    pub(crate) fn is_signed(&self) -> bool {
        self.header.flags.contains(Flags::SIGNED)
    }
}

/// A break notification.
#[derive(Debug, Clone)]
pub(crate) struct Break {
    pub(crate) notification: Notification,
    pub(crate) sealed: bool,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Reset,
    Closed,
}

impl Client {
    /// The final answer to a request.
    pub(crate) fn wait(&mut self, id: u64) -> Result<Answer> {
        loop {
            if let Some(answer) = self.answers.remove(&id) {
                return Ok(answer);
            }
            self.receive().with_context(|| format!("waiting for the answer to {id}"))?;
        }
    }

    /// The final answer to a request, if it has come already.
    pub(crate) fn take_ready(&mut self, id: u64) -> Option<Answer> {
        self.answers.remove(&id)
    }

    /// Reads until everything in flight is answered, but keeps the answers.
    pub(crate) fn settle(&mut self) -> Result<()> {
        while !self.in_flight.is_empty() {
            self.receive()?;
        }
        Ok(())
    }

    /// How many requests have no final answer yet.
    pub(crate) fn pending(&self) -> usize {
        self.in_flight.len()
    }

    /// Reads until `enough` says so.
    pub(crate) fn receive_until(&mut self, mut enough: impl FnMut(&Self) -> bool) -> Result<()> {
        while !enough(self) {
            self.receive()?;
        }
        Ok(())
    }

    /// Reads until the connection ends, whatever comes before that.
    pub(crate) fn wait_for_end(&mut self) -> Result<End> {
        let mut sink = [0; 4096];
        loop {
            match self.stream.read(&mut sink) {
                Ok(0) => return Ok(End::Closed),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(End::Reset),
                Err(error) => return Err(error).context("waiting for the end of the connection"),
            }
        }
    }

    /// Reads until the connection ends; nothing may come before that.
    pub(crate) fn wait_for_silent_end(&mut self) -> Result<()> {
        match self.stream.read(&mut [0; 4096]) {
            Ok(0) => Ok(()),
            Ok(len) => bail!("an answer of {len} bytes came"),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
            Err(error) => Err(error).context("waiting for the end of the connection"),
        }
    }

    /// Takes in what comes within this time.
    pub(crate) fn listen(&mut self, time: Duration) -> Result<()> {
        let until = Instant::now() + time;
        loop {
            if !self.stream.buffer().is_empty() {
                self.receive()?;
                continue;
            }
            let left = until.saturating_duration_since(Instant::now());
            let mut polled = [PollFd::new(self.stream.get_ref(), PollFlags::IN)];
            if left.is_zero() || poll(&mut polled, Some(&left.try_into()?))? == 0 {
                return Ok(());
            }
            self.receive()?;
        }
    }

    /// Takes the next frame in.
    pub(super) fn receive(&mut self) -> Result<()> {
        let mut prefix = [0; PREFIX];
        self.stream.read_exact(&mut prefix).context("receiving")?;
        let mut body = vec![0; frame_len(prefix)? - PREFIX];
        self.stream.read_exact(&mut body).context("receiving")?;
        self.traffic.1 += u64::try_from(PREFIX + body.len())?;
        let sealed = protocol(&body) == Protocol::Transform;
        if sealed {
            body = self.opened(&body)?;
        }
        let found: Vec<(Header, std::ops::Range<usize>)> =
            elements(&body).map(|element| element.map(|e| (e.header, e.range))).collect::<Result<_, _>>()?;
        for (header, range) in found {
            let msg = body.get_mut(range).context("an element outside its frame")?;
            self.take(header, msg, sealed)?;
        }
        Ok(())
    }

    fn take(&mut self, header: Header, msg: &mut [u8], sealed: bool) -> Result<()> {
        let (id, name) = (header.message_id, header.command.name());
        ensure!(header.is_response(), "a {name} that is no answer");
        if id == UNSOLICITED {
            ensure!(header.command == Command::OPLOCK_BREAK, "an unsolicited {name}");
            let notification = Notification::parse(msg)?;
            self.breaks.push(Break { notification, sealed });
            return Ok(());
        }
        self.credits += u64::from(header.credits);
        let Entry::Occupied(mut entry) = self.in_flight.entry(id) else {
            bail!("MessageId {id} ({name}) was answered a second time, or never asked for");
        };
        // What was asked sealed is answered sealed, interim answers too (MS-SMB2 3.3.4.1.4).
        let is_end = Status(header.status) == Status::USER_SESSION_DELETED;
        ensure!(
            sealed == entry.get().sealed || is_end,
            "the answer to MessageId {id} ({name}) is {}sealed",
            if sealed { "" } else { "not " }
        );
        if Status(header.status) == Status::PENDING {
            let async_id = header.async_id().context("an interim answer without an AsyncId")?;
            ensure!(entry.get().interim.is_none(), "MessageId {id} ({name}) got a second interim answer");
            entry.get_mut().interim = Some(async_id);
            self.interims += 1;
            return Ok(());
        }
        let request = entry.remove();
        if let (Some(told), Some(now)) = (request.interim, header.async_id()) {
            ensure!(told == now, "MessageId {id}: AsyncId {told:#x} became {now:#x}");
        }
        if !sealed {
            self.check_signature(request.session, &header, msg)?;
        }
        self.finals += 1;
        let answer = Answer { header, msg: msg.to_vec() };
        self.answers.insert(id, answer);
        Ok(())
    }

    /// A wrong signature is never taken; a missing one only where a client takes it (MS-SMB2 3.2.5.1.3): where nobody
    /// signs, and for what an unsigned request or an ended session is told. The caller sees which by
    /// [`Answer::is_signed`].
    fn check_signature(&self, session: u64, header: &Header, msg: &mut [u8]) -> Result<()> {
        let key = self.sessions.get(&session).and_then(|s| s.key.as_ref());
        let (id, name) = (header.message_id, header.command.name());
        if Status(header.status) == Status::USER_SESSION_DELETED {
            // Who has forgotten the session has forgotten the key. Samba sends the request's own signature back.
            return Ok(());
        }
        if header.flags.contains(Flags::SIGNED) {
            if let Some(key) = key {
                ensure!(key.verify_mut(msg), "the answer to MessageId {id} ({name}) is signed wrongly");
            }
        } else if key.is_some() && self.setup.signing {
            let status = Status(header.status);
            ensure!(
                status == Status::ACCESS_DENIED,
                "the answer to MessageId {id} ({name}, {status:x?}) is not signed"
            );
        }
        Ok(())
    }
}
