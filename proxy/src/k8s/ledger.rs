//! What is known of the pods of one node, and which of them may still be at work. Pure.
//!
//! A pod counts as dead if its kubelet has said so: it was to be deleted, so that nothing in it is started again, and all
//! its containers have terminated. Kubelets report that before the pod goes (since 1.27). That it is gone proves nothing:
//! by force it goes at once, whatever its machine still does. So neither does the word of the garbage collector, which
//! ends pods of machines that are silent, nor a container that could not be found.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{ContainerStatus, Node, Pod};

/// Why a container is said to have terminated of which the kubelet knows nothing.
const NOT_FOUND: &str = "ContainerStatusUnknown";
/// The taint by which an operator vouches that a machine is shut down.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// All pods that had the node's name, as far as they may live.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// By uid.
    pods: BTreeMap<String, Life>,
    /// The uids of all that were seen.
    seen: BTreeSet<String>,
}

/// A pod that is not known to be dead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) uid: String,
    /// The machine that it was bound to.
    pub(crate) machine: Option<String>,
    /// It is to be deleted.
    pub(crate) is_ending: bool,
    /// The API server has it no longer.
    pub(crate) is_gone: bool,
}

impl Ledger {
    /// The API server has shown this pod.
    pub(crate) fn saw(&mut self, pod: &Pod) {
        let Some(uid) = pod.metadata.uid.clone() else { return };
        self.seen.insert(uid.clone());
        if is_dead(pod) {
            self.pods.remove(&uid);
            return;
        }
        let machine = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        let is_ending = pod.metadata.deletion_timestamp.is_some();
        self.pods.insert(uid.clone(), Life { uid, machine, is_ending, is_gone: false });
    }

    /// The API server has deleted this pod; this is its last version.
    pub(crate) fn lost(&mut self, pod: &Pod) {
        self.saw(pod);
        if let Some(life) = pod.metadata.uid.as_ref().and_then(|uid| self.pods.get_mut(uid)) {
            life.is_gone = true;
        }
    }

    /// The API server has these pods, and no others.
    pub(crate) fn listed(&mut self, pods: &[Pod]) {
        self.pods.values_mut().for_each(|life| life.is_gone = true);
        pods.iter().for_each(|pod| self.saw(pod));
    }

    /// Somebody vouches for this pod.
    pub(crate) fn vouched(&mut self, uid: &str) {
        self.pods.remove(uid);
    }

    /// The pods that may be at work, or that one alone which has this uid; `None` if none was ever seen, for then nothing is known.
    pub(crate) fn alive(&self, uid: Option<&str>) -> Option<Vec<Life>> {
        let Some(uid) = uid else {
            return (!self.seen.is_empty()).then(|| self.pods.values().cloned().collect());
        };
        self.seen.contains(uid).then(|| self.pods.get(uid).into_iter().cloned().collect())
    }
}

/// Its kubelet says that nothing of it runs, and nothing will.
fn is_dead(pod: &Pod) -> bool {
    let (Some(spec), Some(status)) = (&pod.spec, &pod.status) else { return false };
    let of = |statuses: &Option<Vec<ContainerStatus>>, name: &str| {
        statuses.iter().flatten().any(|status| status.name == name && has_terminated(status))
    };
    // Those that only prepare the pod have ended before the others begin; those that run beside them are here as well.
    let beside = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.is_some());
    pod.metadata.deletion_timestamp.is_some()
        && !spec.containers.is_empty()
        && spec.containers.iter().all(|container| of(&status.container_statuses, &container.name))
        && beside.into_iter().all(|container| of(&status.init_container_statuses, &container.name))
}

fn has_terminated(status: &ContainerStatus) -> bool {
    let ended = status.state.as_ref().and_then(|state| state.terminated.as_ref());
    ended.is_some_and(|ended| ended.reason.as_deref() != Some(NOT_FOUND))
}

