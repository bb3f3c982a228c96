import { expect, test } from 'vitest';
import type { KubeObject } from './api';
import { relationsOf, usersOf, waysTo, type Around } from './related';

const object = (name: string, spec: unknown): KubeObject => ({ metadata: { name }, spec });
const nothing: Around = { services: [], ingresses: [], routes: [], autoscalers: [], budgets: [] };
const path = (service: string) => ({ backend: { service: { name: service } } });

test('what reaches a workload, what scales it, what it uses', () => {
  const cart = object('cart', {
    template: {
      metadata: { labels: { app: 'cart', tier: 'web' } },
      spec: {
        serviceAccountName: 'shopper',
        containers: [
          {
            env: [{ name: 'A', valueFrom: { secretKeyRef: { name: 'key', key: 'k' } } }],
            envFrom: [{ configMapRef: { name: 'settings' } }],
          },
        ],
        volumes: [
          { name: 'a', configMap: { name: 'settings' } },
          { name: 'b', secret: { secretName: 'other' } },
          { name: 'c', persistentVolumeClaim: { claimName: 'disk' } },
        ],
      },
    },
  });
  const around: Around = {
    services: [object('cart', { selector: { app: 'cart' } }), object('all', {}), object('pay', { selector: { app: 'pay' } })],
    ingresses: [
      object('shop', { rules: [{ http: { paths: [path('pay'), path('cart')] } }] }),
      object('usual', { defaultBackend: { service: { name: 'cart' } } }),
      object('other', { rules: [{ http: { paths: [path('pay')] } }, {}] }),
    ],
    routes: [
      { ...object('web', { rules: [{ backendRefs: [{ name: 'cart' }, { name: 'pay' }] }] }), kind: 'HTTPRoute' },
      { ...object('far', { rules: [{ backendRefs: [{ name: 'cart', namespace: 'elsewhere' }] }, {}] }), kind: 'HTTPRoute' },
      { ...object('rpc', { rules: [{ backendRefs: [{ kind: 'Service', name: 'cart' }] }] }), kind: 'GRPCRoute' },
    ],
    autoscalers: [object('cart', { scaleTargetRef: { kind: 'Deployment', name: 'cart' } })],
    budgets: [object('two', { selector: { matchLabels: { tier: 'web' } } })],
  };
  const told = relationsOf('Deployment', cart, around).map(({ title, names }) => `${title}: ${names.join(' ')}`);
  expect(told).toEqual([
    'Ingresses that lead to it: shop usual',
    'HTTPRoutes that lead to it: web',
    'GRPCRoutes that lead to it: rpc',
    'Services before it: cart',
    'Scaled by: cart',
    'Kept up by: two',
    'Runs as: shopper',
    'Reads ConfigMaps: settings',
    'Reads Secrets: key other',
    'Stores in: disk',
  ]);
  expect(relationsOf('Deployment', object('cart', {}), nothing)).toEqual([]);
  const toPay = relationsOf('Service', object('pay', {}), around);
  expect(toPay.map(({ title, names }) => `${title}: ${names.join(' ')}`)).toEqual([
    'Ingresses that lead to it: other shop',
    'HTTPRoutes that lead to it: web',
  ]);
  expect(waysTo(around).get('pay')).toEqual([
    ['Ingress', 'shop'],
    ['Ingress', 'other'],
    ['HTTPRoute', 'web'],
  ]);
});

test('what a CronJob uses stands in the template of its Jobs', () => {
  const spec = { containers: [{ envFrom: [{ configMapRef: { name: 'settings' } }] }] };
  const nightly = object('nightly', { jobTemplate: { spec: { template: { spec } } } });
  const told = relationsOf('CronJob', nightly, nothing);
  expect(told.map(({ kind, side, names }) => [kind, side, names])).toEqual([['ConfigMap', 'used', ['settings']]]);
});

test('what uses a ConfigMap, a Secret or a claim', () => {
  const volume = (source: object) => ({ volumes: [{ name: 'v', ...source }] });
  const holders: KubeObject[] = [
    { ...object('cart', { template: { spec: volume({ secret: { secretName: 'key' } }) } }), kind: 'Deployment' },
    { ...object('pay', { template: { spec: { imagePullSecrets: [{ name: 'key' }] } } }), kind: 'Deployment' },
    { ...object('nightly', { jobTemplate: { spec: { template: { spec: volume({ configMap: { name: 'key' } }) } } } }), kind: 'CronJob' },
    { ...object('db-0', volume({ persistentVolumeClaim: { claimName: 'data-db-0' } })), kind: 'Pod' },
  ];
  const told = (kind: string, name: string) =>
    usersOf(kind, name, holders).map(({ title, names }) => `${title}: ${names.join(' ')}`);
  expect(told('Secret', 'key')).toEqual(['Deployments: cart pay']);
  expect(told('ConfigMap', 'key')).toEqual(['CronJobs: nightly']);
  expect(told('PersistentVolumeClaim', 'data-db-0')).toEqual(['Pods: db-0']);
  expect(told('Secret', 'other')).toEqual([]);
});
