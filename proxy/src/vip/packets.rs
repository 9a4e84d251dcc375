//! The packets by which others learn where an address is, and clients that their connection is gone.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

/// AF_PACKET.
const PACKET: i32 = 17;
const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const REQUEST: u16 = 1;
const REPLY: u16 = 2;
const BROADCAST: Mac = [0xff; 6];
/// Frames shorter than this are padded.
const LEAST: usize = 60;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Of an advertisement: what is known is to be replaced (RFC 4861 4.4).
const OVERRIDE: u8 = 0x20;
/// Neighbour discovery is not believed from further away (RFC 4861 7.1).
const HOPS: u32 = 255;
/// The length of a TCP header without options.
const TCP: usize = 20;
/// The protocol's number in IP.
const TCP_NUMBER: u8 = 6;
const ACK: u8 = 0x10;
/// How often it is asked whether somebody has an address.
const PROBES: u32 = 2;
/// How long an answer is waited for after each.
const ANSWER: Duration = Duration::from_millis(25);

/// A hardware address.
pub(super) type Mac = [u8; 6];

/// struct sockaddr_ll (packet(7)).
#[repr(C)]
struct LinkAddress {
    family: u16,
    protocol: u16,
    index: i32,
    hatype: u16,
    pkttype: u8,
    halen: u8,
    addr: [u8; 8],
}

/// The address of an interface for ARP.
#[allow(unsafe_code, reason = "socket2 knows no address of an interface")]
fn link_address(index: u32) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: the structure is smaller than the storage, as the kernel has it, and any bytes make one.
    let address = unsafe { storage.view_as::<LinkAddress>() };
    address.family = u16::try_from(PACKET).unwrap_or_default();
    address.protocol = ARP.to_be();
    address.index = i32::try_from(index).unwrap_or_default();
    let length = u32::try_from(size_of::<LinkAddress>()).unwrap_or_default();
    // SAFETY: the storage is initialized, with an address of this length.
    unsafe { SockAddr::new(storage, length) }
}

/// ARP on one interface.
fn arp_socket(index: u32) -> io::Result<Socket> {
    let protocol = Protocol::from(i32::from(ARP.to_be()));
    let socket = Socket::new(Domain::from(PACKET), Type::RAW, Some(protocol))?;
    socket.bind(&link_address(index))?;
    Ok(socket)
}

/// An ARP message in a frame for everybody (RFC 826).
fn arp(operation: u16, by: (Mac, Ipv4Addr), about: (Mac, Ipv4Addr)) -> Vec<u8> {
    let mut frame = [BROADCAST, by.0].concat();
    for word in [ARP, 1, IPV4, 0x0604, operation] {
        frame.extend(word.to_be_bytes());
    }
    for (mac, ip) in [by, about] {
        frame.extend(mac);
        frame.extend(ip.octets());
    }
    frame.resize(LEAST, 0);
    frame
}

/// Who an ARP frame says has this address.
fn arp_owner(frame: &[u8], ip: Ipv4Addr) -> Option<Mac> {
    let is_arp = frame.get(12..14)? == ARP.to_be_bytes();
    let says = frame.get(28..32)? == ip.octets();
    frame.get(22..28)?.try_into().ok().filter(|_| is_arp && says)
}

/// ICMPv6 on one interface.
fn icmp_socket(index: u32) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.set_multicast_if_v6(index)?;
    socket.set_multicast_hops_v6(HOPS)?;
    socket.set_multicast_loop_v6(false)?;
    Ok(socket)
}

/// A message of neighbour discovery with one option, the sender's hardware address (RFC 4861 4.3, 4.4).
fn discovery(kind: u8, flags: u8, about: Ipv6Addr, option: u8, mac: Mac) -> Vec<u8> {
    // The kernel puts the checksum in.
    let mut message = vec![kind, 0, 0, 0, flags, 0, 0, 0];
    message.extend(about.octets());
    message.extend([option, 1]);
    message.extend(mac);
    message
}

fn multicast(to: Ipv6Addr, index: u32) -> SockAddr {
    SocketAddrV6::new(to, 0, 0, index).into()
}

