import { StringStream } from '@codemirror/language';
import { expect, test } from 'vitest';
import { foldEnd, indentBehind, parser } from './yaml';

/** Each line's words that are something, as `what:word`. */
function told(text: string): string[] {
  const state = parser.startState!(2);
  return text.split('\n').map((line) => {
    const stream = new StringStream(line, 2, 2);
    const out: string[] = [];
    while (!stream.eol()) {
      stream.start = stream.pos;
      const what = parser.token(stream, state);
      expect(stream.pos).toBeGreaterThan(stream.start);
      if (what) out.push(`${what}:${stream.current()}`);
    }
    return out.join(' ');
  });
}

test('words are told apart', () => {
  const text = `--- # first
kind: Pod   # of two
spec:
  - name: "a b" # c
    image: host:5000/app:1.2#3
    port: 8080
    address: 10.0.0.1
    ready: true
    cpu: 500m
    none: ~
  - -1.5
  - plain, with: commas
"quoted key": 'it''s'
labels: {app: web, tier: 2, list: [1, x y, null]}
copy: *anchor`;
  expect(told(text)).toEqual([
    'meta:--- comment:# first',
    'propertyName:kind comment:# of two',
    'propertyName:spec',
    'propertyName:name string:"a b" comment:# c',
    'propertyName:image',
    'propertyName:port number:8080',
    'propertyName:address',
    'propertyName:ready bool:true',
    'propertyName:cpu',
    'propertyName:none null:~',
    'number:-1.5',
    '',
    `propertyName:"quoted key" string:'it''s'`,
    'propertyName:labels propertyName:app propertyName:tier number:2 propertyName:list number:1 null:null',
    'propertyName:copy keyword:*anchor',
  ]);
});

test('a text of several lines is one', () => {
  const text = `data:
  script: |-
    if: true

     # no comment
  next: 1
args:
  - >
    folded: text
  - 'over
    two: lines'
end: x`;
  expect(told(text)).toEqual([
    'propertyName:data',
    'propertyName:script keyword:|-',
    'string:    if: true',
    '',
    'string:     # no comment',
    'propertyName:next number:1',
    'propertyName:args',
    'keyword:>',
    'string:    folded: text',
    `string:'over`,
    `string:    two: lines'`,
    'propertyName:end',
  ]);
});

test('a line begins where the one before leads to', () => {
  const lines = ['a: 1', '  a:', '  a: # why', '  - a: 1', '  - a:', '- x', '  -', '  a: |', '', '    # note'];
  expect(lines.map(indentBehind)).toEqual([0, 4, 4, 4, 6, 0, 4, 4, 0, 4]);
});

test('what belongs to a line folds into it', () => {
  const lines = `a:
  b: 1

  c:
  - d: 2
    e: 3
  - f
# end
g: 4`.split('\n');
  const ends = lines.map((_, at) => foldEnd(at + 1, lines.length, (line) => lines[line - 1]!));
  expect(ends).toEqual([7, 2, 3, 7, 6, 6, 7, 8, 9]);
});
