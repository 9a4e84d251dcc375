//! Renames, and what they make of the names of Opens.

use std::{sync::Arc, time::Instant};

use super::{
    FileKey, Files, Name,
    absent::ABSENT,
    renames::{Over, Rename},
};
use crate::{
    ids::{LinkId, MessageId, OpenToken},
    link::birth::Birth,
};

impl Files {
    pub(super) fn renaming(
        &mut self,
        link: LinkId,
        open: Option<OpenToken>,
        (from, to): (Name, Name),
        asked: Instant,
        id: MessageId,
    ) {
        let entry = open.and_then(|open| self.entry(link, open));
        let (from, file) = entry.map_or((from, None), |entry| (entry.name.clone(), Some(entry.file)));
        let request = Some((id, Over::Not));
        self.renames.tell(Rename { from, to, file, by: link, asked, turn: None, answered: None, request });
    }

    pub(super) fn renamed(
        &mut self,
        now: Instant,
        link: LinkId,
        open: OpenToken,
        (to, asked): (Name, Instant),
        found: bool,
    ) {
        let Some(by) = self.entry(link, open) else { return };
        let (from, file) = (by.name.clone(), by.file);
        let turn = self.renames.turn(link, asked, &to);
        let answered = Some(now);
        let rename = Rename { from, to, file: Some(file), by: link, asked, turn, answered, request: None };
        let mut moved = Vec::new();
        for other in self.at_or_beneath(&rename.from.key) {
            let Some(entry) = self.entry(other.0, other.1) else { continue };
            let before = other == (link, open) || rename.is_later_than(entry.heard);
            if let Some(name) = rename.takes(&entry.name, entry.file, before) {
                moved.push((other, name));
            }
        }
        for ((link, open), name) in moved {
            if name.key == rename.to.key {
                // What is known of one Open of the file is known of all.
                self.show_birth(link, open, file.birth);
            }
            self.move_open(now, link, open, name);
        }
        if rename.from.key != rename.to.key && found {
            // Who asked for it is still to be told that it was done.
            self.lately.gone(&rename.from.key, file.birth);
            self.made.take(&rename.from.key, |made| made.birth.is_at(file.birth));
            self.moved.insert(rename.from.key.clone(), file.birth, now);
        } else if rename.from.key != rename.to.key {
            self.gone(now, rename.from.key.clone(), file.birth);
        }
        self.renames.push(rename);
        self.version += 1;
    }

    /// The file of an Open has shown this time, too.
    fn show_birth(&mut self, link: LinkId, open: OpenToken, birth: Birth) {
        if let Some(entry) = self.entry_mut(link, open) {
            entry.file.birth = entry.file.birth.latest(birth);
        }
    }

    /// The Opens of a file, of its streams, and of what is beneath it.
    fn at_or_beneath(&self, key: &FileKey) -> Vec<(LinkId, OpenToken)> {
        let mut opens = self.files.get(key).map(|file| file.opens.clone()).unwrap_or_default();
        for beginning in key.beginnings() {
            let rest = self.files.range(FileKey(Arc::clone(&beginning))..);
            let beneath = rest.take_while(|(key, _)| key.0.starts_with(&*beginning));
            opens.extend(beneath.flat_map(|(_, file)| &file.opens));
        }
        opens
    }

    /// An Open has another name.
    fn move_open(&mut self, now: Instant, link: LinkId, open: OpenToken, name: Name) {
        let Some((mut entry, last)) = self.take_out(link, open) else { return };
        let key = std::mem::replace(&mut entry.name, name).key;
        entry.named = now;
        let was = last.as_ref().or_else(|| self.files.get(&key));
        let (wrote, tail) = was.map(|file| (file.wrote.clone(), file.tail.clone())).unwrap_or_default();
        let (to, path) = (entry.name.key.clone(), entry.name.path.clone());
        self.insert(link, open, entry);
        if link == ABSENT {
            self.absent_moved(open, &path);
        } else {
            self.moved_opens.push_back((link, open, path.as_ref().into()));
        }
        if let Some(file) = self.files.get_mut(&to) {
            if let Some(wrote) = wrote {
                file.wrote.get_or_insert_default().extend(*wrote);
            }
            if file.opens.len() == 1 {
                file.tail = tail;
            } else if file.tail.version() != tail.version() {
                file.tail.found(None);
            }
        }
    }
}
