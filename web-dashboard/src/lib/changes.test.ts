import { expect, test } from 'vitest';
import { how } from './changes';

test('a changed field is one line', () => {
  expect(how({ path: 'spec.replicas', from: '1', to: '3' })).toBe('spec.replicas: 1 → 3');
  expect(how({ path: 'spec.paused', from: null, to: 'true' })).toBe('spec.paused: true');
  expect(how({ path: 'spec.paused', from: 'true', to: null })).toBe('spec.paused: true taken out');
});
