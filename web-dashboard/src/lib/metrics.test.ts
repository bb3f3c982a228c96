import { expect, test } from 'vitest';
import { checks, metrics } from './metrics';

test('values by name', () => {
  const found = metrics('# TYPE a counter\na{code="2xx"} 3\na{code="4xx"} 1\nb 7\n');
  expect([found.get('a'), found.get('b'), found.get('c')]).toEqual([4, 7, undefined]);
});

test('checks of a member', () => {
  expect(
    checks('[+]store ok\n[!]disk nearly full\n[-]leader failed: none is known\nreadyz check failed\n'),
  ).toEqual([
    { name: 'store', health: 'good', note: '' },
    { name: 'disk', health: 'warn', note: 'nearly full' },
    { name: 'leader', health: 'bad', note: 'none is known' },
  ]);
});
