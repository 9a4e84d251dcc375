//! What is said of NEGOTIATE and of sessions once they stand.

use smb_parse::{
    FileId,
    cmd::ioctl,
    encode::{self, IoctlParams},
    fsctl,
    header::{Command, Flags, Header, Status},
};
use understudy_core::{crypto::Dialect, effect::CloseReason};

use crate::{
    TEXT,
    node::{CAPABILITIES, SECURITY_MODE},
    rig::{CLIENT_CAPABILITIES, CLIENT_GUID, Rig},
};

/// A client of that dialect that has logged in as alice and opened a file, on the second node.
fn taken_over(dialect: Dialect) -> (Rig, FileId) {
    let mut rig = Rig::new();
    rig.dialect = dialect;
    rig.put("file", 77, TEXT);
    rig.negotiate();
    let session = rig.log_in("alice");
    let file = rig.open(session, "file");
    rig.fail_over();
    (rig, file)
}

/// What a client says to have its NEGOTIATE validated (MS-SMB2 2.2.31.4).
fn validation(dialects: &[u16]) -> Vec<u8> {
    let mut input = CLIENT_CAPABILITIES.to_le_bytes().to_vec();
    input.extend(CLIENT_GUID);
    input.extend(1_u16.to_le_bytes());
    input.extend(u16::try_from(dialects.len()).unwrap().to_le_bytes());
    input.extend(dialects.iter().flat_map(|d| d.to_le_bytes()));
    input
}

fn validate(rig: &Rig, input: &[u8], max_output: u32) -> Vec<u8> {
    let params = IoctlParams {
        ctl_code: fsctl::VALIDATE_NEGOTIATE_INFO,
        file_id: FileId::ALL_ONES,
        input,
        max_output,
    };
    encode::ioctl(&rig.header(Command::IOCTL, 0), &params)
}

#[test]
fn negotiate_is_validated_as_the_clients_own_node_would() {
    for dialect in [Dialect::SMB202, Dialect::SMB210, Dialect::SMB300, Dialect::SMB302] {
        let (mut rig, file) = taken_over(dialect);
        let (status, msg) = rig.ask(validate(&rig, &validation(&[dialect.0]), 24));
        assert_eq!(status, Status::SUCCESS);
        assert!(Header::parse(&msg).unwrap().flags.contains(Flags::SIGNED));
        let answer = ioctl::Response::parse(&msg).unwrap();
        let mut expected = CAPABILITIES.to_le_bytes().to_vec();
        expected.extend(rig.server_guid);
        expected.extend(SECURITY_MODE.to_le_bytes());
        expected.extend(dialect.0.to_le_bytes());
        assert_eq!(answer.output, expected, "{dialect:?}");
        assert_eq!((answer.ctl_code, answer.file_id), (fsctl::VALIDATE_NEGOTIATE_INFO, FileId::ALL_ONES));
        assert!(rig.nodes[1].seen(Command::IOCTL).is_empty(), "the node was asked something else");
        assert_eq!(rig.ask(rig.read(0, file, 0, 4)).0, Status::SUCCESS);
    }
}

#[test]
fn a_negotiate_that_was_tampered_with_ends_the_connection() {
    let good = validation(&[Dialect::SMB302.0]);
    let altered = |at: usize| {
        let mut input = good.clone();
        input[at] ^= 1;
        input
    };
    let mut cut = good.clone();
    cut.truncate(good.len() - 1);
    let more = validation(&[Dialect::SMB302.0, Dialect::SMB311.0]);
    // Capabilities, Guid, SecurityMode, Dialects; too short, another list.
    for input in [altered(0), altered(4), altered(20), altered(24), cut, more, Vec::new()] {
        let (mut rig, _) = taken_over(Dialect::SMB302);
        rig.send(&[validate(&rig, &input, 24)]);
        assert_eq!(rig.closed, Some(CloseReason::ProtocolError), "{input:x?}");
    }
    let (mut rig, _) = taken_over(Dialect::SMB302);
    rig.send(&[validate(&rig, &good, 23)]);
    assert_eq!(rig.closed, Some(CloseReason::ProtocolError), "no room for the answer");
    let (mut rig, _) = taken_over(Dialect::SMB311);
    rig.send(&[validate(&rig, &validation(&[Dialect::SMB311.0]), 24)]);
    assert_eq!(rig.closed, Some(CloseReason::ProtocolError), "3.1.1 has another way");
}

#[test]
fn a_validation_in_flight_at_the_crash_is_answered() {
    let mut rig = Rig::new();
    rig.dialect = Dialect::SMB300;
    rig.negotiate();
    rig.log_in("alice");
    rig.nodes[0].habits.mute.push(Command::IOCTL);
    let asked = rig.send(&[validate(&rig, &validation(&[Dialect::SMB300.0]), 24)])[0];
    rig.fail_over();
    assert_eq!(Status(rig.answer(asked).0.status), Status::SUCCESS);
}
