import { expect, test, vi } from 'vitest';
import { Waiting, type Later } from './later';

test('each thing that is done in a moment has a way back of its own', () => {
  vi.useFakeTimers();
  let waiting: Later[] = [];
  const told: string[] = [];
  const all = new Waiting((next) => (waiting = next));
  const add = (name: string) =>
    all.add(name, `Delete ${name}.`, 5000, () => told.push(`${name} goes`), () => told.push(`${name} stays`));
  const names = () => waiting.map(({ name }) => name).join(' ');
  add('a');
  vi.advanceTimersByTime(2000);
  add('b');
  add('c');
  expect(names()).toBe('a b c');
  waiting[1]!.keep();
  expect(names()).toBe('a c');
  vi.advanceTimersByTime(3000);
  expect(names()).toBe('c');
  waiting[0]!.keep();
  vi.advanceTimersByTime(10_000);
  expect([names(), told]).toEqual(['', ['b stays', 'a goes', 'c stays']]);
  vi.useRealTimers();
});
