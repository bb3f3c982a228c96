import { expect, test } from 'vitest';
import { drafts, keepFor } from './drafts';

test('drafts are for whoever typed them', () => {
  keepFor('ann');
  drafts.set('u', { base: { metadata: { name: 'web' } }, text: 'x' });
  keepFor('ann');
  expect(drafts.size).toBe(1);
  keepFor('bob');
  expect(drafts.size).toBe(0);
});
