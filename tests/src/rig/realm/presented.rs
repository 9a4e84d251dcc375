//! A ticket as smbclient presents it. Who has the service's key has of it what the user has: with that our own client logs
//! in as often as it likes.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use smb_parse::{
    cmd::session_setup,
    frame::{PREFIX, frame_len},
    header::{Command, Header},
};
use understudy_core::auth::{
    Authority, Credentials, LoginObserver, UnixTime,
    kerberos::{Keytab, Ticket},
    keys::NtHash,
};

use super::{Cache, NAME};
use crate::{
    client,
    rig::{
        net::{CLIENT, Net},
        node::Node,
        wait_until,
    },
};

/// Where smbclient is sent to.
const PORT: u16 = 4450;

/// The first security buffer that smbclient would send to this node. Its connection ends there.
pub(super) fn to(net: &Net, node: &Node, tickets: &Cache) -> Result<Vec<u8>> {
    let listener = net.listen("client", &format!("{CLIENT}:{PORT}"))?;
    listener.set_nonblocking(true)?;
    let child = tickets
        .smbclient(net)
        .arg(format!("//{NAME}/share"))
        .args(["-I", CLIENT, "-p", &PORT.to_string(), "-m", "SMB3", "--use-kerberos=required", "-c", "quit"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("starting smbclient")?;
    let _ends = Ends(child);
    let mut client = accept(&listener)?;
    let mut node = net.connect("client", &format!("{}:445", node.address))?;
    for stream in [&client, &node] {
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    }
    loop {
        let request = frame(&mut client).context("smbclient")?;
        let message = request.get(PREFIX..).unwrap_or_default();
        let header = Header::parse(message)?;
        if header.command == Command::SESSION_SETUP {
            return Ok(session_setup::Request::parse(message)?.security_buffer.to_vec());
        }
        node.write_all(&request)?;
        client.write_all(&frame(&mut node).context("the node")?)?;
    }
}

/// The ticket of an AP-REQ, opened with the service's key.
pub(super) fn open(token: &[u8], keytab: &Path) -> Result<Arc<Ticket>> {
    let keytab = fs::read(keytab).with_context(|| keytab.display().to_string())?;
    let service = Service(Arc::new(Keytab::parse(&keytab)?));
    let mut observer = LoginObserver::default();
    observer.client_token(token);
    let outcome = observer.finish(0, &[], &service);
    match outcome.result.map(|derived| derived.authority) {
        Ok(Authority::Kerberos(ticket)) => Ok(ticket),
        other => bail!("smbclient presents no ticket that can be opened: {} {other:?}", outcome.user),
    }
}

/// The keys of the service, and no user's.
struct Service(Arc<Keytab>);

impl Credentials for Service {
    fn nt_hash(&self, _domain: &str, _user: &str) -> Option<NtHash> {
        None
    }

    fn configured(&self) -> bool {
        false
    }

    fn keytab(&self) -> Option<Arc<Keytab>> {
        Some(Arc::clone(&self.0))
    }

    fn now(&self) -> UnixTime {
        client::now()
    }
}

/// A child that ends with this.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn accept(listener: &TcpListener) -> Result<TcpStream> {
    let mut accepted = Err(anyhow!("smbclient does not connect"));
    wait_until("smbclient connects", Duration::from_secs(20), || match listener.accept() {
        Err(error) if error.kind() == ErrorKind::WouldBlock => false,
        other => {
            accepted = other.map(|(stream, _)| stream).map_err(Into::into);
            true
        }
    })?;
    let stream = accepted?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// A frame with its prefix.
fn frame(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut frame = vec![0; PREFIX];
    stream.read_exact(&mut frame)?;
    let len = frame_len(frame.first_chunk().copied().context("no prefix")?)?;
    frame.resize(len, 0);
    stream.read_exact(frame.get_mut(PREFIX..).unwrap_or_default())?;
    Ok(frame)
}
