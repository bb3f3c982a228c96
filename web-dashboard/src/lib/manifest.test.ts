import { expect, test } from 'vitest';
import { comparable, parse, toYaml } from './manifest';

test('noise is left out, and the text reads back', () => {
  const object = {
    apiVersion: 'v1',
    kind: 'ConfigMap',
    metadata: {
      name: 'a',
      resourceVersion: '7',
      managedFields: [{}],
      annotations: { 'kubectl.kubernetes.io/last-applied-configuration': '{}' },
    },
    data: { text: 'a\nb\n' },
  };
  const yaml = toYaml(object);
  expect(yaml).toBe(
    'apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\n  resourceVersion: "7"\ndata:\n  text: |\n    a\n    b\n',
  );
  expect(parse(yaml).objects).toHaveLength(1);
  expect(comparable(object)).toMatchObject({ metadata: { name: 'a' } });
  expect(toYaml(comparable(object))).not.toContain('resourceVersion');
});

test('mistakes have a place', () => {
  expect(parse('a: [1').mistakes[0]?.from).toBeGreaterThan(0);
  expect(parse('a: 1').mistakes[0]?.message).toContain('apiVersion');
  expect(parse('---\napiVersion: v1\nkind: A\nmetadata: {name: a}\n---\n').objects).toHaveLength(1);
});
