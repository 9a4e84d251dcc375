//! Enumerations that a takeover cut: the new node begins anew, and the client must see each name once.
//!
//! While everything in an answer is known, the same is asked again. So of the requests that go on with such an enumeration only
//! one is on the node at a time, be they in one frame: else the end might come for one, and names for the next.

use std::time::Instant;

use smb_parse::{
    cmd::query_directory,
    encode,
    header::{Command, Header, Status},
};

use super::{Link, State, request::Request};
use crate::ids::{MessageId, OpenToken};

impl Link {
    fn enumerated(&self, request: &Request) -> Option<OpenToken> {
        self.request_open(request)
    }

    /// An enumeration that had ended before the takeover has still ended.
    pub(super) fn has_ended_enumeration(&self, id: MessageId) -> bool {
        let Some(request) = self.requests.get(id) else { return false };
        let Ok(asked) = query_directory::Request::parse(&request.msg) else { return false };
        let open = self.enumerated(request).and_then(|token| self.opens.get(token));
        open.is_some_and(|o| o.cursor.has_ended(&asked))
    }

    /// Keeps names back that the client has had. True if the node's answer is not the client's.
    pub(super) fn withhold_entries(
        &mut self,
        now: Instant,
        id: MessageId,
        header: &Header,
        msg: &[u8],
    ) -> bool {
        let Some(request) = self.requests.get(id) else { return false };
        let Some(token) = self.enumerated(request) else { return false };
        let Ok(asked) = query_directory::Request::parse(&request.msg) else { return false };
        let Some(open) = self.opens.get(token).filter(|o| o.cursor.is_restoring(&asked)) else {
            return false;
        };
        let status = Status(header.status);
        if status == Status::NO_SUCH_FILE {
            self.fail_request(id, Status::NO_MORE_FILES);
            return true;
        }
        let Ok(answer) = query_directory::Response::parse(msg) else { return false };
        if !status.is_success() {
            return false;
        }
        let Some(rest) = open.cursor.filter(asked.info_class, answer.buffer) else { return false };
        if rest.is_empty() {
            self.ask_for_more(now, id);
        } else {
            self.answer_rest(id, token, &rest);
        }
        true
    }

    /// Everything in the node's answer was known: the same request once more. Not behind a LOGOFF: the node would end the
    /// connection over what is sealed for a session that it does not have any more, and what waits is cancelled by it anyhow.
    fn ask_for_more(&mut self, now: Instant, id: MessageId) {
        if self.is_logging_off(id) {
            self.fail_request(id, Status::CANCELLED);
            return;
        }
        self.restore_ids_of(id);
        if let Some(request) = self.requests.get_mut(id) {
            // This node has answered it, and lives.
            request.deaths = 0;
        }
        if !self.send_unit(now, &[id]) && matches!(self.state, State::Bridge(_)) {
            // Others wait for its answer.
            self.parked.push_front(vec![id]);
        }
    }

    /// The Open whose cut enumeration a request is about.
    fn cut_enumeration(&self, request: &Request) -> Option<OpenToken> {
        let open = self.opens.of(request).filter(|_| request.header.command == Command::QUERY_DIRECTORY)?;
        open.cursor.was_cut().then_some(open.token)
    }

    /// A frame in parts, none of which asks twice for names of one cut enumeration.
    pub(crate) fn in_parts(&self, ids: Vec<MessageId>) -> Vec<Vec<MessageId>> {
        let mut parts = vec![Vec::with_capacity(ids.len())];
        let mut asked = Vec::new();
        for id in ids {
            let cut = self.requests.get(id).and_then(|request| self.cut_enumeration(request));
            if cut.is_some_and(|open| asked.contains(&open)) {
                parts.push(Vec::new());
                asked.clear();
            }
            asked.extend(cut);
            parts.last_mut().into_iter().for_each(|part| part.push(id));
        }
        parts
    }

    /// Whether the node is being asked for names of a cut enumeration that a frame goes on with.
    pub(super) fn waits_for_names(&self, ids: &[MessageId]) -> bool {
        let cut = |id: &MessageId| self.cut_enumeration(self.requests.get(*id)?);
        ids.iter().filter_map(cut).any(|open| {
            let asks = |r: &Request| r.sent.is_some() && self.cut_enumeration(r) == Some(open);
            self.requests.iter().any(|r| !ids.contains(&r.message_id()) && asks(r))
        })
    }

    /// Whether the session of a request is being logged off.
    fn is_logging_off(&self, id: MessageId) -> bool {
        let Some(session) = self.requests.get(id).map(|r| r.header.session_id) else { return false };
        let logs_off = |r: &Request| r.header.command == Command::LOGOFF && r.header.session_id == session;
        self.requests.iter().any(logs_off)
    }

    fn answer_rest(&mut self, id: MessageId, token: OpenToken, rest: &[u8]) {
        let Some(request) = self.requests.remove(id) else { return };
        let header = self.response_header(&request, Status::SUCCESS);
        let msg = encode::query_directory_response(&header, rest);
        if let (Some(open), Ok(asked)) =
            (self.opens.get_mut(token), query_directory::Request::parse(&request.msg))
        {
            open.cursor.note(&asked, Status::SUCCESS, &msg);
        }
        self.answer(&request, &msg);
    }
}
