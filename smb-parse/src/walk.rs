//! Reads a message to the last byte that means something, and tells what it met on the way: for tools and tests, as
//! [`Message`] is.

use crate::{
    ParseError,
    cmd::{Message, error::Symlink, negotiate, query_directory},
    create_context::{RequestContext, ResponseContext},
    header::{Header, Status},
};

/// Something a message named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "`known`: it has a name here")]
pub enum Note<'a> {
    /// A create context.
    CreateContext { tag: &'a [u8], known: bool },
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
///
/// # Errors
/// The first thing that cannot be read.
pub fn walk<'a>(
    header: &Header,
    msg: &'a [u8],
    class: Option<u8>,
    note: &mut dyn FnMut(Note<'a>),
) -> Result<(), ParseError> {
    match Message::parse(header, msg)? {
        Message::NegotiateRequest(m) => m.contexts().try_for_each(|c| {
            note(negotiate_context(&c?));
            Ok(())
        })?,
        Message::NegotiateResponse(m) => m.contexts().try_for_each(|c| {
            note(negotiate_context(&c?));
            Ok(())
        })?,
        Message::TreeConnectRequest(m) => m.contexts().try_for_each(|c| c.map(|_| ()))?,
        Message::CreateRequest(m) => m.contexts().try_for_each(|c| {
            let context = c?;
            note(create_context(context.tag));
            let typed = RequestContext::parse(&context);
            if let RequestContext::Malformed(error) = typed { Err(error) } else { Ok(()) }
        })?,
        Message::CreateResponse(m) => m.contexts().try_for_each(|c| {
            let context = c?;
            note(create_context(context.tag));
            let typed = ResponseContext::parse(&context);
            if let ResponseContext::Malformed(error) = typed { Err(error) } else { Ok(()) }
        })?,
        Message::LockRequest(m) => m.locks().try_for_each(|l| l.map(|_| ()))?,
        Message::IoctlRequest(m) => note(fsctl(m.ctl_code)),
        Message::IoctlResponse(m) => note(fsctl(m.ctl_code)),
        Message::QueryDirectoryRequest(m) => note(info(1, m.info_class)),
        Message::QueryDirectoryResponse(m) => {
            // A page that was cut short by the client's buffer may end in the middle of an entry.
            let whole = Status(header.status) != Status::BUFFER_OVERFLOW;
            if let Some(class) = class.filter(|_| whole) {
                query_directory::entries(class, m.buffer).try_for_each(|e| e.map(|_| ()))?;
            }
        }
        Message::QueryInfoRequest(m) => note(info(m.info_type, m.file_info_class)),
        Message::SetInfoRequest(m) => note(info(m.info_type, m.file_info_class)),
        Message::ChangeNotifyResponse(m) => m.changes().try_for_each(|c| c.map(|_| ()))?,
        Message::Error(m) => m.contexts().try_for_each(|c| {
            let context = c?;
            if Status(header.status) == Status::STOPPED_ON_SYMLINK {
                Symlink::parse(context.data)?;
            }
            Ok(())
        })?,
        Message::Unknown => note(Note::UnknownCommand),
        _ => {}
    }
    Ok(())
}

fn create_context(tag: &[u8]) -> Note<'_> {
    Note::CreateContext { tag, known: crate::create_context::tag_name(tag).is_some() }
}

fn negotiate_context(context: &negotiate::Context<'_>) -> Note<'static> {
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
        Context::Unknown { context_type, .. } => (*context_type, false),
    };
    Note::NegotiateContext { kind, known }
}

fn fsctl(code: u32) -> Note<'static> {
    Note::Fsctl { code, known: crate::fsctl::name(code).is_some() }
}

fn info(info_type: u8, class: u8) -> Note<'static> {
    Note::InfoLevel { info_type, class, known: crate::info::name(info_type, class).is_some() }
}
