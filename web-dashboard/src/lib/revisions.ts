// The revisions of a workload: the ReplicaSets of a Deployment, the ControllerRevisions of a StatefulSet or DaemonSet. Pure.

import { at, type KubeObject } from './api';
import { seconds } from './format';

export interface Revision {
  uid: string;
  number: number;
  name: string;
  /** Seconds since 1970. */
  made: number;
  /** Why it was made, if somebody has said so. */
  cause: string;
  images: string;
  /** What its Pods are made from, without what tells them from those of other revisions. */
  template: unknown;
  pods: number;
  ready: number;
}

const REVISION = 'deployment.kubernetes.io/revision';
/** On Pods: the name of their revision, of a DaemonSet its hash. */
const REVISION_LABEL = 'controller-revision-hash';
const HASH_LABEL = 'controller.kubernetes.io/hash';

interface Template {
  metadata?: { labels?: Record<string, string> };
  spec?: { containers?: { image?: string }[] };
}

/** The kinds that keep revisions, and of which kind these are. */
export const KEPT_AS: Record<string, string> = {
  'deployments.apps': 'replicasets',
  'statefulsets.apps': 'controllerrevisions',
  'daemonsets.apps': 'controllerrevisions',
};

/** The number of a Deployment's present revision; others are at their last. */
export function present(object: KubeObject, revisions: Revision[]): number {
  const told = Number(object.metadata.annotations?.[REVISION] ?? 0);
  return told || Math.max(0, ...revisions.map((one) => one.number));
}

/** The newest first; `kept` are ReplicaSets or ControllerRevisions, `pods` are counted for the latter. */
export function revisionsOf(object: KubeObject, kept: KubeObject[], pods: KubeObject[]): Revision[] {
  const own = kept.filter((one) => one.metadata.ownerReferences?.some((owner) => owner.uid === object.metadata.uid));
  const all = own.map((one) => ('revision' in one ? ofRevision(one, pods) : ofSet(one)));
  return all.sort((a, b) => b.number - a.number);
}

function ofSet(set: KubeObject): Revision {
  const template = copy(at<Template>(set, 'spec.template'));
  delete template.metadata?.labels?.['pod-template-hash'];
  return {
    ...common(set, template),
    number: Number(set.metadata.annotations?.[REVISION] ?? 0),
    pods: at<number>(set, 'status.replicas') ?? 0,
    ready: at<number>(set, 'status.readyReplicas') ?? 0,
  };
}

function ofRevision(revision: KubeObject, pods: KubeObject[]): Revision {
  // It is kept as the patch that puts it back.
  const { $patch: _, ...template } = copy(at<Template & { $patch?: string }>(revision, 'data.spec.template'));
  const names = [revision.metadata.name, revision.metadata.labels?.[HASH_LABEL]];
  const own = pods.filter((pod) => names.includes(pod.metadata.labels?.[REVISION_LABEL] ?? '-'));
  return {
    ...common(revision, template),
    number: Number(revision.revision ?? 0),
    pods: own.length,
    ready: own.filter(isReady).length,
  };
}

function common(kept: KubeObject, template: Template) {
  const { uid = '', name, creationTimestamp, annotations } = kept.metadata;
  return {
    uid,
    name,
    made: seconds(creationTimestamp),
    cause: annotations?.['kubernetes.io/change-cause'] ?? '',
    images: (template.spec?.containers ?? []).map((one) => one.image ?? '').join(', '),
    template,
  };
}

function copy<T extends object>(template: T | undefined): T {
  return structuredClone(template ?? {}) as T;
}

function isReady(pod: KubeObject): boolean {
  const conditions = at<{ type: string; status: string }[]>(pod, 'status.conditions') ?? [];
  return conditions.some(({ type, status }) => type === 'Ready' && status === 'True');
}
