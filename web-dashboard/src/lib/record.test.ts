import { expect, test } from 'vitest';
import {
  drawnBuckets,
  heat,
  inCell,
  lanes,
  merged,
  quantile,
  runs,
  series,
  stepsOf,
  strip,
  type Minute,
  type Request,
  type Seen,
  type Told,
} from './record';
import type { Row } from './stream';

const minute = (at: number, more: Partial<Minute> = {}): Minute => ({
  at,
  requests: 60,
  failed: 0,
  wakes: 0,
  peak: 2,
  busyUs: 30e6,
  answered: [1, 2],
  ...more,
});
const seen = (atMs: number, more: Partial<Seen> = {}): Seen => ({
  atMs,
  method: 'GET',
  path: '/',
  status: 200,
  why: null,
  placedUs: 1,
  instantiatedUs: 40,
  answeredUs: 100,
  endedUs: 120,
  cpuUs: 60,
  memoryBytes: 1,
  restedMs: null,
  ...more,
});
const told = (minutes: Minute[], list: Seen[]): Told => ({
  container: 'c',
  restart: 0,
  guest: 'handler',
  inFlight: 1,
  record: { boundsUs: [16, 32], wait: [3, 0, 0], instantiate: [0, 3, 0], answer: [0, 2, 1], minutes, seen: list, edges: [] },
});

test('the Pods of a workload are told as one', () => {
  const all = merged([
    { pod: 'a', node: 'n', containers: [told([minute(1), minute(2)], [seen(10)])] },
    { pod: 'b', node: 'n', containers: [told([minute(2, { wakes: 1, answered: [0, 0, 4] })], [seen(20)])] },
  ]);
  expect(all.minutes.map(({ at, requests, peak, wakes, answered }) => [at, requests, peak, wakes, answered])).toEqual([
    [1, 60, 2, 0, [1, 2]],
    [2, 120, 4, 1, [1, 2, 4]],
  ]);
  expect(all.requests.map(({ pod }) => pod)).toEqual(['b', 'a']);
  expect(all.steps.answer).toEqual([0, 4, 2]);
  expect(all.inFlight).toBe(2);
});

test('quantiles lie in their bucket', () => {
  expect(quantile([16, 32], [0, 0, 0], 0.5)).toBe(null);
  expect(quantile([16, 32], [0, 4, 0], 0.5)).toBe(24);
  expect(quantile([16, 32], [0, 0, 2], 1)).toBe(64);
});

test('only buckets with something beside them are drawn', () => {
  expect(drawnBuckets([0, 0, 0])).toEqual({ from: 0, to: 0 });
  expect(drawnBuckets([0, 0, 3, 0, 0], [0, 0, 0, 1, 0])).toEqual({ from: 1, to: 5 });
});

test('columns hold the minutes of their span', () => {
  expect(heat([minute(0), minute(1), minute(3), minute(9)], 0, 4, 2)).toEqual([[2, 4], [1, 2]]);
});

test('minutes without requests are zero', () => {
  const { times, rate, instances } = series([minute(2)], 1, 3);
  expect(times).toEqual([60, 120, 180]);
  expect(rate).toEqual([0, 1, 0]);
  expect(instances).toEqual([0, 0.5, 0]);
});

test('a day is work and rest', () => {
  expect(strip([minute(3, { wakes: 1 }), minute(4), minute(8)], 2, 9)).toEqual([
    { from: 2, to: 3, busy: false, wakes: 0 },
    { from: 3, to: 5, busy: true, wakes: 1 },
    { from: 5, to: 8, busy: false, wakes: 0 },
    { from: 8, to: 9, busy: true, wakes: 0 },
    { from: 9, to: 10, busy: false, wakes: 0 },
  ]);
  expect(strip([], 5, 5)).toEqual([{ from: 5, to: 6, busy: false, wakes: 0 }]);
});

test('a request is told as far as it came', () => {
  const names = (one: Seen) => stepsOf(one).map(({ name, from, to }) => [name, to - from]);
  expect(names(seen(0))).toEqual([
    ['Waiting for a place', 1],
    ['Making the instance', 39],
    ['The guest, to the first byte', 60],
    ['The rest of the answer', 20],
  ]);
  expect(names(seen(0, { status: 0, instantiatedUs: null, answeredUs: null, endedUs: 50 }))).toEqual([
    ['Waiting for a place', 1],
    ['Until it was given up', 49],
  ]);
});

test('requests that overlap are in different lanes, and a rest is cut out', () => {
  const request = (atMs: number, ms: number): Request => ({ ...seen(atMs, { endedUs: ms * 1000 }), pod: 'p', container: 'c' });
  const { bars, gaps, lanes: count } = lanes([request(1050, 50), request(1000, 100), request(61_100, 100)], 9);
  expect(count).toBe(2);
  expect(bars.map(({ lane }) => lane)).toEqual([0, 1, 0]);
  expect(gaps.map(({ ms }) => ms)).toEqual([60_000]);
  // 100 ms of work, a rest that is drawn 4 ms wide, 100 ms of work.
  expect(bars.map(({ from, to }) => [Math.round(from * 204), Math.round(to * 204)])).toEqual([
    [0, 100],
    [50, 100],
    [104, 204],
  ]);
  expect(lanes([], 9)).toEqual({ bars: [], gaps: [], lanes: 0 });
  expect(lanes([request(1, 1), request(2, 1), request(3, 1)], 2).bars.length).toBe(2);
});

test('a cell of the heat map leads to its requests', () => {
  const request = (atMs: number, answeredUs: number | null): Request => ({ ...seen(atMs, { answeredUs }), pod: 'p', container: 'c' });
  const all = [request(1000, 10), request(1500, 20), request(1999, 40), request(2000, 20), request(1200, null)];
  const found = (bucket: number) => inCell(all, [16, 32], { begin: 1, end: 2, bucket }).map(({ atMs }) => atMs);
  expect([found(0), found(1), found(2)]).toEqual([[1000], [1500], [1999]]);
});

test('a Pod at rest has something to tell, one that has ended or waits has not', () => {
  const row = (...state: NonNullable<Row['state']>): Row => ({ uid: '', name: '', at: 0, version: '', cells: [], state });
  expect(runs(row('good', 'Running', ''))).toBe(true);
  expect(runs(row('idle', 'Idle', ''))).toBe(true);
  expect(runs(row('idle', 'Completed', ''))).toBe(false);
  expect(runs(row('bad', 'Unschedulable', ''))).toBe(false);
});
