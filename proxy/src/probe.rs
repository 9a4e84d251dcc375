//! Asking a node whether it lives, on connections of our own: NEGOTIATE, then SMB ECHO without a session.

use std::{io, sync::Arc, time::Duration};

use smb_parse::{
    encode::{self, NegotiateParams},
    frame::{PREFIX, Protocol, frame_len, protocol},
    header::{Command, Header},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep_until, timeout},
};
use understudy_core::{event::LegLoss, fleet::ProbeReport, ids::NodeId, random::Random};

use crate::{
    net,
    random::SystemRandom,
    shared::{FleetInput, Shared},
};

/// The largest answer that is read.
const ANSWER: usize = 64 << 10;
/// After this many unanswered rounds the connection is given up and a new one is tried.
const ROUNDS: u32 = 4;

/// Asks afresh: connect and NEGOTIATE.
pub(crate) async fn ask(address: &str, limit: Duration) -> ProbeReport {
    match timeout(limit, open(address)).await {
        Ok(Ok(_)) => ProbeReport::Answer,
        Ok(Err(error)) => report_of(&error),
        Err(_) => ProbeReport::Silent,
    }
}

/// Connects and negotiates, with the node's own words if it fails. For `check`.
pub(crate) async fn open(address: &str) -> io::Result<TcpStream> {
    let mut stream = net::connect(address, Duration::from_secs(10)).await?;
    stream.write_all(&encode::frame(negotiate())).await?;
    read_answer(&mut stream).await?;
    Ok(stream)
}

/// Watches one node for ever.
pub(crate) async fn watch(shared: Arc<Shared>, node: NodeId, interval: Duration) {
    let Some(address) = shared.nodes.get(usize::from(node.0)).map(|n| n.address.clone()) else { return };
    let tell = |report| shared.fleet.send(FleetInput::Probe { node, report }).is_ok();
    let mut next = Instant::now();
    loop {
        sleep_until(next).await;
        next = Instant::now() + interval;
        let report = match timeout(interval, open(&address)).await {
            Ok(Ok(stream)) => {
                if !tell(ProbeReport::Answer) {
                    return;
                }
                let report = echo_until_lost(stream, interval, &tell).await;
                next = Instant::now();
                report
            }
            Ok(Err(error)) => report_of(&error),
            Err(_) => ProbeReport::Silent,
        };
        if !tell(report) {
            return;
        }
        // A fresh attempt follows at once only where the node had answered before.
        next = next.max(Instant::now() + interval / 4);
    }
}

/// Sends ECHO at every interval and reports; returns what the end of the connection says.
async fn echo_until_lost(
    mut stream: TcpStream,
    interval: Duration,
    tell: &impl Fn(ProbeReport) -> bool,
) -> ProbeReport {
    let mut message_id = 1;
    loop {
        // The end of the connection is news at once, not at the next ECHO.
        let mut byte = [0];
        match timeout(interval, stream.peek(&mut byte)).await {
            Err(_) => {}
            Ok(Ok(_)) => return ProbeReport::Closed,
            Ok(Err(error)) => return report_of(&error),
        }
        let echo = encode::frame(encode::echo(&Header::request(Command::ECHO, message_id)));
        message_id += 1;
        if let Err(error) = stream.write_all(&echo).await {
            return report_of(&error);
        }
        let mut rounds = 0;
        let mut answer = Box::pin(read_answer(&mut stream));
        loop {
            match timeout(interval, &mut answer).await {
                Ok(Ok(())) => break,
                Ok(Err(error)) => return report_of(&error),
                Err(_) => rounds += 1,
            }
            if rounds == ROUNDS {
                return ProbeReport::Silent;
            }
            tell(ProbeReport::Silent);
        }
        drop(answer);
        tell(ProbeReport::Answer);
    }
}

fn report_of(error: &io::Error) -> ProbeReport {
    match net::loss(error) {
        LegLoss::Refused => ProbeReport::Refused,
        LegLoss::Closed => ProbeReport::Closed,
        LegLoss::Silent => ProbeReport::Silent,
    }
}

/// Any SMB2 answer will do: a node that refuses our dialects lives too.
async fn read_answer(stream: &mut TcpStream) -> io::Result<()> {
    let mut prefix = [0; PREFIX];
    stream.read_exact(&mut prefix).await?;
    let no_smb = || io::Error::new(io::ErrorKind::InvalidData, "it does not speak SMB2");
    let len = frame_len(prefix).ok().filter(|len| *len <= ANSWER).ok_or_else(no_smb)? - PREFIX;
    let mut body = vec![0; len];
    stream.read_exact(&mut body).await?;
    if protocol(&body) == Protocol::Smb2 { Ok(()) } else { Err(no_smb()) }
}

fn negotiate() -> Vec<u8> {
    let (mut salt, mut client_guid) = ([0; 32], [0; 16]);
    SystemRandom.fill(&mut salt);
    SystemRandom.fill(&mut client_guid);
    let params = NegotiateParams {
        dialects: &[0x0202, 0x0210, 0x0300, 0x0302, 0x0311],
        security_mode: 1,
        capabilities: 0,
        client_guid,
        preauth_salt: &salt,
        ciphers: &[],
        signing_algs: &[],
        netname: None,
    };
    encode::negotiate(&Header::request(Command::NEGOTIATE, 0), &params)
}
