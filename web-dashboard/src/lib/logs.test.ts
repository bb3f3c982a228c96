import { expect, test } from 'vitest';
import { Failure } from './api';
import {
  columnsOf,
  fieldsOf,
  firstOf,
  grep,
  kubectlOf,
  LINES_MAX,
  merge,
  passes,
  placeOf,
  plain,
  severity,
  split,
  type LogLine,
} from './logs';

const line = (time: string, text: string, source = 0): LogLine => ({ time, text, source });

test('stamps are taken off', () => {
  expect(split('2026-01-01T12:00:00.1Z hello you')).toEqual({
    time: '2026-01-01T12:00:00.1Z',
    text: 'hello you',
  });
  expect(split('no stamp')).toEqual({ time: '', text: 'no stamp' });
});

test('lines of several Pods are merged by time', () => {
  const first = merge([], [line('2', 'b'), line('4', 'd')]);
  const all = merge(first, [line('3', 'c', 1), line('1', 'a', 1), line('5', 'e', 1)]);
  expect(all.map((one) => one.text).join('')).toBe('abcde');
  expect(merge(all, [])).toBe(all);
});

test('the ring forgets the oldest', () => {
  const many = Array.from({ length: LINES_MAX }, (_, at) => line(String(at).padStart(9, '0'), ''));
  const all = merge(many, [line('999999999', 'last')]);
  expect([all.length, all.at(-1)?.text, all[0]?.time]).toEqual([LINES_MAX, 'last', '000000001']);
});

test('words, severities, colours', () => {
  const lines = [line('1', 'GET /cart 200'), line('2', 'GET /pay 500')];
  expect(grep(lines, 'get !cart').map((one) => one.time)).toEqual(['2']);
  expect(grep(lines, '')).toBe(lines);
  expect([
    severity('{"level":"error","m":1}'),
    severity('WARN slow'),
    severity('an error-free day'),
    severity("thread 'main' panicked at x"),
  ]).toEqual(['bad', 'warn', '', 'bad']);
  expect(plain('\u001b[31mred\u001b[0m')).toBe('red');
});

test('fields of lines that are JSON become columns, the usual ones first', () => {
  const lines = [
    line('1', '{"time":"x","level":"info","user":"anna","message":"hello","n":{"a":1}}'),
    line('2', '{"level":"info","message":"you","user":"bert"}'),
    line('3', 'plain text'),
    line('4', '{"not": whole'),
  ];
  expect(columnsOf(lines)).toEqual(['level', 'message', 'user', 'n']);
  expect(fieldsOf(lines[0]!.text)?.get('n')).toBe('{"a":1}');
  expect([fieldsOf(lines[2]!.text), fieldsOf(lines[3]!.text), columnsOf([lines[2]!])]).toEqual([null, null, []]);
});

test('a link to a line leads to it, or to what came next', () => {
  const lines = [line('2026-01-01T12:00:00Z', 'a'), line('2026-01-01T12:00:02Z', 'b')];
  expect(placeOf(lines, '2026-01-01T12:00:00Z')).toBe(0);
  expect(placeOf(lines, '2026-01-01T12:00:01Z')).toBe(1);
  expect(placeOf(lines, '2026-01-01T12:00:03Z')).toBe(-1);
});

test('what passes is tried again, and of several containers the first is meant', () => {
  const waits = new Failure(400, 'container "a" in pod "p" is waiting to start: Compiling');
  const several = new Failure(400, 'a container name must be specified for pod p, choose one of: [a b]');
  expect([waits, new Failure(0, 'away'), new Failure(503, ''), new TypeError('cut')].map(passes)).not.toContain(false);
  expect([several, new Failure(403, 'no'), new Failure(404, 'gone')].map(passes)).not.toContain(true);
  expect([several, waits, new Error('x')].map(firstOf)).toEqual(['a', '', '']);
});

test('the line of kubectl says what was chosen', () => {
  const all = 'kubectl -n shop logs -f web-1';
  const none = { container: '', previous: false, since: 0, times: false };
  expect(kubectlOf(all, none)).toBe(all);
  expect(kubectlOf(all, { container: 'app', previous: true, since: 300, times: true })).toBe(
    'kubectl -n shop logs --previous web-1 -c app --since=300s --timestamps',
  );
});
