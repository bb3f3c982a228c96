//! The rows of the table of merge structure, sorted by type for the search.
//!
//! Read from the `x-kubernetes-patch-*`, `x-kubernetes-list-*` and `x-kubernetes-map-type` marks of
//! Kubernetes' published OpenAPI description. The type of a kind is `group/version/Kind` (`v1/Pod`
//! in the core group), every other type has its short name. `metadata` is the same everywhere and
//! stands in no row.

use super::{Field, field};

pub(super) const TYPES: &[(&str, &[Field])] = &[
    ("APIServiceStatus", &[field("conditions").merge("type").keyed(&["type"])]),
    ("Affinity", &[field("nodeAffinity").one("NodeAffinity")]),
    ("CSIDriverSpec", &[field("volumeLifecycleModes").set()]),
    ("CSINodeSpec", &[field("drivers").merge("name").keyed(&["name"])]),
    (
        "CSIPersistentVolumeSource",
        &[
            field("controllerExpandSecretRef").atomic(),
            field("controllerPublishSecretRef").atomic(),
            field("nodeExpandSecretRef").atomic(),
            field("nodePublishSecretRef").atomic(),
            field("nodeStageSecretRef").atomic(),
        ],
    ),
    ("CSIVolumeSource", &[field("nodePublishSecretRef").atomic()]),
    ("CephFSPersistentVolumeSource", &[field("secretRef").atomic()]),
    ("CephFSVolumeSource", &[field("secretRef").atomic()]),
    ("CertificateSigningRequestStatus", &[field("conditions").keyed(&["type"])]),
    ("CinderPersistentVolumeSource", &[field("secretRef").atomic()]),
    ("CinderVolumeSource", &[field("secretRef").atomic()]),
    (
        "Container",
        &[
            field("env").list_of("EnvVar").merge("name").keyed(&["name"]),
            field("ports").merge("containerPort").keyed(&["containerPort", "protocol"]),
            field("resources").one("ResourceRequirements"),
            field("volumeDevices").merge("devicePath").keyed(&["devicePath"]),
            field("volumeMounts").merge("mountPath").keyed(&["mountPath"]),
        ],
    ),
    ("CronJobSpec", &[field("jobTemplate").one("JobTemplateSpec")]),
    ("CustomResourceDefinitionStatus", &[field("conditions").keyed(&["type"])]),
    ("DaemonSetSpec", &[field("selector").atomic(), field("template").one("PodTemplateSpec")]),
    ("DaemonSetStatus", &[field("conditions").merge("type").keyed(&["type"])]),
    (
        "DeploymentSpec",
        &[
            field("selector").atomic(),
            field("strategy").retain_keys(),
            field("template").one("PodTemplateSpec"),
        ],
    ),
    ("DeploymentStatus", &[field("conditions").merge("type").keyed(&["type"])]),
    ("EnvVar", &[field("valueFrom").one("EnvVarSource")]),
    (
        "EnvVarSource",
        &[
            field("configMapKeyRef").atomic(),
            field("fieldRef").atomic(),
            field("resourceFieldRef").atomic(),
            field("secretKeyRef").atomic(),
        ],
    ),
    (
        "EphemeralContainer",
        &[
            field("env").list_of("EnvVar").merge("name").keyed(&["name"]),
            field("ports").merge("containerPort").keyed(&["containerPort", "protocol"]),
            field("resources").one("ResourceRequirements"),
            field("volumeDevices").merge("devicePath").keyed(&["devicePath"]),
            field("volumeMounts").merge("mountPath").keyed(&["mountPath"]),
        ],
    ),
    ("EphemeralVolumeSource", &[field("volumeClaimTemplate").one("PersistentVolumeClaimTemplate")]),
    ("FlexPersistentVolumeSource", &[field("secretRef").atomic()]),
    ("FlexVolumeSource", &[field("secretRef").atomic()]),
    ("FlowSchemaStatus", &[field("conditions").merge("type").keyed(&["type"])]),
    ("HorizontalPodAutoscalerSpec", &[field("scaleTargetRef").atomic()]),
    ("HorizontalPodAutoscalerStatus", &[field("conditions").merge("type").keyed(&["type"])]),
    ("ISCSIPersistentVolumeSource", &[field("secretRef").atomic()]),
    ("ISCSIVolumeSource", &[field("secretRef").atomic()]),
    (
        "IngressBackend",
        &[field("resource").atomic(), field("service").one("IngressServiceBackend")],
    ),
    ("IngressServiceBackend", &[field("port").atomic()]),
    ("IngressSpec", &[field("defaultBackend").one("IngressBackend")]),
    ("JobSpec", &[field("selector").atomic(), field("template").one("PodTemplateSpec")]),
    (
        "JobStatus",
        &[
            field("conditions").merge("type"),
            field("uncountedTerminatedPods").one("UncountedTerminatedPods"),
        ],
    ),
    ("JobTemplateSpec", &[field("spec").one("JobSpec")]),
    ("MatchResources", &[field("namespaceSelector").atomic(), field("objectSelector").atomic()]),
    (
        "MutatingWebhook",
        &[
            field("matchConditions").merge("name").keyed(&["name"]),
            field("namespaceSelector").atomic(),
            field("objectSelector").atomic(),
        ],
    ),
    ("NamespaceStatus", &[field("conditions").merge("type").keyed(&["type"])]),
    ("NetworkPolicySpec", &[field("podSelector").atomic()]),
    ("NodeAffinity", &[field("requiredDuringSchedulingIgnoredDuringExecution").atomic()]),
    ("NodeSpec", &[field("podCIDRs").merge_values().set()]),
    (
        "NodeStatus",
        &[
            field("addresses").merge("type").keyed(&["type"]),
            field("conditions").merge("type").keyed(&["type"]),
        ],
    ),
    (
        "ObjectMeta",
        &[
            field("finalizers").merge_values().set(),
            field("ownerReferences").merge("uid").keyed(&["uid"]),
        ],
    ),
    ("ParamRef", &[field("selector").atomic()]),
    ("PersistentVolumeClaimSpec", &[field("dataSource").atomic(), field("selector").atomic()]),
    ("PersistentVolumeClaimStatus", &[field("conditions").merge("type").keyed(&["type"])]),
    ("PersistentVolumeClaimTemplate", &[field("spec").one("PersistentVolumeClaimSpec")]),
    (
        "PersistentVolumeSpec",
        &[
            field("cephfs").one("CephFSPersistentVolumeSource"),
            field("cinder").one("CinderPersistentVolumeSource"),
            field("claimRef").atomic(),
            field("csi").one("CSIPersistentVolumeSource"),
            field("flexVolume").one("FlexPersistentVolumeSource"),
            field("iscsi").one("ISCSIPersistentVolumeSource"),
            field("nodeAffinity").one("VolumeNodeAffinity"),
            field("rbd").one("RBDPersistentVolumeSource"),
            field("scaleIO").one("ScaleIOPersistentVolumeSource"),
            field("storageos").one("StorageOSPersistentVolumeSource"),
        ],
    ),
    ("PodDisruptionBudgetSpec", &[field("selector").replace().atomic()]),
    ("PodDisruptionBudgetStatus", &[field("conditions").merge("type").keyed(&["type"])]),
    (
        "PodSpec",
        &[
            field("affinity").one("Affinity"),
            field("containers").list_of("Container").merge("name").keyed(&["name"]),
            field("ephemeralContainers")
                .list_of("EphemeralContainer")
                .merge("name")
                .keyed(&["name"]),
            field("hostAliases").merge("ip").keyed(&["ip"]),
            field("imagePullSecrets").merge("name").keyed(&["name"]),
            field("initContainers").list_of("Container").merge("name").keyed(&["name"]),
            field("nodeSelector").atomic(),
            field("resourceClaims").merge("name").retain_keys().keyed(&["name"]),
            field("resources").one("ResourceRequirements"),
            field("schedulingGates").merge("name").keyed(&["name"]),
            field("topologySpreadConstraints")
                .list_of("TopologySpreadConstraint")
                .merge("topologyKey")
                .keyed(&["topologyKey", "whenUnsatisfiable"]),
            field("volumes").list_of("Volume").merge("name").retain_keys().keyed(&["name"]),
        ],
    ),
    (
        "PodStatus",
        &[
            field("conditions").merge("type").keyed(&["type"]),
            field("hostIPs").merge("ip"),
            field("podIPs").merge("ip").keyed(&["ip"]),
            field("resourceClaimStatuses").merge("name").retain_keys().keyed(&["name"]),
        ],
    ),
    ("PodTemplateSpec", &[field("spec").one("PodSpec")]),
    ("PriorityLevelConfigurationStatus", &[field("conditions").merge("type").keyed(&["type"])]),
    ("RBDPersistentVolumeSource", &[field("secretRef").atomic()]),
    ("RBDVolumeSource", &[field("secretRef").atomic()]),
    ("ReplicaSetSpec", &[field("selector").atomic(), field("template").one("PodTemplateSpec")]),
    ("ReplicaSetStatus", &[field("conditions").merge("type").keyed(&["type"])]),
    (
        "ReplicationControllerSpec",
        &[field("selector").atomic(), field("template").one("PodTemplateSpec")],
    ),
    ("ReplicationControllerStatus", &[field("conditions").merge("type").keyed(&["type"])]),
    ("ResourceQuotaSpec", &[field("scopeSelector").atomic()]),
    ("ResourceRequirements", &[field("claims").keyed(&["name"])]),
    ("ScaleIOPersistentVolumeSource", &[field("secretRef").atomic()]),
    ("ScaleIOVolumeSource", &[field("secretRef").atomic()]),
    ("Scheduling", &[field("nodeSelector").atomic()]),
    (
        "ServiceSpec",
        &[field("ports").merge("port").keyed(&["port", "protocol"]), field("selector").atomic()],
    ),
    ("ServiceStatus", &[field("conditions").merge("type").keyed(&["type"])]),
    ("StatefulSetSpec", &[field("selector").atomic(), field("template").one("PodTemplateSpec")]),
    ("StatefulSetStatus", &[field("conditions").merge("type").keyed(&["type"])]),
    ("StorageOSPersistentVolumeSource", &[field("secretRef").atomic()]),
    ("StorageOSVolumeSource", &[field("secretRef").atomic()]),
    ("TopologySpreadConstraint", &[field("labelSelector").atomic()]),
    ("UncountedTerminatedPods", &[field("failed").set(), field("succeeded").set()]),
    (
        "ValidatingAdmissionPolicyBindingSpec",
        &[
            field("matchResources").one("MatchResources").atomic(),
            field("paramRef").one("ParamRef").atomic(),
            field("validationActions").set(),
        ],
    ),
    (
        "ValidatingAdmissionPolicySpec",
        &[
            field("matchConditions").merge("name").keyed(&["name"]),
            field("matchConstraints").one("MatchResources").atomic(),
            field("paramKind").atomic(),
            field("variables").merge("name").keyed(&["name"]),
        ],
    ),
    ("ValidatingAdmissionPolicyStatus", &[field("conditions").keyed(&["type"])]),
    (
        "ValidatingWebhook",
        &[
            field("matchConditions").merge("name").keyed(&["name"]),
            field("namespaceSelector").atomic(),
            field("objectSelector").atomic(),
        ],
    ),
    (
        "Volume",
        &[
            field("cephfs").one("CephFSVolumeSource"),
            field("cinder").one("CinderVolumeSource"),
            field("csi").one("CSIVolumeSource"),
            field("ephemeral").one("EphemeralVolumeSource"),
            field("flexVolume").one("FlexVolumeSource"),
            field("iscsi").one("ISCSIVolumeSource"),
            field("rbd").one("RBDVolumeSource"),
            field("scaleIO").one("ScaleIOVolumeSource"),
            field("storageos").one("StorageOSVolumeSource"),
        ],
    ),
    ("VolumeAttachmentSource", &[field("inlineVolumeSpec").one("PersistentVolumeSpec")]),
    ("VolumeAttachmentSpec", &[field("source").one("VolumeAttachmentSource")]),
    ("VolumeNodeAffinity", &[field("required").atomic()]),
    (
        "admissionregistration.k8s.io/v1/MutatingWebhookConfiguration",
        &[field("webhooks").list_of("MutatingWebhook").merge("name").keyed(&["name"])],
    ),
    (
        "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy",
        &[
            field("spec").one("ValidatingAdmissionPolicySpec"),
            field("status").one("ValidatingAdmissionPolicyStatus"),
        ],
    ),
    (
        "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicyBinding",
        &[field("spec").one("ValidatingAdmissionPolicyBindingSpec")],
    ),
    (
        "admissionregistration.k8s.io/v1/ValidatingWebhookConfiguration",
        &[field("webhooks").list_of("ValidatingWebhook").merge("name").keyed(&["name"])],
    ),
    (
        "apiextensions.k8s.io/v1/CustomResourceDefinition",
        &[field("status").one("CustomResourceDefinitionStatus")],
    ),
    ("apiregistration.k8s.io/v1/APIService", &[field("status").one("APIServiceStatus")]),
    (
        "apps/v1/DaemonSet",
        &[field("spec").one("DaemonSetSpec"), field("status").one("DaemonSetStatus")],
    ),
    (
        "apps/v1/Deployment",
        &[field("spec").one("DeploymentSpec"), field("status").one("DeploymentStatus")],
    ),
    (
        "apps/v1/ReplicaSet",
        &[field("spec").one("ReplicaSetSpec"), field("status").one("ReplicaSetStatus")],
    ),
    (
        "apps/v1/StatefulSet",
        &[field("spec").one("StatefulSetSpec"), field("status").one("StatefulSetStatus")],
    ),
    ("autoscaling/v1/HorizontalPodAutoscaler", &[field("spec").one("HorizontalPodAutoscalerSpec")]),
    (
        "autoscaling/v2/HorizontalPodAutoscaler",
        &[field("status").one("HorizontalPodAutoscalerStatus")],
    ),
    ("batch/v1/CronJob", &[field("spec").one("CronJobSpec")]),
    ("batch/v1/Job", &[field("spec").one("JobSpec"), field("status").one("JobStatus")]),
    (
        "certificates.k8s.io/v1/CertificateSigningRequest",
        &[field("status").one("CertificateSigningRequestStatus")],
    ),
    ("events.k8s.io/v1/Event", &[field("regarding").atomic(), field("related").atomic()]),
    ("flowcontrol.apiserver.k8s.io/v1/FlowSchema", &[field("status").one("FlowSchemaStatus")]),
    (
        "flowcontrol.apiserver.k8s.io/v1/PriorityLevelConfiguration",
        &[field("status").one("PriorityLevelConfigurationStatus")],
    ),
    ("networking.k8s.io/v1/Ingress", &[field("spec").one("IngressSpec")]),
    ("networking.k8s.io/v1/NetworkPolicy", &[field("spec").one("NetworkPolicySpec")]),
    ("node.k8s.io/v1/RuntimeClass", &[field("scheduling").one("Scheduling")]),
    (
        "policy/v1/PodDisruptionBudget",
        &[
            field("spec").one("PodDisruptionBudgetSpec"),
            field("status").one("PodDisruptionBudgetStatus"),
        ],
    ),
    ("rbac.authorization.k8s.io/v1/ClusterRoleBinding", &[field("roleRef").atomic()]),
    ("rbac.authorization.k8s.io/v1/RoleBinding", &[field("roleRef").atomic()]),
    ("storage.k8s.io/v1/CSIDriver", &[field("spec").one("CSIDriverSpec")]),
    ("storage.k8s.io/v1/CSINode", &[field("spec").one("CSINodeSpec")]),
    ("storage.k8s.io/v1/CSIStorageCapacity", &[field("nodeTopology").atomic()]),
    ("storage.k8s.io/v1/VolumeAttachment", &[field("spec").one("VolumeAttachmentSpec")]),
    ("v1/Binding", &[field("target").atomic()]),
    ("v1/ComponentStatus", &[field("conditions").merge("type").keyed(&["type"])]),
    ("v1/Event", &[field("involvedObject").atomic(), field("related").atomic()]),
    ("v1/Namespace", &[field("status").one("NamespaceStatus")]),
    ("v1/Node", &[field("spec").one("NodeSpec"), field("status").one("NodeStatus")]),
    ("v1/PersistentVolume", &[field("spec").one("PersistentVolumeSpec")]),
    (
        "v1/PersistentVolumeClaim",
        &[
            field("spec").one("PersistentVolumeClaimSpec"),
            field("status").one("PersistentVolumeClaimStatus"),
        ],
    ),
    ("v1/Pod", &[field("spec").one("PodSpec"), field("status").one("PodStatus")]),
    ("v1/PodTemplate", &[field("template").one("PodTemplateSpec")]),
    (
        "v1/ReplicationController",
        &[
            field("spec").one("ReplicationControllerSpec"),
            field("status").one("ReplicationControllerStatus"),
        ],
    ),
    ("v1/ResourceQuota", &[field("spec").one("ResourceQuotaSpec")]),
    ("v1/Service", &[field("spec").one("ServiceSpec"), field("status").one("ServiceStatus")]),
    ("v1/ServiceAccount", &[field("secrets").merge("name").keyed(&["name"])]),
];
