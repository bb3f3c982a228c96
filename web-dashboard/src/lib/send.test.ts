import { expect, test } from 'vitest';
import { known } from './kinds';
import { headersOf, lineFor, pathTo, portsOf, rightFor } from './send';

const target = { resource: 'services', namespace: 'shop', name: 'cart', port: '80' };

test('a request goes through the proxy of the API', () => {
  expect(pathTo(target, 'a?b=1')).toBe('/api/v1/namespaces/shop/services/cart:80/proxy/a?b=1');
  for (const climbs of ['/../../x', '%2e%2e/x', '\\..\\x', '/a/../../x'])
    expect(pathTo(target, climbs)).toBe('/api/v1/namespaces/shop/services/cart:80/proxy/x');
  const port = '80/../..';
  expect(pathTo({ ...target, port }, '//x')).toBe('/api/v1/namespaces/shop/services/cart:80%2F..%2F../proxy//x');
  expect(rightFor(target, 'POST')).toEqual({
    verb: 'create',
    group: '',
    resource: 'services',
    part: 'proxy',
    namespace: 'shop',
  });
  expect(lineFor(target, 'GET', '/', '')).toBe("kubectl get --raw '/api/v1/namespaces/shop/services/cart:80/proxy/'");
  expect(lineFor(target, 'POST', '/', "it's")).toContain(`--data-binary 'it'\\''s'`);
  expect(lineFor(target, 'GET', "/it's", '')).toContain(`/proxy/it'\\''s'`);
});

test('ports are those that the object names', () => {
  const metadata = { name: 'cart' };
  expect(portsOf(known('services')!, { metadata, spec: { ports: [{ port: 80 }] } })).toEqual(['80']);
  const containers = [{ name: 'c', ports: [{ containerPort: 8080 }] }];
  expect(portsOf(known('pods')!, { metadata, spec: { containers } })).toEqual(['8080']);
  expect(portsOf(known('deployments.apps')!, { metadata, spec: { template: { spec: { containers } } } })).toEqual([
    '8080',
  ]);
});

test('headers are lines', () => {
  expect(headersOf('accept: text/plain\n\nx-a:b:c')).toEqual({
    headers: [
      ['accept', 'text/plain'],
      ['x-a', 'b:c'],
    ],
    wrong: '',
  });
  expect(headersOf('nothing').wrong).toBe('“nothing” is no header: write name: value.');
});
