import { expect, test } from 'vitest';
import { beside, GROUPED_ABOVE, treeOf, type Made, type Tree } from './owners';
import type { Relation } from './related';

const cart = { kind: 'Deployment', word: 'deployments.apps', name: 'cart' };
const relation = (side: Relation['side'], kind: string, names: string[]): Relation => ({
  title: kind,
  side,
  kind,
  word: `${kind.toLowerCase()}s`,
  names,
});
const made = (kind: string, name: string, owner: [string, string], word = 'Running'): Made => ({
  kind,
  word: `${kind.toLowerCase()}s`,
  name,
  owner,
  state: ['good', word],
});
const relations = [
  relation('leads', 'Ingress', ['shop']),
  relation('sends', 'Service', ['cart']),
  relation('governs', 'HorizontalPodAutoscaler', ['cart']),
  relation('used', 'Secret', ['key']),
];
const ways = new Map([
  ['cart', [['Ingress', 'shop'] as [string, string]]],
  ['pay', [['Ingress', 'other'] as [string, string]]],
]);
const slice = made('EndpointSlice', 'cart-x', ['Service', 'cart']);
const text = ({ boxes, lines }: Tree) => [
  ...boxes.map(({ id, column, row, count }) => `${column},${row} ${id}${count > 1 ? ` of ${count}` : ''}`),
  ...lines.map(({ from, to }) => `${from} -> ${to}`),
];

test('what leads there stands left, what was made and is used right', () => {
  const tree = treeOf(cart, relations, ways, [
    slice,
    made('ReplicaSet', 'cart-2', ['Deployment', 'cart']),
    made('ReplicaSet', 'cart-1', ['Deployment', 'cart']),
    made('Pod', 'cart-1-b', ['ReplicaSet', 'cart-1']),
    made('Pod', 'cart-2-a', ['ReplicaSet', 'cart-2']),
    made('Pod', 'stray', ['ReplicaSet', 'other']),
  ]);
  expect(text(tree)).toEqual([
    '0,1 Ingress/shop',
    '1,0.5 HorizontalPodAutoscaler/cart',
    '1,1.5 Service/cart',
    '2,0.5 Deployment/cart',
    '2,1.5 EndpointSlice/cart-x',
    '3,0 ReplicaSet/cart-2',
    '3,1 ReplicaSet/cart-1',
    '3,2 Secret/key',
    '4,0.5 Pod/cart-2-a',
    '4,1.5 Pod/cart-1-b',
    'HorizontalPodAutoscaler/cart -> Deployment/cart',
    'Service/cart -> Deployment/cart',
    'Ingress/shop -> Service/cart',
    'Service/cart -> EndpointSlice/cart-x',
    'Deployment/cart -> ReplicaSet/cart-2',
    'Deployment/cart -> ReplicaSet/cart-1',
    'ReplicaSet/cart-1 -> Pod/cart-1-b',
    'ReplicaSet/cart-2 -> Pod/cart-2-a',
    'Deployment/cart -> Secret/key',
  ]);
  const next = (id: string, key: string) => beside(tree, id, key);
  expect(next('Deployment/cart', 'ArrowRight')).toBe('ReplicaSet/cart-2');
  expect(next('ReplicaSet/cart-1', 'ArrowRight')).toBe('Pod/cart-1-b');
  expect(next('ReplicaSet/cart-1', 'ArrowUp')).toBe('ReplicaSet/cart-2');
  expect(next('Service/cart', 'ArrowLeft')).toBe('Ingress/shop');
  expect([next('Ingress/shop', 'ArrowLeft'), next('Ingress/shop', 'Enter')]).toEqual([undefined, undefined]);
  expect(tree.boxes.find(({ id }) => id === 'Pod/cart-1-b')?.of).toBe('ReplicaSet cart-1');
});

test('without the right to see what is between, Pods hang on the workload', () => {
  const tree = treeOf(cart, [], new Map(), [made('Pod', 'cart-5f6d7-a', ['ReplicaSet', 'cart-5f6d7'])]);
  expect(text(tree)).toEqual([
    '0,0 Deployment/cart',
    '1,0 Pod/cart-5f6d7-a',
    'Deployment/cart -> Pod/cart-5f6d7-a',
  ]);
});

test('many that are alike are one', () => {
  const pods = Array.from({ length: GROUPED_ABOVE }, (_, at) =>
    made('Pod', `cart-${at}`, ['ReplicaSet', 'set'], at === 7 ? 'Pending' : 'Running'),
  );
  const set = made('ReplicaSet', 'set', ['Deployment', 'cart']);
  const tree = treeOf(cart, [], new Map(), [set, ...pods]);
  expect(tree.boxes.map(({ kind, name, count }) => [kind, name, count])).toEqual([
    ['Deployment', 'cart', 1],
    ['ReplicaSet', 'set', 1],
    ['Pod', '', GROUPED_ABOVE - 1],
    ['Pod', 'cart-7', 1],
  ]);
  expect(tree.lines.length).toBe(3);
});
