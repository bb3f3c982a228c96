import { expect, test } from 'vitest';
import { pathOf } from './api';
import { codeIn } from './session';

test('the code stands behind the hash', () => {
  expect([codeIn('#code=ab12'), codeIn(''), codeIn('#other=1')]).toEqual(['ab12', null, null]);
});

test('paths of the API', () => {
  expect(pathOf({ group: '', version: 'v1', resource: 'pods', namespace: 'a', name: 'b', part: 'log' })).toBe(
    '/api/v1/namespaces/a/pods/b/log',
  );
  expect(pathOf({ group: 'apps', version: 'v1', resource: 'deployments' })).toBe('/apis/apps/v1/deployments');
});
