import { expect, test } from 'vitest';
import { figures, leftOut, rate, type Lately } from './lately';

const lately = (more: Partial<Lately> = {}): Lately => ({
  minute: 100,
  nodes: 2,
  asked: 2,
  silent: 0,
  boundsUs: [1000, 2000],
  answered: [0, 100, 0],
  minutes: [
    [41, 600, 6, 1],
    [100, 3000, 0, 2],
  ],
  workloads: [],
  ...more,
});

test('the last hour in four figures', () => {
  const told = figures(lately());
  expect(told.map(({ name, value, about }) => `${name}: ${value} ${about}`.trim())).toEqual([
    'Requests: 1 a second 3,600 in the hour',
    'Failed: 6 0.2 % of them',
    '95 of 100 answered in: 1.9 ms to the first byte',
    'Wakes: 3 from rest',
  ]);
  expect([told[0]?.values.length, told[0]?.values[0], told[0]?.values[59]]).toEqual([60, 600, 3000]);
  expect([told[1]?.bad, told[3]?.bad]).toEqual([true, undefined]);
});

test('an hour without requests says so', () => {
  const told = figures(lately({ minutes: [], answered: [] }));
  expect(told.map(({ value }) => value)).toEqual(['none', '0', 'nothing yet', '0']);
  expect(told[1]?.bad).toBe(false);
});

test('rates in the unit in which they are short', () => {
  expect([rate(0), rate(0.05), rate(2.345), rate(1234)]).toEqual(['none', '3 a minute', '2.3 a second', '1,234 a second']);
});

test('what the figures leave out is said', () => {
  expect(leftOut(lately())).toBe('');
  expect(leftOut(lately({ silent: 1 }))).toBe('Not of everything: 1 node did not answer.');
  expect(leftOut(lately({ nodes: 900, asked: 500 }))).toBe('Not of everything: these are 500 of 900 nodes.');
});
