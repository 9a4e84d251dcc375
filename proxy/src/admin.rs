//! The operator's page: metrics, health, the records in the store, clearing a dirty node, and stepping down.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, OnceLock},
};

use axum::{
    Router,
    extract::{ConnectInfo, Path, Request, State, connect_info::Connected},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
    serve::IncomingStream,
};
use tokio::{net::TcpListener, sync::Notify};
use understudy_state::Store;

use crate::{
    config::NodeConfig,
    ha::{self, Role},
    metrics::Metrics,
    shared::{FleetInput, Shared},
    store,
};

/// What the page shows.
pub(crate) struct Page {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) store: Arc<dyn Store>,
    /// Of one of several proxies.
    pub(crate) ha: Option<Arc<ha::Handle>>,
    /// From when clients are served on.
    pub(crate) serving: OnceLock<Arc<Shared>>,
    /// The operator wants another proxy to serve.
    pub(crate) step_down: Notify,
}

/// Serves until the process ends.
pub(crate) async fn serve(listener: TcpListener, page: Arc<Page>) {
    // Whoever may look at metrics may not look at everything.
    let of_operators = Router::new()
        .route("/store", get(records))
        .route("/nodes/{name}/clear", post(clear))
        .route("/step-down", post(step_down))
        .route_layer(middleware::from_fn(only_from_here));
    let routes = Router::new()
        .route("/", get(index))
        .route("/metrics", get(metrics))
        .route("/ready", get(ready))
        .route("/available", get(available))
        .route("/live", get(async || "alive\n"))
        .route("/nodes", get(nodes))
        .merge(of_operators)
        .with_state(page);
    let service = routes.into_make_service_with_connect_info::<Caller>();
    if let Err(error) = axum::serve(listener, service).await {
        tracing::error!(%error, "the admin page is gone");
    }
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
struct Caller {
    is_here: bool,
}

impl Connected<IncomingStream<'_, TcpListener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Self {
        Self::new(*stream.remote_addr(), stream.io().local_addr())
    }
}

impl Caller {
    /// On this machine is whoever asks from its loopback, or from the address that is asked.
    fn new(peer: SocketAddr, own: io::Result<SocketAddr>) -> Self {
        let peer = peer.ip().to_canonical();
        let is_own = own.is_ok_and(|own| own.ip().to_canonical() == peer);
        Self { is_here: peer.is_loopback() || is_own }
    }
}

/// Lets nobody through who is not on this machine, or in this pod.
async fn only_from_here(ConnectInfo(caller): ConnectInfo<Caller>, request: Request, next: Next) -> Response {
    if caller.is_here {
        return next.run(request).await;
    }
    let remedy = "ask on the machine of the proxy, or by `kubectl port-forward`\n";
    (StatusCode::FORBIDDEN, remedy).into_response()
}

async fn index() -> &'static str {
    "understudy\n\n\
     GET  /metrics             Prometheus metrics\n\
     GET  /ready               200 while a node serves, else 503\n\
     GET  /available           200 while it is ready, or stands by\n\
     GET  /live                200 while the process runs\n\
     GET  /nodes               the nodes, a line each: name, address, `serves` if it does\n\
     GET  /store               the records, a line of JSON each\n\
     POST /nodes/NAME/clear    vouch that a node left without a fence executes nothing of its past\n\
     POST /step-down           let another proxy serve\n"
}