/// An operator vouches that the machine is shut down.
pub(crate) fn is_out_of_service(machine: &Node) -> bool {
    let taints = machine.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    taints.into_iter().flatten().any(|taint| taint.key == OUT_OF_SERVICE)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::serde_json::{Value, from_value, json};

    use super::*;

    fn pod(uid: &str, ending: bool, state: Value) -> Pod {
        let mut pod = json!({
            "metadata": {"name": "samba-0", "uid": uid},
            "spec": {"nodeName": "machine-1", "containers": [{"name": "samba"}]},
            "status": {"containerStatuses": [
                {"name": "samba", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": state}
            ]}
        });
        if ending {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        from_value(pod).unwrap()
    }

    fn running() -> Value {
        json!({"running": {}})
    }

    fn terminated() -> Value {
        json!({"terminated": {"exitCode": 137, "reason": "Error"}})
    }

    fn alive(ledger: &Ledger) -> Option<Vec<String>> {
        Some(ledger.alive(None)?.into_iter().map(|life| life.uid).collect())
    }

    #[test]
    fn of_a_name_that_was_never_seen_nothing_is_known() {
        let mut ledger = Ledger::default();
        assert_eq!(alive(&ledger), None);
        ledger.listed(&[]);
        assert_eq!(alive(&ledger), None);
    }

    #[test]
    fn what_the_kubelet_says_of_a_pod_that_is_deleted_is_believed() {
        for (what, ending, state, dies) in [
            ("runs", false, running(), false),
            ("is to be deleted", true, running(), false),
            ("may be started again", false, terminated(), false),
            ("is deleted, and has terminated", true, terminated(), true),
            ("was not found", true, json!({"terminated": {"exitCode": 137, "reason": NOT_FOUND}}), false),
            ("waits", true, json!({"waiting": {}}), false),
        ] {
            let mut ledger = Ledger::default();
            ledger.saw(&pod("a", ending, state));
            let expected = if dies { vec![] } else { vec!["a".to_owned()] };
            assert_eq!(alive(&ledger), Some(expected), "{what}");
        }
    }

    #[test]
    fn a_pod_that_is_gone_by_force_may_be_at_work_beside_its_successor() {
        let mut ledger = Ledger::default();
        ledger.saw(&pod("a", false, running()));
        ledger.lost(&pod("a", true, running()));
        ledger.saw(&pod("b", false, running()));
        assert_eq!(alive(&ledger).unwrap(), ["a", "b"]);
        assert!(ledger.alive(None).unwrap()[0].is_gone);
        ledger.saw(&pod("b", true, terminated()));
        assert_eq!(alive(&ledger).unwrap(), ["a"]);
        assert_eq!(ledger.alive(Some("b")), Some(vec![]), "of one alone");
        assert_eq!(ledger.alive(Some("a")).unwrap().len(), 1);
        assert_eq!(ledger.alive(Some("c")), None, "nothing is known of it");
        ledger.vouched("a");
        assert_eq!(alive(&ledger).unwrap(), [""; 0]);
    }

    #[test]
    fn the_last_version_of_a_pod_is_looked_at() {
        let mut ledger = Ledger::default();
        ledger.saw(&pod("a", false, running()));
        ledger.lost(&pod("a", true, terminated()));
        assert_eq!(alive(&ledger).unwrap(), [""; 0]);
    }

    #[test]
    fn a_pod_that_a_list_lacks_is_gone_and_not_dead() {
        let mut ledger = Ledger::default();
        ledger.saw(&pod("a", false, running()));
        ledger.listed(&[pod("b", false, running())]);
        let lives = ledger.alive(None).unwrap();
        assert_eq!(lives.iter().map(|life| life.is_gone).collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn every_container_counts() {
        let mut two = pod("a", true, terminated());
        let spec = two.spec.as_mut().unwrap();
        spec.containers.push(from_value(json!({"name": "beside"})).unwrap());
        assert!(!is_dead(&two));
        let mut sidecar = pod("a", true, terminated());
        let beside = from_value(json!([{"name": "beside", "restartPolicy": "Always"}])).unwrap();
        sidecar.spec.as_mut().unwrap().init_containers = beside;
        assert!(!is_dead(&sidecar));
    }

    #[test]
    fn an_operator_vouches_by_a_taint() {
        let machine = |key: &str| -> Node {
            from_value(json!({"spec": {"taints": [{"key": key, "effect": "NoExecute"}]}})).unwrap()
        };
        assert!(is_out_of_service(&machine(OUT_OF_SERVICE)));
        assert!(!is_out_of_service(&machine("node.kubernetes.io/unreachable")));
        assert!(!is_out_of_service(&Node::default()));
    }
}
