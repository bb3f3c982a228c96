import { expect, test } from 'vitest';
import { quoted, wordsOf } from './command';

test('a line is read as a shell reads it', () => {
  expect(wordsOf('  ls  -l /tmp ')).toEqual(['ls', '-l', '/tmp']);
  expect(wordsOf(`greet 'good day' "it's" a\\ b ''`)).toEqual(['greet', 'good day', "it's", 'a b', '']);
  expect(wordsOf(`sh -c "echo \\"a\\""`)).toEqual(['sh', '-c', 'echo "a"']);
  expect(wordsOf("'open to the end")).toEqual(['open to the end']);
  expect(wordsOf(' ')).toEqual([]);
});

test('words are put into a line so that they come out again', () => {
  const words = ['own:jobs/tasks@1.0.0#clean', "it's", 'a b', '', '$HOME', '*'];
  expect(wordsOf(words.map(quoted).join(' '))).toEqual(words);
  expect(quoted('-l')).toBe('-l');
});
