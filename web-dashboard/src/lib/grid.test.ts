import { expect, test } from 'vitest';
import { drawn, pool, ROWS_A_FRAME, slots, wanted, type Slot } from './grid';
import type { Shown } from './window';

test('only what is near the screen is drawn, and as much of it everywhere', () => {
  expect(pool(560, 28)).toBe(37);
  expect(drawn(0, 560, 28, 10_000, 48)).toEqual({ from: 0, count: 37 });
  expect(drawn(28_000, 560, 28, 10_000, 48)).toEqual({ from: 992, count: 37 });
  expect(drawn(280_000, 560, 28, 10_000, 48)).toEqual({ from: 9963, count: 37 });
  expect(drawn(28_000, 560, 28, 5, 48)).toEqual({ from: 0, count: 5 });
  expect(drawn(0, 560, 28, 0, 48)).toEqual({ from: 0, count: 0 });
});

test('the first rows come first, the others with the next frames', () => {
  expect(drawn(0, 560, 28, 10_000, ROWS_A_FRAME)).toEqual({ from: 0, count: 16 });
  expect(drawn(0, 560, 28, 10_000, 2 * ROWS_A_FRAME)).toEqual({ from: 0, count: 32 });
});

test('a small scroll asks for the same window', () => {
  expect(wanted(0, 560, 28)).toEqual({ from: 0, count: 140 });
  expect(wanted(28_100, 560, 28)).toEqual(wanted(28_200, 560, 28));
  expect(wanted(28_000, 560, 28).from).toBeLessThan(960);
});

test('an element that leaves the screen shows what comes in, and all others stay as they are', () => {
  const rows = Array.from({ length: 9 }, (_, at): Shown => ({
    uid: `u-${at}`,
    name: `n-${at}`,
    at: 1,
    version: '1',
    cells: [],
  }));
  const told = (all: Map<number, Slot>) =>
    [...all.values()].map((slot) => `${slot.key}:${slot.place}${slot.blank ? '?' : slot.row?.name}`).join(' ');
  const first = slots(new Map(), { from: 0, count: 4 }, 4, (place) => rows[place]);
  expect(told(first)).toBe('0:0n-0 1:1n-1 2:2n-2 3:3n-3');
  const second = slots(first, { from: 1, count: 4 }, 4, (place) => (place < 4 ? rows[place] : undefined));
  // The row of place 4 has not come: the element keeps what it showed, and hides it.
  expect(told(second)).toBe('0:4? 1:1n-1 2:2n-2 3:3n-3');
  expect(second.get(0)?.row).toBe(rows[0]);
  expect(second.get(1)).toBe(first.get(1));
  const changed = { ...rows[2]!, version: '2' };
  const third = slots(second, { from: 1, count: 4 }, 4, (place) => (place === 2 ? changed : rows[place]));
  expect([third.get(2)?.flashes, third.get(0)?.flashes, third.get(0)?.blank]).toEqual([true, false, false]);
});
