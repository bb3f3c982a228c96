// What can be done with an object: each action with what it will do in a sentence, its kubectl line, the rights it needs
// and the requests it makes. Only `run` touches the network.

import { at, call, JSON_PATCH, MERGE, pathOf, request, STRATEGIC, type KubeObject } from './api';
import { counted } from './format';
import { refOf, wordOf, type Kind } from './kinds';

export interface Right {
  verb: string;
  group: string;
  resource: string;
  part?: string;
  namespace?: string | undefined;
  /** Of this object: a role may be of some names alone. */
  name?: string;
}
export interface Action {
  id: string;
  /** On its button: `Scale`. */
  label: string;
  /** Takes something away that no other action gives back: it waits `WAY_BACK_MS`, with a way back, before it runs. */
  danger?: boolean;
  /** What will be true afterwards, and what it costs. */
  consequence: (input: string) => string;
  /** A value that is asked for. */
  input?: { label: string; initial: string; check: (value: string) => string };
  kubectl: (input: string) => string;
  /** All of these. */
  rights: Right[];
  /** Does it, and says what was done; `tell` hears how far it is. */
  run: (input: string, tell?: (progress: string) => void) => Promise<string>;
}

export const WAY_BACK_MS = 5000;
/** Replicas beyond this are a slip of the finger. */
const REPLICAS_MAX = 100_000;

function line(kind: Kind, object: KubeObject, ...words: string[]): string {
  const namespace = kind.namespaced ? ['-n', object.metadata.namespace ?? 'default'] : [];
  return ['kubectl', ...namespace, ...words].join(' ');
}

/** The actions of an object, the most used first. */
export function actionsOf(kind: Kind, object: KubeObject): Action[] {
  const word = wordOf(kind);
  const all: Action[] = [];
  if (['deployments.apps', 'statefulsets.apps', 'replicasets.apps'].includes(word))
    all.push(scale(kind, object));
  if (['deployments.apps', 'statefulsets.apps', 'daemonsets.apps'].includes(word))
    all.push(restart(kind, object));
  if (word === 'deployments.apps') all.push(pause(kind, object));
  if (word === 'cronjobs.batch') all.push(runNow(kind, object), suspend(kind, object));
  if (word === 'jobs.batch' && !isOver(object)) all.push(suspend(kind, object));
  if (word === 'nodes') all.push(cordon(kind, object), drain(kind, object));
  all.push(remove(kind, object));
  return all;
}

/** Whether a Job has ended: there is nothing left of it to hold back. */
function isOver(job: KubeObject): boolean {
  const conditions = at<{ type: string; status: string }[]>(job, 'status.conditions') ?? [];
  return conditions.some(({ type, status }) => ['Complete', 'Failed'].includes(type) && status === 'True');
}

function right(kind: Kind, object: KubeObject, verb: string, part?: string): Right {
  const { group, resource } = kind;
  return {
    verb,
    group,
    resource,
    ...(part ? { part } : {}),
    namespace: kind.namespaced ? object.metadata.namespace : undefined,
    name: object.metadata.name,
  };
}

function target(kind: Kind, object: KubeObject, part?: string): string {
  return pathOf({ ...refOf(kind, object.metadata.namespace, object.metadata.name), part });
}

function scale(kind: Kind, object: KubeObject): Action {
  const now = at<number>(object, 'spec.replicas') ?? 1;
  const name = object.metadata.name;
  return {
    id: 'scale',
    label: 'Scale',
    input: { label: 'Pods', initial: String(now), check: checkReplicas },
    consequence: (value) => {
      const next = Number(value);
      if (next === now) return `${name} has ${counted(now, 'Pod')} already.`;
      if (next > now) return `${counted(next - now, 'Pod')} more will start.`;
      return `${counted(now - next, 'Pod')} will stop${next === 0 ? ': nothing answers until it is scaled up again' : ''}.`;
    },
    kubectl: (value) => line(kind, object, 'scale', `${kind.resource}/${name}`, `--replicas=${value}`),
    rights: [right(kind, object, 'patch', 'scale')],
    run: async (value) => {
      await call(target(kind, object, 'scale'), {
        method: 'PATCH',
        type: MERGE,
        body: { spec: { replicas: Number(value) } },
      });
      return `${name} is scaled to ${value}.`;
    },
  };
}

/** Why a number of Pods cannot be, or nothing. */
export function checkReplicas(value: string): string {
  if (!/^\d+$/.test(value.trim())) return 'A whole number, 0 or more.';
  return Number(value) > REPLICAS_MAX ? `At most ${REPLICAS_MAX.toLocaleString('en')}.` : '';
}

