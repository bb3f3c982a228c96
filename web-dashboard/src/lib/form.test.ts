import { expect, test } from 'vitest';
import { add, groupsOf, put, takeOut } from './form';

const TEXT = `apiVersion: apps/v1
kind: Deployment
metadata:
  name: cart
  labels:
    app: cart
spec:
  # Three for the weekend.
  replicas: 3
  template:
    spec:
      containers:
        - name: cart
          image: cart:1
          resources:
            limits:
              cpu: 500m
          env:
            - name: MODE
              value: careful
            - name: PASSWORD
              valueFrom:
                secretKeyRef:
                  name: a
                  key: b
`;
const fieldOf = (text: string, label: string) =>
  groupsOf(text)
    .flatMap((group) => group.fields)
    .find((field) => field.label === label)!;

test('the fields of a Deployment, without those that are references', () => {
  const told = groupsOf(TEXT).map(({ title, fields }) => [
    title,
    fields.filter((field) => field.value !== '').map((field) => `${field.label}=${field.value}`),
  ]);
  expect(told).toEqual([
    ['Deployment', ['Pods=3']],
    ['Container cart', ['Image=cart:1', 'Processor, at most=500m']],
    ['Environment of cart', ['MODE=careful']],
    ['Labels', ['app=cart']],
  ]);
});

test('a change in the form is a change in the text alone, and comments stay', () => {
  expect(put(TEXT, fieldOf(TEXT, 'Pods'), '5')).toBe(TEXT.replace('replicas: 3', 'replicas: 5'));
  expect(put(TEXT, fieldOf(TEXT, 'Image'), 'cart:2')).toBe(TEXT.replace('cart:1', 'cart:2'));
  const limited = put(TEXT, fieldOf(TEXT, 'Memory, asks for'), '64Mi');
  expect(fieldOf(limited, 'Memory, asks for').value).toBe('64Mi');
  // What is taken out leaves nothing empty behind.
  expect(put(limited, fieldOf(limited, 'Memory, asks for'), '')).toBe(TEXT);
  expect(put(TEXT, fieldOf(TEXT, 'At most more'), '1')).toContain('maxSurge: 1\n');
});

test('variables and labels come and go', () => {
  const [, , env] = groupsOf(TEXT);
  const more = add(TEXT, env!.pairs!, 'LEVEL');
  expect(fieldOf(more, 'LEVEL').value).toBe('');
  expect(add(more, env!.pairs!, 'LEVEL')).toBe(more);
  const set = put(more, fieldOf(more, 'LEVEL'), '1');
  expect(set).toContain('value: "1"');
  expect(takeOut(set, fieldOf(set, 'LEVEL'))).toBe(TEXT);
  const labels = groupsOf(TEXT).at(-1)!;
  expect(fieldOf(add(TEXT, labels.pairs!, 'tier'), 'tier').path).toEqual(['metadata', 'labels', 'tier']);
  const none = 'kind: ConfigMap\nmetadata:\n  name: a\n';
  expect(add(none, groupsOf(none)[0]!.pairs!, 'key')).toBe(`${none}data:\n  key: ""\n`);
});

test('what is no object has no form', () => {
  expect(groupsOf('just text')).toEqual([]);
});
