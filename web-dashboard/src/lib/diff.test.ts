import { expect, test } from 'vitest';
import { hunks, lines, weigh } from './diff';

const told = (before: string, after: string, around = 1) =>
  hunks(lines(before.replace(/ /g, '\n'), after.replace(/ /g, '\n')), around)
    .map((line) => line.mark + line.text)
    .join(' ')
    .trim();

test('lines that go and come', () => {
  expect(told('a b c d e f g', 'a b c X e f g')).toBe('…  c -d +X  e …');
  expect(told('a b c', 'a b c d')).toBe('…  c +d');
  expect(told('a b c', 'a b c')).toBe('');
  expect(told('x a b', 'a b y', 0)).toBe('-x … +y');
});

test('what is felt is marked', () => {
  const before = 'spec:\n  replicas: 1\n  selector:\n    matchLabels:\n      app: a\n  template:\n    labels:\n      app: a';
  const after = before.replaceAll('app: a', 'app: b') + '\n    containers:\n      - name: c\n        image: x';
  const heavy = weigh(lines(before, after)).filter((line) => line.heavy);
  expect(heavy.map(({ mark, text }) => mark + text.trim())).toEqual(['-app: a', '+app: b', '+image: x']);
});

test('the ends may overlap', () => {
  expect(told('a a', 'a a a', 9)).toBe('a  a +a');
});
