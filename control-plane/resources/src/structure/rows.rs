//! The rows of the table of merge structure, sorted by type for the search.
//!
//! Read from the `x-kubernetes-patch-*`, `x-kubernetes-list-*` and `x-kubernetes-map-type` marks of
//! Kubernetes' published OpenAPI description. The type of a kind is `group/version/Kind` (`v1/Pod`
//! in the core group), every other type has its short name. `metadata` is the same everywhere and
//! stands in no row.

use super::{Field, field};

pub(super) const TYPES: &[(&str, &[Field])] = &[
    ("APIServiceStatus", &[field("conditions").merge("type").keyed(&["type"])]),
    (
        "Affinity",
        &[
            field("nodeAffinity").of("NodeAffinity"),
            field("podAffinity").of("PodAffinity"),
            field("podAntiAffinity").of("PodAntiAffinity"),
        ],
    ),
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
    ("ClusterTrustBundleProjection", &[field("labelSelector").atomic()]),
    (
        "Container",
        &[
            field("env").of("EnvVar").merge("name").keyed(&["name"]),
            field("ports").merge("containerPort").keyed(&["containerPort", "protocol"]),
            field("resources").of("ResourceRequirements"),
            field("volumeDevices").merge("devicePath").keyed(&["devicePath"]),
            field("volumeMounts").merge("mountPath").keyed(&["mountPath"]),
        ],
    ),
    (
        "ContainerStatus",
        &[
            field("allocatedResourcesStatus").of("ResourceStatus").merge("name").keyed(&["name"]),
            field("resources").of("ResourceRequirements"),
            field("volumeMounts").merge("mountPath").keyed(&["mountPath"]),
        ],
    ),
    ("CronJobSpec", &[field("jobTemplate").of("JobTemplateSpec")]),
    ("CustomResourceDefinitionSpec", &[field("versions").of("CustomResourceDefinitionVersion")]),
    ("CustomResourceDefinitionStatus", &[field("conditions").keyed(&["type"])]),
    ("CustomResourceDefinitionVersion", &[field("schema").of("CustomResourceValidation")]),
    ("CustomResourceValidation", &[field("openAPIV3Schema").of("JSONSchemaProps")]),
    ("DaemonSetSpec", &[field("selector").atomic(), field("template").of("PodTemplateSpec")]),
    ("DaemonSetStatus", &[field("conditions").merge("type").keyed(&["type"])]),
    (
        "DeploymentSpec",
        &[
            field("selector").atomic(),
            field("strategy").retain_keys(),
            field("template").of("PodTemplateSpec"),
        ],
    ),
    ("DeploymentStatus", &[field("conditions").merge("type").keyed(&["type"])]),
    ("DownwardAPIProjection", &[field("items").of("DownwardAPIVolumeFile")]),
    ("DownwardAPIVolumeFile", &[field("fieldRef").atomic(), field("resourceFieldRef").atomic()]),
    ("DownwardAPIVolumeSource", &[field("items").of("DownwardAPIVolumeFile")]),
    ("Endpoint", &[field("addresses").set(), field("targetRef").atomic()]),
    ("EndpointAddress", &[field("targetRef").atomic()]),
    (
        "EndpointSubset",
        &[
            field("addresses").of("EndpointAddress"),
            field("notReadyAddresses").of("EndpointAddress"),
        ],
    ),
    ("EnvVar", &[field("valueFrom").of("EnvVarSource")]),
    (
        "EnvVarSource",
        &[
            field("configMapKeyRef").atomic(),
            field("fieldRef").atomic(),
            field("fileKeyRef").atomic(),
            field("resourceFieldRef").atomic(),
            field("secretKeyRef").atomic(),
        ],
    ),
    (
        "EphemeralContainer",
        &[
            field("env").of("EnvVar").merge("name").keyed(&["name"]),
            field("ports").merge("containerPort").keyed(&["containerPort", "protocol"]),
            field("resources").of("ResourceRequirements"),
            field("volumeDevices").merge("devicePath").keyed(&["devicePath"]),
            field("volumeMounts").merge("mountPath").keyed(&["mountPath"]),
        ],
    ),
    ("EphemeralVolumeSource", &[field("volumeClaimTemplate").of("PersistentVolumeClaimTemplate")]),
    ("ExternalMetricSource", &[field("metric").of("MetricIdentifier")]),
    ("ExternalMetricStatus", &[field("metric").of("MetricIdentifier")]),
    ("FlexPersistentVolumeSource", &[field("secretRef").atomic()]),
    ("FlexVolumeSource", &[field("secretRef").atomic()]),
    ("FlowSchemaSpec", &[field("rules").of("PolicyRulesWithSubjects")]),
    ("FlowSchemaStatus", &[field("conditions").merge("type").keyed(&["type"])]),
    ("HTTPIngressPath", &[field("backend").of("IngressBackend")]),
    ("HTTPIngressRuleValue", &[field("paths").of("HTTPIngressPath")]),
    ("ISCSIPersistentVolumeSource", &[field("secretRef").atomic()]),
    ("ISCSIVolumeSource", &[field("secretRef").atomic()]),
    ("IngressBackend", &[field("resource").atomic(), field("service").of("IngressServiceBackend")]),
    ("IngressRule", &[field("http").of("HTTPIngressRuleValue")]),
    ("IngressServiceBackend", &[field("port").atomic()]),
    (
        "IngressSpec",
        &[field("defaultBackend").of("IngressBackend"), field("rules").of("IngressRule")],
    ),
    ("JSONSchemaProps", &[field("x-kubernetes-validations").merge("rule").keyed(&["rule"])]),
    (
        "JobSpec",
        &[
            field("podFailurePolicy").of("PodFailurePolicy"),
            field("selector").atomic(),
            field("template").of("PodTemplateSpec"),
        ],
    ),
    (
        "JobStatus",
        &[
            field("conditions").merge("type"),
            field("uncountedTerminatedPods").of("UncountedTerminatedPods"),
        ],
    ),
    ("JobTemplateSpec", &[field("spec").of("JobSpec")]),
    ("MatchResources", &[field("namespaceSelector").atomic(), field("objectSelector").atomic()]),
    ("MetricIdentifier", &[field("selector").atomic()]),
    (
        "MetricSpec",
        &[
            field("external").of("ExternalMetricSource"),
            field("object").of("ObjectMetricSource"),
            field("pods").of("PodsMetricSource"),
        ],
    ),
    (
        "MetricStatus",
        &[
            field("external").of("ExternalMetricStatus"),
            field("object").of("ObjectMetricStatus"),
            field("pods").of("PodsMetricStatus"),
        ],
    ),
    (
        "MutatingWebhook",
        &[
            field("matchConditions").merge("name").keyed(&["name"]),
            field("namespaceSelector").atomic(),
            field("objectSelector").atomic(),
        ],
    ),
    ("NamespaceStatus", &[field("conditions").merge("type").keyed(&["type"])]),
    ("NetworkPolicyEgressRule", &[field("to").of("NetworkPolicyPeer")]),
    ("NetworkPolicyIngressRule", &[field("from").of("NetworkPolicyPeer")]),
    ("NetworkPolicyPeer", &[field("namespaceSelector").atomic(), field("podSelector").atomic()]),
    (
        "NetworkPolicySpec",
        &[
            field("egress").of("NetworkPolicyEgressRule"),
            field("ingress").of("NetworkPolicyIngressRule"),
            field("podSelector").atomic(),
        ],
    ),
    (
        "NodeAffinity",
        &[
            field("preferredDuringSchedulingIgnoredDuringExecution").of("PreferredSchedulingTerm"),
            field("requiredDuringSchedulingIgnoredDuringExecution").atomic(),
        ],
    ),
    ("NodeSpec", &[field("podCIDRs").merge_values().set()]),
    (
        "NodeStatus",
        &[
            field("addresses").merge("type").keyed(&["type"]),
            field("conditions").merge("type").keyed(&["type"]),
        ],
    ),
    ("NonResourcePolicyRule", &[field("nonResourceURLs").set(), field("verbs").set()]),
    (
        "ObjectMeta",
        &[
            field("finalizers").merge_values().set(),
            field("ownerReferences").merge("uid").keyed(&["uid"]).atomic_items(),
        ],
    ),
    ("ObjectMetricSource", &[field("metric").of("MetricIdentifier")]),
    ("ObjectMetricStatus", &[field("metric").of("MetricIdentifier")]),
    ("ParamRef", &[field("selector").atomic()]),
    ("PersistentVolumeClaimSpec", &[field("dataSource").atomic(), field("selector").atomic()]),
    ("PersistentVolumeClaimStatus", &[field("conditions").merge("type").keyed(&["type"])]),
    ("PersistentVolumeClaimTemplate", &[field("spec").of("PersistentVolumeClaimSpec")]),
    (
        "PersistentVolumeSpec",
        &[
            field("cephfs").of("CephFSPersistentVolumeSource"),
            field("cinder").of("CinderPersistentVolumeSource"),
            field("csi").of("CSIPersistentVolumeSource"),
            field("flexVolume").of("FlexPersistentVolumeSource"),
            field("iscsi").of("ISCSIPersistentVolumeSource"),
            field("nodeAffinity").of("VolumeNodeAffinity"),
            field("rbd").of("RBDPersistentVolumeSource"),
            field("scaleIO").of("ScaleIOPersistentVolumeSource"),
            field("storageos").of("StorageOSPersistentVolumeSource"),
        ],
    ),
    (
        "PodAffinity",
        &[
            field("preferredDuringSchedulingIgnoredDuringExecution").of("WeightedPodAffinityTerm"),
            field("requiredDuringSchedulingIgnoredDuringExecution").of("PodAffinityTerm"),
        ],
    ),
    ("PodAffinityTerm", &[field("labelSelector").atomic(), field("namespaceSelector").atomic()]),
    (
        "PodAntiAffinity",
        &[
            field("preferredDuringSchedulingIgnoredDuringExecution").of("WeightedPodAffinityTerm"),
            field("requiredDuringSchedulingIgnoredDuringExecution").of("PodAffinityTerm"),
        ],
    ),
    ("PodDisruptionBudgetSpec", &[field("selector").replace().atomic()]),
    ("PodDisruptionBudgetStatus", &[field("conditions").merge("type").keyed(&["type"])]),
    ("PodFailurePolicy", &[field("rules").of("PodFailurePolicyRule")]),
    ("PodFailurePolicyOnExitCodesRequirement", &[field("values").set()]),
    ("PodFailurePolicyRule", &[field("onExitCodes").of("PodFailurePolicyOnExitCodesRequirement")]),
    (
        "PodSpec",
        &[
            field("affinity").of("Affinity"),
            field("containers").of("Container").merge("name").keyed(&["name"]),
            field("ephemeralContainers").of("EphemeralContainer").merge("name").keyed(&["name"]),
            field("hostAliases").merge("ip").keyed(&["ip"]),
            field("imagePullSecrets").merge("name").keyed(&["name"]).atomic_items(),
            field("initContainers").of("Container").merge("name").keyed(&["name"]),
            field("nodeSelector").atomic(),
            field("resourceClaims").merge("name").retain_keys().keyed(&["name"]),
            field("resources").of("ResourceRequirements"),
            field("schedulingGates").merge("name").keyed(&["name"]),
            field("topologySpreadConstraints")
                .of("TopologySpreadConstraint")
                .merge("topologyKey")
                .keyed(&["topologyKey", "whenUnsatisfiable"]),
            field("volumes").of("Volume").merge("name").retain_keys().keyed(&["name"]),
        ],
    ),
    (
        "PodStatus",
        &[
            field("conditions").merge("type").keyed(&["type"]),
            field("containerStatuses").of("ContainerStatus"),
            field("ephemeralContainerStatuses").of("ContainerStatus"),
            field("hostIPs").merge("ip"),
            field("initContainerStatuses").of("ContainerStatus"),
            field("podIPs").merge("ip").keyed(&["ip"]),
            field("resourceClaimStatuses").merge("name").retain_keys().keyed(&["name"]),
        ],
    ),
    ("PodTemplateSpec", &[field("spec").of("PodSpec")]),
    ("PodsMetricSource", &[field("metric").of("MetricIdentifier")]),
    ("PodsMetricStatus", &[field("metric").of("MetricIdentifier")]),
    (
        "PolicyRulesWithSubjects",
        &[
            field("nonResourceRules").of("NonResourcePolicyRule"),
            field("resourceRules").of("ResourcePolicyRule"),
        ],
    ),
    ("PreferredSchedulingTerm", &[field("preference").atomic()]),
    ("PriorityLevelConfigurationStatus", &[field("conditions").merge("type").keyed(&["type"])]),
    ("ProjectedVolumeSource", &[field("sources").of("VolumeProjection")]),
    ("RBDPersistentVolumeSource", &[field("secretRef").atomic()]),
    ("RBDVolumeSource", &[field("secretRef").atomic()]),
    ("ReplicaSetSpec", &[field("selector").atomic(), field("template").of("PodTemplateSpec")]),
    ("ReplicaSetStatus", &[field("conditions").merge("type").keyed(&["type"])]),
    (
        "ReplicationControllerSpec",
        &[field("selector").atomic(), field("template").of("PodTemplateSpec")],
    ),
    ("ReplicationControllerStatus", &[field("conditions").merge("type").keyed(&["type"])]),
    (
        "ResourcePolicyRule",
        &[
            field("apiGroups").set(),
            field("namespaces").set(),
            field("resources").set(),
            field("verbs").set(),
        ],
    ),
    ("ResourceQuotaSpec", &[field("scopeSelector").atomic()]),
    ("ResourceRequirements", &[field("claims").keyed(&["name"])]),
    ("ResourceStatus", &[field("resources").keyed(&["resourceID"])]),
    ("ScaleIOPersistentVolumeSource", &[field("secretRef").atomic()]),
    ("ScaleIOVolumeSource", &[field("secretRef").atomic()]),
    ("Scheduling", &[field("nodeSelector").atomic()]),
    (
        "ServiceSpec",
        &[field("ports").merge("port").keyed(&["port", "protocol"]), field("selector").atomic()],
    ),
    ("ServiceStatus", &[field("conditions").merge("type").keyed(&["type"])]),
    (
        "StatefulSetSpec",
        &[
            field("selector").atomic(),
            field("template").of("PodTemplateSpec"),
            field("volumeClaimTemplates").of("v1/PersistentVolumeClaim"),
        ],
    ),
    ("StatefulSetStatus", &[field("conditions").merge("type").keyed(&["type"])]),
    ("StorageOSPersistentVolumeSource", &[field("secretRef").atomic()]),
    ("StorageOSVolumeSource", &[field("secretRef").atomic()]),
    ("TopologySpreadConstraint", &[field("labelSelector").atomic()]),
    ("UncountedTerminatedPods", &[field("failed").set(), field("succeeded").set()]),
    (
        "ValidatingAdmissionPolicyBindingSpec",
        &[
            field("matchResources").of("MatchResources").atomic(),
            field("paramRef").of("ParamRef").atomic(),
            field("validationActions").set(),
        ],
    ),
    (
        "ValidatingAdmissionPolicySpec",
        &[
            field("matchConditions").merge("name").keyed(&["name"]),
            field("matchConstraints").of("MatchResources").atomic(),
            field("paramKind").atomic(),
            field("variables").merge("name").keyed(&["name"]).atomic_items(),
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
            field("cephfs").of("CephFSVolumeSource"),
            field("cinder").of("CinderVolumeSource"),
            field("csi").of("CSIVolumeSource"),
            field("downwardAPI").of("DownwardAPIVolumeSource"),
            field("ephemeral").of("EphemeralVolumeSource"),
            field("flexVolume").of("FlexVolumeSource"),
            field("iscsi").of("ISCSIVolumeSource"),
            field("projected").of("ProjectedVolumeSource"),
            field("rbd").of("RBDVolumeSource"),
            field("scaleIO").of("ScaleIOVolumeSource"),
            field("storageos").of("StorageOSVolumeSource"),
        ],
    ),
    ("VolumeAttachmentSource", &[field("inlineVolumeSpec").of("PersistentVolumeSpec")]),
    ("VolumeAttachmentSpec", &[field("source").of("VolumeAttachmentSource")]),
    ("VolumeNodeAffinity", &[field("required").atomic()]),
    (
        "VolumeProjection",
        &[
            field("clusterTrustBundle").of("ClusterTrustBundleProjection"),
            field("downwardAPI").of("DownwardAPIProjection"),
        ],
    ),
    ("WeightedPodAffinityTerm", &[field("podAffinityTerm").of("PodAffinityTerm")]),
    (
        "admissionregistration.k8s.io/v1/MutatingWebhookConfiguration",
        &[field("webhooks").of("MutatingWebhook").merge("name").keyed(&["name"])],
    ),
    (
        "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy",
        &[
            field("spec").of("ValidatingAdmissionPolicySpec"),
            field("status").of("ValidatingAdmissionPolicyStatus"),
        ],
    ),
    (
        "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicyBinding",
        &[field("spec").of("ValidatingAdmissionPolicyBindingSpec")],
    ),
    (
        "admissionregistration.k8s.io/v1/ValidatingWebhookConfiguration",
        &[field("webhooks").of("ValidatingWebhook").merge("name").keyed(&["name"])],
    ),
    (
        "apiextensions.k8s.io/v1/CustomResourceDefinition",
        &[
            field("spec").of("CustomResourceDefinitionSpec"),
            field("status").of("CustomResourceDefinitionStatus"),
        ],
    ),
    ("apiregistration.k8s.io/v1/APIService", &[field("status").of("APIServiceStatus")]),
    (
        "apps/v1/DaemonSet",
        &[field("spec").of("DaemonSetSpec"), field("status").of("DaemonSetStatus")],
    ),
    (
        "apps/v1/Deployment",
        &[field("spec").of("DeploymentSpec"), field("status").of("DeploymentStatus")],
    ),
    (
        "apps/v1/ReplicaSet",
        &[field("spec").of("ReplicaSetSpec"), field("status").of("ReplicaSetStatus")],
    ),
    (
        "apps/v1/StatefulSet",
        &[field("spec").of("StatefulSetSpec"), field("status").of("StatefulSetStatus")],
    ),
    (
        "autoscaling/v1/HorizontalPodAutoscaler",
        &[field("spec").of("v1.HorizontalPodAutoscalerSpec")],
    ),
    (
        "autoscaling/v2/HorizontalPodAutoscaler",
        &[
            field("spec").of("v2.HorizontalPodAutoscalerSpec"),
            field("status").of("v2.HorizontalPodAutoscalerStatus"),
        ],
    ),
    ("batch/v1/CronJob", &[field("spec").of("CronJobSpec")]),
    ("batch/v1/Job", &[field("spec").of("JobSpec"), field("status").of("JobStatus")]),
    (
        "certificates.k8s.io/v1/CertificateSigningRequest",
        &[field("status").of("CertificateSigningRequestStatus")],
    ),
    ("discovery.k8s.io/v1/EndpointSlice", &[field("endpoints").of("Endpoint")]),
    ("events.k8s.io/v1/Event", &[field("regarding").atomic(), field("related").atomic()]),
    (
        "flowcontrol.apiserver.k8s.io/v1/FlowSchema",
        &[field("spec").of("FlowSchemaSpec"), field("status").of("FlowSchemaStatus")],
    ),
    (
        "flowcontrol.apiserver.k8s.io/v1/PriorityLevelConfiguration",
        &[field("status").of("PriorityLevelConfigurationStatus")],
    ),
    ("networking.k8s.io/v1/Ingress", &[field("spec").of("IngressSpec")]),
    ("networking.k8s.io/v1/NetworkPolicy", &[field("spec").of("NetworkPolicySpec")]),
    ("node.k8s.io/v1/RuntimeClass", &[field("scheduling").of("Scheduling")]),
    (
        "policy/v1/PodDisruptionBudget",
        &[
            field("spec").of("PodDisruptionBudgetSpec"),
            field("status").of("PodDisruptionBudgetStatus"),
        ],
    ),
    ("rbac.authorization.k8s.io/v1/ClusterRoleBinding", &[field("roleRef").atomic()]),
    ("rbac.authorization.k8s.io/v1/RoleBinding", &[field("roleRef").atomic()]),
    ("storage.k8s.io/v1/CSIDriver", &[field("spec").of("CSIDriverSpec")]),
    ("storage.k8s.io/v1/CSINode", &[field("spec").of("CSINodeSpec")]),
    ("storage.k8s.io/v1/CSIStorageCapacity", &[field("nodeTopology").atomic()]),
    ("storage.k8s.io/v1/VolumeAttachment", &[field("spec").of("VolumeAttachmentSpec")]),
    ("v1.HorizontalPodAutoscalerSpec", &[field("scaleTargetRef").atomic()]),
    ("v1/Binding", &[field("target").atomic()]),
    ("v1/ComponentStatus", &[field("conditions").merge("type").keyed(&["type"])]),
    ("v1/Endpoints", &[field("subsets").of("EndpointSubset")]),
    ("v1/Event", &[field("involvedObject").atomic(), field("related").atomic()]),
    ("v1/Namespace", &[field("status").of("NamespaceStatus")]),
    ("v1/Node", &[field("spec").of("NodeSpec"), field("status").of("NodeStatus")]),
    ("v1/PersistentVolume", &[field("spec").of("PersistentVolumeSpec")]),
    (
        "v1/PersistentVolumeClaim",
        &[
            field("spec").of("PersistentVolumeClaimSpec"),
            field("status").of("PersistentVolumeClaimStatus"),
        ],
    ),
    ("v1/Pod", &[field("spec").of("PodSpec"), field("status").of("PodStatus")]),
    ("v1/PodTemplate", &[field("template").of("PodTemplateSpec")]),
    (
        "v1/ReplicationController",
        &[
            field("spec").of("ReplicationControllerSpec"),
            field("status").of("ReplicationControllerStatus"),
        ],
    ),
    ("v1/ResourceQuota", &[field("spec").of("ResourceQuotaSpec")]),
    ("v1/Service", &[field("spec").of("ServiceSpec"), field("status").of("ServiceStatus")]),
    ("v1/ServiceAccount", &[field("secrets").merge("name").keyed(&["name"]).atomic_items()]),
    ("v2.HorizontalPodAutoscalerSpec", &[field("metrics").of("MetricSpec")]),
    (
        "v2.HorizontalPodAutoscalerStatus",
        &[
            field("conditions").merge("type").keyed(&["type"]),
            field("currentMetrics").of("MetricStatus"),
        ],
    ),
];
