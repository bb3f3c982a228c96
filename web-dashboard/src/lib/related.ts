// What belongs to a workload: what reaches it, what scales it, what its Pods use. Pure.

import { at, type KubeObject } from './api';
import { actingOn } from './scaling';

/** What of a namespace is looked through. */
export interface Around {
  services: KubeObject[];
  ingresses: KubeObject[];
  autoscalers: KubeObject[];
  budgets: KubeObject[];
}
/** Objects of one kind, and what they have to do with the workload. */
export interface Relation {
  title: string;
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

/** All values that stand under a name, wherever it is in a template: `configMapRef.name`. */
function named(value: unknown, keys: string[]): string[] {
  if (Array.isArray(value)) return value.flatMap((one) => named(one, keys));
  if (value === null || typeof value !== 'object') return [];
  return Object.entries(value).flatMap(([key, inner]) => {
    if (!keys.includes(key)) return named(inner, keys);
    const found = (inner ?? {}) as { name?: string; secretName?: string; claimName?: string };
    const name = found.name ?? found.secretName ?? found.claimName;
    return name ? [name] : [];
  });
}

/** Everything that has to do with a workload, what reaches it first; kinds of which there is nothing are left out. */
export function relationsOf(kind: string, object: KubeObject, around: Around): Relation[] {
  const labels = at<Record<string, string>>(object, 'spec.template.metadata.labels') ?? {};
  const spec = at(object, 'spec.template.spec');
  const names = (objects: KubeObject[]) => objects.map((one) => one.metadata.name);
  const services = around.services.filter((one) => selects(at(one, 'spec.selector'), labels));
  const reached = new Set(names(services));
  const ingresses = around.ingresses.filter((one) => servicesOf(one).some((name) => reached.has(name)));
  const budgets = around.budgets.filter((one) => selects(at(one, 'spec.selector.matchLabels'), labels));
  const account = at<string>(spec, 'serviceAccountName');
  const all: Relation[] = [
    { title: 'Ingresses that lead to it', word: 'ingresses.networking.k8s.io', names: names(ingresses) },
    { title: 'Services before it', word: 'services', names: names(services) },
    {
      title: 'Scaled by',
      word: 'horizontalpodautoscalers.autoscaling',
      names: names(actingOn(around.autoscalers, kind, object.metadata.name)),
    },
    { title: 'Kept up by', word: 'poddisruptionbudgets.policy', names: names(budgets) },
    { title: 'Runs as', word: 'serviceaccounts', names: account ? [account] : [] },
    { title: 'Reads ConfigMaps', word: 'configmaps', names: named(spec, ['configMap', 'configMapRef', 'configMapKeyRef']) },
    { title: 'Reads Secrets', word: 'secrets', names: named(spec, ['secret', 'secretRef', 'secretKeyRef']) },
    { title: 'Stores in', word: 'persistentvolumeclaims', names: named(spec, ['persistentVolumeClaim']) },
  ];
  return all
    .map((relation) => ({ ...relation, names: [...new Set(relation.names)].sort() }))
    .filter((relation) => relation.names.length > 0);
}
