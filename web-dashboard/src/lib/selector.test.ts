import { expect, test } from 'vitest';
import { known } from './kinds';
import { podsOf, text } from './selector';

test('selectors as text', () => {
  const matchExpressions = [
    { key: 'tier', operator: 'In', values: ['a', 'b'] },
    { key: 'x', operator: 'Exists' },
    { key: 'y', operator: 'DoesNotExist' },
  ];
  expect(text({ matchLabels: { app: 'cart' }, matchExpressions })).toBe('app=cart,tier in (a,b),x,!y');
});

test('the Pods of things', () => {
  const metadata = { name: 'cart', namespace: 'shop' };
  expect(podsOf(known('services')!, { metadata, spec: { selector: { app: 'cart' } } })).toEqual({
    namespaces: ['shop'],
    labels: 'app=cart',
  });
  expect(podsOf(known('services')!, { metadata, spec: {} })).toBe(null);
  expect(podsOf(known('nodes')!, { metadata: { name: 'east' } })).toEqual({
    namespaces: [],
    fields: 'spec.nodeName=east',
  });
});
