import { expect, test } from 'vitest';
import { ending, frame, parse } from './channels';

test('frames carry their channel', () => {
  const sent = frame('resize', new TextEncoder().encode('{}'));
  expect([...sent]).toEqual([4, 123, 125]);
  expect(parse(new Uint8Array([1, 65]).buffer)).toEqual({ channel: 'stdout', bytes: new Uint8Array([65]) });
  expect(parse(new Uint8Array([255, 1]).buffer)).toBe(null);
  expect(parse(new ArrayBuffer(0))).toBe(null);
});

test('how it ended, in a sentence', () => {
  const failure = {
    status: 'Failure',
    message: 'command terminated',
    details: { causes: [{ reason: 'ExitCode', message: '3' }] },
  };
  expect([ending('{"status":"Success"}'), ending(JSON.stringify(failure)), ending('odd')]).toEqual([
    'It has ended well.',
    'It has ended with exit code 3.',
    'odd',
  ]);
});
