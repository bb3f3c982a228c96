// The form of an object: the fields that people change most, over the same YAML text that the editor shows. A change in
// the form is a change in the text, and comments and everything that has no field stay as they are. Pure.

import { isMap, parseDocument, type Document } from 'yaml';
import { at } from './api';

export type Path = (string | number)[];
export interface Field {
  path: Path;
  label: string;
  kind: 'text' | 'number' | 'flag' | 'choice' | 'area';
  value: string;
  choices?: string[];
  /** What a good value looks like, where that is not plain. */
  hint?: string;
}
export interface Group {
  title: string;
  fields: Field[];
  /** Where names and values can be added and taken out. */
  pairs?: { path: Path; of: 'map' | 'env'; name: string };
}

/** Where a kind keeps the containers of its Pods; of a Pod they cannot be changed but for the image. */
const TEMPLATES: Record<string, string[]> = {
  Deployment: ['spec', 'template', 'spec'],
  StatefulSet: ['spec', 'template', 'spec'],
  DaemonSet: ['spec', 'template', 'spec'],
  ReplicaSet: ['spec', 'template', 'spec'],
  CronJob: ['spec', 'jobTemplate', 'spec', 'template', 'spec'],
};
type Row = [path: string, label: string, kind: Field['kind'], more?: { choices?: string[]; hint?: string }];
const ROWS: Record<string, Row[]> = {
  Deployment: [
    ['spec.replicas', 'Pods', 'number'],
    ['spec.strategy.type', 'Strategy', 'choice', { choices: ['RollingUpdate', 'Recreate'] }],
    ['spec.strategy.rollingUpdate.maxSurge', 'At most more', 'text', { hint: '1 or 25%' }],
    ['spec.strategy.rollingUpdate.maxUnavailable', 'At most fewer', 'text', { hint: '1 or 25%' }],
  ],
  StatefulSet: [['spec.replicas', 'Pods', 'number']],
  ReplicaSet: [['spec.replicas', 'Pods', 'number']],
  Job: [
    ['spec.parallelism', 'At a time', 'number'],
    ['spec.suspend', 'Suspended', 'flag'],
  ],
  CronJob: [
    ['spec.schedule', 'Schedule', 'text', { hint: 'minute hour day month weekday' }],
    ['spec.timeZone', 'Time zone', 'text', { hint: 'Europe/Berlin' }],
    ['spec.concurrencyPolicy', 'If one still runs', 'choice', { choices: ['Allow', 'Forbid', 'Replace'] }],
    ['spec.suspend', 'Suspended', 'flag'],
  ],
  HorizontalPodAutoscaler: [
    ['spec.minReplicas', 'At least', 'number'],
    ['spec.maxReplicas', 'At most', 'number'],
  ],
  Service: [['spec.type', 'Type', 'choice', { choices: ['ClusterIP', 'NodePort', 'LoadBalancer'] }]],
  PersistentVolumeClaim: [['spec.resources.requests.storage', 'Size', 'text', { hint: '1Gi' }]],
  Node: [['spec.unschedulable', 'Cordoned', 'flag']],
};

/** The form of a text that holds one object; none where the text is no object. */
export function groupsOf(text: string): Group[] {
  const document = parseDocument(text);
  if (document.errors.length > 0 || !isMap(document.contents)) return [];
  const object = document.toJS() as { kind?: string };
  const kind = object.kind ?? '';
  const rows = ROWS[kind] ?? [];
  const groups: Group[] = [];
  if (rows.length > 0) groups.push({ title: kind, fields: rows.map((row) => field(object, row)) });
  for (const path of containersOf(object, kind)) groups.push(...container(object, path));
  const ports = at<unknown[]>(object, 'spec.ports');
  if (kind === 'Service' && ports)
    groups.push({ title: 'Ports', fields: ports.flatMap((_, index) => portFields(object, index)) });
  if (kind === 'ConfigMap') groups.push(map(object, ['data'], 'Data', 'key', 'area'));
  groups.push(map(object, ['metadata', 'labels'], 'Labels', 'label'));
  return groups;
}

function field(object: unknown, [path, label, kind, more]: Row): Field {
  const keys = path.split('.').map((key) => (/^\d+$/.test(key) ? Number(key) : key));
  return { path: keys, label, kind, value: shown(inside(object, keys)), ...more };
}

function inside(object: unknown, path: Path): unknown {
  return path.reduce<unknown>((value, key) => (value as Record<string | number, unknown> | undefined)?.[key], object);
}

function shown(value: unknown): string {
  return value === undefined || value === null ? '' : String(value);
}

