//! The rows of the table of kinds, and the groups they belong to.
//!
//! Facts only: what the words mean is said in `kinds`. A new built-in kind is one row here.

use std::borrow::Cow;

use super::{Group, Kind, Storage, Subresource};
use crate::names::NameRule;

pub(super) const ALL_VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const NO_COLLECTION_VERBS: &[&str] =
    &["create", "delete", "get", "list", "patch", "update", "watch"];
const CREATE: &[&str] = &["create"];
const READ: &[&str] = &["get", "list"];
const GET: &[&str] = &["get"];
const UPDATE: &[&str] = &["update"];
const CHANGE: &[&str] = &["get", "patch", "update"];
const CONNECT: &[&str] = &["create", "get"];
const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];
const ALL: &[&str] = &["all"];
const API_EXTENSIONS: &[&str] = &["api-extensions"];

/// Highest group priority; the core group has it.
const CORE_PRIORITY: u32 = 18_000;

const fn scale() -> Subresource {
    Subresource::new("scale", "autoscaling", "v1", "Scale", CHANGE)
}

const fn status(group: &'static str, version: &'static str, kind: &'static str) -> Subresource {
    Subresource::new("status", group, version, kind, CHANGE)
}

const fn group(name: &'static str, versions: &'static [&'static str], priority: u32) -> Group {
    Group { name, versions: Cow::Borrowed(versions), priority }
}

const V1: &[&str] = &["v1"];

/// All groups in discovery order. The priorities are those of Kubernetes' own APIService objects.
pub const GROUPS: &[Group] = &[
    group("", V1, CORE_PRIORITY),
    group("apiregistration.k8s.io", V1, 18_000),
    group("apps", V1, 17_800),
    group("events.k8s.io", V1, 17_750),
    group("authentication.k8s.io", V1, 17_700),
    group("authorization.k8s.io", V1, 17_600),
    group("autoscaling", &["v2", "v1"], 17_500),
    group("batch", V1, 17_400),
    group("certificates.k8s.io", V1, 17_300),
    group("networking.k8s.io", V1, 17_200),
    group("policy", V1, 17_100),
    group("rbac.authorization.k8s.io", V1, 17_000),
    group("storage.k8s.io", V1, 16_800),
    group("admissionregistration.k8s.io", V1, 16_700),
    group("apiextensions.k8s.io", V1, 16_700),
    group("scheduling.k8s.io", V1, 16_600),
    group("coordination.k8s.io", V1, 16_500),
    group("node.k8s.io", V1, 16_300),
    group("discovery.k8s.io", V1, 16_200),
    group("flowcontrol.apiserver.k8s.io", V1, 16_100),
    group("metrics.k8s.io", &["v1beta1"], 100),
];

/// Every built-in kind, in discovery order.
pub static KINDS: &[Kind] = &[
    Kind::new("", "v1", "Binding", "bindings", "binding")
        .verbs(CREATE)
        .stored(Storage::None)
        .named(NameRule::PathSegment),
    Kind::new("", "v1", "ComponentStatus", "componentstatuses", "componentstatus")
        .short(&["cs"])
        .cluster()
        .verbs(READ)
        .stored(Storage::None),
    Kind::new("", "v1", "ConfigMap", "configmaps", "configmap").short(&["cm"]),
    Kind::new("", "v1", "Endpoints", "endpoints", "endpoints").short(&["ep"]).upsert(),
    Kind::new("", "v1", "Event", "events", "event")
        .short(&["ev"])
        .named(NameRule::PathSegment)
        .upsert(),
    Kind::new("", "v1", "LimitRange", "limitranges", "limitrange").short(&["limits"]).upsert(),
    Kind::new("", "v1", "Namespace", "namespaces", "namespace")
        .short(&["ns"])
        .cluster()
        .verbs(NO_COLLECTION_VERBS)
        .named(NameRule::Label)
        .with(&[
            Subresource::new("finalize", "", "v1", "Namespace", UPDATE),
            status("", "v1", "Namespace"),
        ]),
    Kind::new("", "v1", "Node", "nodes", "node").short(&["no"]).cluster().with(&[
        Subresource::new("proxy", "", "v1", "NodeProxyOptions", PROXY),
        status("", "v1", "Node"),
    ]),
    Kind::new("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", "persistentvolumeclaim")
        .short(&["pvc"])
        .with(&[status("", "v1", "PersistentVolumeClaim")]),
    Kind::new("", "v1", "PersistentVolume", "persistentvolumes", "persistentvolume")
        .short(&["pv"])
        .cluster()
        .with(&[status("", "v1", "PersistentVolume")]),
    Kind::new("", "v1", "Pod", "pods", "pod").short(&["po"]).categories(ALL).counted().with(&[
        Subresource::new("attach", "", "v1", "PodAttachOptions", CONNECT),
        Subresource::new("binding", "", "v1", "Binding", CREATE),
        Subresource::new("ephemeralcontainers", "", "v1", "Pod", CHANGE),
        Subresource::new("eviction", "policy", "v1", "Eviction", CREATE),
        Subresource::new("exec", "", "v1", "PodExecOptions", CONNECT),
        Subresource::new("log", "", "v1", "Pod", GET),
        Subresource::new("portforward", "", "v1", "PodPortForwardOptions", CONNECT),
        Subresource::new("proxy", "", "v1", "PodProxyOptions", PROXY),
        Subresource::new("resize", "", "v1", "Pod", CHANGE),
        status("", "v1", "Pod"),
    ]),
    Kind::new("", "v1", "PodTemplate", "podtemplates", "podtemplate"),
    Kind::new("", "v1", "ReplicationController", "replicationcontrollers", "replicationcontroller")
        .short(&["rc"])
        .categories(ALL)
        .counted()
        .orphans()
        .with(&[scale(), status("", "v1", "ReplicationController")]),
    Kind::new("", "v1", "ResourceQuota", "resourcequotas", "resourcequota")
        .short(&["quota"])
        .with(&[status("", "v1", "ResourceQuota")]),
    Kind::new("", "v1", "Secret", "secrets", "secret"),
    Kind::new("", "v1", "ServiceAccount", "serviceaccounts", "serviceaccount")
        .short(&["sa"])
        .with(&[Subresource::new("token", "authentication.k8s.io", "v1", "TokenRequest", CREATE)]),
    Kind::new("", "v1", "Service", "services", "service")
        .short(&["svc"])
        .categories(ALL)
        .named(NameRule::Label1035)
        .upsert()
        .with(&[
            Subresource::new("proxy", "", "v1", "ServiceProxyOptions", PROXY),
            status("", "v1", "Service"),
        ]),
    Kind::new("apiregistration.k8s.io", "v1", "APIService", "apiservices", "apiservice")
        .cluster()
        .categories(API_EXTENSIONS)
        .conditional()
        .named(NameRule::PathSegment)
        .with(&[status("apiregistration.k8s.io", "v1", "APIService")]),
    Kind::new("apps", "v1", "ControllerRevision", "controllerrevisions", "controllerrevision"),
    Kind::new("apps", "v1", "DaemonSet", "daemonsets", "daemonset")
        .short(&["ds"])
        .categories(ALL)
        .counted()
        .with(&[status("apps", "v1", "DaemonSet")]),
    Kind::new("apps", "v1", "Deployment", "deployments", "deployment")
        .short(&["deploy"])
        .categories(ALL)
        .counted()
        .with(&[scale(), status("apps", "v1", "Deployment")]),
    Kind::new("apps", "v1", "ReplicaSet", "replicasets", "replicaset")
        .short(&["rs"])
        .categories(ALL)
        .counted()
        .with(&[scale(), status("apps", "v1", "ReplicaSet")]),
    Kind::new("apps", "v1", "StatefulSet", "statefulsets", "statefulset")
        .short(&["sts"])
        .categories(ALL)
        .counted()
        .with(&[scale(), status("apps", "v1", "StatefulSet")]),
    Kind::new("events.k8s.io", "v1", "Event", "events", "event")
        .short(&["ev"])
        .upsert()
        .stored(Storage::In { group: "", version: "v1" }),
    Kind::new(
        "authentication.k8s.io",
        "v1",
        "SelfSubjectReview",
        "selfsubjectreviews",
        "selfsubjectreview",
    )
    .cluster()
    .verbs(CREATE)
    .stored(Storage::None),
    Kind::new("authentication.k8s.io", "v1", "TokenReview", "tokenreviews", "tokenreview")
        .cluster()
        .verbs(CREATE)
        .stored(Storage::None),
    Kind::new(
        "authorization.k8s.io",
        "v1",
        "LocalSubjectAccessReview",
        "localsubjectaccessreviews",
        "localsubjectaccessreview",
    )
    .verbs(CREATE)
    .stored(Storage::None),
    Kind::new(
        "authorization.k8s.io",
        "v1",
        "SelfSubjectAccessReview",
        "selfsubjectaccessreviews",
        "selfsubjectaccessreview",
    )
    .cluster()
    .verbs(CREATE)
    .stored(Storage::None),
    Kind::new(
        "authorization.k8s.io",
        "v1",
        "SelfSubjectRulesReview",
        "selfsubjectrulesreviews",
        "selfsubjectrulesreview",
    )
    .cluster()
    .verbs(CREATE)
    .stored(Storage::None),
    Kind::new(
        "authorization.k8s.io",
        "v1",
        "SubjectAccessReview",
        "subjectaccessreviews",
        "subjectaccessreview",
    )
    .cluster()
    .verbs(CREATE)
    .stored(Storage::None),
    Kind::new(
        "autoscaling",
        "v2",
        "HorizontalPodAutoscaler",
        "horizontalpodautoscalers",
        "horizontalpodautoscaler",
    )
    .short(&["hpa"])
    .categories(ALL)
    .with(&[status("autoscaling", "v2", "HorizontalPodAutoscaler")]),
    Kind::new(
        "autoscaling",
        "v1",
        "HorizontalPodAutoscaler",
        "horizontalpodautoscalers",
        "horizontalpodautoscaler",
    )
    .short(&["hpa"])
    .categories(ALL)
    .stored(Storage::In { group: "autoscaling", version: "v2" })
    .with(&[status("autoscaling", "v1", "HorizontalPodAutoscaler")]),
    Kind::new("batch", "v1", "CronJob", "cronjobs", "cronjob")
        .short(&["cj"])
        .categories(ALL)
        .counted()
        .with(&[status("batch", "v1", "CronJob")]),
    Kind::new("batch", "v1", "Job", "jobs", "job")
        .categories(ALL)
        .counted()
        .orphans()
        .with(&[status("batch", "v1", "Job")]),
    Kind::new(
        "certificates.k8s.io",
        "v1",
        "CertificateSigningRequest",
        "certificatesigningrequests",
        "certificatesigningrequest",
    )
    .short(&["csr"])
    .cluster()
    .with(&[
        Subresource::new(
            "approval",
            "certificates.k8s.io",
            "v1",
            "CertificateSigningRequest",
            CHANGE,
        ),
        status("certificates.k8s.io", "v1", "CertificateSigningRequest"),
    ]),
    Kind::new("networking.k8s.io", "v1", "IngressClass", "ingressclasses", "ingressclass")
        .cluster()
        .counted(),
    Kind::new("networking.k8s.io", "v1", "Ingress", "ingresses", "ingress")
        .short(&["ing"])
        .counted()
        .with(&[status("networking.k8s.io", "v1", "Ingress")]),
    Kind::new("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", "networkpolicy")
        .short(&["netpol"])
        .counted(),
    Kind::new("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", "poddisruptionbudget")
        .short(&["pdb"])
        .counted()
        .conditional()
        .with(&[status("policy", "v1", "PodDisruptionBudget")]),
    Kind::new(
        "rbac.authorization.k8s.io",
        "v1",
        "ClusterRoleBinding",
        "clusterrolebindings",
        "clusterrolebinding",
    )
    .cluster()
    .named(NameRule::PathSegment)
    .upsert(),
    Kind::new("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles", "clusterrole")
        .cluster()
        .named(NameRule::PathSegment)
        .upsert(),
    Kind::new("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings", "rolebinding")
        .named(NameRule::PathSegment)
        .upsert(),
    Kind::new("rbac.authorization.k8s.io", "v1", "Role", "roles", "role")
        .named(NameRule::PathSegment)
        .upsert(),
    Kind::new("storage.k8s.io", "v1", "CSIDriver", "csidrivers", "csidriver")
        .cluster()
        .counted()
        .conditional(),
    Kind::new("storage.k8s.io", "v1", "CSINode", "csinodes", "csinode").cluster().conditional(),
    Kind::new(
        "storage.k8s.io",
        "v1",
        "CSIStorageCapacity",
        "csistoragecapacities",
        "csistoragecapacity",
    )
    .conditional(),
    Kind::new("storage.k8s.io", "v1", "StorageClass", "storageclasses", "storageclass")
        .short(&["sc"])
        .cluster(),
    Kind::new("storage.k8s.io", "v1", "VolumeAttachment", "volumeattachments", "volumeattachment")
        .cluster()
        .conditional()
        .with(&[status("storage.k8s.io", "v1", "VolumeAttachment")]),
    Kind::new(
        "admissionregistration.k8s.io",
        "v1",
        "MutatingAdmissionPolicy",
        "mutatingadmissionpolicies",
        "mutatingadmissionpolicy",
    )
    .cluster()
    .categories(API_EXTENSIONS)
    .counted()
    .conditional(),
    Kind::new(
        "admissionregistration.k8s.io",
        "v1",
        "MutatingAdmissionPolicyBinding",
        "mutatingadmissionpolicybindings",
        "mutatingadmissionpolicybinding",
    )
    .cluster()
    .categories(API_EXTENSIONS)
    .counted()
    .conditional(),
    Kind::new(
        "admissionregistration.k8s.io",
        "v1",
        "MutatingWebhookConfiguration",
        "mutatingwebhookconfigurations",
        "mutatingwebhookconfiguration",
    )
    .cluster()
    .categories(API_EXTENSIONS)
    .counted()
    .conditional(),
    Kind::new(
        "admissionregistration.k8s.io",
        "v1",
        "ValidatingAdmissionPolicy",
        "validatingadmissionpolicies",
        "validatingadmissionpolicy",
    )
    .cluster()
    .categories(API_EXTENSIONS)
    .counted()
    .conditional()
    .with(&[status("admissionregistration.k8s.io", "v1", "ValidatingAdmissionPolicy")]),
    Kind::new(
        "admissionregistration.k8s.io",
        "v1",
        "ValidatingAdmissionPolicyBinding",
        "validatingadmissionpolicybindings",
        "validatingadmissionpolicybinding",
    )
    .cluster()
    .categories(API_EXTENSIONS)
    .counted()
    .conditional(),
    Kind::new(
        "admissionregistration.k8s.io",
        "v1",
        "ValidatingWebhookConfiguration",
        "validatingwebhookconfigurations",
        "validatingwebhookconfiguration",
    )
    .cluster()
    .categories(API_EXTENSIONS)
    .counted()
    .conditional(),
    Kind::new(
        "apiextensions.k8s.io",
        "v1",
        "CustomResourceDefinition",
        "customresourcedefinitions",
        "customresourcedefinition",
    )
    .short(&["crd", "crds"])
    .cluster()
    .categories(API_EXTENSIONS)
    .counted()
    .conditional()
    .with(&[status("apiextensions.k8s.io", "v1", "CustomResourceDefinition")]),
    Kind::new("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses", "priorityclass")
        .short(&["pc"])
        .cluster()
        .counted(),
    Kind::new("coordination.k8s.io", "v1", "Lease", "leases", "lease").upsert().conditional(),
    Kind::new("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses", "runtimeclass")
        .cluster()
        .conditional(),
    Kind::new("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", "endpointslice")
        .counted(),
    Kind::new("flowcontrol.apiserver.k8s.io", "v1", "FlowSchema", "flowschemas", "flowschema")
        .cluster()
        .counted()
        .with(&[status("flowcontrol.apiserver.k8s.io", "v1", "FlowSchema")]),
    Kind::new(
        "flowcontrol.apiserver.k8s.io",
        "v1",
        "PriorityLevelConfiguration",
        "prioritylevelconfigurations",
        "prioritylevelconfiguration",
    )
    .cluster()
    .counted()
    .with(&[status("flowcontrol.apiserver.k8s.io", "v1", "PriorityLevelConfiguration")]),
    Kind::new("metrics.k8s.io", "v1beta1", "NodeMetrics", "nodes", "")
        .cluster()
        .verbs(READ)
        .stored(Storage::None),
    Kind::new("metrics.k8s.io", "v1beta1", "PodMetrics", "pods", "")
        .verbs(READ)
        .stored(Storage::None),
];
