import { expect, test } from 'vitest';
import type { KubeObject } from './api';
import { present, revisionsOf } from './revisions';

const owner = { kind: 'X', name: 'cart', uid: 'u', apiVersion: 'apps/v1', controller: true };
const spec = { containers: [{ name: 'c', image: 'cart:1' }] };

test('ReplicaSets are the revisions of a Deployment', () => {
  const set = (name: string, number: string, uid = 'u'): KubeObject => ({
    metadata: {
      name,
      uid: name,
      creationTimestamp: '1970-01-01T00:01:00Z',
      annotations: { 'deployment.kubernetes.io/revision': number, 'kubernetes.io/change-cause': 'because' },
      ownerReferences: [{ ...owner, uid }],
    },
    spec: { template: { metadata: { labels: { app: 'cart', 'pod-template-hash': 'x' } }, spec } },
    status: { replicas: 2, readyReplicas: 1 },
  });
  const cart = {
    metadata: { name: 'cart', uid: 'u', annotations: { 'deployment.kubernetes.io/revision': '2' } },
  };
  const sets = [set('cart-1', '1'), set('cart-9', '9', 'of somebody else'), set('cart-2', '2')];
  const told = revisionsOf(cart, sets, []);
  expect(told.map(({ number, name, pods, ready }) => [number, name, pods, ready])).toEqual([
    [2, 'cart-2', 2, 1],
    [1, 'cart-1', 2, 1],
  ]);
  expect(told[0]).toMatchObject({
    made: 60,
    cause: 'because',
    images: 'cart:1',
    template: { metadata: { labels: { app: 'cart' } }, spec },
  });
  expect(told[0]?.template).not.toHaveProperty('metadata.labels.pod-template-hash');
  expect(sets[0]).toHaveProperty('spec.template.metadata.labels.pod-template-hash');
  expect(present(cart, told)).toBe(2);
});

test('ControllerRevisions hold the patch that puts a template back', () => {
  const kept = (name: string, revision: number): KubeObject => ({
    metadata: {
      name: `cart-${name}`,
      labels: { 'controller.kubernetes.io/hash': name },
      ownerReferences: [owner],
    },
    revision,
    data: { spec: { template: { $patch: 'replace', metadata: { labels: { app: 'cart' } }, spec } } },
  });
  const pod = (revision: string, status: string): KubeObject => ({
    metadata: { name: 'p', labels: { 'controller-revision-hash': revision } },
    status: { conditions: [{ type: 'Ready', status }] },
  });
  const cart = { metadata: { name: 'cart', uid: 'u' } };
  const pods = [pod('cart-b', 'True'), pod('cart-b', 'False'), pod('a', 'True')];
  const told = revisionsOf(cart, [kept('a', 1), kept('b', 2)], pods);
  expect(told.map(({ number, pods, ready }) => [number, pods, ready])).toEqual([
    [2, 2, 1],
    [1, 1, 1],
  ]);
  expect(told[0]?.template).toEqual({ metadata: { labels: { app: 'cart' } }, spec });
  expect(present(cart, told)).toBe(2);
  expect(present(cart, [])).toBe(0);
});
