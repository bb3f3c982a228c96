import { expect, test } from 'vitest';
import { nameIn } from './verbs';

test('what is typed names an object, or does not', () => {
  const told = (queries: string[]) => queries.map(nameIn);
  expect(told(['cart', 're', 'restart-cart', ''])).toEqual(['cart', 're', 'restart-cart', '']);
  expect(told(['restart cart', 're cart', 'why cart', 'Logs of cart'])).toEqual(['cart', 'cart', 'cart', 'cart']);
  expect(told(['restart', 'why', 'roll', 'roll ba', 'Roll back'])).toEqual(['', '', '', '', '']);
  expect(told(['roll back cart', 'roll bar', 'roll-bar'])).toEqual(['cart', 'bar', 'roll-bar']);
});
