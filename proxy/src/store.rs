//! Opening the configured store, and `understudy store dump`.

use std::{
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
#[cfg(feature = "etcd")]
use understudy_state::Etcd;
use understudy_state::{Embedded, Memory, Store, StoreError, dump};

use crate::config::{Config, StoreUrl};

/// How long the admin page of a running understudy may take.
const ADMIN: Duration = Duration::from_secs(30);

/// Opens the store, or makes it.
pub(crate) async fn open(url: &StoreUrl) -> Result<Arc<dyn Store>, StoreError> {
    Ok(match url {
        StoreUrl::Memory => Arc::new(Memory::default()),
        StoreUrl::File(dir) => Arc::new(Embedded::open(dir)?),
        #[cfg(feature = "etcd")]
        StoreUrl::Etcd(options) => Arc::new(Etcd::open(options.clone()).await?),
        #[cfg(not(feature = "etcd"))]
        StoreUrl::Etcd(options) => {
            let what = "this understudy was built without the feature etcd".into();
            return Err(StoreError::Open { place: options.to_string(), what });
        }
    })
}

/// All records, a line each.
pub(crate) async fn lines(store: &dyn Store) -> Result<String, StoreError> {
    let mut text = String::new();
    for entry in store.list(String::new()).await? {
        text += &dump::line(&entry);
        text.push('\n');
    }
    Ok(text)
}

/// Prints all records. What only a running understudy can read is asked of its admin page.
pub(crate) async fn print(config: &Config) -> anyhow::Result<()> {
    let text = match &config.store {
        StoreUrl::Memory => {
            running(config, "GET /store").await.context("a memory store is in the running understudy only")?
        }
        StoreUrl::File(dir) => match Embedded::open_existing(dir) {
            Ok(store) => lines(&store).await?,
            Err(error @ StoreError::InUse { .. }) => {
                running(config, "GET /store").await.with_context(|| error.to_string())?
            }
            Err(error) => return Err(error.into()),
        },
        StoreUrl::Etcd(_) => lines(&*open(&config.store).await?).await?,
    };
    match io::stdout().lock().write_all(text.as_bytes()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

/// Asks the admin page of a running understudy, by method and path.
pub(crate) async fn running(config: &Config, request: &str) -> anyhow::Result<String> {
    let Some(admin) = config.admin else {
        bail!(
            "and [admin] listen is not configured, by which it could be asked; configure it, or stop understudy first"
        );
    };
    let address = reachable(admin);
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(format!("{request} HTTP/1.0\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, io::Error>(answer)
    };
    let answer = timeout(ADMIN, ask)
        .await
        .with_context(|| format!("its admin page at {address} does not answer"))?
        .with_context(|| {
            format!("its admin page at {address} cannot be asked; does it run with this configuration?")
        })?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        bail!("its admin page at {address} says {status}: {}", body.trim());
    }
    Ok(body.to_owned())
}

/// Where what listens at an address can be reached from this machine.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}
