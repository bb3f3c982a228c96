import { expect, test } from 'vitest';
import type { KubeObject } from './api';
import { coldStarts, containers, hasBuckets, phases, share, startsOf, valueOf, volumes } from './pod';

const T = (second: number) => `2026-01-01T12:00:${String(second).padStart(2, '0')}Z`;
const condition = (type: string, second: number) => ({ type, status: 'True', lastTransitionTime: T(second) });
const pod: KubeObject = {
  metadata: { name: 'a', creationTimestamp: T(0) },
  spec: { initContainers: [{ name: 'i' }], containers: [{ name: 'c' }, { name: 'd' }] },
  status: {
    conditions: [condition('PodScheduled', 1), condition('Initialized', 2)],
    initContainerStatuses: [{ name: 'i', state: { terminated: { exitCode: 0, reason: 'Completed' } } }],
    containerStatuses: [
      { name: 'c', ready: true, state: { running: { startedAt: T(5) } } },
      { name: 'd', state: { waiting: { reason: 'CrashLoopBackOff', message: 'exit code 1' } } },
    ],
  },
};

test('phases follow each other, and the last one goes on', () => {
  const told = phases(pod).map(({ name, from, to }) => `${name} ${to === null ? 'goes on' : to - from}`);
  expect(told).toEqual(['Scheduled 1', 'Prepared 1', 'Started 3', 'Ready goes on']);
});

test('a start is told part by part', () => {
  const annotations = {
    'cold-start.wherry.dev/app': 'queue 0.10 ms, pull 12.00 ms, compile 0.02 ms, link 0.08 ms, first byte 0.90 ms',
    'imports.wherry.dev/app': 'wasi:io/poll@0.2.0',
  };
  const told = coldStarts({ ...pod, metadata: { ...pod.metadata, annotations } });
  expect(told.map(({ container, parts }) => [container, parts.map(({ name, ms }) => `${name} ${ms}`)])).toEqual([
    ['app', ['Waited 0.1', 'Image 12', 'Compiled 0.02', 'Linked 0.08', 'First byte 0.9']],
  ]);
  expect(coldStarts(pod)).toEqual([]);
});

test('an image that asks for buckets has some', () => {
  const annotations = {
    'imports.wherry.dev/kept': 'wasi:io/poll@0.2.0, wasi:keyvalue/store@0.2.0-draft',
    'imports.wherry.dev/plain': 'wasi:io/poll@0.2.0',
  };
  const told = { ...pod, metadata: { ...pod.metadata, annotations } };
  expect(['kept', 'plain', 'other'].map((name) => hasBuckets(told, name))).toEqual([true, false, false]);
  expect(hasBuckets(undefined, 'kept')).toBe(false);
});

test('Pods of a rollout are told in the order in which they began', () => {
  const ready = {
    ...pod,
    metadata: {
      name: 'b',
      creationTimestamp: T(3),
      annotations: { 'cold-start.wherry.dev/c': 'queue 1.00 ms, load 2.50 ms' },
    },
    status: { ...(pod.status as object), conditions: [condition('PodScheduled', 3), condition('Initialized', 4), condition('Ready', 6)] },
  };
  expect(startsOf([ready, pod]).map(({ name, from, to, onNodeMs }) => [name, to === null ? null : to - from, onNodeMs])).toEqual([
    ['a', null, null],
    ['b', 3, 3.5],
  ]);
});

test('containers and how they are', () => {
  expect(
    containers(pod).map(({ spec, health, word, why }) => `${spec.name} ${health} ${word} ${why}`.trim()),
  ).toEqual(['i idle Completed', 'c good Running', 'd bad CrashLoopBackOff exit code 1']);
});

test('values of Secrets are never shown', () => {
  expect(valueOf({ valueFrom: { secretKeyRef: { name: 'db', key: 'password' } } })).toEqual({
    text: '•••••• from password',
    secret: 'db',
  });
  expect(valueOf({ value: 'x' })).toEqual({ text: 'x' });
});

test('volumes and shares', () => {
  expect(volumes({ volumes: [{ name: 'v', secret: { secretName: 's' } }, { name: 'w' }] })).toEqual([
    { name: 'v', kind: 'Secret', of: 's', word: 'secrets' },
    { name: 'w', kind: 'Empty directory' },
  ]);
  expect([share('250m', '1'), share('1', undefined), share('64Mi', '128Mi')]).toEqual([0.25, null, 0.5]);
});
