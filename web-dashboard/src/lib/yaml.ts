// YAML in the editor: what each word is, which lines a line can fold away, and how far the next one goes in. All of it is
// read line by line: a grammar of the whole language would be larger than the pages that need it, and what is wrong in a
// text is told by `manifest.ts`.

import { foldService, indentService, StreamLanguage, type StreamParser, type StringStream } from '@codemirror/language';
import type { Extension } from '@codemirror/state';

/** What a line goes on with that an earlier one began. */
interface State {
  /** Lines that are further in than this are one text (`key: |`); null outside of such. */
  text: number | null;
  /** The quote that has not been closed. */
  quote: string;
  /** Open brackets. */
  depth: number;
}

/** Spaces, the dashes of lists, and what stands behind them. */
const LINE = /^(\s*)((?:- +)*)(.*?)\s*$/;
const COMMENT = /(?<=^|\s)#.*$/;
/** What begins a text of several lines. */
const TEXT = /[|>][-+\d]*$/;

const QUOTED = /^(?:"(?:[^"\\]|\\.)*"|'(?:[^']|'')*')/;
const OPEN_QUOTE = /^["']/;
const KEY = /^(?:"(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|(?:(?!\s#)[^,{}[\]"'])+?)(?=\s*:(?:\s|$))/;
/** Behind a single word: the end of its line, of its place in brackets, or a comment. */
const END = String.raw`(?=\s*(?:$|[,}\]]|\s#))`;
const BOOL = new RegExp(`^(?:true|false)${END}`, 'i');
const NULL = new RegExp(`^(?:null|~)${END}`, 'i');
const NUMBER = new RegExp(String.raw`^[-+]?(?:0x[\da-f]+|\d+(?:\.\d*)?(?:e[-+]?\d+)?)${END}`, 'i');

export const parser: StreamParser<State> = {
  name: 'yaml',
  startState: () => ({ text: null, quote: '', depth: 0 }),
  token,
  languageData: { commentTokens: { line: '#' } },
};

function token(stream: StringStream, state: State): string | null {
  if (stream.sol() && state.text !== null) {
    if (stream.indentation() > state.text || stream.string.trim() === '') {
      stream.skipToEnd();
      return 'string';
    }
    state.text = null;
  }
  if (state.quote) return quoted(stream, state);
  if (stream.sol() && stream.match(/^(?:---|\.\.\.)(?=\s|$)/)) {
    state.depth = 0;
    return 'meta';
  }
  if (stream.eatSpace() || stream.match(/^[-?:](?=\s|$)/)) return null;
  if (stream.peek() === '#') {
    stream.skipToEnd();
    return 'comment';
  }
  if (stream.match(/^[{}[\],]/)) {
    const mark = stream.current();
    if ('{['.includes(mark)) state.depth++;
    else if (mark !== ',') state.depth = Math.max(0, state.depth - 1);
    return null;
  }
  if (stream.match(/^[&*!][^\s,{}[\]]*/)) return 'keyword';
  if (state.depth === 0 && stream.match(/^[|>][-+\d]*(?=\s*$|\s+#)/)) {
    state.text = textIn(stream.string);
    return 'keyword';
  }
  if (stream.match(KEY)) return 'propertyName';
  if (stream.match(QUOTED)) return 'string';
  if (stream.match(OPEN_QUOTE)) {
    state.quote = stream.current();
    return quoted(stream, state);
  }
  if (stream.match(BOOL)) return 'bool';
  if (stream.match(NULL)) return 'null';
  if (stream.match(NUMBER)) return 'number';
  const plain = state.depth > 0 ? /^.+?(?=\s*(?:$|[,{}[\]]|:\s|\s#))/ : /^.+?(?=\s*$|\s#)/;
  if (!stream.match(plain)) stream.next();
  return null;
}

/** Up to the quote that closes what is open, which may be lines away. */
function quoted(stream: StringStream, state: State): string {
  const closed = state.quote === '"' ? /^(?:[^"\\]|\\.)*"/ : /^(?:[^']|'')*'(?!')/;
  if (stream.match(closed)) state.quote = '';
  else stream.skipToEnd();
  return 'string';
}

/** The column beyond which the text lies that a line begins. */
function textIn(line: string): number {
  const [, spaces = '', dashes = '', rest = ''] = LINE.exec(line) ?? [];
  const keyed = KEY.test(rest);
  return keyed ? spaces.length + dashes.length : (spaces + dashes).trimEnd().length - 1;
}

/** How far in the line behind a line begins. */
export function indentBehind(line: string): number {
  const [, spaces = '', dashes = '', rest = ''] = LINE.exec(line.replace(COMMENT, '')) ?? [];
  const keyed = KEY.test(rest);
  if (rest === '-' || /:$/.test(rest) || (keyed && TEXT.test(rest))) return spaces.length + dashes.length + 2;
  return spaces.length + (keyed ? dashes.length : 0);
}

/** The last of the lines (from 1 to `count`) that belong to one of them; that itself where none does. */
export function foldEnd(at: number, count: number, line: (at: number) => string): number {
  const own = line(at).search(/[^\s#]/);
  if (own < 0) return at;
  // A list may be as far in as its key.
  const lists = !/^\s*-(\s|$)/.test(line(at)) && /:$/.test(line(at).replace(COMMENT, '').trimEnd());
  let last = at;
  for (let next = at + 1; next <= count; next++) {
    const begins = line(next).search(/\S/);
    if (begins < 0) continue;
    if (begins < own || (begins === own && !(lists && /^\s*-(\s|$)/.test(line(next))))) break;
    last = next;
  }
  return last;
}

export function yaml(): Extension {
  return [
    StreamLanguage.define(parser),
    foldService.of(({ doc }, start, end) => {
      const at = doc.lineAt(start).number;
      const last = foldEnd(at, doc.lines, (line) => doc.line(line).text);
      return last > at ? { from: end, to: doc.line(last).to } : null;
    }),
    // Only a line that is being made has a place to find; others are where they were put.
    indentService.of((context, pos) =>
      context.simulatedBreak === pos ? indentBehind(context.lineAt(pos, -1).text) : null,
    ),
  ];
}
