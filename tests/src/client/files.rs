//! Files: opened, read, written, locked, closed.

use anyhow::{Context, Result, ensure};
use smb_parse::{
    FileId,
    cmd::{create, ioctl, lock::Lock, query_info, read, write},
    create_context::{Lease, tag},
    encode::{self, CreateParams, IoctlParams, QueryInfoParams},
    header::{Command, Header},
};

use super::{Answer, At, Client, charge, login::utf16};

/// FILE_OPEN, FILE_CREATE, FILE_OPEN_IF (MS-SMB2 2.2.13).
pub(crate) const FILE_OPEN: u32 = 1;
/// See [`FILE_OPEN`].
pub(crate) const FILE_CREATE: u32 = 2;
/// See [`FILE_OPEN`].
pub(crate) const FILE_OPEN_IF: u32 = 3;
/// GENERIC_READ, spelt out (MS-SMB2 2.2.13.1).
pub(crate) const READ: u32 = 0x0012_0089;
/// The same with writing and deleting.
pub(crate) const READ_WRITE: u32 = 0x0013_019f;
/// FILE_DELETE_ON_CLOSE.
pub(crate) const DELETE_ON_CLOSE: u32 = 0x1000;
/// All others may read, write and delete.
const SHARE_ALL: u32 = 7;
/// `SMB2_OPLOCK_LEVEL_LEASE`.
const OPLOCK_LEASE: u8 = 0xff;

/// How a file is to be opened.
#[derive(Debug, Clone)]
pub(crate) struct Open<'a> {
    pub(crate) name: &'a str,
    pub(crate) access: u32,
    pub(crate) share: u32,
    pub(crate) disposition: u32,
    pub(crate) options: u32,
    pub(crate) oplock: u8,
    pub(crate) lease: Option<Lease>,
    /// DHnQ, or anything else.
    pub(crate) contexts: Vec<(&'a [u8], Vec<u8>)>,
}

impl<'a> Open<'a> {
    /// What is there, to read and to write.
    pub(crate) fn of(name: &'a str) -> Self {
        Self {
            name,
            access: READ_WRITE,
            share: SHARE_ALL,
            disposition: FILE_OPEN,
            options: 0,
            oplock: 0,
            lease: None,
            contexts: Vec::new(),
        }
    }

    /// With a lease under `key`: READ 1, HANDLE 2, WRITE 4; in version 1 or 2.
    pub(crate) fn leased(mut self, version: u8, key: [u8; 16], state: u32) -> Self {
        self.lease =
            Some(Lease { key, state, flags: 0, duration: 0, parent_key: [0; 16], epoch: 0, version });
        self
    }

    /// Its message.
    pub(crate) fn build(&self, header: &Header) -> Vec<u8> {
        let mut contexts = self.contexts.clone();
        if let Some(lease) = &self.lease {
            contexts.push((tag::RQLS, encode::lease(lease)));
        }
        encode::create(
            header,
            &CreateParams {
                oplock_level: if self.lease.is_some() { OPLOCK_LEASE } else { self.oplock },
                impersonation_level: 2,
                desired_access: self.access,
                file_attributes: 0,
                share_access: self.share,
                create_disposition: self.disposition,
                create_options: self.options,
                name_utf16: &utf16(self.name),
                contexts: &contexts,
            },
        )
    }
}

/// An open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) at: At,
    pub(crate) id: FileId,
}

impl File {
    /// From the answer to a CREATE.
    pub(crate) fn from(at: At, answer: Answer) -> Result<Self> {
        let answer = answer.success()?;
        Ok(Self { at, id: create::Response::parse(&answer.msg)?.file_id })
    }
}

impl Client {
    /// CREATE.
    pub(crate) fn open(&mut self, at: At, open: &Open<'_>) -> Result<File> {
        let answer = self.call(at, Command::CREATE, 1, |header| open.build(header))?;
        File::from(at, answer).with_context(|| format!("opening {}", open.name))
    }

    /// READ, to be waited for.
    pub(crate) fn send_read(&mut self, file: File, offset: u64, len: u32) -> Result<u64> {
        let cost = charge(usize::try_from(len)?);
        self.send(file.at, Command::READ, cost, |header| encode::read(header, file.id, offset, len, 0))
    }

