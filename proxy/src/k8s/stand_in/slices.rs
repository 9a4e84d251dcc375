//! EndpointSlices, and watches of them that end, or know nothing any more.

use std::convert::Infallible;

use axum::{
    body::Body,
    extract::{RawQuery, State},
    response::{IntoResponse as _, Response},
};
use futures_util::stream;
use k8s_openapi::serde_json::{Value, json};

use super::{NAMESPACE, StandIn, parameters};

/// What a watch is told next.
#[derive(Clone)]
pub(super) enum Line {
    Event(&'static str, Value),
    /// Once: it ends.
    End,
    /// Once: what it wants to know is too long ago.
    Expired,
}

impl StandIn {
    /// A Service has a slice, new or changed, of one family, with these endpoints.
    pub(crate) fn slice(&self, service: &str, name: &str, family: &str, endpoints: &[Value]) {
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family, "endpoints": endpoints,
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"kubernetes.io/service-name": service}}
        });
        let what = if self.world().slices.contains_key(name) { "MODIFIED" } else { "ADDED" };
        self.tell(|version| {
            let mut slice = slice;
            slice["metadata"]["resourceVersion"] = json!(version.to_string());
            self.world().slices.insert(name.into(), slice.clone());
            Line::Event(what, slice)
        });
    }

    pub(crate) fn remove_slice(&self, name: &str) {
        let slice = self.world().slices.remove(name).unwrap();
        self.tell(|_| Line::Event("DELETED", slice));
    }

    /// Watches are told up to which version they have heard everything.
    pub(crate) fn bookmark(&self) -> usize {
        self.tell(|version| {
            let object = json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "", "endpoints": [],
                "metadata": {"resourceVersion": version.to_string()}
            });
            Line::Event("BOOKMARK", object)
        })
    }

    /// The next watch, or one that there is, ends.
    pub(crate) fn end_watch(&self) {
        self.tell(|_| Line::End);
    }

    /// The next watch, or one that there is, hears that what it has missed is not known any more.
    pub(crate) fn expire(&self) {
        self.tell(|_| Line::Expired);
    }

    /// From which versions on slices were watched.
    pub(crate) fn watched_from(&self) -> Vec<usize> {
        self.world().watched_from.clone()
    }

    fn tell(&self, line: impl FnOnce(usize) -> Line) -> usize {
        let version = *self.0.version.borrow() + 1;
        let line = line(version);
        self.world().slice_events.push((version, line));
        self.0.version.send_replace(version);
        version
    }

    /// What a watch that has heard everything up to `since` is told next.
    fn next_line(&self, since: usize, service: &str) -> Option<(usize, Line)> {
        let mut world = self.world();
        let is_meant = |line: &Line| match line {
            Line::Event("BOOKMARK", _) | Line::End | Line::Expired => true,
            Line::Event(_, slice) => slice["metadata"]["labels"]["kubernetes.io/service-name"] == *service,
        };
        let at = world.slice_events.iter().position(|(at, line)| *at > since && is_meant(line))?;
        let found = world.slice_events[at].clone();
        if matches!(found.1, Line::End | Line::Expired) {
            world.slice_events.remove(at);
        }
        Some(found)
    }
}

pub(super) async fn list(State(server): State<StandIn>, RawQuery(query): RawQuery) -> Response {
    let parameters = parameters(&query.unwrap_or_default());
    let parameter = |key: &str| parameters.get(key).map(String::as_str);
    let service = parameter("labelSelector")
        .and_then(|text| text.strip_prefix("kubernetes.io/service-name="))
        .unwrap_or_default()
        .to_owned();
    let watches = matches!(parameter("watch"), Some("true" | "1"));
    let since: usize = parameter("resourceVersion").and_then(|text| text.parse().ok()).unwrap_or_default();
    if watches {
        server.world().watched_from.push(since);
    }
    if let Some(refused) = server.refuse(if watches { "watch" } else { "list" }, "endpointslices", None) {
        return refused;
    }
    if !watches {
        let world = server.world();
        let is_meant = |slice: &&Value| slice["metadata"]["labels"]["kubernetes.io/service-name"] == *service;
        let items: Vec<_> = world.slices.values().filter(is_meant).cloned().collect();
        let version = server.0.version.borrow().to_string();
        let list = json!({
            "kind": "EndpointSliceList", "apiVersion": "discovery.k8s.io/v1", "metadata": {"resourceVersion": version},
            "items": items
        });
        return list.to_string().into_response();
    }
    let changes = server.0.version.subscribe();
    let lines = stream::unfold(Some((server, changes, since, service)), |watch| async move {
        let (server, mut changes, since, service) = watch?;
        loop {
            match server.next_line(since, &service) {
                Some((at, Line::Event(what, object))) => {
                    let line = format!("{}\n", json!({"type": what, "object": object}));
                    return Some((Ok::<_, Infallible>(line), Some((server, changes, at, service))));
                }
                Some((_, Line::Expired)) => {
                    let status = json!({
                        "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "too old", "reason": "Expired",
                        "code": 410
                    });
                    return Some((Ok(format!("{}\n", json!({"type": "ERROR", "object": status}))), None));
                }
                Some((_, Line::End)) => return None,
                None => changes.changed().await.ok()?,
            }
        }
    });
    Body::from_stream(lines).into_response()
}
