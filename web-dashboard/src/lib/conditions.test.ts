import { expect, test } from 'vitest';
import { healthOf } from './conditions';

test('some conditions are good news where they are false', () => {
  const told = (type: string) => ['True', 'False', 'Unknown'].map((status) => healthOf({ type, status }));
  expect(told('Ready')).toEqual(['good', 'warn', 'warn']);
  expect(told('MemoryPressure')).toEqual(['bad', 'good', 'warn']);
  expect(told('ScalingLimited')).toEqual(['warn', 'good', 'warn']);
  expect(told('NamespaceContentRemaining')).toEqual(['warn', 'good', 'warn']);
});
