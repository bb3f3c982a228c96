import { expect, test, vi } from 'vitest';
import { forget, withFrame } from './frames';

test('what is asked for between two frames is drawn once, and together', () => {
  const frames: (() => void)[] = [];
  vi.stubGlobal('requestAnimationFrame', (draw: () => void) => frames.push(draw));
  const drawn: string[] = [];
  const one = () => void drawn.push('one');
  const other = () => void drawn.push('other');
  const gone = () => void drawn.push('gone');
  for (const draw of [one, other, one, gone]) withFrame(draw);
  forget(gone);
  expect(frames.length).toBe(1);
  frames.shift()?.();
  expect(drawn).toEqual(['one', 'other']);
  withFrame(other);
  frames.shift()?.();
  expect(drawn).toEqual(['one', 'other', 'other']);
  vi.unstubAllGlobals();
});
