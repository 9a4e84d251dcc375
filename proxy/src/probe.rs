//! Asking a node whether it lives, on connections of our own: NEGOTIATE, then SMB ECHO without a session. And, when it is
//! first met, what it says of itself.

use std::{future::pending, io, sync::Arc, time::Duration};

use smb_parse::{
    encode::{self, NegotiateParams},
    frame::{PREFIX, Protocol, frame_len, protocol},
    header::{Command, Header},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, sleep_until, timeout},
};
use understudy_core::{
    auth::Credentials,
    event::LegLoss,
    fleet::{
        ProbeReport, Profile,
        interview::{Ask, Interview, Visitor},
    },
    ids::NodeId,
    random::Random,
};

use crate::{
    config::CompareConfig,
    net,
    random::SystemRandom,
    shared::{FleetInput, Shared},
};

/// The largest answer that is read.
const ANSWER: usize = 64 << 10;
/// After this many unanswered rounds the connection is given up and a new one is tried.
const ROUNDS: u32 = 4;

/// How long a node may take over one question about itself.
const QUESTION: Duration = Duration::from_secs(5);
/// When to ask it again if it did not answer them all: at first, and in the end.
const ASK_AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];

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

/// In whose name a node's volumes are looked at, if that is configured and the user is known.
pub(crate) fn visitor(
    compare: Option<&CompareConfig>,
    credentials: &dyn Credentials,
    address: &str,
) -> Option<Visitor> {
    let CompareConfig { user, shares } = compare?;
    let hash = credentials.nt_hash("", user)?;
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).to_owned();
    Some(Visitor { user: user.clone(), hash, host, shares: shares.clone() })
}

/// Asks a node what it says of itself: several short connections, one after another, for smbd has a process for each.
///
/// # Errors
/// The node cannot be reached any more, is silent, or accepts no dialect.
pub(crate) async fn interview(address: &str, visitor: Option<Visitor>) -> io::Result<Profile> {
    let mut interview = Interview::new(visitor);
    let mut stream = None;
    while let Some(ask) = interview.ask(&mut SystemRandom) {
        let answer = timeout(QUESTION, answer_to(address, &mut stream, ask)).await;
        match answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(mut answer) => interview.handle_answer(&mut answer, &mut SystemRandom),
            Err(error) if net::loss(&error) == LegLoss::Closed && stream.is_some() => {
                interview.handle_closed();
            }
            Err(error) => return Err(error),
        }
    }
    interview
        .finish()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it accepts no dialect of SMB2 or SMB3"))
}

async fn answer_to(address: &str, stream: &mut Option<TcpStream>, ask: Ask) -> io::Result<Vec<u8>> {
    let message = match ask {
        Ask::Fresh(message) => {
            *stream = None;
            *stream = Some(net::connect(address, Duration::from_secs(10)).await?);
            Some(message)
        }
        Ask::Same(message) => Some(message),
        Ask::Wait => None,
    };
    let stream = stream.as_mut().ok_or(io::ErrorKind::NotConnected)?;
    if let Some(message) = message {
        stream.write_all(&encode::frame(&message)).await?;
    }
    read_message(stream).await
}

/// Asks a node about itself until it has answered.
async fn introduce(
    shared: &Shared,
    node: NodeId,
    address: &str,
    compare: Option<&CompareConfig>,
    said: &mut bool,
) {
    let [mut pause, longest] = ASK_AGAIN;
    loop {
        let visitor = visitor(compare, &*shared.credentials, address);
        match interview(address, visitor).await {
            Ok(profile) => {
                let _ = shared.fleet.send(FleetInput::Profile { node, profile: Box::new(profile) });
                return;
            }
            // Once is enough for a node that comes and goes.
            Err(error) if !std::mem::replace(said, true) => {
                tracing::info!(node = shared.node_name(node), %error, "the node could not be compared with the others yet");
            }
            Err(_) => {}
        }
        sleep(pause).await;
        pause = (pause * 2).min(longest);
    }
}

/// Watches one node for ever.
pub(crate) async fn watch(
    shared: Arc<Shared>,
    node: NodeId,
    interval: Duration,
    compare: Option<CompareConfig>,
) {
    let Some(address) = shared.nodes.address(node) else { return };
    let tell = |report| shared.fleet.send(FleetInput::Probe { node, report }).is_ok();
    let (mut next, mut said) = (Instant::now(), false);
    loop {
        sleep_until(next).await;
        next = Instant::now() + interval;
        let report = match timeout(interval, open(&address)).await {
            Ok(Ok(stream)) => {
                if !tell(ProbeReport::Answer) {
                    return;
                }
                // It may have been started anew, with another configuration.
                let introduction = async {
                    introduce(&shared, node, &address, compare.as_ref(), &mut said).await;
                    pending().await
                };
                let report = tokio::select! {
                    report = echo_until_lost(stream, interval, &tell) => report,
                    never = introduction => never,
                };
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
    read_message(stream).await.map(|_| ())
}

/// An SMB2 message, without the length prefix.
async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut prefix = [0; PREFIX];
    stream.read_exact(&mut prefix).await?;
    let no_smb = || io::Error::new(io::ErrorKind::InvalidData, "it does not speak SMB2");
    let len = frame_len(prefix).ok().filter(|len| *len <= ANSWER).ok_or_else(no_smb)? - PREFIX;
    let mut body = vec![0; len];
    stream.read_exact(&mut body).await?;
    if protocol(&body) == Protocol::Smb2 { Ok(body) } else { Err(no_smb()) }
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
        // All: Samba refuses whoever has no signing algorithm in common with it.
        ciphers: &[4, 3, 2, 1],
        signing_algs: &[2, 1, 0],
        netname: None,
    };
    encode::negotiate(&Header::request(Command::NEGOTIATE, 0), &params)
}
