import { expect, test } from 'vitest';
import type { Row } from './stream';
import { cell, take } from './window';

const columns = ['Name', 'Ready'].map((name) => ({ name, type: 'string', description: '', priority: 0 }));
const row = (name: string, version: string, ready: string): Row => ({
  uid: `u-${name}`,
  name,
  at: 1,
  version,
  cells: [name, ready],
});

test('a window is put together from what is new and what is held', () => {
  let listing = take(null, { id: 1, columns, namespaces: null });
  listing = take(listing, {
    order: ['u-a', 'u-b'],
    rows: [row('a', '1', '0/1'), row('b', '1', '1/1')],
    total: 2,
    shown: 2,
  });
  listing = take(listing, { order: ['u-b', 'u-a'], rows: [row('a', '2', '1/1')], total: 2, shown: 2 });
  expect(listing?.rows.map((one) => one.name)).toEqual(['b', 'a']);
  expect([...(listing?.rows[1]?.changed ?? [])]).toEqual([1]);
  expect(listing && cell(listing, listing.rows[1]!, 'Ready')).toBe('1/1');
  listing = take(listing, { order: ['u-a'], rows: [], total: 2, shown: 1 });
  expect(listing?.rows.map((one) => one.name)).toEqual(['a']);
});

test('a list that is opened again keeps what is on the screen', () => {
  let listing = take(null, { columns, namespaces: ['a'] });
  listing = take(listing, { order: ['u-a'], rows: [row('a', '1', '0/1')], total: 1, shown: 1 });
  listing = take(listing, { columns, namespaces: null });
  expect([listing?.rows.length, listing?.namespaces]).toEqual([1, null]);
});
