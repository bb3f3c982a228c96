// What belongs to a workload: what reaches it, what scales it, what its Pods use; and what uses a ConfigMap. Pure.

import { at, type KubeObject } from './api';
import { actingOn } from './scaling';

/** What of a namespace is looked through. */
export interface Around {
  services: KubeObject[];
  ingresses: KubeObject[];
  /** HTTPRoutes and GRPCRoutes. */
  routes: KubeObject[];
  autoscalers: KubeObject[];
  budgets: KubeObject[];
}
/** Leads to its Services, sends to its Pods, decides about them, or is used by them. */
export type Side = 'leads' | 'sends' | 'governs' | 'used';
/** Objects of one kind, and what they have to do with the workload. */
export interface Relation {
  title: string;
  side: Side;
  /** As in a manifest: `Service`. */
  kind: string;
  /** The kind's word in an address. */
  word: string;
  names: string[];
}

/** Whether labels have all that a selector of equalities names; an empty one selects nothing here. */
function selects(selector: Record<string, string> | undefined, labels: Record<string, string>): boolean {
  const pairs = Object.entries(selector ?? {});
  return pairs.length > 0 && pairs.every(([key, value]) => labels[key] === value);
}

interface Backend {
  service?: { name?: string };
}
/** The Services that an Ingress leads to. */
function servicesOf(ingress: KubeObject): string[] {
  const rules = at<{ http?: { paths?: { backend?: Backend }[] } }[]>(ingress, 'spec.rules') ?? [];
  const backends = [
    at<Backend>(ingress, 'spec.defaultBackend'),
    ...rules.flatMap((rule) => (rule.http?.paths ?? []).map((path) => path.backend)),
  ];
  return backends.map((backend) => backend?.service?.name ?? '').filter((name) => name !== '');
}

interface BackendRef {
  kind?: string;
  name?: string;
  namespace?: string;
}
/** The Services of its own namespace that a route of a Gateway leads to. */
function servicesOfRoute(route: KubeObject): string[] {
  const rules = at<{ backendRefs?: BackendRef[] }[]>(route, 'spec.rules') ?? [];
  return rules
    .flatMap((rule) => rule.backendRefs ?? [])
    .filter((ref) => (ref.kind ?? 'Service') === 'Service')
    .filter((ref) => !ref.namespace || ref.namespace === route.metadata.namespace)
    .map((ref) => ref.name ?? '')
    .filter((name) => name !== '');
}

/** Where a Pod names what it uses, by the kind of that. */
const USES: Record<string, string[]> = {
  ConfigMap: ['configMap', 'configMapRef', 'configMapKeyRef'],
  Secret: ['secret', 'secretRef', 'secretKeyRef', 'imagePullSecrets'],
  PersistentVolumeClaim: ['persistentVolumeClaim'],
};
/** Kinds that hold the spec of a Pod, and their words in an address. */
export const HOLDERS: Record<string, string> = {
  Deployment: 'deployments.apps',
  StatefulSet: 'statefulsets.apps',
  DaemonSet: 'daemonsets.apps',
  CronJob: 'cronjobs.batch',
  Pod: 'pods',
};

const WORDS: Record<string, string> = {
  Ingress: 'ingresses.networking.k8s.io',
  HTTPRoute: 'httproutes.gateway.networking.k8s.io',
  GRPCRoute: 'grpcroutes.gateway.networking.k8s.io',
};

/** What leads to a Service from outside, as kind and name, by the Service's name. */
export function waysTo({ ingresses, routes }: Around): Map<string, [kind: string, name: string][]> {
  const ways = new Map<string, [string, string][]>();
  const add = (kind: string, { metadata }: KubeObject, services: string[]) => {
    for (const service of new Set(services))
      ways.set(service, [...(ways.get(service) ?? []), [kind, metadata.name]]);
  };
  for (const ingress of ingresses) add('Ingress', ingress, servicesOf(ingress));
  for (const route of routes) add(route.kind ?? 'HTTPRoute', route, servicesOfRoute(route));
  return ways;
}

