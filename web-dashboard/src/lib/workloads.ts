// From the rows of three kinds to what the page shows: each Deployment with the Pods that its ReplicaSets own, Pods of
// anything else on their own, and a sentence on what needs somebody.

import type { Row } from './table';

/** How something is doing, in the order of how much it needs somebody. */
export type Health = 'bad' | 'warn' | 'good' | 'idle';

export interface Pod {
  uid: string;
  name: string;
  status: string;
  health: Health;
  ready: string;
  restarts: string;
  node: string;
  created: string;
}
export interface Workload {
  uid: string;
  kind: 'Deployment' | 'Pod';
  name: string;
  status: string;
  health: Health;
  ready: string;
  created: string;
  pods: Pod[];
}

const GOOD = new Set(['Running', 'Completed', 'Succeeded']);
const IDLE = new Set(['Idle', 'Completed', 'Succeeded']);
const CHANGING = new Set(['Pending', 'ContainerCreating', 'PodInitializing', 'Terminating', 'Compiling']);

/** The health that a Pod's status word and readiness stand for. */
export function healthOfPod(status: string, ready: string): Health {
  if (IDLE.has(status)) return 'idle';
  const [up, all] = ready.split('/');
  if (GOOD.has(status)) return up === all ? 'good' : 'warn';
  return CHANGING.has(status) ? 'warn' : 'bad';
}

/** What the page lists, workloads that need somebody first, then by name. */
export function workloads(deployments: Row[], replicaSets: Row[], pods: Row[]): Workload[] {
  const deploymentOf = new Map(replicaSets.map((row) => [row.meta.uid, controllerOf(row)]));
  const podsOf = new Map<string, Pod[]>();
  const alone: Pod[] = [];
  for (const row of pods) {
    const replicaSet = controllerOf(row);
    const owner = replicaSet && deploymentOf.get(replicaSet);
    if (owner) podsOf.set(owner, [...(podsOf.get(owner) ?? []), podOf(row)]);
    else alone.push(podOf(row));
  }
  const all = [
    ...deployments.map((row) => deployment(row, podsOf.get(row.meta.uid) ?? [])),
    ...alone.map((pod): Workload => ({ ...pod, kind: 'Pod', pods: [] })),
  ];
  const urgency = (workload: Workload) => ['bad', 'warn', 'good', 'idle'].indexOf(workload.health);
  return all.sort((a, b) => urgency(a) - urgency(b) || a.name.localeCompare(b.name));
}

function controllerOf(row: Row): string | undefined {
  return row.meta.ownerReferences?.find((owner) => owner.controller)?.uid;
}

function podOf(row: Row): Pod {
  const text = (column: string) => String(row.cells[column] ?? '');
  return {
    uid: row.meta.uid,
    name: row.meta.name,
    status: text('Status'),
    health: healthOfPod(text('Status'), text('Ready')),
    ready: text('Ready'),
    restarts: text('Restarts'),
    node: text('Node'),
    created: row.meta.creationTimestamp ?? '',
  };
}

function deployment(row: Row, pods: Pod[]): Workload {
  const ready = String(row.cells['Ready'] ?? '');
  const [up = '0', wanted = '0'] = ready.split('/');
  const sick = pods.filter((pod) => pod.health === 'bad').length;
  let health: Health = 'good';
  let status = 'Available';
  if (wanted === '0') [health, status] = ['idle', 'Scaled to zero'];
  else if (sick > 0) [health, status] = ['bad', `${sick} of ${pods.length} Pods failing`];
  else if (up !== wanted || pods.length > Number(wanted)) [health, status] = ['warn', 'Changing'];
  pods.sort((a, b) => a.name.localeCompare(b.name));
  const { uid, name, creationTimestamp: created = '' } = row.meta;
  return { uid, kind: 'Deployment', name, status, health, ready, created, pods };
}

/** The page's headline: what needs somebody, in a sentence. */
export function sentence(all: Workload[]): string {
  if (all.length === 0) return 'No workloads yet';
  const sick = all.filter((workload) => workload.health === 'bad').length;
  const noun = all.length === 1 ? 'workload' : 'workloads';
  if (sick > 0) return `${sick} of ${all.length} ${noun} need you`;
  const changing = all.filter((workload) => workload.health === 'warn').length;
  if (changing > 0) return `${changing} of ${all.length} ${noun} changing`;
  return all.length === 1 ? 'The workload is well' : `All ${all.length} workloads are well`;
}

/** `42s`, `3m`, `5h`, `2d`: the time since, as kubectl shortens it. */
export function age(created: string, now: number): string {
  const seconds = Math.max(0, Math.floor((now - Date.parse(created)) / 1000));
  if (Number.isNaN(seconds)) return '';
  if (seconds < 120) return `${seconds}s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)}m`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)}h`;
  return `${Math.floor(seconds / 86400)}d`;
}

/** Shortens a generated name in its middle, where it says least. */
export function shorten(name: string, length = 40): string {
  if (name.length <= length) return name;
  const tail = Math.floor((length - 1) / 3);
  return `${name.slice(0, length - 1 - tail)}…${name.slice(-tail)}`;
}
