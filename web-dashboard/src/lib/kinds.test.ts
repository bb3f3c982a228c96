import { expect, test } from 'vitest';
import { plural } from './kinds';

test('a kind that only discovery knows has a title of several', () => {
  expect(plural('Boat', 'boats')).toBe('Boats');
  expect(plural('NetworkPolicy', 'networkpolicies')).toBe('NetworkPolicies');
  expect(plural('Endpoints', 'endpoints')).toBe('Endpoints');
  expect(plural('CSIStorageCapacity', 'csistoragecapacities')).toBe('CSIStorageCapacities');
  expect(plural('Person', 'people')).toBe('Person');
});