/** All values that stand under a name, wherever it is in a template: `configMapRef.name`. */
function named(value: unknown, keys: string[]): string[] {
  if (Array.isArray(value)) return value.flatMap((one) => named(one, keys));
  if (value === null || typeof value !== 'object') return [];
  return Object.entries(value).flatMap(([key, inner]) => {
    if (!keys.includes(key)) return named(inner, keys);
    const all = [inner].flat() as ({ name?: string; secretName?: string; claimName?: string } | null)[];
    return all.flatMap((one) => one?.name ?? one?.secretName ?? one?.claimName ?? []);
  });
}

/** The spec of the Pods that an object makes, or is. */
function podSpec(object: KubeObject): unknown {
  return at(object, 'spec.template.spec') ?? at(object, 'spec.jobTemplate.spec.template.spec') ?? at(object, 'spec');
}

/** Whether objects of a kind are used by Pods. */
export function isUsed(kind: string): boolean {
  return kind in USES;
}

/** Which of some objects use another one, kind by kind. */
export function usersOf(kind: string, name: string, holders: KubeObject[]): Relation[] {
  const users = holders.filter((one) => named(podSpec(one), USES[kind] ?? []).includes(name));
  const relations = Object.entries(HOLDERS).map(([holder, word]): Relation => ({
    title: `${holder}s`,
    side: 'leads',
    kind: holder,
    word,
    names: users.filter((one) => one.kind === holder).map((one) => one.metadata.name),
  }));
  return tidy(relations);
}

/** What leads somewhere, kind by kind. */
function leading(ends: [kind: string, name: string][]): Relation[] {
  return Object.entries(WORDS).map(([kind, word]): Relation => ({
    title: kind === 'Ingress' ? 'Ingresses that lead to it' : `${kind}s that lead to it`,
    side: 'leads',
    kind,
    word,
    names: ends.filter(([of]) => of === kind).map(([, name]) => name),
  }));
}

/** Each name once, in order; kinds of which there is nothing are left out. */
function tidy(relations: Relation[]): Relation[] {
  return relations
    .map((relation) => ({ ...relation, names: [...new Set(relation.names)].sort() }))
    .filter((relation) => relation.names.length > 0);
}

/** Everything that has to do with a workload, what reaches it first; of a Service what leads to it. */
export function relationsOf(kind: string, object: KubeObject, around: Around): Relation[] {
  if (kind === 'Service') return tidy(leading(waysTo(around).get(object.metadata.name) ?? []));
  const template = at(object, 'spec.template') ?? at(object, 'spec.jobTemplate.spec.template');
  const labels = at<Record<string, string>>(template, 'metadata.labels') ?? {};
  const spec = podSpec(object);
  const names = (objects: KubeObject[]) => objects.map((one) => one.metadata.name);
  const services = around.services.filter((one) => selects(at(one, 'spec.selector'), labels));
  const reached = new Set(names(services));
  const ways = [...waysTo(around)].filter(([service]) => reached.has(service)).flatMap(([, ends]) => ends);
  const budgets = around.budgets.filter((one) => selects(at(one, 'spec.selector.matchLabels'), labels));
  const account = at<string>(spec, 'serviceAccountName');
  const use = (title: string, kind: string, word: string, names: string[]): Relation => ({
    title,
    side: 'used',
    kind,
    word,
    names,
  });
  const all: Relation[] = [
    ...leading(ways),
    { title: 'Services before it', side: 'sends', kind: 'Service', word: 'services', names: names(services) },
    {
      title: 'Scaled by',
      side: 'governs',
      kind: 'HorizontalPodAutoscaler',
      word: 'horizontalpodautoscalers.autoscaling',
      names: names(actingOn(around.autoscalers, kind, object.metadata.name)),
    },
    {
      title: 'Kept up by',
      side: 'governs',
      kind: 'PodDisruptionBudget',
      word: 'poddisruptionbudgets.policy',
      names: names(budgets),
    },
    use('Runs as', 'ServiceAccount', 'serviceaccounts', account ? [account] : []),
    use('Reads ConfigMaps', 'ConfigMap', 'configmaps', named(spec, USES.ConfigMap!)),
    use('Reads Secrets', 'Secret', 'secrets', named(spec, USES.Secret!)),
    use('Stores in', 'PersistentVolumeClaim', 'persistentvolumeclaims', named(spec, USES.PersistentVolumeClaim!)),
  ];
  return tidy(all);
}
