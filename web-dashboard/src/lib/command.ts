// A command line as the words that it is made of, and back: as a shell reads it, without a shell. Pure.

/** The words of a line. Quotes hold spaces together: `say 'good day'`. */
export function wordsOf(line: string): string[] {
  const words: string[] = [];
  let word = '';
  let open = '';
  let begun = false;
  for (let at = 0; at < line.length; at++) {
    const letter = line[at]!;
    if (letter === '\\' && open !== "'" && at + 1 < line.length) word += line[++at]!;
    else if (letter === open) open = '';
    else if (open === '' && (letter === "'" || letter === '"')) open = letter;
    else if (open === '' && /\s/.test(letter)) {
      if (begun) words.push(word);
      word = '';
      begun = false;
      continue;
    } else word += letter;
    begun = true;
  }
  if (begun) words.push(word);
  return words;
}

/** A word as it stands in a line for a shell. */
export function quoted(word: string): string {
  return /^[\w@%+=:,./#-]+$/.test(word) && !word.startsWith('#') ? word : `'${word.replaceAll("'", `'\\''`)}'`;
}
