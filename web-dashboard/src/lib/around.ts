// What stands around a workload in its namespace, asked of the server. What one may not read is not there.

import { call, pathOf, type KubeObject } from './api';
import { HOLDERS, type Around } from './related';

/** More than these of one kind are not looked through. */
const OBJECTS_MAX = 500;

/** The objects of a kind in a namespace; none where one may not list them. */
export async function objectsOf(
  group: string,
  version: string,
  resource: string,
  namespace: string,
  labelSelector = '',
): Promise<KubeObject[]> {
  const none = { items: [] };
  const path = pathOf({ group, version, resource, namespace });
  const query = { limit: String(OBJECTS_MAX), ...(labelSelector ? { labelSelector } : {}) };
  return (await call<{ items: KubeObject[] }>(path, { query }).catch(() => none)).items;
}

const GATEWAY = 'gateway.networking.k8s.io';
let served: string[] = [];

/** Which kinds of routes the server serves: a cluster that has just begun may have none yet. */
async function routeKinds(): Promise<string[]> {
  if (served.length > 0) return served;
  const { groups } = await call<{ groups: { name: string }[] }>('/apis');
  if (!groups.some(({ name }) => name === GATEWAY)) return [];
  const { resources } = await call<{ resources: { name: string }[] }>(`/apis/${GATEWAY}/v1`);
  const found = resources.map(({ name }) => name);
  if (found.includes('httproutes') && found.includes('grpcroutes')) served = found;
  return found;
}

/** Routes of Gateways; in a list an object does not say of which kind it is. */
async function routesIn(namespace: string): Promise<KubeObject[]> {
  const kinds = await routeKinds().catch((): string[] => []);
  const list = async (resource: string, kind: string) => {
    const found = kinds.includes(resource) ? await objectsOf(GATEWAY, 'v1', resource, namespace) : [];
    return found.map((route) => ({ ...route, kind }));
  };
  return (await Promise.all([list('httproutes', 'HTTPRoute'), list('grpcroutes', 'GRPCRoute')])).flat();
}

/** What of a namespace holds the spec of a Pod. Pods themselves only where they are asked for: there may be many. */
export async function holdersIn(namespace: string, pods: boolean): Promise<KubeObject[]> {
  const kinds = Object.entries(HOLDERS).filter(([kind]) => pods || kind !== 'Pod');
  const lists = kinds.map(async ([kind, word]) => {
    const [resource = '', group = ''] = word.split('.');
    // In a list an object does not say of which kind it is.
    return (await objectsOf(group, 'v1', resource, namespace)).map((one) => ({ ...one, kind }));
  });
  return (await Promise.all(lists)).flat();
}

export async function aroundIn(namespace: string): Promise<Around> {
  const list = (group: string, version: string, resource: string) => objectsOf(group, version, resource, namespace);
  const [services, ingresses, routes, autoscalers, budgets] = await Promise.all([
    list('', 'v1', 'services'),
    list('networking.k8s.io', 'v1', 'ingresses'),
    routesIn(namespace),
    list('autoscaling', 'v2', 'horizontalpodautoscalers'),
    list('policy', 'v1', 'poddisruptionbudgets'),
  ]);
  return { services, ingresses, routes, autoscalers, budgets };
}
