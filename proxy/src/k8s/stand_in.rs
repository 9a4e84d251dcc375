//! A stand-in for the API server in tests: pods, machines and EndpointSlices, list, watch, get, delete and patch, as far as they
//! are used here. It lets nobody do what the chart does not grant, and remembers what was done.

mod slices;

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, RawQuery, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::stream;
use k8s_openapi::serde_json::{Value, from_slice, json};
use kube::{Client, Config};
use tokio::{net::TcpListener, sync::watch};

/// Where the pods are.
pub(crate) const NAMESPACE: &str = "files";

/// What was done: verb, resource, name if one was given.
pub(crate) type Deed = (&'static str, &'static str, Option<String>);

#[derive(Clone)]
pub(crate) struct StandIn(Arc<Inner>);

struct Inner {
    world: Mutex<World>,
    /// Grows with every change.
    version: watch::Sender<usize>,
    /// Grows with every request.
    asked: watch::Sender<usize>,
    /// What is granted; everything if there are none.
    rules: Vec<Value>,
}

#[derive(Default)]
struct World {
    pods: BTreeMap<String, Value>,
    machines: BTreeMap<String, Value>,
    /// What has happened to pods, by version.
    events: Vec<(usize, &'static str, Value)>,
    slices: BTreeMap<String, Value>,
    /// What watches of them are told, by version.
    slice_events: Vec<(usize, slices::Line)>,
    /// From which versions on slices were watched.
    watched_from: Vec<usize>,
    deeds: Vec<Deed>,
    bodies: Vec<Value>,
    fails: usize,
}

impl StandIn {
    /// Serves, and a client of it. `rules` are those of a Role or ClusterRole.
    pub(crate) async fn start(rules: Vec<Value>) -> (Self, Client) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let inner = Inner {
            world: Mutex::default(),
            version: watch::Sender::new(1),
            asked: watch::Sender::new(0),
            rules,
        };
        let server = Self(Arc::new(inner));
        let routes = Router::new()
            .route("/api/v1/namespaces/{namespace}/pods", get(list))
            .route("/api/v1/namespaces/{namespace}/pods/{name}", axum::routing::delete(delete).patch(patch))
            .route("/api/v1/nodes/{name}", get(machine))
            .route("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices", get(slices::list))
            .with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        let config = Config::new(format!("http://{address}").parse().unwrap());
        (server, super::connect(config).unwrap())
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.0.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kubelet of `machine` runs a pod.
    pub(crate) fn run(&self, name: &str, uid: &str, machine: &str) {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "uid": uid, "namespace": NAMESPACE, "labels": {"app": "x"}},
            "spec": {"nodeName": machine, "containers": [{"name": "main"}]},
            "status": {"phase": "Running", "containerStatuses": [
                {"name": "main", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {}}}
            ]}
        });
        self.world().machines.entry(machine.into()).or_insert_with(
            || json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": machine}, "spec": {}}),
        );
        self.change("ADDED", name, Some(pod));
    }

    /// Somebody asks for its end.
    pub(crate) fn end(&self, name: &str) {
        let mut pod = self.pod(name);
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        self.change("MODIFIED", name, Some(pod));
    }

    /// The kubelet says that its container has terminated.
    pub(crate) fn terminate(&self, name: &str) {
        let mut pod = self.pod(name);
        let status = &mut pod["status"]["containerStatuses"][0];
        status["state"] = json!({"terminated": {"exitCode": 137, "reason": "Error"}});
        self.change("MODIFIED", name, Some(pod));
    }

    /// It goes from the API server; by force, if its container has not terminated.
    pub(crate) fn remove(&self, name: &str) {
        self.change("DELETED", name, None);
    }

    /// An operator vouches that a machine is shut down.
    pub(crate) fn taint(&self, machine: &str) {
        if let Some(machine) = self.world().machines.get_mut(machine) {
            machine["spec"] =
                json!({"taints": [{"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}]});
        }
    }

    /// So many requests from now on fail.
    pub(crate) fn fail(&self, count: usize) {
        self.world().fails = count;
    }

    pub(crate) fn pod(&self, name: &str) -> Value {
        self.world().pods[name].clone()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.world().pods.contains_key(name)
    }

    /// A pod has a label.
    pub(crate) fn label(&self, name: &str, label: &str, value: &str) {
        let mut pod = self.pod(name);
        pod["metadata"]["labels"][label] = json!(value);
        self.change("MODIFIED", name, Some(pod));
    }

    /// Who has a label.
    pub(crate) fn labelled(&self, label: &str) -> BTreeSet<String> {
        let world = self.world();
        let pods = world.pods.iter().filter(|(_, pod)| !pod["metadata"]["labels"][label].is_null());
        pods.map(|(name, _)| name.clone()).collect()
    }

    pub(crate) fn deeds(&self) -> Vec<Deed> {
        self.world().deeds.clone()
    }

    /// How often a verb was used.
    pub(crate) fn count(&self, verb: &str) -> usize {
        self.world().deeds.iter().filter(|deed| deed.0 == verb).count()
    }

    /// The bodies of deletes and patches.
    pub(crate) fn bodies(&self) -> Vec<Value> {
        self.world().bodies.clone()
    }

    /// Waits until so much was asked, or has changed, that this is so.
    pub(crate) async fn until(&self, is_so: impl Fn(&Self) -> bool) {
        let (mut asked, mut version) = (self.0.asked.subscribe(), self.0.version.subscribe());
        let limit = tokio::time::sleep(std::time::Duration::from_secs(20));
        tokio::pin!(limit);
        while !is_so(self) {
            tokio::select! {
                changed = asked.changed() => changed.unwrap(),
                changed = version.changed() => changed.unwrap(),
                () = &mut limit => panic!("waited in vain; this was done: {:?}", self.deeds()),
            }
        }
    }

    fn change(&self, what: &'static str, name: &str, pod: Option<Value>) {
        let mut world = self.world();
        let version = *self.0.version.borrow() + 1;
        let mut shown = pod.clone().or_else(|| world.pods.get(name).cloned()).unwrap();
        shown["metadata"]["resourceVersion"] = json!(version.to_string());
        match pod {
            Some(_) => world.pods.insert(name.into(), shown.clone()),
            None => world.pods.remove(name),
        };
        world.events.push((version, what, shown));
        drop(world);
        self.0.version.send_replace(version);
    }

    /// Notes what is asked for, and refuses what may not be done.
    fn refuse(&self, verb: &'static str, resource: &'static str, name: Option<&str>) -> Option<Response> {
        let mut world = self.world();
        world.deeds.push((verb, resource, name.map(ToOwned::to_owned)));
        let fails = world.fails > 0;
        world.fails = world.fails.saturating_sub(1);
        drop(world);
        self.0.asked.send_modify(|count| *count += 1);
        if fails {
            return Some(refusal(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"));
        }
        if self.0.rules.is_empty() || self.0.rules.iter().any(|rule| grants(rule, verb, resource, name)) {
            return None;
        }
        Some(refusal(StatusCode::FORBIDDEN, "Forbidden"))
    }
}

/// Whether a rule of a Role grants this.
pub(crate) fn grants(rule: &Value, verb: &str, resource: &str, name: Option<&str>) -> bool {
    let has = |key: &str, word: &str| {
        rule[key].as_array().is_some_and(|words| words.iter().any(|have| have == word || have == "*"))
    };
    let named = rule["resourceNames"].is_null() || name.is_some_and(|name| has("resourceNames", name));
    let group = if resource == "endpointslices" { "discovery.k8s.io" } else { "" };
    has("apiGroups", group) && has("resources", resource) && has("verbs", verb) && named
}

/// The rules of the roles in a render of the chart whose names end so.
pub(crate) fn rendered(render: &str, end: &str) -> Vec<Value> {
    let documents: Vec<Value> = from_slice(render.as_bytes()).unwrap();
    let roles = documents
        .iter()
        .filter(|document| document["metadata"]["name"].as_str().is_some_and(|name| name.ends_with(end)));
    roles.filter_map(|role| role["rules"].as_array()).flatten().cloned().collect()
}

/// All that was done is granted by these rules, and all that they grant was done.
pub(crate) fn assert_exact(deeds: &[Deed], rules: &[Value]) {
    for (verb, resource, name) in deeds {
        let is_granted = rules.iter().any(|rule| grants(rule, verb, resource, name.as_deref()));
        assert!(is_granted, "{verb} {resource} {name:?} is not granted");
    }
    let words = |rule: &Value, key: &str| -> Vec<String> {
        rule[key].as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
    };
    for rule in rules {
        for verb in words(rule, "verbs") {
            for resource in words(rule, "resources") {
                let is_used = deeds.iter().any(|deed| (deed.0, deed.1) == (&verb, &resource));
                assert!(is_used, "{verb} {resource} is granted, and nothing uses it");
            }
        }
    }
}

fn refusal(code: StatusCode, reason: &str) -> Response {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason, "reason": reason, "code": code.as_u16()
    });
    (code, status.to_string()).into_response()
}

/// The parameters of a query, decoded.
fn parameters(query: &str) -> BTreeMap<String, String> {
    let decode = |text: &str| {
        let mut parts = text.split('%');
        let mut plain = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            plain.push(char::from(u8::from_str_radix(&part[..2], 16).unwrap()));
            plain += &part[2..];
        }
        plain
    };
    query
        .split('&')
        .filter_map(|one| one.split_once('='))
        .map(|(key, value)| (decode(key), decode(value)))
        .collect()
}

async fn list(State(server): State<StandIn>, RawQuery(query): RawQuery) -> Response {
    let parameters = parameters(&query.unwrap_or_default());
    let parameter = |key: &str| parameters.get(key).map(String::as_str);
    let field = parameter("fieldSelector").and_then(|text| text.strip_prefix("metadata.name="));
    let labels: Vec<(String, String)> = parameter("labelSelector")
        .map(|text| text.split(',').filter_map(|one| one.split_once('=')).map(owned).collect())
        .unwrap_or_default();
    let field = field.map(ToOwned::to_owned);
    let selects = move |pod: &Value| {
        field.as_ref().is_none_or(|name| pod["metadata"]["name"] == **name)
            && labels.iter().all(|(key, value)| pod["metadata"]["labels"][key] == **value)
    };
    let watches = matches!(parameter("watch"), Some("true" | "1"));
    // A selector of one name counts as that name, as at the real one.
    let name = parameter("fieldSelector").and_then(|text| text.strip_prefix("metadata.name="));
    if let Some(refused) = server.refuse(if watches { "watch" } else { "list" }, "pods", name) {
        return refused;
    }
    if !watches {
        let world = server.world();
        let items: Vec<_> = world.pods.values().filter(|pod| selects(pod)).cloned().collect();
        let version = server.0.version.borrow().to_string();
        let list = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": version}, "items": items});
        return list.to_string().into_response();
    }
    let since: usize = parameter("resourceVersion").and_then(|text| text.parse().ok()).unwrap_or_default();
    let changes = server.0.version.subscribe();
    let lines = stream::unfold(
        (server, changes, since, selects),
        |(server, mut changes, since, selects)| async move {
            loop {
                let next = {
                    let world = server.world();
                    world.events.iter().find(|(at, _, pod)| *at > since && selects(pod)).cloned()
                };
                if let Some((at, what, pod)) = next {
                    let line = format!("{}\n", json!({"type": what, "object": pod}));
                    return Some((Ok::<_, Infallible>(line), (server, changes, at, selects)));
                }
                changes.changed().await.ok()?;
            }
        },
    );
    Body::from_stream(lines).into_response()
}

fn owned((key, value): (&str, &str)) -> (String, String) {
    (key.into(), value.into())
}

async fn delete(
    State(server): State<StandIn>,
    Path((_, name)): Path<(String, String)>,
    body: Bytes,
) -> Response {
    if let Some(refused) = server.refuse("delete", "pods", Some(&name)) {
        return refused;
    }
    let orders: Value = from_slice(&body).unwrap();
    server.world().bodies.push(orders.clone());
    if !server.has(&name) {
        return refusal(StatusCode::NOT_FOUND, "NotFound");
    }
    let uid = &orders["preconditions"]["uid"];
    if !uid.is_null() && *uid != server.pod(&name)["metadata"]["uid"] {
        return refusal(StatusCode::CONFLICT, "Conflict");
    }
    server.end(&name);
    let pod = server.pod(&name);
    if orders["gracePeriodSeconds"] == 0 {
        server.remove(&name);
    }
    pod.to_string().into_response()
}

async fn patch(
    State(server): State<StandIn>,
    Path((_, name)): Path<(String, String)>,
    body: Bytes,
) -> Response {
    if let Some(refused) = server.refuse("patch", "pods", Some(&name)) {
        return refused;
    }
    let change: Value = from_slice(&body).unwrap();
    server.world().bodies.push(change.clone());
    if !server.has(&name) {
        return refusal(StatusCode::NOT_FOUND, "NotFound");
    }
    let mut pod = server.pod(&name);
    for (label, value) in change["metadata"]["labels"].as_object().unwrap() {
        pod["metadata"]["labels"][label] = value.clone();
    }
    if let Some(labels) = pod["metadata"]["labels"].as_object_mut() {
        labels.retain(|_, value| !value.is_null());
    }
    server.change("MODIFIED", &name, Some(pod.clone()));
    pod.to_string().into_response()
}

async fn machine(State(server): State<StandIn>, Path(name): Path<String>) -> Response {
    if let Some(refused) = server.refuse("get", "nodes", Some(&name)) {
        return refused;
    }
    match server.world().machines.get(&name) {
        Some(machine) => machine.to_string().into_response(),
        None => refusal(StatusCode::NOT_FOUND, "NotFound"),
    }
}
