import { expect, test } from 'vitest';
import { callOf, capabilities, offersOf, packages, parts, type Interface, type World } from './world';

const face = (name: string, functions: string[] = []): Interface => ({ name, offered: true, functions, more: 0 });
const world = (imports: Interface[], form: World['form'] = 'component'): World => ({
  form,
  guest: 'handler',
  memoryMinBytes: 65536,
  imports,
  exports: [],
});

test('interfaces lie in their package', () => {
  const list = ['wasi:io/error@0.2.3', 'wasi:http/types@0.2.3', 'wasi:io/poll@0.2.3', 'run'].map((name) => face(name));
  expect(packages(list).map(({ name, interfaces }) => [name, interfaces.length])).toEqual([
    ['wasi:io@0.2.3', 2],
    ['wasi:http@0.2.3', 1],
    ['run', 1],
  ]);
  expect(parts('wasi:http/types@0.2.3')).toEqual({ owner: 'wasi:http', own: 'types', version: '0.2.3' });
});

test('what is asked for is told with what is granted', () => {
  const asks = world([face('wasi:filesystem/types@0.2.3'), face('wasi:cli/environment@0.2.3')]);
  const spec = { name: 'c', env: [{ name: 'A' }], volumeMounts: [] };
  expect(capabilities(asks, spec)).toEqual([
    { word: 'Reads and writes files', granted: 'nothing: no volume is mounted' },
    { word: 'Reads its environment', granted: '1 variable' },
  ]);
  const keeps = world([face('wasi:keyvalue/store@0.2.0-draft'), face('wasi:logging/logging@0.1.0-draft')]);
  const mounts = [{ name: 'v', mountPath: '/data' }];
  expect(capabilities(keeps, { name: 'c', volumeMounts: mounts })).toEqual([
    { word: 'Keeps keys and values', granted: 'in memory, and in 1 mount' },
    { word: 'Writes logs', granted: 'to its log' },
  ]);
});

test('an export is called by its name, with what a word can say', () => {
  const own = face('own:jobs/tasks@1.0.0', []);
  const told = (signature: string, of = world([]), from = own) => {
    const call = callOf(of, from, signature);
    return call ? [call.name, ...call.parameters].join(' | ') : '';
  };
  expect(told('clean: func() -> result')).toBe('own:jobs/tasks@1.0.0#clean');
  expect(told('clean: func(all: bool, rest: list<string>)')).toBe(
    'own:jobs/tasks@1.0.0#clean | all: bool | rest: list<string>',
  );
  expect(told('clean: func(of: tuple<u8, string>)')).toBe('');
  expect(told('clean: func(rest: list<string>, all: bool)')).toBe('');
  expect(told('clean: func(to: string, with: op…')).toBe('');
  expect(told('bucket.new: func()')).toBe('');
  expect(told('clean: func()', world([]), face('clean'))).toBe('clean');
  const module = world([], 'module');
  expect(told('add: func(i32, f64) -> i32', module, face('module'))).toBe('add | i32 | f64');
  expect(told('_start: func()', module, face('module'))).toBe('');
});

test('what a node offers is told by package', () => {
  const node = (offers: string) => ({ metadata: { name: 'n', annotations: { 'wherry.dev/offers': offers } } });
  expect(offersOf(node('["wasi:io/poll@0.2","wasi:http/types@0.2","wasi:io/error@0.2","wasi_snapshot_preview1"]'))).toEqual([
    { name: 'wasi_snapshot_preview1', interfaces: ['wasi_snapshot_preview1'] },
    { name: 'wasi:http@0.2', interfaces: ['types'] },
    { name: 'wasi:io@0.2', interfaces: ['error', 'poll'] },
  ]);
  expect([offersOf(node('no JSON')), offersOf(node('{}')), offersOf({ metadata: { name: 'n' } })]).toEqual([[], [], []]);
});
