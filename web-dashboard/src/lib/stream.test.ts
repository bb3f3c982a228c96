import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import type { Line } from './stream';

/** A line that the test opens and cuts. */
class FakeSocket {
  static readonly OPEN = 1;
  static readonly CLOSED = 3;
  static made: FakeSocket[] = [];
  readyState = 0;
  said: string[] = [];
  onopen = () => {};
  onclose = () => {};
  constructor(readonly address: string) {
    FakeSocket.made.push(this);
  }
  send(text: string) {
    this.said.push(text);
  }
  close() {
    this.readyState = 2;
  }
  opens() {
    this.readyState = 1;
    this.onopen();
  }
  ends() {
    this.readyState = 3;
    this.onclose();
  }
}

const SIGNED_IN = { ok: true, json: () => Promise.resolve({ user: 'anna' }) };
let answers: (path: string) => Promise<unknown>;
const heard: Record<string, () => void> = {};

beforeEach(() => {
  vi.useFakeTimers();
  FakeSocket.made = [];
  answers = () => Promise.resolve(SIGNED_IN);
  vi.stubGlobal('WebSocket', FakeSocket);
  vi.stubGlobal('location', { protocol: 'https:', host: 'here' });
  vi.stubGlobal('fetch', (path: string) => answers(path));
  vi.stubGlobal('window', {
    setTimeout: (run: () => void, ms: number) => setTimeout(run, ms),
    addEventListener: (name: string, does: () => void) => (heard[name] = does),
  });
  vi.resetModules();
});
afterEach(() => {
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

async function begun(): Promise<Line[]> {
  const { stream } = await import('./stream');
  const told: Line[] = [];
  stream.open({ group: '', version: 'v1', resource: 'pods' }, () => {});
  stream.start((line) => told.push(line));
  FakeSocket.made[0]!.opens();
  return told;
}

test('a line that ends comes again, with its lists', async () => {
  const told = await begun();
  expect(FakeSocket.made[0]!.said).toHaveLength(1);
  FakeSocket.made[0]!.ends();
  await vi.advanceTimersByTimeAsync(1000);
  expect(FakeSocket.made).toHaveLength(2);
  FakeSocket.made[1]!.opens();
  expect(FakeSocket.made[1]!.said).toHaveLength(1);
  expect(told.map(({ word }) => word)).toEqual(['live', 'away', 'live']);
});

test('a browser without a network says so at once, and does not connect before the server answers', async () => {
  const told = await begun();
  answers = () => Promise.reject(new Error('offline'));
  heard.offline!();
  await vi.advanceTimersByTimeAsync(60_000);
  expect([told.at(-1)?.word, FakeSocket.made.length]).toEqual(['away', 1]);
  answers = () => Promise.resolve(SIGNED_IN);
  heard.online!();
  await vi.advanceTimersByTimeAsync(100);
  expect(FakeSocket.made).toHaveLength(2);
});

test('without a network a server on the same machine is not away', async () => {
  const told = await begun();
  heard.offline!();
  await vi.advanceTimersByTimeAsync(1000);
  expect(told.map(({ word }) => word)).toEqual(['live']);
});

test('who is signed out is not connected again', async () => {
  const told = await begun();
  answers = () => Promise.resolve({ ok: true, json: () => Promise.resolve(null) });
  FakeSocket.made[0]!.ends();
  await vi.advanceTimersByTimeAsync(60_000);
  expect([told.at(-1)?.word, FakeSocket.made.length]).toEqual(['signed out', 1]);
});

test('who has lost nothing but the cookie is signed out by the next refusal, and by no other', async () => {
  const told = await begun();
  const { call } = await import('./api');
  const refuses = (message: string, session: unknown) => {
    answers = (path) =>
      Promise.resolve(
        path === '/ui/session'
          ? { ok: true, json: () => Promise.resolve(session) }
          : { ok: false, status: 403, text: () => Promise.resolve(JSON.stringify({ message })) },
      );
    return call('/api/v1/pods').catch((error: Error) => error.message);
  };
  const cannot = (user: string) => `pods is forbidden: User "${user}" cannot list resource "pods"`;
  expect(await refuses(cannot('anna'), { user: 'anna' })).toBe(cannot('anna'));
  await vi.advanceTimersByTimeAsync(100);
  expect(told.map(({ word }) => word)).toEqual(['live']);
  expect(await refuses(cannot('system:anonymous'), null)).toBe('You are not signed in any more.');
  await vi.advanceTimersByTimeAsync(100);
  expect(told.map(({ word }) => word)).toEqual(['live', 'signed out']);
});
