//! Reads a message to the last byte that means something, and tells what it met on the way.

use smb_parse::{
    ParseError,
    cmd::{Message, error::Symlink, negotiate, query_directory},
    create_context::{self, RequestContext, ResponseContext},
    fsctl,
    header::{Header, Status},
    info,
};

/// Something a message named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Note {
    /// A create context.
    CreateContext { tag: Vec<u8>, known: bool },
    /// A negotiate context.
    NegotiateContext { kind: u16, known: bool },
    /// A class of information.
    InfoLevel { info_type: u8, class: u8, known: bool },
    /// An FSCTL.
    Fsctl { code: u32, known: bool },
    /// A command.
    UnknownCommand,
}

/// Reads all of a message. `class`: what an answer to QUERY_DIRECTORY answers.
pub(crate) fn walk(
    header: &Header,
    msg: &[u8],
    class: Option<u8>,
    note: &mut dyn FnMut(Note),
) -> Result<(), ParseError> {
    match Message::parse(header, msg)? {
        Message::NegotiateRequest(m) => m.contexts().try_for_each(|c| negotiate_context(c?, note)),
        Message::NegotiateResponse(m) => m.contexts().try_for_each(|c| negotiate_context(c?, note)),
        Message::TreeConnectRequest(m) => m.contexts().try_for_each(|c| c.map(|_| ())),
        Message::CreateRequest(m) => m.contexts().try_for_each(|c| {
            let context = c?;
            let typed = RequestContext::parse(&context);
            create_note(context.tag, note);
            if let RequestContext::Malformed(error) = typed { Err(error) } else { Ok(()) }
        }),
        Message::CreateResponse(m) => m.contexts().try_for_each(|c| {
            let context = c?;
            let typed = ResponseContext::parse(&context);
            create_note(context.tag, note);
            if let ResponseContext::Malformed(error) = typed { Err(error) } else { Ok(()) }
        }),
        Message::LockRequest(m) => m.locks().try_for_each(|l| l.map(|_| ())),
        Message::IoctlRequest(m) => fsctl_note(m.ctl_code, note),
        Message::IoctlResponse(m) => fsctl_note(m.ctl_code, note),
        Message::QueryDirectoryRequest(m) => info_note(1, m.info_class, note),
        Message::QueryDirectoryResponse(m) => {
            // A page that was cut short by the client's buffer may end in the middle of an entry.
            let whole = Status(header.status) != Status::BUFFER_OVERFLOW;
            class.filter(|_| whole).map_or(Ok(()), |class| {
                query_directory::entries(class, m.buffer).try_for_each(|e| e.map(|_| ()))
            })
        }
        Message::QueryInfoRequest(m) => info_note(m.info_type, m.file_info_class, note),
        Message::SetInfoRequest(m) => info_note(m.info_type, m.file_info_class, note),
        Message::ChangeNotifyResponse(m) => m.changes().try_for_each(|c| c.map(|_| ())),
        Message::Error(m) => m.contexts().try_for_each(|c| {
            let context = c?;
            if Status(header.status) == Status::STOPPED_ON_SYMLINK {
                Symlink::parse(context.data)?;
            }
            Ok(())
        }),
        Message::Unknown => {
            note(Note::UnknownCommand);
            Ok(())
        }
        _ => Ok(()),
    }
}

fn create_note(tag: &[u8], note: &mut dyn FnMut(Note)) {
    let known = create_context::tag_name(tag).is_some();
    note(Note::CreateContext { tag: tag.to_vec(), known });
}

fn negotiate_context(context: negotiate::Context<'_>, note: &mut dyn FnMut(Note)) -> Result<(), ParseError> {
    use negotiate::{Context, context_type as t};
    let (kind, known) = match context {
        Context::PreauthIntegrity { .. } => (t::PREAUTH_INTEGRITY, true),
        Context::Encryption { .. } => (t::ENCRYPTION, true),
        Context::Compression { .. } => (t::COMPRESSION, true),
        Context::Netname { .. } => (t::NETNAME, true),
        Context::Transport { .. } => (t::TRANSPORT, true),
        Context::RdmaTransform { .. } => (t::RDMA_TRANSFORM, true),
        Context::Signing { .. } => (t::SIGNING, true),
        Context::Posix { .. } => (t::POSIX, true),
        Context::Unknown { context_type, .. } => (context_type, false),
    };
    note(Note::NegotiateContext { kind, known });
    Ok(())
}

fn fsctl_note(code: u32, note: &mut dyn FnMut(Note)) -> Result<(), ParseError> {
    note(Note::Fsctl { code, known: fsctl::name(code).is_some() });
    Ok(())
}

fn info_note(info_type: u8, class: u8, note: &mut dyn FnMut(Note)) -> Result<(), ParseError> {
    note(Note::InfoLevel { info_type, class, known: info::name(info_type, class).is_some() });
    Ok(())
}
