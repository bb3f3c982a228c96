import { expect, test } from 'vitest';
import type { Edge, PodRecord, Told } from './record';
import { callsOf, layout, ratesOf, slowest, type Call } from './traffic';

const edge = (from: string, requests: number): Edge => ({
  from,
  requests,
  failed: 1,
  busyUs: 10,
  answered: [0, requests],
});
const record = (pod: string, edges: Edge[]): PodRecord => ({
  pod,
  node: 'n',
  containers: [{ container: 'c', record: { edges, boundsUs: [1000, 2000] } } as Told],
});
const place = (pod: string, ip: string, workload: string) => ({ pod, ip, workload, href: `/${workload}` });

test('calls of Pods are those of their workloads', () => {
  const places = [place('a-1', '10.0.0.1', 'a'), place('b-1', '10.0.0.2', 'b'), place('b-2', '10.0.0.3', 'b')];
  const records = [
    record('b-1', [edge('10.0.0.1', 5), edge('outside', 1)]),
    record('b-2', [edge('10.0.0.1', 2), edge('10.9.9.9', 1)]),
  ];
  expect(callsOf(records, places).map(({ from, to, requests, failed }) => [from, to, requests, failed])).toEqual([
    ['a', 'b', 7, 2],
    ['Outside', 'b', 1, 1],
    ['10.9.9.9', 'b', 1, 1],
  ]);
});

test('how slow a way is, and how much goes over it now', () => {
  const places = [place('b-1', '10.0.0.2', 'b')];
  const at = (requests: number) => callsOf([record('b-1', [edge('outside', requests)])], places);
  expect(slowest(at(100)[0]!)).toBe(1.95);
  expect(slowest({ ...at(1)[0]!, answered: [] })).toBe(null);
  expect([...ratesOf(at(100), at(150), 5).values()]).toEqual([10]);
  // The Pod has begun anew.
  expect([...ratesOf(at(100), at(20), 5).values()]).toEqual([0]);
});

test('who calls stands left of who is called, circles too', () => {
  const call = (from: string, to: string): Call => ({ from, to, requests: 1, failed: 0, answered: [], boundsUs: [] });
  const drawn = layout([call('Outside', 'a'), call('a', 'b'), call('Outside', 'b'), call('b', 'b')], [place('a-1', '', 'a')]);
  expect(drawn.map(({ id, column, row }) => `${id} ${column} ${row}`)).toEqual(['Outside 0 0', 'a 1 0', 'b 2 0']);
  expect(drawn[1]!.href).toBe('/a');
  expect(layout([call('a', 'b'), call('b', 'a')], []).map(({ column }) => column)).toEqual([1, 0]);
});
