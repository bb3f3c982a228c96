import { expect, test } from 'vitest';
import type { Kind } from './kinds';
import { headline, ownerOf, problems } from './problems';
import type { Row } from './stream';

const kind = (name: string, resource: string): Kind => ({
  group: '',
  version: 'v1',
  resource,
  kind: name,
  title: name,
  namespaced: true,
});
const row = (name: string, more: Partial<Row>): Row => ({
  uid: name,
  name,
  namespace: 'shop',
  at: 100,
  version: '1',
  cells: [],
  ...more,
});
const NOW = 1_000_000;

test('Pods are told with the workload that owns them', () => {
  const found = problems(
    [
      {
        kind: kind('Deployment', 'deployments'),
        word: 'deployments.apps',
        rows: [
          row('cart', { state: ['warn', 'Degraded', '2 of 3 Pods are ready.'] }),
          row('fresh', { at: 995, state: ['warn', 'Rolling out', ''] }),
        ],
      },
      {
        kind: kind('Pod', 'pods'),
        word: 'pods',
        rows: [
          row('cart-7d9f6c5b4-x2k4p', {
            owner: ['ReplicaSet', 'cart-7d9f6c5b4'],
            state: ['bad', 'CrashLoopBackOff', 'exit code 1'],
          }),
          row('alone', { state: ['bad', 'Error', ''] }),
          row('db-0', {
            owner: ['StatefulSet', 'db'],
            state: ['bad', 'ImportMissing', 'no node offers wasi:nn'],
          }),
          row('db-1', {
            owner: ['StatefulSet', 'db'],
            state: ['bad', 'ImportMissing', 'no node offers wasi:nn'],
          }),
        ],
      },
    ],
    NOW,
  );
  expect(found.map((one) => `${one.health} ${one.kind} ${one.name}: ${one.sentence}`)).toEqual([
    'bad Deployment cart: 2 of 3 Pods are ready. CrashLoopBackOff: exit code 1',
    'bad Pod alone: ',
    'bad Pod db-0: 2 Pods: ImportMissing: no node offers wasi:nn',
  ]);
});

test('owners and headlines', () => {
  expect(ownerOf(['ReplicaSet', 'cart-7d9f6c5b4'])).toEqual(['Deployment', 'cart']);
  expect(ownerOf(['Job', 'batch-28391'])).toEqual(['Job', 'batch-28391']);
  expect([headline(0, 0), headline(0, 1), headline(0, 41), headline(1, 3), headline(3, 41)]).toEqual([
    'No workloads yet',
    'The workload is well',
    'All 41 workloads are well',
    '1 of 3 workloads needs you',
    '3 of 41 workloads need you',
  ]);
  expect(headline(100, 9000, true)).toBe('At least 100 of 9,000 workloads need you');
});
