import { expect, test } from 'vitest';
import { sentence } from './access';

test('rules read as sentences', () => {
  expect([
    sentence({ verbs: ['*'], apiGroups: ['*'], resources: ['*'] }),
    sentence({ verbs: ['get', 'list', 'watch'], apiGroups: [''], resources: ['pods', 'pods/log'] }),
    sentence({
      verbs: ['get', 'list', 'watch', 'patch'],
      apiGroups: ['apps'],
      resources: ['deployments'],
      resourceNames: ['cart'],
    }),
    sentence({
      verbs: ['create', 'delete', 'get', 'list', 'patch', 'update', 'watch'],
      apiGroups: ['apps'],
      resources: ['*'],
    }),
    sentence({ verbs: ['get'], nonResourceURLs: ['/livez*'] }),
  ]).toEqual([
    'Do anything with everything',
    'Read pods, pods/log',
    'Read, patch deployments of apps, only cart',
    'Read and change everything of apps',
    'Get /livez*',
  ]);
});
