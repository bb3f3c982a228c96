import { expect, test } from 'vitest';
import type { KubeObject } from './api';
import { fieldsOf } from './fields';

test('an object of any kind tells its fields', () => {
  const boat = {
    apiVersion: 'example.com/v1',
    kind: 'Boat',
    metadata: { name: 'dory' },
    spec: { seats: 3, oars: ['left', 'right'], crew: [{ name: 'anna', rows: true }], sail: null, flags: {} },
    status: { afloat: true, conditions: [{ type: 'Ready', status: 'True' }] },
  } as KubeObject;
  expect(fieldsOf(boat).fields.map(({ path, value }) => `${path}=${value}`)).toEqual([
    'spec.seats=3',
    'spec.oars=left, right',
    'spec.crew[0].name=anna',
    'spec.crew[0].rows=true',
    'status.afloat=true',
  ]);
});

test('of a large one the first fields are told, and long values in part', () => {
  const large = { metadata: { name: 'l' }, data: Object.fromEntries([...Array(50).keys()].map((at) => [`k${at}`, 'x'.repeat(300)])) };
  const { fields, more } = fieldsOf(large as unknown as KubeObject);
  expect([fields.length, more, fields[0]?.value.length]).toEqual([40, 10, 201]);
});
