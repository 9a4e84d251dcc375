//! Finding the nodes: by a DNS name, or by the EndpointSlices of a Service in Kubernetes. What was found is the list of now; what
//! cannot be found out leaves the list as it was.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use anyhow::Context as _;
use tokio::{net::lookup_host, sync::watch, time::sleep};
use understudy_core::fleet::Found;

use crate::config::FindMeans;
#[cfg(feature = "k8s")]
use crate::k8s::{self, Slices};

/// How often the name is looked up.
const LOOK_UP: Duration = Duration::from_secs(5);

/// The list, as it changes. Empty until something is found.
pub(crate) type List = watch::Receiver<Vec<Found>>;

/// Begins to look for nodes.
///
/// # Errors
/// The API server is not known.
pub(crate) async fn start(means: &FindMeans) -> anyhow::Result<List> {
    let (list, receiver) = watch::channel(Vec::new());
    let news = News { list, place: means.to_string(), failing: false, empty: false };
    match means {
        FindMeans::Dns(name) => {
            tokio::spawn(look_up(name.clone(), news));
        }
        #[cfg(feature = "k8s")]
        FindMeans::Slices(wanted) => {
            tokio::spawn(Slices::new(k8s::client("[nodes] endpoint_slices").await?, wanted).watch(news));
        }
        #[cfg(not(feature = "k8s"))]
        FindMeans::Slices(_) => anyhow::bail!("this understudy was built without Kubernetes"),
    }
    Ok(receiver)
}

/// What there is now. For `check`.
///
/// # Errors
/// It cannot be found out.
pub(crate) async fn now(means: &FindMeans) -> anyhow::Result<Vec<Found>> {
    match means {
        FindMeans::Dns(name) => Ok(by_name(lookup_host(name).await.with_context(|| name.clone())?)),
        #[cfg(feature = "k8s")]
        FindMeans::Slices(wanted) => {
            Slices::new(k8s::client("[nodes] endpoint_slices").await?, wanted).try_out().await
        }
        #[cfg(not(feature = "k8s"))]
        FindMeans::Slices(_) => anyhow::bail!("this understudy was built without Kubernetes"),
    }
}

/// Where the list goes; what is wrong is said once.
pub(crate) struct News {
    list: watch::Sender<Vec<Found>>,
    place: String,
    failing: bool,
    empty: bool,
}

impl News {
    /// This is the list of now.
    pub(crate) fn found(&mut self, list: Vec<Found>) {
        let place = &self.place;
        if std::mem::take(&mut self.failing) {
            tracing::info!("{place} can be looked at again");
        }
        let was_empty = std::mem::replace(&mut self.empty, list.is_empty());
        if list.is_empty() && !was_empty {
            tracing::warn!(
                "{place}: no node is found; those that are known are kept, and clients wait if there are none"
            );
        }
        self.list.send_if_modified(|known| {
            let is_news = *known != list;
            *known = list;
            is_news
        });
    }

    /// There is no list of now.
    pub(crate) fn failed(&mut self, error: &dyn std::fmt::Display) {
        if !std::mem::replace(&mut self.failing, true) {
            tracing::error!(%error, "{}: nodes cannot be looked for; those that are known are kept", self.place);
        }
    }
}

async fn look_up(name: String, mut news: News) {
    loop {
        match lookup_host(&name).await {
            Ok(addresses) => news.found(by_name(addresses)),
            Err(error) => news.failed(&error),
        }
        sleep(LOOK_UP).await;
    }
}

/// DNS tells nothing but addresses, so they are the nodes' names. Where there are both families it would tell of each node
/// twice.
fn by_name(addresses: impl Iterator<Item = SocketAddr>) -> Vec<Found> {
    let all: BTreeSet<_> = addresses.collect();
    let has_v4 = all.iter().any(SocketAddr::is_ipv4);
    let found = |address: SocketAddr| Found {
        name: address.ip().to_string(),
        uid: None,
        address: address.to_string(),
        leaving: false,
    };
    all.into_iter().filter(|address| address.is_ipv4() == has_v4).map(found).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What a finder has to say goes here.
    pub(crate) fn news() -> (News, List) {
        let (list, receiver) = watch::channel(Vec::new());
        (News { list, place: "here".into(), failing: false, empty: false }, receiver)
    }

    #[test]
    fn addresses_are_nodes_of_one_family() {
        let names = |addresses: &[&str]| -> Vec<_> {
            let all = by_name(addresses.iter().map(|text| text.parse().unwrap()));
            all.into_iter().map(|found| (found.name, found.address)).collect()
        };
        let (a, b) = ("10.0.0.1:445", "10.0.0.2:445");
        let both = [("10.0.0.1".into(), a.into()), ("10.0.0.2".into(), b.into())];
        assert_eq!(names(&[b, a, "[fd00::1]:445", a]), both);
        assert_eq!(names(&["[fd00::1]:445"]), [("fd00::1".into(), "[fd00::1]:445".into())]);
        assert!(names(&[]).is_empty());
    }

    #[test]
    fn what_fails_leaves_the_list_as_it_was() {
        let (mut news, mut list) = news();
        news.found(by_name(["10.0.0.1:445".parse().unwrap()].into_iter()));
        assert_eq!(list.borrow_and_update().len(), 1);
        news.failed(&"no answer");
        news.found(by_name(["10.0.0.1:445".parse().unwrap()].into_iter()));
        assert!(!list.has_changed().unwrap(), "what is no news is not told");
        assert_eq!(list.borrow().len(), 1);
    }

    #[tokio::test]
    async fn a_name_is_looked_up() {
        let found = now(&FindMeans::Dns("localhost:445".into())).await.unwrap();
        assert!(matches!(&found[..], [one] if one.address.ends_with(":445")), "{found:?}");
        assert!(now(&FindMeans::Dns("no-such-name.invalid:445".into())).await.is_err());
    }
}
