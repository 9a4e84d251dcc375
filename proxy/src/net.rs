//! Sockets: how they are opened, tuned and ended.

use std::{io, net::SocketAddr, time::Duration};

use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};
use tokio::{
    net::{TcpListener, TcpStream, lookup_host},
    time::timeout,
};
use understudy_core::event::LegLoss;

/// How long a TCP connect may take: long enough for the second SYN, where a herd of connects overflows a node's queue.
const CONNECT: Duration = Duration::from_secs(3);
/// The accept queue: a herd of clients reconnects at once.
const BACKLOG: i32 = 4096;

/// Opens the floating address.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Why an address cannot be listened on, with a remedy.
pub(crate) fn why_not(address: SocketAddr, error: &io::Error) -> String {
    let (ip, port) = (address.ip(), address.port());
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("smbd, or another understudy? `ss -ltnp sport = {port}` names the program")
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("add {ip} to an interface of this machine (ip address add), or listen on \"[::]:{port}\"")
        }
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need root or the capability CAP_NET_BIND_SERVICE".into()
        }
        _ => return error.to_string(),
    };
    format!("{error}; {remedy}")
}

/// Connects to a node. `user_timeout` bounds how long sent bytes may stay unacknowledged.
pub(crate) async fn connect(address: &str, user_timeout: Duration) -> io::Result<TcpStream> {
    let targets = lookup_host(address).await?;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for target in targets {
        match timeout(CONNECT, TcpStream::connect(target)).await {
            Ok(Ok(stream)) => {
                tune_node_leg(&stream, user_timeout)?;
                return Ok(stream);
            }
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

fn tune_node_leg(stream: &TcpStream, user_timeout: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(10))
        .with_interval(Duration::from_secs(5))
        .with_retries(6);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(user_timeout))
}

/// A client leg: no delay, and keepalive so that a client that vanished is noticed.
pub(crate) fn tune_client_leg(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15));
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Acknowledge at once what has been read. The kernel forgets it by itself, so it is asked for again and again.
pub(crate) fn quickack(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_tcp_quickack(true);
}

/// The connection will end with RST when it is dropped.
pub(crate) fn reset_on_drop(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// The connection will end in order when it is dropped, after what was written.
pub(crate) fn finish_on_drop(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(None);
}

/// What an error says of the host at the other end.
pub(crate) fn loss(error: &io::Error) -> LegLoss {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => LegLoss::Refused,
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe => LegLoss::Closed,
        _ => LegLoss::Silent,
    }
}
