import { expect, test } from 'vitest';
import { kindIn, manifestAt, offers, pathAt, type Schemas } from './schema';

const TEXT = `apiVersion: apps/v1
kind: Deployment
metadata:
  name: a
spec:
  template:
    spec:
      containers:
        - name: c
          ima|1
          env:
          - name: X
            val|2
        - na|3
      rest|4
  pau|5
stra|6
  paused: tr|7
`;
const place = (mark: number) => {
  const at = TEXT.indexOf(`|${mark}`);
  return pathAt(
    TEXT.replace(/\|\d/g, (found) => (found === `|${mark}` ? '' : found)).replace(/\|\d/g, ''),
    at - 2 * (mark - 1),
  );
};

test('the path at a place, read from the indentation', () => {
  expect([1, 2, 3, 4, 5, 6].map((mark) => `${place(mark).path.join('.')} ${place(mark).typed}`)).toEqual([
    'spec.template.spec.containers.[] ima',
    'spec.template.spec.containers.[].env.[] val',
    'spec.template.spec.containers.[] na',
    'spec.template.spec rest',
    'spec pau',
    ' stra',
  ]);
});

const ref = (name: string) => ({ allOf: [{ $ref: `#/components/schemas/${name}` }] });
const all: Schemas = {
  Deployment: {
    'x-kubernetes-group-version-kind': [{ group: 'apps', version: 'v1', kind: 'Deployment' }],
    properties: { spec: ref('Spec') },
  },
  Spec: {
    required: ['selector'],
    properties: {
      paused: { type: 'boolean', description: 'Whether it waits' },
      selector: { type: 'object' },
      list: { type: 'array', items: ref('Item') },
      mode: { type: 'string', enum: ['A', 'B'] },
    },
  },
  Item: { properties: { image: { type: 'string' } } },
};

test('what may stand there, required fields first', () => {
  const top = kindIn(all, 'apps/v1', 'Deployment');
  const labels = (path: string[], value = false) =>
    offers(top, { path, typed: '', value }, all).map((one) => one.label);
  expect(labels(['spec'])).toEqual(['selector', 'list', 'mode', 'paused']);
  expect(labels(['spec', 'list', '[]'])).toEqual(['image']);
  expect(labels(['spec', 'mode'], true)).toEqual(['A', 'B']);
  expect(labels(['spec', 'paused'], true)).toEqual(['true', 'false']);
  expect(labels(['nowhere'])).toEqual([]);
});

test('each document has its kind', () => {
  const text = 'apiVersion: v1\nkind: Service\n---\napiVersion: apps/v1\nkind: Deployment\n';
  expect(manifestAt(text, 5)).toEqual({ apiVersion: 'v1', kind: 'Service' });
  expect(manifestAt(text, text.length)).toEqual({ apiVersion: 'apps/v1', kind: 'Deployment' });
});
