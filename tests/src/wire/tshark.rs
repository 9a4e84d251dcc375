//! Two readers of the same captures, frame by frame: the parser and tshark must say the same of every message.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    path::Path,
};

use anyhow::{Result, bail};
use smb_parse::{
    ParseError,
    cmd::{Message, query_directory},
    compound::{Element, elements},
    frame::{Protocol, protocol},
    header::Command,
    transform,
};

use super::{
    Capture, Frame,
    facts::{self, Facts},
    fields,
    pdml::{self, Dissected},
};

/// How many differences are told one by one.
const TOLD: usize = 20;

/// What the two readers agree on.
#[derive(Debug, Default)]
pub(crate) struct Agreement {
    pub(crate) messages: usize,
    pub(crate) fields: usize,
    /// Messages by command.
    pub(crate) commands: BTreeMap<u16, usize>,
    /// Create contexts by their tags in hexadecimal, in requests and answers.
    tags: BTreeMap<String, usize>,
    differences: Vec<String>,
}

impl Agreement {
    /// Adds what another capture showed.
    pub(crate) fn add(&mut self, other: Self) {
        self.messages += other.messages;
        self.fields += other.fields;
        other.commands.into_iter().for_each(|(command, n)| *self.commands.entry(command).or_default() += n);
        other.tags.into_iter().for_each(|(tag, n)| *self.tags.entry(tag).or_default() += n);
        self.differences.extend(other.differences);
    }

    /// # Errors
    /// The readers differ anywhere, or there was nothing to compare.
    pub(crate) fn check(&self) -> Result<()> {
        if self.messages == 0 {
            bail!("not one message was compared");
        }
        if !self.differences.is_empty() {
            let told: Vec<_> = self.differences.iter().take(TOLD).map(String::as_str).collect();
            bail!("the parser and tshark differ {} times:\n{}", self.differences.len(), told.join("\n"));
        }
        Ok(())
    }

    /// Whether a create context of that name was compared.
    pub(crate) fn has_tag(&self, tag: &[u8]) -> bool {
        self.tags.contains_key(&facts::hex(tag))
    }

    fn differ(&mut self, what: String) {
        self.differences.push(what);
    }
}

impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} messages, {} fields", self.messages, self.fields)?;
        if self.differences.is_empty() {
            write!(f, " alike")
        } else {
            write!(f, ", {} differ", self.differences.len())
        }
    }
}

/// Compares what the parser and tshark say of a capture file.
///
/// # Errors
/// The file cannot be read by either.
pub(crate) fn compare(path: &Path) -> Result<Agreement> {
    let capture = Capture::read(path)?;
    let theirs = pdml::dissect(path)?;
    let mut agreement = Agreement::default();
    let mut ours = Vec::new();
    let mut classes = HashMap::new();
    for frame in &capture.frames {
        read(frame, &mut classes, &mut ours);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if capture.gaps > 0 {
        agreement.differ(format!("{name}: {} holes in its streams: packets were not captured", capture.gaps));
    }
    let (ours, theirs) = (by_packet(ours, |m| m.packet), by_packet(theirs, |m| m.packet));
    let packets: std::collections::BTreeSet<_> = ours.keys().chain(theirs.keys()).copied().collect();
    for packet in packets {
        let at = format!("{name}, packet {packet}");
        let empty = (Vec::new(), Vec::new());
        let (mine, other) = (ours.get(&packet).unwrap_or(&empty.0), theirs.get(&packet).unwrap_or(&empty.1));
        if mine.len() != other.len() {
            agreement.differ(format!("{at}: {} messages, by tshark {}", mine.len(), other.len()));
            continue;
        }
        for (ours, theirs) in mine.iter().zip(other) {
            one(&mut agreement, &at, ours, theirs);
        }
    }
    Ok(agreement)
}

fn by_packet<T>(messages: Vec<T>, packet: impl Fn(&T) -> u64) -> BTreeMap<u64, Vec<T>> {
    let mut map: BTreeMap<u64, Vec<T>> = BTreeMap::new();
    for message in messages {
        map.entry(packet(&message)).or_default().push(message);
    }
    map
}

/// One message as the parser reads it.
struct Read {
    packet: u64,
    command: Option<Command>,
    header: Facts,
    header_fields: &'static [&'static str],
    body: Facts,
    body_fields: Vec<&'static str>,
    error: Option<ParseError>,
}

