import { expect, test } from 'vitest';
import { author, how, since } from './changes';

test('a changed field is one line', () => {
  expect(how({ path: 'spec.replicas', from: '1', to: '3' })).toBe('spec.replicas: 1 → 3');
  expect(how({ path: 'spec.paused', from: null, to: 'true' })).toBe('spec.paused: true');
  expect(how({ path: 'spec.paused', from: 'true', to: null })).toBe('spec.paused: true taken out');
});

test('who made a change is told with what it was made', () => {
  const told = [
    author({ by: 'anna', with: 'kubectl-edit' }),
    author({ by: 'anna' }),
    author({ with: 'kubectl-edit' }),
    author({ by: 'system:kube-scheduler', with: 'kube-scheduler' }),
    author({ with: '' }),
  ];
  expect(told).toEqual(['by anna with kubectl-edit', 'by anna', 'with kubectl-edit', 'by system:kube-scheduler', '']);
});

test('how far back one can go is told with the reason', () => {
  const told = (limit: 'start' | 'day') => since({ since: '2026-01-01T12:00:00Z', limit }).slice('2026-01-01 12:00:00'.length);
  expect([told('start'), told('day')]).toEqual([
    ', when it started: changes are kept in its memory',
    ', a day ago',
  ]);
});
