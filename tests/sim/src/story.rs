//! Frames in words.

use smb_parse::{
    compound::elements,
    frame::{PREFIX, Protocol, protocol},
    header::Status,
};

/// One line for a frame.
pub(crate) fn describe(frame: &[u8]) -> String {
    let body = frame.get(PREFIX..).unwrap_or_default();
    if protocol(body) != Protocol::Smb2 {
        return format!("sealed, {} bytes", body.len());
    }
    let mut words = Vec::new();
    for element in elements(body).flatten() {
        let h = element.header;
        let name = h.command.name();
        if h.message_id == u64::MAX {
            words.push(format!("{name} notification"));
        } else if h.is_response() {
            let status = match Status(h.status) {
                Status::SUCCESS => "ok".to_owned(),
                Status::PENDING => "pending".to_owned(),
                Status(status) => format!("{status:08x}"),
            };
            words.push(format!("{name} {} = {status}", h.message_id));
        } else {
            words.push(format!("{name} {}", h.message_id));
        }
    }
    words.join(", ")
}
