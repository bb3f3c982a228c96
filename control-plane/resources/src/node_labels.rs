//! Which labels a node may give itself: one list for what its agent is started with and for what
//! the API server takes from it.

/// Labels with this prefix are an administrator's, to steer workloads away from stolen nodes.
const RESERVED: &str = "node-restriction.kubernetes.io/";
/// Labels of Kubernetes' own domains that an agent may set on its Node.
const OWN_LABELS: [&str; 12] = [
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "node.kubernetes.io/windows-build",
];
/// Below these an agent may set what it likes.
const OWN_PREFIXES: [&str; 2] = ["kubelet.kubernetes.io/", "node.kubernetes.io/"];

/// Whether the agent of a node may set this label of its Node.
pub fn may_set(label: &str) -> bool {
    let domain = label.split_once('/').map_or("", |(domain, _)| domain);
    let kubernetes = ["kubernetes.io", "k8s.io"]
        .iter()
        .any(|own| domain == *own || domain.ends_with(&format!(".{own}")));
    if label.starts_with(RESERVED) {
        return false;
    }
    !kubernetes
        || OWN_LABELS.contains(&label)
        || OWN_PREFIXES.iter().any(|prefix| label.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::may_set;

    #[test]
    fn a_node_does_not_give_itself_a_role() {
        let own = ["zone", "example.com/rack", "notk8s.io/a", "topology.kubernetes.io/zone"];
        assert!(own.iter().all(|label| may_set(label)));
        assert!(may_set("node.kubernetes.io/anything"));
        let administrators = [
            "node-role.kubernetes.io/control-plane",
            "node-restriction.kubernetes.io/secret",
            "kubernetes.io/role",
            "sub.k8s.io/a",
        ];
        assert!(!administrators.iter().any(|label| may_set(label)));
    }
}
