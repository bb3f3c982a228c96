import { describe, expect, it } from 'vitest';
import { codeIn } from './session';
import { rowsOf, type Row } from './table';
import { age, healthOfPod, sentence, shorten, workloads } from './workloads';

function row(name: string, cells: Row['cells'], owner?: string): Row {
  const ownerReferences = owner ? [{ kind: 'X', name: owner, uid: owner, controller: true }] : [];
  const meta = { name, uid: name, resourceVersion: '1', ownerReferences };
  return { meta, cells };
}
const pod = (name: string, status: string, ready: string, owner?: string) =>
  row(name, { Status: status, Ready: ready, Restarts: 0, Node: 'node-1' }, owner);

describe('workloads', () => {
  it('puts Pods below the Deployment whose ReplicaSet owns them', () => {
    const shown = workloads(
      [row('web', { Ready: '2/2' })],
      [row('web-1', {}, 'web')],
      [pod('web-1-b', 'Running', '1/1', 'web-1'), pod('web-1-a', 'Running', '1/1', 'web-1'), pod('job', 'Completed', '0/1')],
    );
    expect(shown.map(({ name, status, health }) => [name, status, health])).toEqual([
      ['web', 'Available', 'good'],
      ['job', 'Completed', 'idle'],
    ]);
    expect(shown[0]?.pods.map(({ name }) => name)).toEqual(['web-1-a', 'web-1-b']);
  });

  it('lists what needs somebody first', () => {
    const shown = workloads(
      [row('a', { Ready: '1/1' }), row('b', { Ready: '0/1' }), row('c', { Ready: '0/0' }), row('d', { Ready: '0/1' })],
      [row('b-1', {}, 'b')],
      [pod('b-1-x', 'CrashLoopBackOff', '0/1', 'b-1')],
    );
    expect(shown.map(({ name, status }) => [name, status])).toEqual([
      ['b', '1 of 1 Pods failing'],
      ['d', 'Changing'],
      ['a', 'Available'],
      ['c', 'Scaled to zero'],
    ]);
    expect(sentence(shown)).toBe('1 of 4 workloads need you');
  });

  it('says how all is in one sentence', () => {
    expect(sentence([])).toBe('No workloads yet');
    expect(sentence(workloads([row('a', { Ready: '1/1' })], [], []))).toBe('The workload is well');
  });
});

it('reads a Pod’s health from its word and its readiness', () => {
  const cases: [string, string, string][] = [
    ['Running', '1/1', 'good'],
    ['Running', '0/1', 'warn'],
    ['ContainerCreating', '0/1', 'warn'],
    ['ImagePullBackOff', '0/1', 'bad'],
    ['Idle', '1/1', 'idle'],
  ];
  for (const [status, ready, health] of cases) expect(healthOfPod(status, ready)).toBe(health);
});

it('shortens ages and names', () => {
  const now = Date.parse('2026-01-03T00:00:00Z');
  expect(age('2026-01-02T23:59:18Z', now)).toBe('42s');
  expect(age('2026-01-02T23:50:00Z', now)).toBe('10m');
  expect(age('2026-01-01T00:00:00Z', now)).toBe('2d');
  expect(age('', now)).toBe('');
  expect(shorten('checkout-7d4b9c6f5d-x2k4p', 16)).toBe('checkout-7…x2k4p');
});

it('names a Table’s cells by its columns', () => {
  const meta = { name: 'a', uid: 'u', resourceVersion: '1' };
  const rows = rowsOf({ rows: [{ cells: ['a', 3], object: { metadata: meta } }] }, ['Name', 'Data']);
  expect(rows).toEqual([{ meta, cells: { Name: 'a', Data: 3 } }]);
});

it('finds the one-time code in the address', () => {
  expect(codeIn('#code=abc')).toBe('abc');
  expect(codeIn('#')).toBeNull();
});
