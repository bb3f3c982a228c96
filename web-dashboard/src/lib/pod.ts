// What a Pod's object tells: the phases of its start, its containers, what its guests are given. Pure.

import { at, type KubeObject } from './api';
import { quantity, seconds, type Health } from './format';

export interface Phase {
  name: string;
  /** What it was about, in words. */
  about: string;
  from: number;
  /** Null while it goes on. */
  to: number | null;
}

interface Condition {
  type: string;
  status: string;
  lastTransitionTime?: string;
}

/** From creation to readiness, each phase from the end of the one before. Times of the wire are whole seconds. */
export function phases(pod: KubeObject): Phase[] {
  const conditions = at<Condition[]>(pod, 'status.conditions') ?? [];
  const since = (type: string) => {
    const found = conditions.find((one) => one.type === type && one.status === 'True');
    return found ? seconds(found.lastTransitionTime) : null;
  };
  const started = (at<ContainerStatus[]>(pod, 'status.containerStatuses') ?? [])
    .map((one) => seconds(one.state?.running?.startedAt ?? one.state?.terminated?.startedAt))
    .filter((time) => time > 0);
  const steps: [string, string, number | null][] = [
    ['Scheduled', 'a node is chosen', since('PodScheduled')],
    ['Prepared', 'volumes and init containers are done', since('Initialized')],
    [
      'Started',
      'the image is there, compiled, and its containers run',
      started.length > 0 ? Math.max(...started) : null,
    ],
    ['Ready', 'it takes requests', since('Ready')],
  ];
  const out: Phase[] = [];
  let from = seconds(pod.metadata.creationTimestamp);
  for (const [name, about, end] of steps) {
    // A restart moves a later phase behind an earlier one; then that one took no time of this start.
    const to = end === null ? null : Math.max(end, from);
    out.push({ name, about, from, to });
    if (to === null) break;
    from = to;
  }
  return out;
}

/** One part of a container's start, as its node and its worker have measured it. */
export interface Part {
  name: string;
  about: string;
  ms: number;
}
const PARTS: Record<string, [name: string, about: string]> = {
  queue: ['Waited', 'for its turn on the node'],
  pull: ['Image', 'asked for, and fetched if it was not on the node'],
  compile: ['Compiled', 'to machine code, or found compiled'],
  prepare: ['Environment', 'its variables and volumes'],
  load: ['Loaded', 'the code mapped'],
  link: ['Linked', 'with what the node offers'],
  instantiate: ['Instance', 'the first one made'],
  'first byte': ['First byte', 'of its first answer, once the request was there'],
};
const COLD_START = 'cold-start.wherry.dev/';

/** What the newest start of each container took, where its node has told. */
export function coldStarts(pod: KubeObject): { container: string; parts: Part[] }[] {
  const told = Object.entries(pod.metadata.annotations ?? {}).filter(([key]) => key.startsWith(COLD_START));
  return told.map(([key, text]) => ({
    container: key.slice(COLD_START.length),
    parts: [...text.matchAll(/([a-z][a-z ]*) ([\d.]+) ms/g)].map(([, word = '', ms]): Part => {
      const [name, about] = PARTS[word] ?? [word, ''];
      return { name, about, ms: Number(ms) };
    }),
  }));
}

/** A Pod from its creation to its readiness, and what its containers took of it on their node. */
export interface Started {
  name: string;
  from: number;
  /** Null while it is not ready. */
  to: number | null;
  /** All measured parts of its containers' starts, in milliseconds; null where its node has not told. */
  onNodeMs: number | null;
}

/** How some Pods started, the first one first. */
export function startsOf(pods: KubeObject[]): Started[] {
  const started = pods.map((pod): Started => {
    const steps = phases(pod);
    const last = steps.at(-1);
    const parts = coldStarts(pod).flatMap((one) => one.parts);
    return {
      name: pod.metadata.name,
      from: seconds(pod.metadata.creationTimestamp),
      to: last?.name === 'Ready' ? last.to : null,
      onNodeMs: parts.length > 0 ? parts.reduce((sum, part) => sum + part.ms, 0) : null,
    };
  });
  return started.sort((a, b) => a.from - b.from || a.name.localeCompare(b.name));
}

interface ContainerState {
  waiting?: { reason?: string; message?: string };
  running?: { startedAt?: string };
  terminated?: {
    reason?: string;
    message?: string;
    exitCode?: number;
    startedAt?: string;
    finishedAt?: string;
  };
}
export interface ContainerStatus {
  name: string;
  ready?: boolean;
  restartCount?: number;
  image?: string;
  imageID?: string;
  state?: ContainerState;
  lastState?: ContainerState;
}
interface EnvSource {
  secretKeyRef?: { name?: string; key?: string };
  configMapKeyRef?: { name?: string; key?: string };
  fieldRef?: { fieldPath?: string };
  resourceFieldRef?: { resource?: string };
}
export interface ContainerSpec {
  name: string;
  image?: string;
  args?: string[];
  command?: string[];
  env?: { name: string; value?: string; valueFrom?: EnvSource }[];
  envFrom?: { prefix?: string; secretRef?: { name?: string }; configMapRef?: { name?: string } }[];
  ports?: { name?: string; containerPort: number; protocol?: string }[];
  volumeMounts?: { name: string; mountPath: string; readOnly?: boolean }[];
  resources?: { limits?: Record<string, string>; requests?: Record<string, string> };
}
export interface Container {
  spec: ContainerSpec;
  status: ContainerStatus | undefined;
  init: boolean;
  health: Health;
  word: string;
  why: string;
}