function restart(kind: Kind, object: KubeObject): Action {
  const name = object.metadata.name;
  return {
    id: 'restart',
    label: 'Restart',
    consequence: () =>
      `New Pods take the place of the present ones, as its strategy allows. What ${name} is made from stays the same.`,
    kubectl: () => line(kind, object, 'rollout', 'restart', `${kind.resource}/${name}`),
    rights: [right(kind, object, 'patch')],
    run: async () => {
      const annotations = { 'kubectl.kubernetes.io/restartedAt': new Date().toISOString() };
      await call(target(kind, object), {
        method: 'PATCH',
        type: STRATEGIC,
        body: { spec: { template: { metadata: { annotations } } } },
      });
      return `${name} is being restarted.`;
    },
  };
}

function pause(kind: Kind, object: KubeObject): Action {
  const name = object.metadata.name;
  const paused = at<boolean>(object, 'spec.paused') === true;
  const word = paused ? 'resume' : 'pause';
  return {
    id: word,
    label: paused ? 'Resume' : 'Pause',
    consequence: () =>
      paused
        ? `The rollout of ${name} goes on with what has been changed meanwhile.`
        : `Changes of ${name} are kept and not rolled out until it is resumed. Its Pods go on.`,
    kubectl: () => line(kind, object, 'rollout', word, `${kind.resource}/${name}`),
    rights: [right(kind, object, 'patch')],
    run: async () => {
      await call(target(kind, object), {
        method: 'PATCH',
        type: MERGE,
        body: { spec: { paused: paused ? null : true } },
      });
      return paused ? `The rollout of ${name} goes on.` : `The rollout of ${name} is paused.`;
    },
  };
}

function suspend(kind: Kind, object: KubeObject): Action {
  const name = object.metadata.name;
  const is = at<boolean>(object, 'spec.suspend') === true;
  const body = { spec: { suspend: !is } };
  return {
    id: is ? 'unsuspend' : 'suspend',
    label: is ? 'Resume' : 'Suspend',
    consequence: () =>
      is
        ? `${name} goes on.`
        : kind.resource === 'jobs'
          ? `The Pods of ${name} stop; it goes on when it is resumed.`
          : `${name} starts no more Jobs. Those that run go on.`,
    kubectl: () =>
      line(
        kind,
        object,
        'patch',
        `${kind.resource}/${name}`,
        '--type=merge',
        '-p',
        `'${JSON.stringify(body)}'`,
      ),
    rights: [right(kind, object, 'patch')],
    run: async () => {
      await call(target(kind, object), { method: 'PATCH', type: MERGE, body });
      return is ? `${name} goes on.` : `${name} is suspended.`;
    },
  };
}

/** The Job that a CronJob makes when somebody asks. */
export function jobOf(cron: KubeObject, name: string): object {
  const template = at<{ metadata?: object; spec?: object }>(cron, 'spec.jobTemplate');
  const { labels = {}, annotations = {} } = (template?.metadata ?? {}) as {
    labels?: object;
    annotations?: object;
  };
  const owner = {
    apiVersion: 'batch/v1',
    kind: 'CronJob',
    name: cron.metadata.name,
    uid: cron.metadata.uid,
    controller: true,
  };
  return {
    apiVersion: 'batch/v1',
    kind: 'Job',
    metadata: {
      name,
      namespace: cron.metadata.namespace,
      labels,
      annotations: { ...annotations, 'cronjob.kubernetes.io/instantiate': 'manual' },
      ownerReferences: [owner],
    },
    spec: template?.spec ?? {},
  };
}

function runNow(kind: Kind, object: KubeObject): Action {
  const job = `${object.metadata.name.slice(0, 40)}-${Date.now().toString(36).slice(-6)}`;
  return {
    id: 'run',
    label: 'Run now',
    consequence: () => `The Job ${job} is made from its template and starts at once.`,
    kubectl: () => line(kind, object, 'create', 'job', job, `--from=cronjob/${object.metadata.name}`),
    rights: [{ verb: 'create', group: 'batch', resource: 'jobs', namespace: object.metadata.namespace }],
    run: async () => {
      const jobs = pathOf({
        group: 'batch',
        version: 'v1',
        resource: 'jobs',
        namespace: object.metadata.namespace,
      });
      await call(jobs, { method: 'POST', body: jobOf(object, job) });
      return `The Job ${job} has been made.`;
    },
  };
}

function cordon(kind: Kind, object: KubeObject): Action {
  const name = object.metadata.name;
  const is = at<boolean>(object, 'spec.unschedulable') === true;
  return {
    id: is ? 'uncordon' : 'cordon',
    label: is ? 'Uncordon' : 'Cordon',
    consequence: () =>
      is ? `New Pods may be put on ${name} again.` : `No new Pods are put on ${name}. Those on it go on.`,
    kubectl: () => `kubectl ${is ? 'uncordon' : 'cordon'} ${name}`,
    rights: [right(kind, object, 'patch')],
    run: async () => {
      await call(target(kind, object), {
        method: 'PATCH',
        type: MERGE,
        body: { spec: { unschedulable: is ? null : true } },
      });
      return is ? `${name} takes new Pods again.` : `${name} is cordoned.`;
    },
  };
}

