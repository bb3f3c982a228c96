import { expect, test } from 'vitest';
import { actionsOf, checkReplicas, isDrained, jobOf } from './actions';
import type { KubeObject } from './api';
import { known } from './kinds';
import { named } from './rights';

const object = (more: object): KubeObject => ({
  metadata: { name: 'cart', namespace: 'shop', uid: 'u-1' },
  ...more,
});
const told = (word: string, it: KubeObject, input = '') =>
  actionsOf(known(word)!, it).map(
    (action) => `${action.label}: ${action.consequence(input)} | ${action.kubectl(input)}`,
  );

test('each action says what it does, and its kubectl line', () => {
  expect(told('deployments.apps', object({ spec: { replicas: 3 }, status: { replicas: 3 } }), '1')).toEqual([
    'Scale: 2 Pods will stop. | kubectl -n shop scale deployments/cart --replicas=1',
    'Restart: New Pods take the place of the present ones, as its strategy allows. What cart is made from stays the same. | kubectl -n shop rollout restart deployments/cart',
    'Pause: Changes of cart are kept and not rolled out until it is resumed. Its Pods go on. | kubectl -n shop rollout pause deployments/cart',
    'Delete: 3 Pods of cart stop. | kubectl -n shop delete deployments.apps/cart',
  ]);
  expect(
    told('nodes', { metadata: { name: 'east-1' }, spec: { unschedulable: true } }).map(
      (line) => line.split(' | ')[1],
    ),
  ).toEqual([
    'kubectl uncordon east-1',
    'kubectl drain east-1 --ignore-daemonsets --delete-emptydir-data --force',
    'kubectl delete nodes/east-1',
  ]);
  expect(told('pods', object({}))).toEqual([
    'Delete: The Pod stops, and nothing starts another one. | kubectl -n shop delete pods/cart',
  ]);
});

test('what takes away waits, with a way back', () => {
  const waits = (word: string) =>
    actionsOf(known(word)!, object({}))
      .filter(({ danger }) => danger)
      .map(({ id }) => id);
  expect(waits('deployments.apps')).toEqual(['delete']);
  expect(waits('nodes')).toEqual(['drain', 'delete']);
});

test('a drain needs all that it does', () => {
  const drain = actionsOf(known('nodes')!, { metadata: { name: 'east-1' } }).find(({ id }) => id === 'drain');
  expect(drain?.rights.map(named)).toEqual(['patch nodes', 'list pods', 'create pods/eviction']);
  // A role may be of this node alone.
  expect(drain?.rights.map(({ name }) => name)).toEqual(['east-1', undefined, undefined]);
});

test('a Job that has ended is not suspended', () => {
  const labels = (conditions: object[]) =>
    actionsOf(known('jobs.batch')!, object({ status: { conditions } })).map((action) => action.label);
  expect(labels([{ type: 'Complete', status: 'False' }])).toEqual(['Suspend', 'Delete']);
  expect(labels([{ type: 'Failed', status: 'True' }])).toEqual(['Delete']);
});

test('numbers of Pods are checked', () => {
  expect(['3', '0', '-1', 'x', '1e9', '1000000'].map((value) => checkReplicas(value) === '')).toEqual([
    true,
    true,
    false,
    false,
    false,
    false,
  ]);
});

test('a Job from a CronJob is owned by it', () => {
  const cron = object({
    spec: { jobTemplate: { metadata: { labels: { a: 'b' } }, spec: { completions: 1 } } },
  });
  expect(jobOf(cron, 'cart-1')).toMatchObject({
    kind: 'Job',
    spec: { completions: 1 },
    metadata: {
      name: 'cart-1',
      labels: { a: 'b' },
      ownerReferences: [{ kind: 'CronJob', name: 'cart', uid: 'u-1' }],
    },
  });
});

test('a drain leaves DaemonSets and what has ended', () => {
  const owned = (kind: string) => ({
    metadata: {
      name: 'p',
      ownerReferences: [{ kind, name: 'o', uid: 'u', apiVersion: 'v1', controller: true }],
    },
  });
  expect(isDrained(owned('ReplicaSet'))).toBe(true);
  expect(isDrained(owned('DaemonSet'))).toBe(false);
  expect(isDrained({ ...owned('Job'), status: { phase: 'Succeeded' } })).toBe(false);
});