function containersOf(object: unknown, kind: string): Path[] {
  const template = TEMPLATES[kind];
  if (!template) return [];
  const list = (inside(object, [...template, 'containers']) as unknown[] | undefined) ?? [];
  return list.map((_, index) => [...template, 'containers', index]);
}

function container(object: unknown, path: Path): Group[] {
  const own = (rest: Path, label: string, more: Partial<Field> = {}): Field => ({
    path: [...path, ...rest],
    label,
    kind: 'text',
    value: shown(inside(object, [...path, ...rest])),
    ...more,
  });
  const name = shown(inside(object, [...path, 'name']));
  const amounts = ['requests', 'limits'].flatMap((side) => {
    const word = side === 'requests' ? 'asks for' : 'at most';
    return [
      own(['resources', side, 'cpu'], `Processor, ${word}`, { hint: '250m' }),
      own(['resources', side, 'memory'], `Memory, ${word}`, { hint: '64Mi' }),
    ];
  });
  const env = (inside(object, [...path, 'env']) as { name: string; valueFrom?: unknown }[] | undefined) ?? [];
  // What comes from Secrets and ConfigMaps is a reference, not a text.
  const variables = env.flatMap((one, index) =>
    one.valueFrom === undefined ? [own(['env', index, 'value'], one.name)] : [],
  );
  return [
    { title: `Container ${name}`, fields: [own(['image'], 'Image'), ...amounts] },
    {
      title: `Environment of ${name}`,
      fields: variables,
      pairs: { path: [...path, 'env'], of: 'env', name: 'variable' },
    },
  ];
}

function portFields(object: unknown, index: number): Field[] {
  return [
    field(object, [`spec.ports.${index}.port`, `Port ${index + 1}`, 'number']),
    field(object, [`spec.ports.${index}.targetPort`, `Port ${index + 1}, in the Pod`, 'text']),
  ];
}

function map(object: unknown, path: Path, title: string, name: string, kind: Field['kind'] = 'text'): Group {
  const entries = Object.entries((inside(object, path) ?? {}) as Record<string, unknown>);
  const fields = entries.map(([key, value]): Field => ({
    path: [...path, key],
    label: key,
    kind,
    value: shown(value),
  }));
  return { title, fields, pairs: { path, of: 'map', name } };
}

/** The text with one field changed; an empty text takes a field out where it may be absent. */
export function put(text: string, { path, kind }: Pick<Field, 'path' | 'kind'>, value: string): string {
  const document = parseDocument(text);
  const inMap = kind === 'area' || path.at(-2) === 'labels' || path.at(-1) === 'value';
  if (kind === 'flag') document.setIn(path, value === 'true');
  else if (value === '' && !inMap) prune(document, path);
  else document.setIn(path, inMap ? value : plain(kind, value));
  return written(document);
}

/** What looks like a number is one where a number is wanted; `1` of `maxSurge` and of a port as well. */
function plain(kind: Field['kind'], value: string): string | number {
  return (kind === 'number' || kind === 'text') && /^\d+$/.test(value) ? Number(value) : value;
}

/** Takes a value out, and what is empty then. */
function prune(document: Document, path: Path): void {
  document.deleteIn(path);
  const parent = path.slice(0, -1);
  const left = parent.length > 1 ? document.getIn(parent) : undefined;
  if (isMap(left) && left.items.length === 0) prune(document, parent);
}

/** The text with a new name in a group; the same text where it is there already. */
export function add(text: string, { path, of }: NonNullable<Group['pairs']>, name: string): string {
  const document = parseDocument(text);
  if (of === 'map') {
    if (document.hasIn([...path, name])) return text;
    document.setIn([...path, name], '');
    return written(document);
  }
  const list = (inside(document.toJS(), path) as { name: string }[] | undefined) ?? [];
  if (list.some((one) => one.name === name)) return text;
  if (list.length === 0) document.setIn(path, document.createNode([{ name, value: '' }]));
  else document.addIn(path, document.createNode({ name, value: '' }));
  return written(document);
}

/** The text without a field of a group. */
export function takeOut(text: string, field: Field): string {
  const document = parseDocument(text);
  // Of a variable the whole entry goes, not its value alone.
  document.deleteIn(field.path.at(-1) === 'value' ? field.path.slice(0, -1) : field.path);
  return written(document);
}

function written(document: Document): string {
  return document.toString({ lineWidth: 0 });
}

/** Why a value cannot be, or nothing. */
export function wrongIn(field: Field): string {
  if (field.kind === 'number' && field.value !== '' && !/^\d+$/.test(field.value)) return 'A whole number.';
  return '';
}