/** All containers of a Pod, init containers first, each with how it is. */
export function containers(pod: KubeObject): Container[] {
  const of = (specs: string, statuses: string, init: boolean) => {
    const list = at<ContainerStatus[]>(pod, `status.${statuses}`) ?? [];
    return (at<ContainerSpec[]>(pod, `spec.${specs}`) ?? []).map((spec): Container => {
      const status = list.find((one) => one.name === spec.name);
      return { spec, status, init, ...how(status, init) };
    });
  };
  return [
    ...of('initContainers', 'initContainerStatuses', true),
    ...of('containers', 'containerStatuses', false),
  ];
}

function how(
  status: ContainerStatus | undefined,
  init: boolean,
): { health: Health; word: string; why: string } {
  const { waiting, running, terminated } = status?.state ?? {};
  if (terminated) {
    const good = terminated.exitCode === 0;
    return {
      health: good ? 'idle' : 'bad',
      word: terminated.reason ?? `Exit code ${terminated.exitCode}`,
      why: terminated.message ?? '',
    };
  }
  if (running) {
    const ready = status?.ready || init;
    return { health: ready ? 'good' : 'warn', word: ready ? 'Running' : 'Not ready', why: '' };
  }
  const reason = waiting?.reason ?? 'Waiting';
  const usual = ['ContainerCreating', 'PodInitializing', 'Waiting', 'Starting', 'Compiling'].includes(reason);
  return { health: usual ? 'warn' : 'bad', word: reason, why: waiting?.message ?? '' };
}

/** Where a variable's value comes from; a value from a Secret is never shown. */
export function valueOf({ value, valueFrom }: { value?: string; valueFrom?: EnvSource }): {
  text: string;
  secret?: string;
  map?: string;
} {
  const { secretKeyRef, configMapKeyRef, fieldRef, resourceFieldRef } = valueFrom ?? {};
  if (secretKeyRef) return { text: `•••••• from ${secretKeyRef.key}`, secret: secretKeyRef.name ?? '' };
  if (configMapKeyRef) return { text: `from ${configMapKeyRef.key}`, map: configMapKeyRef.name ?? '' };
  if (fieldRef) return { text: `its own ${fieldRef.fieldPath}` };
  if (resourceFieldRef) return { text: `its own ${resourceFieldRef.resource}` };
  return { text: value ?? '' };
}

export interface Volume {
  name: string;
  kind: string;
  /** What it is of, and the kind's word in an address. */
  of?: string;
  word?: string;
}

/** The volumes of a PodSpec in words. */
export function volumes(spec: unknown): Volume[] {
  const list = at<Record<string, unknown>[]>(spec, 'volumes') ?? [];
  return list.map((volume) => {
    const name = String(volume.name);
    const source = Object.keys(volume).find((key) => key !== 'name') ?? 'emptyDir';
    const text = (path: string) => at<string>(volume, path);
    switch (source) {
      case 'configMap':
        return { name, kind: 'ConfigMap', of: text('configMap.name') ?? '', word: 'configmaps' };
      case 'secret':
        return { name, kind: 'Secret', of: text('secret.secretName') ?? '', word: 'secrets' };
      case 'persistentVolumeClaim':
        return {
          name,
          kind: 'Claim',
          of: text('persistentVolumeClaim.claimName') ?? '',
          word: 'persistentvolumeclaims',
        };
      case 'hostPath':
        return { name, kind: `Path of the node ${text('hostPath.path')}` };
      case 'emptyDir':
        return { name, kind: 'Empty directory' };
      case 'projected':
        return { name, kind: 'Projected' };
      default:
        return { name, kind: source };
    }
  });
}

/** Whether a container's image asks for buckets of `wasi:keyvalue`, as its node has told. */
export function hasBuckets(pod: KubeObject | undefined, container: string): boolean {
  const imports = pod?.metadata.annotations?.[`imports.wherry.dev/${container}`] ?? '';
  return imports.split(', ').some((name) => name.startsWith('wasi:keyvalue/'));
}

/** Use against a limit, from 0 to 1; null where there is no limit. */
export function share(use: string | undefined, limit: string | undefined): number | null {
  const [used, most] = [quantity(use), quantity(limit)];
  return used !== null && most ? used / most : null;
}
