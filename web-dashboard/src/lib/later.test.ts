import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { Waiting, type Later } from './later';

let waiting: Later[] = [];
let told: string[] = [];
let all: Waiting;
const add = (name: string, run = () => Promise.resolve()) =>
  all.add(
    {
      name,
      text: `Delete ${name}.`,
      doing: `Deleting ${name}.`,
      run: (tell) => {
        told.push(`${name} goes`);
        tell('1 of 2');
        return run();
      },
      kept: () => told.push(`${name} stays`),
    },
    5000,
  );
const names = () => waiting.map(({ name }) => name).join(' ');

beforeEach(() => {
  vi.useFakeTimers();
  [waiting, told] = [[], []];
  all = new Waiting((next) => (waiting = next));
});
afterEach(() => {
  vi.useRealTimers();
});

test('each thing that is done in a moment has a way back of its own', async () => {
  add('a');
  await vi.advanceTimersByTimeAsync(2000);
  add('b');
  add('c');
  expect(names()).toBe('a b c');
  waiting[1]!.keep?.();
  expect(names()).toBe('a c');
  await vi.advanceTimersByTimeAsync(3000);
  expect(names()).toBe('c');
  waiting[0]!.keep?.();
  await vi.advanceTimersByTimeAsync(10_000);
  expect([names(), told]).toEqual(['', ['b stays', 'a goes', 'c stays']]);
});

test('what has begun is told until it is done, and has no way back', async () => {
  let done: (value: void) => void = () => {};
  add('a', () => new Promise<void>((resolve) => (done = resolve)));
  await vi.advanceTimersByTimeAsync(60_000);
  expect(waiting).toMatchObject([{ text: 'Deleting a.', progress: '1 of 2', keep: null }]);
  done();
  await vi.advanceTimersByTimeAsync(0);
  expect(names()).toBe('');
});
