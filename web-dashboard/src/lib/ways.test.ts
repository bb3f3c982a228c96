import { expect, test } from 'vitest';
import { pageOf, ratesOf, slowest, type Way, type Ways } from './ways';

const way = (from: string, requests: number): Way => ({
  from,
  to: 'bank/pay',
  port: '80',
  requests,
  failed: 0,
  refused: 0,
  sent: 0,
  received: 0,
  boundsUs: [1000, 2000],
  answered: [0, requests],
});
const ways = (atMs: number, list: Way[]): Ways => ({ atMs, whole: true, nodes: 1, asked: 1, silent: 0, ways: list });

test('rates are told where two answers are', () => {
  const first = ways(1000, [way('shop/cart', 10), way('outside', 100)]);
  const second = ways(6000, [way('shop/cart', 60), way('outside', 4), way('shop/new', 3)]);
  expect(ratesOf(null, first).size).toBe(0);
  expect(ratesOf(first, first).size).toBe(0);
  expect([...ratesOf(first, second)]).toEqual([
    ['shop/cart bank/pay 80', 10],
    ['outside bank/pay 80', 0],
  ]);
});

test('how slow a way is, and where it leads', () => {
  expect([slowest(way('a/b', 100)), slowest(way('a/b', 0))]).toEqual([1.95, null]);
  expect([pageOf('bank/pay'), pageOf('elsewhere')]).toEqual([['services', 'bank', 'pay'], null]);
});
