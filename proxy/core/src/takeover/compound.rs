//! Compounds that open a file by its name, change or remove that name, and close it, none of them answered when the node was
//! lost: so Linux, macOS and others rename, link and delete what they do not have open. CREATE(FILE_OPEN), SET_INFO, CLOSE; or
//! CREATE(FILE_OPEN, FILE_DELETE_ON_CLOSE), CLOSE. No Open is recorded that would show what became of them, so the names are
//! probed, and the whole compound is answered from here if it was done.
//!
//! | seen | delete | rename | link |
//! |---|---|---|---|
//! | the old name, with the file that had it before | undone | undone | see new name |
//! | the old name, given to another file meanwhile by an answered request | done if one had left a file there before, and none has removed that, nor perhaps renamed it; else unclear | as if it were not there, but never undone | |
//! | the old name, with a file as new as the request, of nobody known | unclear | unclear | unclear, if the new name has another |
//! | no old name, and changes of names are not all seen | unclear | as below | |
//! | no old name; what an answered request had left there before another gave it to the next file was removed by none, but that one was | done; unclear if it may have been renamed | as below | |
//! | no old name, removed by an answered request, however long before; perhaps made since by another one in flight | unclear | as below | |
//! | no old name, removed by an answered request | undone | unclear; undone if what has the new one is another's, or was not changed since | see new name |
//! | no old name; an Open of its file was had again, under another one | undone | done if that is the new one; unclear if that file may have been made meanwhile | see new name |
//! | no old name; one that an Open on the present node is to delete, or may be by a request that is not answered | not told yet | | |
//! | no old name, and a rename by that name in flight | told when that is; unclear if it is not answered | | |
//! | no old name, nor a new one | done | undone; unclear if an Open may have renamed or deleted the file meanwhile | undone |
//! | no old name, the new one with a file changed (ChangeTime) since, given the name by no answered request | | done | done if the file is known to have had the old name, or is older than the request |
//! | the new name, with another file than had the old one before | | undone; unclear if another request in flight may have made that under the old name | |
//! | the new name, with anything else | | undone | done if the on-disk ids are the same, and no answered request has made it |
//!
//! Where a table says neither, [`Finding::Unclear`]: the whole compound is answered STATUS_INTERNAL_ERROR. What is undone is
//! sent again as it was; it then finds, or does not find, what is there.
//!
//! A compound of which the CREATE was answered works by the Open that is recorded of it, member by member.
//!
//! Invariants:
//!
//! - A member is never sent, nor its CREATE, if another one cannot be told of: an Open that no client knows would stay.
//! - What a delete is not known to leave undone is not done again: the name may be another's by now.

use smb_parse::{
    FileId,
    cmd::{close, create},
    encode,
    header::{Command, Status},
};

use super::{
    claim::{self, Sighting},
    probe::{Finding, Probe, known, new_name},
    verdict::{Facts, Kind, Subject, Verdict, verdict},
};
use crate::{
    event::{Event, FileEvent},
    files::{FileKey, Files, Taking},
    ids::MessageId,
    link::{Link, answer::Check, request::Request},
};

/// FILE_OPEN, FILE_DELETE_ON_CLOSE (MS-SMB2 2.2.13); FILE_OPENED, a CreateAction (2.2.14).
const FILE_OPEN: u32 = 1;
const DELETE_ON_CLOSE: u32 = 0x1000;
const OPENED: u32 = 1;

/// A compound of the module's shapes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Story {
    kind: Kind,
    create: MessageId,
    /// The member that renames, links or deletes: the CREATE itself, if it has FILE_DELETE_ON_CLOSE.
    change: MessageId,
}

impl Link {
    /// The CREATE of a member's own compound, if neither is answered.
    pub(crate) fn own_create(&self, member: &Request) -> Option<&Request> {
        let facts = Facts::of(member, &self.opens);
        let before = |r: &&Request| {
            r.unit == member.unit
                && r.header.command == Command::CREATE
                && r.message_id() < member.message_id()
        };
        self.requests.iter().filter(before).last().filter(|_| facts.subject == Subject::OwnCreate)
    }

