//! Parses every SMB2 message of capture files: `cargo run --release -p smb-parse --example captures -- [OPTIONS] PATH...`
//!
//! A PATH is a file or a directory of `*.pcap`, `*.pcapng` and `*.cap`. Prints per file how many messages of each
//! command there were, all that had no name, and every error; with `--json` one line a message instead. Exit status 1
//! if anything was unknown, or the number of errors is not that of `--expect-errors=N` (0): test data of fuzzers is
//! wrong on purpose.

use std::{
    collections::{BTreeMap, HashMap},
    env,
    error::Error,
    fs, io,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use smb_parse::{
    cmd::query_directory,
    compound::{Element, elements},
    create_context,
    frame::{PREFIX, Protocol, protocol},
    header::{Command, Header},
    transform,
};

#[path = "support/pcap.rs"]
mod pcap;
#[path = "support/tcp.rs"]
mod tcp;
#[path = "support/walk.rs"]
mod walk;

use tcp::Direction;
use walk::Note;

const PORTS: [u16; 2] = [445, 139];

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let (flags, paths): (Vec<_>, Vec<_>) = env::args().skip(1).partition(|arg| arg.starts_with("--"));
    let (mut json, mut expected) = (false, 0);
    for flag in &flags {
        match flag.strip_prefix("--expect-errors=") {
            Some(count) => expected = count.parse()?,
            None if flag == "--json" => json = true,
            None => return usage(),
        }
    }
    if paths.is_empty() {
        return usage();
    }
    let mut out = io::BufWriter::new(io::stdout().lock());
    let (mut unknown, mut errors) = (0, 0);
    for path in files(&paths)? {
        let capture =
            pcap::Capture::read(&fs::read(&path)?).map_err(|e| format!("{}: {e}", path.display()))?;
        let mut report = Report { packets: capture.packets, ..Report::default() };
        for (index, stream) in tcp::streams(capture.segments, &PORTS).iter().enumerate() {
            report.stream(index, stream);
        }
        unknown += report.unknown.len();
        errors += report.errors.len();
        if json { report.write_json(&path, &mut out)? } else { report.write(&path, &mut out)? }
    }
    out.flush()?;
    drop(out);
    eprintln!("{unknown} unknown, {errors} errors ({expected} expected)");
    Ok(if unknown == 0 && errors == expected { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn usage() -> Result<ExitCode, Box<dyn Error>> {
    eprintln!("usage: captures [--json] [--expect-errors=N] PATH...");
    Ok(ExitCode::from(2))
}

fn files(paths: &[String]) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in paths {
        if !Path::new(path).is_dir() {
            found.push(path.into());
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

/// One message, for `--json`.
#[derive(Debug)]
struct Line {
    packet: u64,
    stream: usize,
    header: Header,
    tags: Vec<String>,
    error: Option<String>,
}

/// What a file held.
#[derive(Debug, Default)]
struct Report {
    packets: u64,
    streams: usize,
    gaps: usize,
    /// Bytes before the first frame after a hole, or that no frame ended.
    skipped: usize,
    retransmitted: u64,
    other: BTreeMap<&'static str, usize>,
    commands: BTreeMap<(u16, bool), usize>,
    met: BTreeMap<String, usize>,
    unknown: BTreeMap<String, usize>,
    errors: Vec<String>,
    lines: Vec<Line>,
}

impl Report {
    fn stream(&mut self, index: usize, stream: &tcp::Stream) {
        self.streams += 1;
        let mut classes = HashMap::new();
        for direction in [&stream.to_server, &stream.to_client] {
            self.gaps += direction.gaps;
            self.retransmitted += direction.retransmitted;
            self.direction(index, direction, &mut classes);
        }
    }

    fn direction(&mut self, stream: usize, direction: &Direction, classes: &mut HashMap<(u64, u64), u8>) {
        for run in &direction.runs {
            let mut at = 0;
            while let Some(rest) = run.bytes.get(at..).filter(|rest| !rest.is_empty()) {
                let Some(len) = plausible(rest) else {
                    self.skipped += 1;
                    at += 1;
                    continue;
                };
                let Some(frame) = rest.get(..len) else {
                    self.skipped += rest.len();
                    break;
                };
                let packet = run.packet(at..at + len);
                self.frame(packet, stream, frame.get(PREFIX..).unwrap_or_default(), classes);
                at += len;
            }
        }
    }

    fn frame(&mut self, packet: u64, stream: usize, body: &[u8], classes: &mut HashMap<(u64, u64), u8>) {
        let kind = match protocol(body) {
            Protocol::Smb2 => {
                for element in elements(body) {
                    match element {
                        Ok(element) => self.message(packet, stream, &element, classes),
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

    fn message(
        &mut self,
        packet: u64,
        stream: usize,
        element: &Element<'_>,
        classes: &mut HashMap<(u64, u64), u8>,
    ) {
        let header = &element.header;
        *self.commands.entry((header.command.0, header.is_response())).or_default() += 1;
        let key = (header.session_id, header.message_id);
        if header.command == Command::QUERY_DIRECTORY
            && !header.is_response()
            && let Ok(request) = query_directory::Request::parse(element.msg)
        {
            classes.insert(key, request.info_class);
        }
        let class = classes.get(&key).copied();
        let mut tags = Vec::new();
        let mut notes = Vec::new();
        let result = walk::walk(header, element.msg, class, &mut |note| notes.push(note));
        for note in notes {
            if let Note::CreateContext { tag, .. } = &note {
                tags.push(label(tag));
            }
            let (text, known) = describe(note);
            let text = if text.is_empty() { format!("command {}", header.command.0) } else { text };
            *if known { &mut self.met } else { &mut self.unknown }.entry(text).or_default() += 1;
        }
        let error = result.err().map(|error| error.to_string());
        if let Some(error) = &error {
            let side = if header.is_response() { "response" } else { "request" };
            self.errors.push(format!("packet {packet}, MessageId {}, {side}: {error}", header.message_id));
        }
        self.lines.push(Line { packet, stream, header: *header, tags, error });
    }

    fn write(&self, path: &Path, out: &mut impl Write) -> io::Result<()> {
        let Self { packets, streams, gaps, skipped, retransmitted, .. } = self;
        writeln!(out, "{}", path.file_name().unwrap_or_default().to_string_lossy())?;
        writeln!(
            out,
            "  {packets} packets, {streams} streams, {} messages, {gaps} gaps, {skipped} bytes skipped, {retransmitted} \
             retransmitted",
            self.lines.len()
        )?;
        let commands: Vec<_> = (self.commands.iter())
            .map(|((command, response), count)| {
                format!("{}{} {count}", Command(*command).name(), if *response { "<" } else { ">" })
            })
            .collect();
        writeln!(out, "  {}", commands.join(", "))?;
        for (kind, count) in &self.other {
            writeln!(out, "  {kind}: {count} frames")?;
        }
        for (what, count) in &self.met {
            writeln!(out, "  {what}: {count}")?;
        }
        for (what, count) in &self.unknown {
            writeln!(out, "  UNKNOWN {what}: {count}")?;
        }
        for error in &self.errors {
            writeln!(out, "  ERROR {error}")?;
        }
        Ok(())
    }

    fn write_json(&mut self, path: &Path, out: &mut impl Write) -> io::Result<()> {
        // Stable: the elements of a compound stay in order.
        self.lines.sort_by_key(|line| line.packet);
        let file = quoted(&path.file_name().unwrap_or_default().to_string_lossy());
        for Line { packet, stream, header, tags, error } in &self.lines {
            let optional = |value: Option<u64>| value.map_or("null".to_owned(), |value| value.to_string());
            let tags: Vec<_> = tags.iter().map(|tag| quoted(tag)).collect();
            writeln!(
                out,
                "{{\"file\":{file},\"frame\":{packet},\"stream\":{stream},\"response\":{},\"command\":{},\
                 \"name\":\"{}\",\"message_id\":{},\"session_id\":{},\"tree_id\":{},\"async_id\":{},\"status\":{},\
                 \"flags\":{},\"tags\":[{}],\"error\":{}}}",
                header.is_response(),
                header.command.0,
                header.command.name(),
                header.message_id,
                header.session_id,
                optional(header.tree_id().map(u64::from)),
                optional(header.async_id()),
                header.status,
                header.flags.0,
                tags.join(","),
                error.as_deref().map_or("null".to_owned(), quoted),
            )?;
        }
        Ok(())
    }
}

/// The length of the frame that begins here, if one does: a stream may be captured from its middle on, and go on after
/// a hole. NetBIOS session packets (RFC 1002 4.3.1) count as frames.
fn plausible(bytes: &[u8]) -> Option<usize> {
    let &[kind, high, mid, low] = bytes.first_chunk()?;
    let len = PREFIX + (usize::from(high) << 16 | usize::from(mid) << 8 | usize::from(low));
    match (kind, bytes.get(PREFIX..).unwrap_or_default()) {
        (0, [0xfc..=0xff, b'S', b'M', b'B', ..]) => Some(len),
        (0x81..=0x85, _) if high == 0 && len <= PREFIX + 72 => Some(len),
        _ => None,
    }
}

/// What is printed of a note, and whether it had a name. Empty: the command.
fn describe(note: Note) -> (String, bool) {
    match note {
        Note::CreateContext { tag, known } => (format!("create context {}", label(&tag)), known),
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

/// A JSON string.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
