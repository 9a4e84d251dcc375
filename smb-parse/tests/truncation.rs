//! Every valid message, whole and cut: whole it parses to the last byte, cut anywhere it is a typed error.

use smb_parse::{ParseError, header::Header, patch, walk};

#[path = "../examples/support/corpus.rs"]
#[allow(dead_code, reason = "shared")]
mod corpus;

fn read(msg: &[u8], class: Option<u8>) -> Result<(), ParseError> {
    walk::walk(&Header::parse(msg)?, msg, class, &mut |_| {})
}

#[test]
fn every_sample_parses_whole() {
    for sample in corpus::corpus() {
        assert_eq!(read(&sample.msg, sample.class), Ok(()), "{} {:?}", sample.name, sample.class);
    }
}

#[test]
fn every_sample_cut_at_any_length_is_an_error() {
    for sample in corpus::corpus() {
        for len in 0..sample.msg.len() {
            let error = read(&sample.msg[..len], sample.class);
            assert!(error.is_err(), "{} cut to {len} of {} parses", sample.name, sample.msg.len());
            let error = error.unwrap_err();
            assert!(!error.field.is_empty() && error.to_string().contains(error.field));
            assert!(error.at <= sample.msg.len(), "{}: {error}", sample.name);
            let command = Header::parse(&sample.msg[..len]).ok().map(|header| header.command);
            assert_eq!(error.command, command, "{} cut to {len}: {error}", sample.name);
        }
    }
}

/// Messages, where an offset or a length stands in the body, and the field that the error must name.
const FIELDS: [(&str, usize, &str); 22] = [
    ("negotiate request", 28, "NegotiateContexts"),
    ("negotiate response", 56, "SecurityBuffer"),
    ("negotiate response", 58, "SecurityBuffer"),
    ("negotiate response", 60, "NegotiateContexts"),
    ("session setup request", 12, "SecurityBuffer"),
    ("session setup response", 6, "SecurityBuffer"),
    ("tree connect request", 4, "PathName"),
    ("tree connect request, extended", 8, "TreeConnectContexts"),
    ("create", 44, "Name"),
    ("create", 46, "Name"),
    ("create DHnC", 48, "CreateContexts"),
    ("create DHnC", 52, "CreateContexts"),
    ("create response with contexts", 80, "CreateContexts"),
    ("read response", 4, "Data"),
    ("write", 2, "Data"),
    ("write", 4, "Data"),
    ("lock", 2, "Locks"),
    ("ioctl pipe", 24, "Input"),
    ("ioctl resume key", 32, "Output"),
    ("query directory", 24, "FileName"),
    ("query info", 12, "InputBuffer"),
    ("set info", 8, "Buffer"),
];

#[test]
fn an_offset_or_length_out_of_the_message_names_its_field() {
    let corpus = corpus::corpus();
    for (name, at, field) in FIELDS {
        let sample = corpus.iter().find(|sample| sample.name == name).expect("in the corpus");
        let mut msg = sample.msg.clone();
        msg[64 + at..64 + at + 2].fill(0xff);
        let error = read(&msg, sample.class).expect_err(name);
        assert_eq!(error.field, field, "{name} at {at}");
    }
}

/// Whatever stands in a length, an offset or a count: the message is read, or it is an error that names the command. In
/// a test build an overflow of the arithmetic would be a panic.
#[test]
fn no_wrong_value_anywhere_panics() {
    const VALUES: [u32; 9] = [0, 1, 63, 64, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_fff8, u32::MAX];
    let mut errors = 0;
    for sample in corpus::corpus() {
        for at in (64..sample.msg.len() - 1).step_by(2) {
            for value in VALUES {
                for width in [2, 4] {
                    let mut msg = sample.msg.clone();
                    let end = (at + width).min(msg.len());
                    msg[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
                    if let Err(error) = read(&msg, sample.class) {
                        errors += 1;
                        let command = Header::parse(&msg).ok().map(|header| header.command);
                        assert_eq!(error.command, command, "{}: {error}", sample.name);
                    }
                    let length = msg.len();
                    patch::rewrite_file_ids(&mut msg, &mut |id| id);
                    assert_eq!(msg.len(), length);
                }
            }
        }
    }
    assert!(errors > 1000, "only {errors} were noticed");
}

#[test]
fn all_commands_are_in_the_corpus_in_both_directions() {
    let mut seen = std::collections::BTreeSet::new();
    for sample in corpus::corpus() {
        let header = Header::parse(&sample.msg).unwrap();
        seen.insert((header.command.0, header.is_response()));
    }
    for command in 0..19 {
        assert!(seen.contains(&(command, false)), "no request {command}");
        // CANCEL has no answer.
        assert!(command == 12 || seen.contains(&(command, true)), "no answer {command}");
    }
    assert!(seen.contains(&(19, true)));
}