    /// Marks the members that delete what their own compound opens and closes.
    pub(super) fn note_what_compounds_delete(&mut self) {
        let mut deleting = Vec::new();
        for request in self.requests.iter().filter(|r| r.compounded) {
            let facts = Facts::of(request, &self.opens);
            if request.header.command == Command::CLOSE {
                let create = self.own_create(request).filter(|create| deletes_on_close(create));
                deleting.extend(create.map(Request::message_id));
            } else if facts.subject == Subject::OwnCreate && facts.kind == Kind::Delete {
                // Also if its CREATE is not here any more, for the client has cancelled that.
                deleting.push(request.message_id());
            }
        }
        for request in self.requests.iter_mut() {
            request.deletes = deleting.contains(&request.message_id());
        }
    }

    /// What a frame's requests are about, if it has one of the module's shapes.
    pub(super) fn story(&self, ids: &[MessageId]) -> Option<Story> {
        let members: Vec<&Request> = ids.iter().map(|id| self.requests.get(*id)).collect::<Option<_>>()?;
        let (create, rest) = members.split_first()?;
        let (close, change) = rest.split_last()?;
        let opens = create::Request::parse(&create.msg).is_ok_and(|c| c.create_disposition == FILE_OPEN);
        let own = |member: &Request| Facts::of(member, &self.opens).subject == Subject::OwnCreate;
        if !opens || create.deaths != 1 || close.header.command != Command::CLOSE || !own(close) {
            return None;
        }
        let kind = |request: &Request| Facts::of(request, &self.opens).kind;
        let (kind, change) = match change {
            [] if create.deletes => (Kind::Delete, create),
            [change] if own(change) && !create.deletes => (kind(change), change),
            _ => return None,
        };
        let (create, change) = (create.message_id(), change.message_id());
        matches!(kind, Kind::Rename | Kind::Link | Kind::Delete).then_some(Story { kind, create, change })
    }

    /// Finds out whether it was done. False until that is known.
    pub(super) fn is_story_told(&mut self, story: &Story, files: &Files) -> bool {
        let ids = [story.create, story.change];
        if ids.iter().any(|id| self.verify_kept(*id) != Check::Passed) {
            return true;
        }
        let looks = if story.kind == Kind::Delete { &ids[..1] } else { &ids };
        for id in looks {
            match self.requests.get(*id).map(|request| request.probe) {
                Some(Probe::Unasked) => match self.send_probe(*id) {
                    Some(()) => return false,
                    None => {
                        self.note_finding(story.change, Finding::Unclear, None);
                        return true;
                    }
                },
                Some(Probe::Asked | Probe::Closing(_)) => return false,
                _ => {}
            }
        }
        if story.kind == Kind::Delete && self.waits_for_what_others_do(story, files) {
            return false;
        }
        let finding = self.judge_story(story, files);
        let told = self.requests.get(story.change).is_some_and(|r| r.finding == Finding::Done);
        if !told {
            self.note_finding(story.change, finding, None);
        }
        true
    }

    /// Whether a name that is gone may have been removed by another request, of which it will be known: by the CLOSE of an
    /// Open of that name, on the present node, or by a rename in flight.
    fn waits_for_what_others_do(&mut self, story: &Story, files: &Files) -> bool {
        let Some(create) = self.requests.get(story.create).filter(|r| r.probe == Probe::Absent) else {
            return false;
        };
        let asked = create::Request::parse(&create.msg).ok();
        let Some(key) = asked.and_then(|asked| self.key_of(create, asked.name.0)) else { return false };
        if files.is_doomed(&key) {
            return true;
        }
        self.defers = files.taking(&key, create.at) == Taking::UnderWay;
        self.defers
    }

