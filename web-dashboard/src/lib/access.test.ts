import { expect, test } from 'vitest';
import { canI, meant, sentence } from './access';

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

test('what is asked about is found by the words of people', () => {
  const kinds = [
    { group: 'apps', resource: 'deployments', kind: 'Deployment', namespaced: true },
    { group: 'metrics.k8s.io', resource: 'pods', kind: 'PodMetrics', namespaced: true },
    { group: '', resource: 'pods', kind: 'Pod', namespaced: true },
    { group: '', resource: 'nodes', kind: 'Node', namespaced: false },
  ];
  const told = (text: string) => {
    const { resource, subresource, group, namespaced } = meant(text, kinds);
    return `${resource}|${subresource}|${group}${namespaced ? '' : ' of the cluster'}`;
  };
  expect(['deployments', 'Deployment', 'deployments.apps/scale', 'deployments/scale.apps'].map(told)).toEqual([
    'deployments||apps',
    'deployments||apps',
    'deployments|scale|apps',
    'deployments|scale|apps',
  ]);
  expect(['pods/log', 'pods.metrics.k8s.io', 'nodes', 'boats.example.com', '*'].map(told)).toEqual([
    'pods|log|',
    'pods||metrics.k8s.io',
    'nodes|| of the cluster',
    'boats||example.com',
    '*||*',
  ]);
});

test('a question about rights has its line for a terminal', () => {
  const scale = { resource: 'deployments', subresource: 'scale', group: 'apps', namespaced: true };
  expect(canI('patch', scale, 'shop', null)).toBe('kubectl auth can-i patch deployments.apps/scale -n shop');
  const anna = { user: 'anna', groups: ['system:authenticated'] };
  expect(canI('patch', scale, '', anna)).toBe('kubectl auth can-i patch deployments.apps/scale -A --as=anna');
  const nodes = { resource: 'nodes', subresource: '', group: '', namespaced: false };
  const ops = { user: '', groups: ['ops'] };
  expect(canI('list', nodes, '', ops)).toBe('kubectl auth can-i list nodes --as=anybody --as-group=ops');
  // Who is asked about may stand in a link, and the link may be a stranger's.
  expect(canI('get', nodes, '', { user: '$(reboot)', groups: [] })).toBe("kubectl auth can-i get nodes '--as=$(reboot)'");
});
