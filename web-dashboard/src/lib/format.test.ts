import { expect, test } from 'vitest';
import { age, bytes, cores, counted, duration, halves, quantity, shorten, span } from './format';

test('spans are short', () => {
  expect([5, 119, 120, 7199, 7200, 172800, 1e9].map(span)).toEqual([
    '5s',
    '119s',
    '2m',
    '119m',
    '2h',
    '2d',
    '31y',
  ]);
  expect(age(0, 5000)).toBe('');
  expect(age(10, 15_000)).toBe('5s');
});

test('of a long name the end stays whole', () => {
  expect(halves('cart-nhnzfnb7dr-8br4w')).toEqual(['cart-nhnzfnb7dr', '-8br4w']);
  expect(halves('web-0')).toEqual(['web-0', '']);
});

test('durations have the unit that fits', () => {
  expect([0.42, 38, 2100, 240_000].map(duration)).toEqual(['0.4 ms', '38 ms', '2.1 s', '4m']);
});

test('quantities of Kubernetes', () => {
  expect(['250m', '1.5', '64Mi', '2G', '1e3', 'x', undefined].map(quantity)).toEqual([
    0.25,
    1.5,
    67108864,
    2e9,
    1000,
    null,
    null,
  ]);
  expect([0, 1536, 12 * 2 ** 20, 150.4 * 2 ** 30].map(bytes)).toEqual([
    '0 B',
    '1.5 KiB',
    '12 MiB',
    '150 GiB',
  ]);
  expect([0, 0.25, 0.0001, 1.5].map(cores)).toEqual(['0', '250m', '1m', '1.5']);
});

test('names are shortened in the middle, nouns agree', () => {
  expect(shorten('checkout-7d9f6c5b4-x2k4p', 16)).toBe('checkout-7…x2k4p');
  expect(shorten('short')).toBe('short');
  expect([counted(1, 'Pod'), counted(1200, 'Pod')]).toEqual(['1 Pod', '1,200 Pods']);
});
