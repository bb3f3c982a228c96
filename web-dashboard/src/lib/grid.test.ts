import { expect, test } from 'vitest';
import { drawn, wanted } from './grid';

test('only what is near the screen is drawn', () => {
  expect(drawn(0, 560, 28, 10_000)).toEqual({ from: 0, count: 32 });
  expect(drawn(28_000, 560, 28, 10_000)).toEqual({ from: 988, count: 44 });
  expect(drawn(28_000, 560, 28, 5)).toEqual({ from: 5, count: 0 });
});

test('a small scroll asks for the same window', () => {
  expect(wanted(0, 560, 28)).toEqual({ from: 0, count: 100 });
  expect(wanted(28_100, 560, 28)).toEqual(wanted(28_200, 560, 28));
  expect(wanted(28_000, 560, 28).from).toBeLessThan(1000);
});