function drain(kind: Kind, object: KubeObject): Action {
  const name = object.metadata.name;
  return {
    id: 'drain',
    label: 'Drain',
    danger: true,
    consequence: () =>
      `${name} is cordoned, and every Pod on it that is not of a DaemonSet is evicted. Disruption budgets are respected: what they protect stays, and is named.`,
    kubectl: () => `kubectl drain ${name} --ignore-daemonsets --delete-emptydir-data --force`,
    rights: [
      right(kind, object, 'patch'),
      { verb: 'list', group: '', resource: 'pods' },
      { verb: 'create', group: '', resource: 'pods', part: 'eviction' },
    ],
    run: async (_, tell) => {
      await call(target(kind, object), {
        method: 'PATCH',
        type: MERGE,
        body: { spec: { unschedulable: true } },
      });
      const pods = await call<{ items: KubeObject[] }>('/api/v1/pods', {
        query: { fieldSelector: `spec.nodeName=${name}` },
      });
      return evict(name, pods.items.filter(isDrained), tell);
    },
  };
}

/** Whether draining a node takes this Pod off it. */
export function isDrained(pod: KubeObject): boolean {
  const owner = pod.metadata.ownerReferences?.find((one) => one.controller)?.kind;
  const done = ['Succeeded', 'Failed'].includes(at<string>(pod, 'status.phase') ?? '');
  return owner !== 'DaemonSet' && !done && !pod.metadata.deletionTimestamp;
}

async function evict(node: string, pods: KubeObject[], tell?: (progress: string) => void): Promise<string> {
  const stayed: string[] = [];
  for (const [asked, { metadata }] of pods.entries()) {
    tell?.(`${asked} of ${counted(pods.length, 'Pod')} asked to leave.`);
    const { name, namespace } = metadata;
    const path = pathOf({ group: '', version: 'v1', resource: 'pods', namespace, name, part: 'eviction' });
    const body = { apiVersion: 'policy/v1', kind: 'Eviction', metadata: { name, namespace } };
    await call(path, { method: 'POST', body }).catch((error: Error) =>
      stayed.push(`${name}: ${error.message}`),
    );
  }
  if (stayed.length > 0)
    throw new Error(`${counted(pods.length - stayed.length, 'Pod')} evicted; ${stayed.join(' ')}`);
  return `${node} is drained: ${counted(pods.length, 'Pod')} evicted.`;
}

function remove(kind: Kind, object: KubeObject): Action {
  const name = object.metadata.name;
  return {
    id: 'delete',
    label: 'Delete',
    danger: true,
    consequence: () => consequenceOfDelete(kind, object),
    kubectl: () => line(kind, object, 'delete', `${wordOf(kind)}/${name}`),
    rights: [right(kind, object, 'delete')],
    run: async () => {
      // Only this very object: one of the same name that came meanwhile stays.
      const body = { propagationPolicy: 'Background', preconditions: { uid: object.metadata.uid } };
      await request(target(kind, object), { method: 'DELETE', body });
      return `${name} is deleted.`;
    },
  };
}

/** What deleting costs, in a sentence. */
export function consequenceOfDelete(kind: Kind, object: KubeObject): string {
  const { name } = object.metadata;
  const pods =
    at<number>(object, 'status.replicas') ??
    at<number>(object, 'status.active') ??
    at<number>(object, 'status.currentNumberScheduled');
  if (pods) return `${counted(pods, 'Pod')} of ${name} ${pods === 1 ? 'stops' : 'stop'}.`;
  if (kind.resource === 'pods') {
    const owner = object.metadata.ownerReferences?.find((one) => one.controller);
    return owner
      ? `The Pod stops. ${owner.kind} ${owner.name} starts another one.`
      : 'The Pod stops, and nothing starts another one.';
  }
  if (kind.resource === 'namespaces') return `Everything in the namespace ${name} is deleted with it.`;
  if (kind.resource === 'customresourcedefinitions')
    return `All objects of the kind ${at<string>(object, 'spec.names.kind')} are deleted with it.`;
  if (kind.resource === 'persistentvolumeclaims')
    return 'The data on its volume may be deleted with it, as its class says.';
  return `${kind.kind} ${name} is gone then.`;
}

/** Puts a workload's template back to what it was in a revision. */
export async function rollBack(kind: Kind, object: KubeObject, template: unknown): Promise<void> {
  const patch = [
    // The status may move on meanwhile; what somebody wanted may not.
    { op: 'test', path: '/metadata/generation', value: object.metadata.generation },
    { op: 'replace', path: '/spec/template', value: template },
  ];
  await call(target(kind, object), { method: 'PATCH', type: JSON_PATCH, body: patch });
}
