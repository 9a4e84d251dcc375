//! Addresses of interfaces, set and removed by rtnetlink (rtnetlink(7)).

use std::{
    io::{self, Read as _, Write as _},
    net::IpAddr,
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

/// AF_NETLINK, and of its protocols NETLINK_ROUTE.
const NETLINK: (i32, i32) = (16, 0);
const INET: u8 = 2;
const INET6: u8 = 10;
/// Types of messages.
const ERROR: u16 = 2;
const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
/// Flags of requests: REQUEST and ACK; REPLACE and CREATE.
const ANSWERED: u16 = 0x5;
const SET: u16 = 0x500;
/// Attributes.
const ADDRESS: u16 = 1;
const LOCAL: u16 = 2;
const CACHE_INFO: u16 = 6;
const FLAGS: u16 = 8;
/// IFA_F_NODAD: the kernel does not look itself whether somebody else has it, which takes a second.
const NO_DAD: u32 = 2;
/// Seconds.
const FOR_EVER: u32 = u32::MAX;
/// The length of the head of a message.
const HEAD: usize = 16;

/// A connection to the kernel.
#[derive(Debug)]
pub(super) struct Netlink(Socket);

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        let (domain, protocol) = NETLINK;
        let socket = Socket::new(Domain::from(domain), Type::RAW, Some(Protocol::from(protocol)))?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        Ok(Self(socket))
    }

    /// Gives an interface an address, or renews it: the kernel removes it after `lifetime`, in whole seconds.
    pub(super) fn set(
        &self,
        index: u32,
        address: (IpAddr, u8),
        lifetime: Option<Duration>,
    ) -> io::Result<()> {
        let valid = lifetime
            .map_or(FOR_EVER, |time| u32::try_from(time.as_millis().div_ceil(1000)).unwrap_or(FOR_EVER));
        // Where there are several addresses of IPv6 it is not to be chosen for connections of this machine's own.
        let preferred = if address.0.is_ipv6() { 0 } else { valid };
        let times = [preferred, valid, 0, 0].map(u32::to_ne_bytes).concat();
        let mut body = about(index, address);
        put(&mut body, CACHE_INFO, &times);
        if address.0.is_ipv6() {
            put(&mut body, FLAGS, &NO_DAD.to_ne_bytes());
        }
        self.ask(NEW_ADDRESS, SET, &body)
    }

    /// Takes an address from an interface. Whether it had it.
    pub(super) fn remove(&self, index: u32, address: (IpAddr, u8)) -> io::Result<bool> {
        match self.ask(DELETE_ADDRESS, 0, &about(index, address)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn ask(&self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        let length = u32::try_from(HEAD + body.len()).map_err(io::Error::other)?;
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend((flags | ANSWERED).to_ne_bytes());
        // A number for the answer, and the kernel's own id for us.
        message.extend([0; 8]);
        message.extend(body);
        (&self.0).write_all(&message)?;
        let mut answer = [0; 4096];
        let length = (&self.0).read(&mut answer)?;
        let answer = answer.get(..length).unwrap_or_default();
        let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
        let code = answer.get(HEAD..HEAD + 4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
        match (kind, code) {
            (Some(ERROR), Some(0)) => Ok(()),
            (Some(ERROR), Some(code)) => Err(io::Error::from_raw_os_error(-code)),
            _ => Err(io::Error::other("netlink answers what was not asked")),
        }
    }
}

/// The body of a message about an address: struct ifaddrmsg and the address.
fn about(index: u32, (ip, prefix): (IpAddr, u8)) -> Vec<u8> {
    let (family, octets) = match ip {
        IpAddr::V4(ip) => (INET, ip.octets().to_vec()),
        IpAddr::V6(ip) => (INET6, ip.octets().to_vec()),
    };
    let mut body = vec![family, prefix, 0, 0];
    body.extend(index.to_ne_bytes());
    put(&mut body, LOCAL, &octets);
    put(&mut body, ADDRESS, &octets);
    body
}

/// An attribute, padded to four bytes.
fn put(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_as_the_kernel_wants_it() {
        let body = about(3, ("10.0.0.100".parse().unwrap(), 24));
        assert_eq!(body.len(), 8 + 8 + 8);
        assert_eq!(body[..4], [2, 24, 0, 0]);
        assert_eq!(body[12..16], [10, 0, 0, 100]);
        let body = about(3, ("fd00::1".parse().unwrap(), 64));
        assert_eq!((body.len(), body[0]), (8 + 20 + 20, 10));
    }

    #[test]
    fn the_kernel_answers() {
        // Whoever may not, and an interface that is not there, are told so; an address that is not there is no mistake.
        let netlink = Netlink::open().unwrap();
        let error = netlink.set(u32::MAX >> 1, ("10.99.99.99".parse().unwrap(), 32), None).unwrap_err();
        let known = [rustix::io::Errno::PERM, rustix::io::Errno::NODEV].map(|errno| errno.raw_os_error());
        assert!(error.raw_os_error().is_some_and(|code| known.contains(&code)), "{error}");
    }
}