/// Which class of entries a QUERY_DIRECTORY asked for, by stream, SessionId and MessageId.
type Classes = HashMap<(usize, u64, u64), u8>;

fn read(frame: &Frame, classes: &mut Classes, out: &mut Vec<Read>) {
    match protocol(&frame.body) {
        Protocol::Smb2 => {
            for element in elements(&frame.body) {
                out.push(match element {
                    Ok(element) => message(frame, &element, classes),
                    Err(error) => Read { error: Some(error), ..bare(frame) },
                });
            }
        }
        Protocol::Transform => {
            let parsed = transform::Header::parse(&frame.body);
            let error = parsed.err();
            let header = parsed.map(|header| facts::sealed(&header)).unwrap_or_default();
            out.push(Read { header, header_fields: &fields::SEALED, error, ..bare(frame) });
        }
        Protocol::Compression | Protocol::Smb1 | Protocol::Unknown => {}
    }
}

fn bare(frame: &Frame) -> Read {
    Read {
        packet: frame.packet,
        command: None,
        header: Facts::default(),
        header_fields: &[],
        body: Facts::default(),
        body_fields: Vec::new(),
        error: None,
    }
}

fn message(frame: &Frame, element: &Element<'_>, classes: &mut Classes) -> Read {
    let header = &element.header;
    let key = (frame.stream, header.session_id, header.message_id);
    if header.command == Command::QUERY_DIRECTORY
        && !header.is_response()
        && let Ok(request) = query_directory::Request::parse(element.msg)
    {
        classes.insert(key, request.info_class);
    }
    let parsed = Message::parse(header, element.msg);
    let body_fields = parsed.as_ref().map(|m| fields::of_body(header.command, m)).unwrap_or_default();
    let body = parsed.and_then(|message| facts::body(header, &message, classes.get(&key).copied()));
    let error = body.as_ref().err().copied();
    Read {
        command: Some(header.command),
        header: facts::header(header),
        header_fields: &fields::HEADER,
        body: body.unwrap_or_default(),
        body_fields,
        error,
        ..bare(frame)
    }
}

fn one(agreement: &mut Agreement, at: &str, ours: &Read, theirs: &Dissected) {
    let command = ours.command.map_or("sealed", Command::name);
    if ours.error.is_some() || theirs.malformed {
        let (error, other) = (ours.error.map(|e| e.to_string()), theirs.malformed);
        if error.is_some() != other {
            agreement.differ(format!("{at}, {command}: {error:?}, by tshark malformed: {other}"));
        }
        return;
    }
    agreement.messages += 1;
    if let Some(command) = ours.command {
        *agreement.commands.entry(command.0).or_default() += 1;
    }
    let compare = |agreement: &mut Agreement, name: &str, mine: Vec<&str>, other: Vec<&str>| {
        agreement.fields += mine.len();
        if mine != other {
            agreement.differ(format!("{at}, {command}: {name} is {mine:?}, by tshark {other:?}"));
        }
    };
    for name in ours.header_fields {
        compare(agreement, name, ours.header.values(name), theirs.header(name));
    }
    for name in &ours.body_fields {
        compare(agreement, name, ours.body.values(name), theirs.body(name));
    }
    for tag in ours.body.values("smb2.tag") {
        *agreement.tags.entry(tag.to_owned()).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use smb_parse::{encode, header::Header};

    use super::*;

    /// An ECHO as both readers see it, the second through `change`.
    fn judge(change: impl Fn(&mut Dissected)) -> Agreement {
        let body = encode::echo(&Header::request(Command::ECHO, 7));
        let mut ours = Vec::new();
        read(&Frame { packet: 1, stream: 0, body }, &mut Classes::new(), &mut ours);
        let mut theirs = Dissected::default();
        for (name, value) in &ours[0].header.0 {
            theirs.add_header(name, value);
        }
        change(&mut theirs);
        let mut agreement = Agreement::default();
        one(&mut agreement, "packet 1", &ours[0], &theirs);
        agreement
    }

    #[test]
    fn any_difference_and_no_message_fail() {
        assert!(judge(|_| {}).check().is_ok());
        assert!(Agreement::default().check().is_err());
        assert!(judge(|theirs| theirs.add_header("smb2.aid", "0000000000000000")).check().is_err());
        assert!(judge(|theirs| theirs.malformed = true).check().is_err());
    }
}
