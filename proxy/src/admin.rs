//! The operator's page: metrics, health, the records in the store, and clearing a dirty node.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Path, State},
    http::{StatusCode, header},
    response::IntoResponse,
    routing::{get, post},
};
use tokio::net::TcpListener;
use understudy_core::ids::NodeId;
use understudy_state::Store;

use crate::{
    shared::{FleetInput, Shared},
    store,
};

/// Serves until the process ends.
pub(crate) async fn serve(listener: TcpListener, shared: Arc<Shared>, store: Arc<dyn Store>) {
    let routes = Router::new()
        .route("/", get(index))
        .route("/metrics", get(metrics))
        .route("/ready", get(ready))
        .route("/live", get(async || "alive\n"))
        .route("/store", get(move || records(store)))
        .route("/nodes/{name}/clear", post(clear))
        .with_state(shared);
    if let Err(error) = axum::serve(listener, routes).await {
        tracing::error!(%error, "the admin page is gone");
    }
}

async fn index() -> &'static str {
    "understudy\n\n\
     GET  /metrics             Prometheus metrics\n\
     GET  /ready               200 while a node serves, else 503\n\
     GET  /live                200 while the process runs\n\
     GET  /store               the records, a line of JSON each\n\
     POST /nodes/NAME/clear    vouch that a node left without a fence executes nothing of its past\n"
}

async fn metrics(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let (opens, unreclaimed, absent) =
        shared.with_files(|files| (files.opens(), files.unreclaimed(), files.absent()));
    shared.metrics.absent_opens.set(i64::try_from(absent).unwrap_or(i64::MAX));
    shared.metrics.open_files.set(i64::try_from(opens).unwrap_or(i64::MAX));
    shared.metrics.unreclaimed.set(i64::try_from(unreclaimed).unwrap_or(i64::MAX));
    match shared.metrics.render() {
        Ok(page) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], page).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn ready(State(shared): State<Arc<Shared>>) -> (StatusCode, String) {
    match shared.assignment() {
        _ if shared.is_stopping() => (StatusCode::SERVICE_UNAVAILABLE, "stopping\n".into()),
        Some((assignment, _)) => {
            (StatusCode::OK, format!("ready, {} serves\n", shared.node_name(assignment.node)))
        }
        None => (StatusCode::SERVICE_UNAVAILABLE, "no node answers yet\n".into()),
    }
}

async fn records(store: Arc<dyn Store>) -> impl IntoResponse {
    match store::lines(&*store).await {
        Ok(lines) => ([(header::CONTENT_TYPE, "application/x-ndjson")], lines).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn clear(State(shared): State<Arc<Shared>>, Path(name): Path<String>) -> (StatusCode, String) {
    let at = shared.nodes.iter().position(|node| node.name == name).and_then(|at| u16::try_from(at).ok());
    let Some(at) = at else {
        let known: Vec<_> = shared.nodes.iter().map(|node| node.name.as_str()).collect();
        return (
            StatusCode::NOT_FOUND,
            format!("no node is named {name}; there are: {}\n", known.join(", ")),
        );
    };
    tracing::warn!(node = name, "cleared by the operator");
    let _ = shared.fleet.send(FleetInput::Cleared { node: NodeId(at) });
    (StatusCode::OK, format!("{name} is cleared\n"))
}