async fn metrics(State(page): State<Arc<Page>>) -> impl IntoResponse {
    if let Some(shared) = page.serving.get() {
        let (opens, unreclaimed, absent) =
            shared.with_files(|files| (files.opens(), files.unreclaimed(), files.absent()));
        page.metrics.absent_opens.set(i64::try_from(absent).unwrap_or(i64::MAX));
        page.metrics.open_files.set(i64::try_from(opens).unwrap_or(i64::MAX));
        page.metrics.unreclaimed.set(i64::try_from(unreclaimed).unwrap_or(i64::MAX));
    }
    let standbys = page.ha.as_ref().map_or(0, |ha| ha.standbys());
    page.metrics.standbys.set(i64::try_from(standbys).unwrap_or(i64::MAX));
    match page.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn ready(State(page): State<Arc<Page>>) -> (StatusCode, String) {
    let unavailable = |why: String| (StatusCode::SERVICE_UNAVAILABLE, why);
    let Some(shared) = page.serving.get() else {
        return unavailable(match page.ha.as_ref().map(|ha| ha.role()) {
            Some(Role::Standby(Some(leader))) => format!("standby; {leader} leads\n"),
            Some(Role::Standby(None)) => "standby; nobody leads\n".into(),
            Some(Role::Leader(..)) | None => "not ready yet\n".into(),
        });
    };
    if !shared.gate.is_open() {
        return unavailable(
            "the store does not confirm that this proxy leads; nothing is forwarded\n".into(),
        );
    }
    match shared.assignment() {
        _ if shared.is_stopping() => unavailable("stopping\n".into()),
        Some((assignment, _)) => {
            (StatusCode::OK, format!("ready, {} serves\n", shared.node_name(assignment.node)))
        }
        None => unavailable("no node answers yet\n".into()),
    }
}

/// For what starts proxies one after the other: one that stands by is as it should be.
async fn available(page: State<Arc<Page>>) -> (StatusCode, String) {
    match page.ha.as_ref().map(|ha| ha.role()) {
        Some(Role::Standby(Some(leader))) => (StatusCode::OK, format!("standby; {leader} leads\n")),
        _ => ready(page).await,
    }
}

async fn nodes(State(page): State<Arc<Page>>) -> String {
    let Some(shared) = page.serving.get() else { return "this proxy does not serve\n".into() };
    let serving = shared.assignment().map(|(assignment, _)| assignment.node);
    let line = |(id, node): (_, NodeConfig)| {
        format!("{} {}{}\n", node.name, node.address, if serving == Some(id) { " serves" } else { "" })
    };
    shared.nodes.there().into_iter().map(line).collect()
}

async fn records(State(page): State<Arc<Page>>) -> impl IntoResponse {
    match store::lines(&*page.store).await {
        Ok(lines) => ([(header::CONTENT_TYPE, "application/x-ndjson")], lines).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn clear(State(page): State<Arc<Page>>, Path(name): Path<String>) -> (StatusCode, String) {
    let Some(shared) = page.serving.get() else {
        return (StatusCode::CONFLICT, "this proxy does not serve\n".into());
    };
    let nodes = shared.nodes.called(&name);
    if nodes.is_empty() {
        let known: Vec<_> = shared.nodes.there().into_iter().map(|(_, node)| node.name).collect();
        return (
            StatusCode::NOT_FOUND,
            format!("no node is named {name}; there are: {}\n", known.join(", ")),
        );
    }
    tracing::warn!(node = name, "cleared by the operator");
    for node in nodes {
        let _ = shared.fleet.send(FleetInput::Cleared { node });
    }
    (StatusCode::OK, format!("{name} is cleared\n"))
}

async fn step_down(State(page): State<Arc<Page>>) -> (StatusCode, &'static str) {
    let Some(ha) = &page.ha else {
        return (StatusCode::CONFLICT, "this is the only proxy: [ha] is not configured\n");
    };
    if page.serving.get().is_none() {
        return (StatusCode::CONFLICT, "this proxy does not serve\n");
    }
    if ha.standbys() == 0 {
        return (StatusCode::CONFLICT, "no other proxy stands by; stop this one if clients may be cut off\n");
    }
    tracing::warn!("the operator wants another proxy to serve");
    page.step_down.notify_one();
    (StatusCode::OK, "another proxy is to serve\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_from_the_machine_itself_is_known() {
        for (peer, own, is_here) in [
            ("127.0.0.1:1", "127.0.0.1:9645", true),
            ("[::1]:1", "[::1]:9645", true),
            ("[::ffff:127.0.0.1]:1", "[::ffff:127.0.0.1]:9645", true),
            ("10.0.0.5:1", "10.0.0.5:9645", true),
            ("[::ffff:10.0.0.5]:1", "10.0.0.5:9645", true),
            ("10.0.0.6:1", "10.0.0.5:9645", false),
            ("[fd00::6]:1", "[fd00::5]:9645", false),
        ] {
            let caller = Caller::new(peer.parse().unwrap(), Ok(own.parse().unwrap()));
            assert_eq!(caller.is_here, is_here, "{peer} asks {own}");
        }
        assert!(!Caller::new("10.0.0.6:1".parse().unwrap(), Err(io::ErrorKind::NotConnected.into())).is_here);
    }
}
