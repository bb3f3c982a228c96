import { expect, test } from 'vitest';
import type { Row } from './stream';
import { cell, steady, take } from './window';

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

test('nothing moves while somebody reads, and cells change all the same', () => {
  const row = (uid: string, version = '1') => ({ uid, name: uid, at: 1, version, cells: [version] });
  const listing = (rows: ReturnType<typeof row>[], from = 0) => ({
    columns: [],
    namespaces: null,
    total: 9,
    shown: 9,
    health: {},
    from,
    rows,
  });
  const columns = [] as never[];
  const shown = { ...listing([row('a'), row('b'), row('c')]), columns };
  const next = (rows: ReturnType<typeof row>[], from = 0) => ({ ...listing(rows, from), columns });
  const names = (one: { rows: { uid: string; version: string }[]; waiting?: number }) =>
    `${one.rows.map((it) => it.uid + it.version).join(' ')} ${one.waiting ?? 0}`;
  expect(names(steady(shown, next([row('x'), row('a', '2'), row('b')])))).toBe('a2 b1 c1 3');
  expect(names(steady(shown, next([row('a'), row('b')])))).toBe('a1 b1 c1 1');
  expect(names(steady(shown, next([row('a'), row('b', '2'), row('c')])))).toBe('a1 b2 c1 0');
  expect(names(steady(shown, next([row('d')], 20)))).toBe('d1 0');
});
