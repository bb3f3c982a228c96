// What stands around a workload in its namespace, asked of the server. What one may not read is not there.

import { call, pathOf, type KubeObject } from './api';
import { kindOf } from './discovery.svelte';
import type { Around } from './related';

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

/** Routes of Gateways, if the server serves them; in a list an object does not say of which kind it is. */
async function routesIn(namespace: string, resource: string): Promise<KubeObject[]> {
  const kind = await kindOf(`${resource}.gateway.networking.k8s.io`).catch(() => undefined);
  if (!kind) return [];
  const found = await objectsOf(kind.group, kind.version, kind.resource, namespace);
  return found.map((route) => ({ ...route, kind: kind.kind }));
}

export async function aroundIn(namespace: string): Promise<Around> {
  const list = (group: string, version: string, resource: string) => objectsOf(group, version, resource, namespace);
  const [services, ingresses, http, grpc, autoscalers, budgets] = await Promise.all([
    list('', 'v1', 'services'),
    list('networking.k8s.io', 'v1', 'ingresses'),
    routesIn(namespace, 'httproutes'),
    routesIn(namespace, 'grpcroutes'),
    list('autoscaling', 'v2', 'horizontalpodautoscalers'),
    list('policy', 'v1', 'poddisruptionbudgets'),
  ]);
  return { services, ingresses, routes: [...http, ...grpc], autoscalers, budgets };
}
