// Finding by a few letters, for the command palette. Pure.

/** How well `text` fits the letters typed: higher is better, null does not fit. Starts of words count most. */
export function score(query: string, text: string): number | null {
  const wanted = query.toLowerCase().replace(/\s+/g, ' ').trim();
  if (wanted === '') return 0;
  const inside = text.toLowerCase();
  let total = 0;
  for (const word of wanted.split(' ')) {
    const found = letters(word, inside);
    if (found === null) return null;
    total += found;
  }
  return total - text.length / 100;
}

function letters(word: string, text: string): number | null {
  const whole = text.indexOf(word);
  if (whole >= 0) return 10 + word.length + (isStart(text, whole) ? 10 : 0);
  let at = -1;
  let points = 0;
  for (const letter of word) {
    const next = text.indexOf(letter, at + 1);
    if (next < 0) return null;
    points += next === at + 1 ? 2 : isStart(text, next) ? 3 : 0;
    at = next;
  }
  // Letters strewn over a long text fit by chance.
  return points >= word.length ? points : null;
}

function isStart(text: string, at: number): boolean {
  return at === 0 || /[^a-z0-9]/.test(text[at - 1]!);
}

/** The best fits, best first. */
export function best<T>(query: string, items: T[], text: (item: T) => string, most: number): T[] {
  const scored = items.map((item, at) => ({ item, at, score: score(query, text(item)) }));
  const fits = scored.filter((one): one is { item: T; at: number; score: number } => one.score !== null);
  fits.sort((a, b) => b.score - a.score || a.at - b.at);
  return fits.slice(0, most).map((one) => one.item);
}
