// The kinds that pages know by name: where they stand in the navigation, how they are called, which columns show.
// Every other kind is found by discovery and shown the same way.

import type { Ref } from './api';

export interface Kind {
  group: string;
  version: string;
  resource: string;
  /** As in a manifest: `Deployment`. */
  kind: string;
  /** Heading of its list: `Deployments`. */
  title: string;
  namespaced: boolean;
  verbs?: string[];
  /** Columns beside those that kubectl shows without `-o wide`. */
  also?: string[];
  /** Columns that say nothing here. */
  without?: string[];
}

export interface Section {
  page: string;
  title: string;
  kinds: Kind[];
}

const kind = (
  group: string,
  version: string,
  resource: string,
  name: string,
  title: string,
  more: Partial<Kind> = {},
): Kind => ({
  group,
  version,
  resource,
  kind: name,
  title,
  namespaced: true,
  ...more,
});
const RBAC = 'rbac.authorization.k8s.io';
const GATEWAY = 'gateway.networking.k8s.io';
const CLUSTER = { namespaced: false };

export const SECTIONS: Section[] = [
  {
    page: 'workloads',
    title: 'Workloads',
    kinds: [
      kind('apps', 'v1', 'deployments', 'Deployment', 'Deployments', { also: ['Images'] }),
      kind('', 'v1', 'pods', 'Pod', 'Pods', { also: ['Node'], without: ['Status'] }),
      kind('apps', 'v1', 'statefulsets', 'StatefulSet', 'StatefulSets', { also: ['Images'] }),
      kind('apps', 'v1', 'daemonsets', 'DaemonSet', 'DaemonSets', { without: ['Node Selector'] }),
      kind('batch', 'v1', 'jobs', 'Job', 'Jobs', { without: ['Status'] }),
      kind('batch', 'v1', 'cronjobs', 'CronJob', 'CronJobs', { without: ['Suspend', 'Timezone'] }),
      kind('apps', 'v1', 'replicasets', 'ReplicaSet', 'ReplicaSets', { also: ['Images'] }),
      kind('autoscaling', 'v2', 'horizontalpodautoscalers', 'HorizontalPodAutoscaler', 'Autoscalers'),
      kind('policy', 'v1', 'poddisruptionbudgets', 'PodDisruptionBudget', 'Disruption budgets'),
    ],
  },
  {
    page: 'nodes',
    title: 'Nodes',
    kinds: [
      kind('', 'v1', 'nodes', 'Node', 'Nodes', { ...CLUSTER, also: ['Internal-IP'], without: ['Status'] }),
    ],
  },
  {
    page: 'network',
    title: 'Network',
    kinds: [
      kind('', 'v1', 'services', 'Service', 'Services', { also: ['Selector'] }),
      kind('networking.k8s.io', 'v1', 'ingresses', 'Ingress', 'Ingresses'),
      kind(GATEWAY, 'v1', 'gateways', 'Gateway', 'Gateways'),
      kind(GATEWAY, 'v1', 'httproutes', 'HTTPRoute', 'HTTP routes'),
      kind(GATEWAY, 'v1', 'grpcroutes', 'GRPCRoute', 'gRPC routes'),
      kind('discovery.k8s.io', 'v1', 'endpointslices', 'EndpointSlice', 'Endpoint slices'),
      kind('networking.k8s.io', 'v1', 'networkpolicies', 'NetworkPolicy', 'Network policies'),
    ],
  },
  {
    page: 'storage',
    title: 'Config and storage',
    kinds: [
      kind('', 'v1', 'configmaps', 'ConfigMap', 'ConfigMaps'),
      kind('', 'v1', 'secrets', 'Secret', 'Secrets'),
      kind('', 'v1', 'persistentvolumeclaims', 'PersistentVolumeClaim', 'Volume claims', {
        without: ['Status', 'VolumeAttributesClass'],
      }),
      kind('', 'v1', 'persistentvolumes', 'PersistentVolume', 'Volumes', {
        ...CLUSTER,
        without: ['Status', 'VolumeAttributesClass'],
      }),
      kind('storage.k8s.io', 'v1', 'storageclasses', 'StorageClass', 'Storage classes', CLUSTER),
      kind('', 'v1', 'resourcequotas', 'ResourceQuota', 'Quotas'),
      kind('', 'v1', 'limitranges', 'LimitRange', 'Limit ranges'),
    ],
  },
  {
    page: 'access',
    title: 'Access',
    kinds: [
      kind('', 'v1', 'serviceaccounts', 'ServiceAccount', 'Service accounts'),
      kind(RBAC, 'v1', 'roles', 'Role', 'Roles'),
      kind(RBAC, 'v1', 'rolebindings', 'RoleBinding', 'Role bindings', {
        also: ['Users', 'Groups', 'ServiceAccounts'],
      }),
      kind(RBAC, 'v1', 'clusterroles', 'ClusterRole', 'Cluster roles', CLUSTER),
      kind(RBAC, 'v1', 'clusterrolebindings', 'ClusterRoleBinding', 'Cluster role bindings', {
        ...CLUSTER,
        also: ['Users', 'Groups', 'ServiceAccounts'],
      }),
      kind(
        'certificates.k8s.io',
        'v1',
        'certificatesigningrequests',
        'CertificateSigningRequest',
        'Certificate requests',
        CLUSTER,
      ),
    ],
  },
  {
    page: 'custom',
    title: 'Custom resources',
    kinds: [
      kind(
        'apiextensions.k8s.io',
        'v1',
        'customresourcedefinitions',
        'CustomResourceDefinition',
        'Definitions',
        CLUSTER,
      ),
    ],
  },
  {
    page: 'timeline',
    title: 'Timeline',
    kinds: [kind('', 'v1', 'events', 'Event', 'Events', { without: ['Type'] })],
  },
  {
    page: 'cluster',
    title: 'Cluster',
    kinds: [
      kind('', 'v1', 'namespaces', 'Namespace', 'Namespaces', { ...CLUSTER, without: ['Status'] }),
      kind('coordination.k8s.io', 'v1', 'leases', 'Lease', 'Leases'),
    ],
  },
];