    fn judge_story(&self, story: &Story, files: &Files) -> Finding {
        let (Some(create), Some(change)) = (self.requests.get(story.create), self.requests.get(story.change))
        else {
            return Finding::Unclear;
        };
        let Some((old_key, new_key)) = self.names(create, change) else { return Finding::Unclear };
        let (Some(old_there), Some(new_there)) = (seen(create.probe), seen(change.probe)) else {
            return Finding::Unclear;
        };
        let old = known(files, &old_key, old_there, create);
        let old = new_there.map_or(old, |there| old.given_up_by(there, files, &old_key, create));
        match (story.kind, new_key) {
            // Whoever has removed the directory, has found it empty.
            (Kind::Delete, _) if create.probe == Probe::Pathless => Finding::Undone,
            (Kind::Delete, _) => claim::deleted(&old, self.asked(create)),
            (Kind::Rename, Some(new)) => {
                claim::renamed(&old, &known(files, &new, new_there, change), self.asked(create))
            }
            (Kind::Link, Some(new)) => {
                let new = known(files, &new, new_there, change);
                let asked = self.asked(create);
                // What stands under the old name may have been made there since, by another request in flight.
                let is_source = old.is_as_before(asked) || !old.may_be_made && !old.is_anew();
                match old_there.filter(|_| is_source) {
                    // Another request in flight may have made it in the place of what was linked.
                    Some(there) if !old.is_as_before(asked) && new.is_of_another(&there) => Finding::Unclear,
                    Some(there) => claim::linked((there.on_disk_id, old.holder), &new),
                    None => claim::linked_before(&old, &new, asked),
                }
            }
            _ => Finding::Unclear,
        }
    }

    /// The name that a compound's CREATE opens, and the one that it gives.
    fn names(&self, create: &Request, change: &Request) -> Option<(FileKey, Option<FileKey>)> {
        let old = create::Request::parse(&create.msg).ok()?.name.0;
        let new = match new_name(change) {
            Some((_, name)) => Some(self.key_of(change, name)?),
            None => None,
        };
        Some((self.key_of(create, old)?, new))
    }

    /// Answers a frame as a whole whose members work on what its own CREATE opens, if they are not all to be sent. True if it
    /// was answered.
    pub(crate) fn settle_compound(&mut self, ids: &[MessageId]) -> bool {
        let own = |link: &Self, id: &MessageId| {
            let member = link.requests.get(*id).filter(|member| member.fails.is_none())?;
            let facts = Facts::of(member, &link.opens);
            (facts.deaths > 0 && facts.subject == Subject::OwnCreate).then(|| verdict(&facts))
        };
        let verdicts: Vec<_> = ids.iter().filter_map(|id| own(self, id)).collect();
        let is_done = verdicts.contains(&Verdict::Synthesize(Status::SUCCESS));
        let is_untold = verdicts.iter().any(|v| matches!(v, Verdict::Fail(_) | Verdict::Probe));
        if !is_done && !is_untold || ids.iter().any(|id| self.verify_kept(*id) != Check::Passed) {
            return false;
        }
        self.tell_rows(ids);
        match self.story(ids).filter(|_| is_done) {
            Some(story) => self.answer_story(ids, &story),
            None => {
                for id in ids {
                    self.note_failed(true);
                    self.fail_request(*id, Status::INTERNAL_ERROR);
                }
            }
        }
        true
    }

    /// Tells which row of the table was taken for what is answered as a whole, of the members of which there is one.
    fn tell_rows(&mut self, ids: &[MessageId]) {
        let row = |link: &Self, id: &MessageId| {
            let facts = Facts::of(link.requests.get(*id)?, &link.opens);
            let is_told = facts.deaths > 0 && matches!(facts.kind, Kind::Rename | Kind::Link | Kind::Delete);
            is_told.then(|| facts.row(verdict(&facts)))
        };
        let rows: Vec<_> = ids.iter().filter_map(|id| row(self, id)).collect();
        for row in rows {
            self.out.event(Event::Replay(row));
        }
    }

