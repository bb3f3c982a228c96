import { expect, test } from 'vitest';
import { whatOf, whoOf, type AuditEvent } from './audit';

const event = (more: Partial<AuditEvent>): AuditEvent => ({
  auditID: '1',
  verb: 'patch',
  requestURI: '/wherry/v1/leader?force=1',
  requestReceivedTimestamp: '2026-01-01T00:00:00.000000Z',
  ...more,
});

test('an event tells who did what', () => {
  const scale = { resource: 'deployments', apiGroup: 'apps', subresource: 'scale', name: 'cart', namespace: 'shop' };
  expect(whatOf(event({ objectRef: scale }))).toBe('deployments.apps/scale cart in shop');
  expect(whatOf(event({ objectRef: { resource: 'pods', namespace: 'shop' } }))).toBe('pods in shop');
  expect(whatOf(event({}))).toBe('/wherry/v1/leader');
  expect(whoOf(event({ user: { username: 'anna' } }))).toBe('anna');
  expect(whoOf(event({ user: { username: 'anna' }, impersonatedUser: { username: 'bert' } }))).toBe('anna as bert');
  expect(whoOf(event({}))).toBe('nobody known');
});