const KNOWN = SECTIONS.flatMap((section) => section.kinds);

/** How a kind stands in an address: `pods`, `deployments.apps`, `widgets.example.com`. */
export function wordOf(kind: Pick<Kind, 'group' | 'resource'>): string {
  return kind.group === '' ? kind.resource : `${kind.resource}.${kind.group}`;
}

/** Several of a kind that only discovery knows: `Boats` of the kind Boat, whose resource is `boats`. */
export function plural(kind: string, resource: string): string {
  const low = kind.toLowerCase();
  let same = 0;
  while (same < low.length && low[same] === resource[same]) same++;
  // A resource may have another name altogether.
  return same * 2 < low.length ? kind : kind.slice(0, same) + resource.slice(same);
}

export function known(word: string): Kind | undefined {
  return KNOWN.find((kind) => wordOf(kind) === word);
}

/** The kind in an event's `pod/web-1`. */
export function kindOfEvent(word: string): Kind | undefined {
  return KNOWN.find((kind) => kind.kind.toLowerCase() === word.toLowerCase());
}

export function sectionOf(word: string): Section {
  const custom = SECTIONS.find((section) => section.page === 'custom');
  const found = SECTIONS.find((section) => section.kinds.some((kind) => wordOf(kind) === word));
  return (found ?? custom)!;
}

export function refOf(kind: Kind, namespace: string | undefined, name: string): Ref {
  const { group, version, resource } = kind;
  return { group, version, resource, namespace: kind.namespaced ? namespace : undefined, name };
}

/** Kinds whose Pods a selector names. */
export function hasPods(kind: Kind): boolean {
  return (
    ['deployments', 'statefulsets', 'daemonsets', 'replicasets', 'jobs', 'services'].includes(
      kind.resource,
    ) && ['', 'apps', 'batch'].includes(kind.group)
  );
}

/** Workloads: they have a map of what belongs to them. */
export function owns(kind: Kind): boolean {
  return (hasPods(kind) && kind.resource !== 'services') || wordOf(kind) === 'cronjobs.batch';
}

/** Kinds whose Pods may answer requests. */
export function answers(kind: Kind): boolean {
  return wordOf(kind) === 'pods' || (hasPods(kind) && kind.resource !== 'jobs');
}

/** Columns in the order in which they show, as positions. */
export function columnsShown(
  kind: Kind,
  columns: { name: string; priority: number }[],
  wide: boolean,
): number[] {
  const shown = (column: { name: string; priority: number }) => {
    if (kind.without?.includes(column.name)) return false;
    return wide || column.priority === 0 || (kind.also?.includes(column.name) ?? false);
  };
  const all = columns.map((column, at) => ({ column, at })).filter(({ column }) => shown(column));
  // Age stands last, whatever is wide.
  const ages = all.filter(({ column }) => column.name === 'Age');
  return [...all.filter(({ column }) => column.name !== 'Age'), ...ages].map(({ at }) => at);
}