    /// All members have succeeded on the node that is lost.
    fn answer_story(&mut self, ids: &[MessageId], story: &Story) {
        let there = self.tell_names(story);
        let file = self.mint_file_id();
        for id in ids {
            let Some(request) = self.requests.remove(*id) else { continue };
            let header = self.response_header(&request, Status::SUCCESS);
            let msg = match request.header.command {
                Command::CREATE => encode::create_response(&header, &opened(file, there), &[]),
                Command::CLOSE => encode::close_response(&header, &closed(&request, there)),
                _ => encode::set_info_response(&header),
            };
            self.tell_name_change_is_over(&request, true);
            self.answer(&request, &msg);
        }
        self.end_doubt();
    }

    /// Makes known what the compound has done to names. What stands where its file is now.
    fn tell_names(&mut self, story: &Story) -> Option<Sighting> {
        let create = self.requests.get(story.create)?;
        let change = self.requests.get(story.change)?;
        let (old, new) = self.names(create, change)?;
        let at = change.at;
        let (source, target) = (seen(create.probe).flatten(), seen(change.probe).flatten());
        // Of a link, both names are the file's; but what stands under the old one may be another's.
        let there = target;
        match (story.kind, new, there) {
            (Kind::Delete, ..) => self.out.file(match source {
                // What stands there now is another's.
                Some(source) => FileEvent::LeftGone { key: old, but: Some(source.birth) },
                None => FileEvent::Gone { key: old, birth: None },
            }),
            (Kind::Rename, Some(new), Some(there)) => {
                self.out.file(FileEvent::Made { key: new, birth: there.birth, at });
                // What has the old name now is another file.
                self.out.file(FileEvent::Gone { key: old, birth: Some(there.birth) });
            }
            (_, Some(new), Some(there)) => {
                self.out.file(FileEvent::Made { key: new, birth: there.birth, at });
            }
            _ => {}
        }
        there.filter(|_| story.kind != Kind::Delete)
    }
}

/// What a probe has shown. `None`: nothing that can be relied on.
fn seen(probe: Probe) -> Option<Option<Sighting>> {
    match probe {
        Probe::There(there) => Some(Some(there)),
        // Only one name is looked at where a file is deleted.
        Probe::Absent | Probe::Pathless | Probe::Unasked => Some(None),
        Probe::Asked | Probe::Closing(_) | Probe::Obscure => None,
    }
}

fn deletes_on_close(create: &Request) -> bool {
    create::Request::parse(&create.msg).is_ok_and(|asked| asked.create_options & DELETE_ON_CLOSE != 0)
}

/// The answer to a CREATE whose file is closed already; of one that is deleted nothing is known.
fn opened(file: FileId, there: Option<Sighting>) -> create::Response<'static> {
    let mut response = create::Response::of(file);
    response.create_action = OPENED;
    if let Some(there) = there {
        response.creation_time = there.created;
        response.last_access_time = there.accessed;
        response.last_write_time = there.written;
        response.change_time = there.changed;
        response.allocation_size = there.allocated;
        response.end_of_file = there.size;
        response.file_attributes = there.attributes;
    }
    response
}

/// With attributes, if they are asked for and known (MS-SMB2 2.2.16).
fn closed(request: &Request, there: Option<Sighting>) -> close::Response {
    let wanted = close::Request::parse(&request.msg).is_ok_and(|c| c.flags & close::POSTQUERY_ATTRIB != 0);
    match there.filter(|_| wanted) {
        Some(there) => close::Response {
            flags: close::POSTQUERY_ATTRIB,
            creation_time: there.created,
            last_access_time: there.accessed,
            last_write_time: there.written,
            change_time: there.changed,
            allocation_size: there.allocated,
            end_of_file: there.size,
            file_attributes: there.attributes,
        },
        None => close::Response::default(),
    }
}
