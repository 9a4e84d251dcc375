//! Parses every SMB2 message of capture files and names what the parser does not know.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};
use smb_parse::{
    cmd::query_directory,
    compound::{Element, elements},
    create_context,
    frame::{Protocol, protocol},
    header::Command,
    transform,
    walk::{self, Note},
};

use super::{Capture, Frame};

/// Reads all of `paths`, files or directories of `*.pcap`, `*.pcapng` and `*.cap`, and prints per file how many messages
/// of each command there were, all that had no name, and every error.
///
/// # Errors
/// Something was unknown, or the number of errors is not the expected one: test data of fuzzers is wrong on purpose.
pub(crate) fn report(paths: &[PathBuf], expected_errors: usize) -> Result<()> {
    let (mut messages, mut unknown, mut errors) = (0, 0, 0);
    for path in files(paths)? {
        let capture = Capture::read(&path)?;
        let mut report = Report::default();
        capture.frames.iter().for_each(|frame| report.frame(frame));
        messages += report.commands.values().sum::<usize>();
        unknown += report.unknown.len();
        errors += report.errors.len();
        report.print(&path, &capture);
    }
    println!("{messages} messages, {unknown} unknown, {errors} errors ({expected_errors} expected)");
    if messages == 0 || unknown > 0 || errors != expected_errors {
        bail!("the captures hold nothing, something that has no name here, or unexpected errors");
    }
    Ok(())
}

/// The capture files of files and directories.
pub(crate) fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in paths {
        if !path.is_dir() {
            found.push(path.clone());
            continue;
        }
        for entry in fs::read_dir(path)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "pcap" || e == "pcapng" || e == "cap") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// What a file held.
#[derive(Debug, Default)]
struct Report {
    other: BTreeMap<&'static str, usize>,
    commands: BTreeMap<(u16, bool), usize>,
    met: BTreeMap<String, usize>,
    unknown: BTreeMap<String, usize>,
    errors: Vec<String>,
    /// Of the QUERY_DIRECTORY requests, by stream, SessionId and MessageId.
    classes: HashMap<(usize, u64, u64), u8>,
}

impl Report {
    fn frame(&mut self, frame: &Frame) {
        let Frame { packet, body, .. } = frame;
        let kind = match protocol(body) {
            Protocol::Smb2 => {
                for element in elements(body) {
                    match element {
                        Ok(element) => self.message(frame, &element),
                        Err(error) => self.errors.push(format!("packet {packet}: {error}")),
                    }
                }
                return;
            }
            Protocol::Transform => {
                if let Err(error) = transform::Header::parse(body) {
                    self.errors.push(format!("packet {packet}: transform: {error}"));
                }
                "sealed"
            }
            Protocol::Compression => "compressed",
            Protocol::Smb1 => "smb1",
            Protocol::Unknown => "netbios",
        };
        *self.other.entry(kind).or_default() += 1;
    }

    fn message(&mut self, frame: &Frame, element: &Element<'_>) {
        let header = &element.header;
        *self.commands.entry((header.command.0, header.is_response())).or_default() += 1;
        let key = (frame.stream, header.session_id, header.message_id);
        if header.command == Command::QUERY_DIRECTORY
            && !header.is_response()
            && let Ok(request) = query_directory::Request::parse(element.msg)
        {
            self.classes.insert(key, request.info_class);
        }
        let class = self.classes.get(&key).copied();
        let mut notes = Vec::new();
        let result = walk::walk(header, element.msg, class, &mut |note| notes.push(describe(note)));
        for (text, known) in notes {
            let text = if text.is_empty() { format!("command {}", header.command.0) } else { text };
            *if known { &mut self.met } else { &mut self.unknown }.entry(text).or_default() += 1;
        }
        if let Err(error) = result {
            let side = if header.is_response() { "response" } else { "request" };
            let packet = frame.packet;
            self.errors.push(format!("packet {packet}, MessageId {}, {side}: {error}", header.message_id));
        }
    }

    fn print(&self, path: &Path, capture: &Capture) {
        let Capture { packets, streams, gaps, skipped, retransmitted, .. } = capture;
        println!("{}", path.file_name().unwrap_or_default().to_string_lossy());
        println!(
            "  {packets} packets, {streams} streams, {gaps} gaps, {skipped} bytes skipped, {retransmitted} retransmitted"
        );
        let commands: Vec<_> = (self.commands.iter())
            .map(|((command, response), count)| {
                format!("{}{} {count}", Command(*command).name(), if *response { "<" } else { ">" })
            })
            .collect();
        println!("  {}", commands.join(", "));
        for (kind, count) in &self.other {
            println!("  {kind}: {count} frames");
        }
        for (what, count) in &self.met {
            println!("  {what}: {count}");
        }
        for (what, count) in &self.unknown {
            println!("  UNKNOWN {what}: {count}");
        }
        for error in &self.errors {
            println!("  ERROR {error}");
        }
    }
}

/// What is printed of a note, and whether it had a name. Empty: the command.
fn describe(note: Note<'_>) -> (String, bool) {
    match note {
        Note::CreateContext { tag, known } => (format!("create context {}", label(tag)), known),
        Note::NegotiateContext { kind, known } => (format!("negotiate context {kind:#06x}"), known),
        Note::InfoLevel { info_type, class, known } => {
            let name = smb_parse::info::name(info_type, class).unwrap_or("?");
            (format!("info level {info_type}/{class} {name}"), known)
        }
        Note::Fsctl { code, known } => {
            (format!("fsctl {code:#010x} {}", smb_parse::fsctl::name(code).unwrap_or("?")), known)
        }
        Note::UnknownCommand => (String::new(), false),
    }
}

/// A tag by name, as text, or in hex.
fn label(tag: &[u8]) -> String {
    match create_context::tag_name(tag) {
        Some(name) => name.to_owned(),
        None if tag.iter().all(u8::is_ascii_graphic) => String::from_utf8_lossy(tag).into_owned(),
        None => tag.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}
