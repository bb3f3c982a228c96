import { expect, test } from 'vitest';
import { best, score } from './fuzzy';

const all = [
  'Restart checkout',
  'Logs of checkout',
  'Pods',
  'Config and storage',
  'checkout-7d9f6c5b4-x2k4p',
];
const find = (query: string) => best(query, all, (one) => one, 3);

test('words and starts count most', () => {
  expect(find('restart check')[0]).toBe('Restart checkout');
  expect(find('lch')[0]).toBe('Logs of checkout');
  expect(find('pods')[0]).toBe('Pods');
  expect(find('zzz')).toEqual([]);
  expect(find('')).toEqual(all.slice(0, 3));
  expect(score('rs', 'Config and storage')).toBe(null);
});
