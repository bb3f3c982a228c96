import { expect, test } from 'vitest';
import type { KubeObject } from './api';
import { merge } from './merge';

const object = (version: string, spec: unknown, labels: Record<string, string> = {}): KubeObject => ({
  metadata: { name: 'cart', resourceVersion: version, labels },
  spec,
  status: { seen: version },
});
const container = (name: string, image: string, more = {}) => ({ name, image, ...more });

test('what only one has changed is kept, of the server what is the server’s', () => {
  const base = object('1', { replicas: 1, paused: true, containers: [container('a', 'x:1'), container('b', 'y:1')] });
  const mine = object('1', {
    replicas: 1,
    paused: true,
    containers: [container('a', 'x:2'), container('b', 'y:1'), container('c', 'z:1')],
  });
  const theirs = object('7', { replicas: 3, containers: [container('a', 'x:1', { tty: true })] }, { side: 'other' });
  const { merged, clashes } = merge(base, mine, theirs);
  expect(clashes).toEqual([]);
  expect(merged).toEqual(
    object('7', { replicas: 3, containers: [container('a', 'x:2', { tty: true }), container('c', 'z:1')] }, { side: 'other' }),
  );
});

test('what both have changed is told, and one’s own stands', () => {
  const { merged, clashes } = merge(
    object('1', { replicas: 1, args: ['a'], gone: { x: 1 } }),
    object('1', { replicas: 2, args: ['b'] }),
    object('2', { replicas: 3, args: ['a', 'c'], gone: { x: 2 } }),
  );
  expect(merged.spec).toEqual({ replicas: 2, args: ['b'] });
  expect(clashes).toEqual([
    { path: 'spec.replicas', mine: '2', theirs: '3' },
    { path: 'spec.args', mine: '["b"]', theirs: '["a","c"]' },
    { path: 'spec.gone', mine: 'taken out', theirs: '{"x":2}' },
  ]);
});