/// Whether somebody else has an address, and by what hardware address, if that is told.
pub(super) fn is_taken(index: u32, mac: Mac, ip: IpAddr) -> io::Result<Option<String>> {
    let (socket, question, to) = match ip {
        IpAddr::V4(ip) => {
            (arp_socket(index)?, arp(REQUEST, (mac, Ipv4Addr::UNSPECIFIED), ([0; 6], ip)), None)
        }
        IpAddr::V6(ip) => {
            let [.., a, b, c] = ip.octets();
            let [a, b, c] = [a, b, c].map(u16::from);
            // RFC 4291 2.7.1.
            let solicited = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | a, b << 8 | c);
            let question = discovery(SOLICITATION, 0, ip, 1, mac);
            (icmp_socket(index)?, question, Some(multicast(solicited, index)))
        }
    };
    let mut answer = [0; 2048];
    for _ in 0..PROBES {
        match &to {
            Some(to) => socket.send_to(&question, to).map(|_| ())?,
            None => (&socket).write_all(&question)?,
        }
        let end = Instant::now() + ANSWER;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            socket.set_read_timeout(Some(left))?;
            let length = match (&socket).read(&mut answer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
            let answer = answer.get(..length).unwrap_or_default();
            match ip {
                IpAddr::V4(ip) => {
                    if let Some(owner) = arp_owner(answer, ip).filter(|owner| *owner != mac) {
                        return Ok(Some(written(owner)));
                    }
                }
                IpAddr::V6(ip) => {
                    let is_it =
                        answer.first() == Some(&ADVERTISEMENT) && answer.get(8..24) == Some(&ip.octets());
                    let owner = answer.get(26..32).and_then(|mac| Mac::try_from(mac).ok());
                    if is_it && owner != Some(mac) {
                        return Ok(Some(owner.map_or_else(|| "another host".into(), written)));
                    }
                }
            }
        }
    }
    Ok(None)
}

fn written(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Tells everybody on the interface's network that this machine has an address now.
pub(super) fn announce(index: u32, mac: Mac, ip: IpAddr) -> io::Result<()> {
    match ip {
        IpAddr::V4(ip) => {
            let socket = arp_socket(index)?;
            // Some believe the one form, some the other (RFC 5944 4.6).
            (&socket).write_all(&arp(REQUEST, (mac, ip), ([0; 6], ip)))?;
            (&socket).write_all(&arp(REPLY, (mac, ip), (mac, ip)))
        }
        IpAddr::V6(ip) => {
            let socket = icmp_socket(index)?;
            socket.bind(&SocketAddrV6::new(ip, 0, 0, 0).into())?;
            let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
            socket
                .send_to(&discovery(ADVERTISEMENT, OVERRIDE, ip, 2, mac), &multicast(all, index))
                .map(|_| ())
        }
    }
}

/// Makes a client ask for a connection that this machine does not know: it is told by RST that it is gone, and comes back
/// at once. An ACK that no connection could have is answered by any (RFC 9293 3.10.7.4).
pub(super) fn tickle(from: SocketAddr, client: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(client), Type::RAW, Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::new(from.ip(), 0).into())?;
    socket.set_nonblocking(true)?;
    socket.send_to(&segment(from, client), &SocketAddr::new(client.ip(), 0).into()).map(|_| ())
}

fn segment(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let mut segment = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    // Sequence number and acknowledgement: 0.
    segment.extend([0; 8]);
    segment.extend([0x50, ACK]);
    // Window, checksum, urgent pointer.
    segment.extend(1234_u16.to_be_bytes());
    segment.extend([0; 4]);
    let mut pseudo = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => [from.octets(), to.octets()].concat(),
        (from, to) => [from, to].map(|ip| as_v6(ip).octets()).concat(),
    };
    pseudo.extend([0, TCP_NUMBER]);
    pseudo.extend(u16::try_from(TCP).unwrap_or_default().to_be_bytes());
    let sum = checksum(&[pseudo, segment.clone()].concat()).to_be_bytes();
    if let Some(place) = segment.get_mut(16..18) {
        place.copy_from_slice(&sum);
    }
    segment
}

fn as_v6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| match *pair {
        [high, low] => u32::from(u16::from_be_bytes([high, low])),
        [high] => u32::from(high) << 8,
        _ => 0,
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 7];

    #[test]
    fn an_announcement_is_believed_and_a_probe_is_not() {
        let ip: Ipv4Addr = "10.0.0.100".parse().unwrap();
        for operation in [REQUEST, REPLY] {
            let frame = arp(operation, (MAC, ip), (MAC, ip));
            assert_eq!((frame.len(), arp_owner(&frame, ip)), (LEAST, Some(MAC)));
            assert_eq!(arp_owner(&frame, "10.0.0.101".parse().unwrap()), None);
        }
        assert_eq!(arp_owner(&arp(REQUEST, (MAC, Ipv4Addr::UNSPECIFIED), ([0; 6], ip)), ip), None);
        assert_eq!(arp_owner(&[0; 20], ip), None);
    }

    #[test]
    fn the_checksum_is_that_of_the_standard() {
        // RFC 1071 section 3.
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        for (from, to) in [("10.0.0.100:445", "10.0.0.1:50000"), ("[fd00::1]:445", "[fd00::2]:50000")] {
            let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
            let segment = segment(from, to);
            assert_eq!((segment.len(), segment[13]), (TCP, ACK));
            // With its checksum in place all of it sums up to nothing.
            let ips = match (from.ip(), to.ip()) {
                (IpAddr::V4(a), IpAddr::V4(b)) => [a.octets(), b.octets()].concat(),
                (a, b) => [as_v6(a).octets(), as_v6(b).octets()].concat(),
            };
            assert_eq!(checksum(&[&ips[..], &[0, 6, 0, 20], &segment].concat()), 0);
        }
    }
}
