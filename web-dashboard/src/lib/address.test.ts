import { expect, test } from 'vitest';
import { format, namespacesOf, parse, timeOf } from './address';

test('an address is read as it was written', () => {
  const address = format('object', ['widgets.example.com', '-', 'a b'], { ns: 'shop,web', q: '' });
  expect(address).toBe('/ui/object/widgets.example.com/-/a%20b?ns=shop,web');
  const place = parse('/ui/object/widgets.example.com/-/a%20b', '?ns=shop,web');
  expect([place.page, place.parts, namespacesOf(place.query)]).toEqual([
    'object',
    ['widgets.example.com', '-', 'a b'],
    ['shop', 'web'],
  ]);
});

test('an address that nobody encoded is one all the same', () => {
  expect(parse('/ui/list/100%', '').parts).toEqual(['100%']);
});

test('home is the root', () => {
  expect(format('home')).toBe('/ui/');
  expect(parse('/ui', '').page).toBe('home');
  expect(namespacesOf(parse('/ui/', '').query)).toEqual([]);
});

test('a time that has not come is now', () => {
  const told = (at: string) => timeOf(new URLSearchParams({ at }), 1000);
  expect(told('990')).toEqual({ at: 990, ahead: false });
  expect(told('1010')).toEqual({ at: 1010, ahead: false });
  expect(told('4600')).toEqual({ at: null, ahead: true });
  for (const none of ['', 'x', '0', '-5', '1.5']) expect(told(none)).toEqual({ at: null, ahead: false });
});
