//! Any message by the typed parser of its command: for tools and tests; the proxy asks for what it needs.

use super::{
    cancel, change_notify, close, create, echo, error, flush, ioctl, lock, logoff, negotiate, notification,
    oplock_break, query_directory, query_info, read, session_setup, set_info, tree_connect, tree_disconnect,
    write,
};
use crate::{
    ParseError,
    header::{Command, Header},
};

/// The MessageId of what no request asked for (MS-SMB2 2.2.1).
const UNSOLICITED: u64 = u64::MAX;

/// A message's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant is what it says")]
pub enum Message<'a> {
    NegotiateRequest(negotiate::Request<'a>),
    NegotiateResponse(negotiate::Response<'a>),
    SessionSetupRequest(session_setup::Request<'a>),
    SessionSetupResponse(session_setup::Response<'a>),
    LogoffRequest(logoff::Request),
    LogoffResponse(logoff::Response),
    TreeConnectRequest(tree_connect::Request<'a>),
    TreeConnectResponse(tree_connect::Response),
    TreeDisconnectRequest(tree_disconnect::Request),
    TreeDisconnectResponse(tree_disconnect::Response),
    CreateRequest(create::Request<'a>),
    CreateResponse(create::Response<'a>),
    CloseRequest(close::Request),
    CloseResponse(close::Response),
    FlushRequest(flush::Request),
    FlushResponse(flush::Response),
    ReadRequest(read::Request<'a>),
    ReadResponse(read::Response<'a>),
    WriteRequest(write::Request<'a>),
    WriteResponse(write::Response),
    LockRequest(lock::Request<'a>),
    LockResponse(lock::Response),
    IoctlRequest(ioctl::Request<'a>),
    IoctlResponse(ioctl::Response<'a>),
    CancelRequest(cancel::Request),
    EchoRequest(echo::Request),
    EchoResponse(echo::Response),
    QueryDirectoryRequest(query_directory::Request<'a>),
    QueryDirectoryResponse(query_directory::Response<'a>),
    ChangeNotifyRequest(change_notify::Request),
    ChangeNotifyResponse(change_notify::Response<'a>),
    QueryInfoRequest(query_info::Request<'a>),
    QueryInfoResponse(query_info::Response<'a>),
    SetInfoRequest(set_info::Request<'a>),
    SetInfoResponse(set_info::Response),
    BreakNotification(oplock_break::Notification),
    BreakRequest(oplock_break::Request),
    BreakResponse(oplock_break::Response),
    Notification(notification::Response<'a>),
    Error(error::Response<'a>),
    /// A command that nobody has defined yet.
    Unknown,
}

impl<'a> Message<'a> {
    /// Reads the body of the message that `header` was read from.
    pub fn parse(header: &Header, msg: &'a [u8]) -> Result<Self, ParseError> {
        if !header.is_response() {
            return Self::request(header.command, msg);
        }
        if error::is_error_body(header, msg) {
            return error::Response::parse(msg).map(Self::Error);
        }
        if header.command == Command::OPLOCK_BREAK && header.message_id == UNSOLICITED {
            return oplock_break::Notification::parse(msg).map(Self::BreakNotification);
        }
        Self::response(header.command, msg)
    }

    fn request(command: Command, msg: &'a [u8]) -> Result<Self, ParseError> {
        Ok(match command {
            Command::NEGOTIATE => Self::NegotiateRequest(negotiate::Request::parse(msg)?),
            Command::SESSION_SETUP => Self::SessionSetupRequest(session_setup::Request::parse(msg)?),
            Command::LOGOFF => Self::LogoffRequest(logoff::Request::parse(msg)?),
            Command::TREE_CONNECT => Self::TreeConnectRequest(tree_connect::Request::parse(msg)?),
            Command::TREE_DISCONNECT => Self::TreeDisconnectRequest(tree_disconnect::Request::parse(msg)?),
            Command::CREATE => Self::CreateRequest(create::Request::parse(msg)?),
            Command::CLOSE => Self::CloseRequest(close::Request::parse(msg)?),
            Command::FLUSH => Self::FlushRequest(flush::Request::parse(msg)?),
            Command::READ => Self::ReadRequest(read::Request::parse(msg)?),
            Command::WRITE => Self::WriteRequest(write::Request::parse(msg)?),
            Command::LOCK => Self::LockRequest(lock::Request::parse(msg)?),
            Command::IOCTL => Self::IoctlRequest(ioctl::Request::parse(msg)?),
            Command::CANCEL => Self::CancelRequest(cancel::Request::parse(msg)?),
            Command::ECHO => Self::EchoRequest(echo::Request::parse(msg)?),
            Command::QUERY_DIRECTORY => Self::QueryDirectoryRequest(query_directory::Request::parse(msg)?),
            Command::CHANGE_NOTIFY => Self::ChangeNotifyRequest(change_notify::Request::parse(msg)?),
            Command::QUERY_INFO => Self::QueryInfoRequest(query_info::Request::parse(msg)?),
            Command::SET_INFO => Self::SetInfoRequest(set_info::Request::parse(msg)?),
            Command::OPLOCK_BREAK => Self::BreakRequest(oplock_break::Request::parse(msg)?),
            _ => Self::Unknown,
        })
    }

    fn response(command: Command, msg: &'a [u8]) -> Result<Self, ParseError> {
        Ok(match command {
            Command::NEGOTIATE => Self::NegotiateResponse(negotiate::Response::parse(msg)?),
            Command::SESSION_SETUP => Self::SessionSetupResponse(session_setup::Response::parse(msg)?),
            Command::LOGOFF => Self::LogoffResponse(logoff::Response::parse(msg)?),
            Command::TREE_CONNECT => Self::TreeConnectResponse(tree_connect::Response::parse(msg)?),
            Command::TREE_DISCONNECT => Self::TreeDisconnectResponse(tree_disconnect::Response::parse(msg)?),
            Command::CREATE => Self::CreateResponse(create::Response::parse(msg)?),
            Command::CLOSE => Self::CloseResponse(close::Response::parse(msg)?),
            Command::FLUSH => Self::FlushResponse(flush::Response::parse(msg)?),
            Command::READ => Self::ReadResponse(read::Response::parse(msg)?),
            Command::WRITE => Self::WriteResponse(write::Response::parse(msg)?),
            Command::LOCK => Self::LockResponse(lock::Response::parse(msg)?),
            Command::IOCTL => Self::IoctlResponse(ioctl::Response::parse(msg)?),
            Command::ECHO => Self::EchoResponse(echo::Response::parse(msg)?),
            Command::QUERY_DIRECTORY => Self::QueryDirectoryResponse(query_directory::Response::parse(msg)?),
            Command::CHANGE_NOTIFY => Self::ChangeNotifyResponse(change_notify::Response::parse(msg)?),
            Command::QUERY_INFO => Self::QueryInfoResponse(query_info::Response::parse(msg)?),
            Command::SET_INFO => Self::SetInfoResponse(set_info::Response::parse(msg)?),
            Command::OPLOCK_BREAK => Self::BreakResponse(oplock_break::Response::parse(msg)?),
            Command::SERVER_TO_CLIENT_NOTIFICATION => Self::Notification(notification::Response::parse(msg)?),
            _ => Self::Unknown,
        })
    }
}