    /// READ.
    pub(crate) fn read(&mut self, file: File, offset: u64, len: u32) -> Result<Vec<u8>> {
        let id = self.send_read(file, offset, len)?;
        data(self.wait(id)?)
    }

    /// WRITE, to be waited for.
    pub(crate) fn send_write(&mut self, file: File, offset: u64, bytes: &[u8]) -> Result<u64> {
        self.send(file.at, Command::WRITE, charge(bytes.len()), |header| {
            encode::write(header, file.id, offset, 0, bytes)
        })
    }

    /// WRITE, all of it.
    pub(crate) fn write(&mut self, file: File, offset: u64, bytes: &[u8]) -> Result<()> {
        let id = self.send_write(file, offset, bytes)?;
        written(self.wait(id)?, bytes.len())
    }

    /// FLUSH.
    pub(crate) fn flush(&mut self, file: File) -> Result<()> {
        self.call(file.at, Command::FLUSH, 1, |header| encode::flush(header, file.id))?.success().map(|_| ())
    }

    /// LOCK.
    pub(crate) fn lock(&mut self, file: File, locks: &[Lock]) -> Result<Answer> {
        self.call(file.at, Command::LOCK, 1, |header| encode::lock(header, file.id, 0, locks))
    }

    /// SET_INFO of a file (MS-FSCC 2.4).
    pub(crate) fn set_info(&mut self, file: File, class: u8, buffer: &[u8]) -> Result<Answer> {
        self.call(file.at, Command::SET_INFO, 1, |header| {
            encode::set_info(header, 1, class, 0, file.id, buffer)
        })
    }

    /// QUERY_INFO of a file.
    pub(crate) fn query_info(&mut self, file: File, class: u8) -> Result<Vec<u8>> {
        let answer = self
            .call(file.at, Command::QUERY_INFO, 1, |header| build_query(header, file.id, class))?
            .success()?;
        Ok(query_info::Response::parse(&answer.msg)?.buffer.to_vec())
    }

    /// IOCTL.
    pub(crate) fn ioctl(&mut self, at: At, id: FileId, code: u32, input: &[u8]) -> Result<Answer> {
        let params = IoctlParams { ctl_code: code, file_id: id, input, max_output: 65_536 };
        self.call(at, Command::IOCTL, 1, |header| encode::ioctl(header, &params))
    }

    /// IOCTL and what it put out.
    pub(crate) fn fsctl(&mut self, file: File, code: u32, input: &[u8]) -> Result<Vec<u8>> {
        let answer = self.ioctl(file.at, file.id, code, input)?.success()?;
        Ok(ioctl::Response::parse(&answer.msg)?.output.to_vec())
    }

    /// CLOSE.
    pub(crate) fn close(&mut self, file: File) -> Result<()> {
        self.call(file.at, Command::CLOSE, 1, |header| encode::close(header, 0, file.id))?
            .success()
            .map(|_| ())
    }

    /// Acknowledges a lease break (MS-SMB2 2.2.24.2).
    pub(crate) fn acknowledge_lease(&mut self, at: At, key: [u8; 16], state: u32) -> Result<Answer> {
        self.call(at, Command::OPLOCK_BREAK, 1, |header| encode::lease_break_ack(header, key, state))
    }
}

/// QUERY_INFO of a file, as a message.
pub(crate) fn build_query(header: &Header, file_id: FileId, class: u8) -> Vec<u8> {
    let params = QueryInfoParams {
        info_type: 1,
        file_info_class: class,
        output_buffer_length: 4096,
        additional_information: 0,
        flags: 0,
        file_id,
        input: &[],
    };
    encode::query_info(header, &params)
}

/// What a READ brought.
pub(crate) fn data(answer: Answer) -> Result<Vec<u8>> {
    let answer = answer.success()?;
    Ok(read::Response::parse(&answer.msg)?.data.to_vec())
}

/// That a WRITE wrote everything.
pub(crate) fn written(answer: Answer, len: usize) -> Result<()> {
    let answer = answer.success()?;
    let count = write::Response::parse(&answer.msg)?.count;
    ensure!(usize::try_from(count)? == len, "{count} of {len} bytes were written");
    Ok(())
}
