import { expect, test } from 'vitest';
import { zonesOf } from './zones';

test('nodes lie in their zones, and what they have is summed', () => {
  const node = (name: string, labels: Record<string, string>, cpu: string) => ({
    metadata: { name, labels },
    status: { allocatable: { cpu, memory: '1Gi', pods: '110' }, nodeInfo: { kubeletVersion: 'v1' } },
  });
  const zone = (name: string) => ({ 'topology.kubernetes.io/region': 'eu', 'topology.kubernetes.io/zone': name });
  const nodes = [node('d', {}, '1'), node('c', zone('b'), '2'), node('b', zone('a'), '500m'), node('a', zone('a'), '4')];
  const measured = [{ metadata: { name: 'a' }, usage: { cpu: '250m', memory: '1Mi' } }];
  const told = zonesOf([...nodes, { metadata: { name: 'e' } }], measured);
  expect(told.map(({ name, cores, pods, nodes }) => [name, cores, pods, nodes.map((one) => one.name).join(' ')])).toEqual([
    ['eu, a', 4.5, 220, 'a b'],
    ['eu, b', 2, 110, 'c'],
    ['', 1, 110, 'd e'],
  ]);
  expect(told[0]?.memory).toBe(2 ** 31);
  expect(told[0]?.nodes.map(({ used }) => used)).toEqual([{ cores: 0.25, memory: 2 ** 20 }, null]);
});
