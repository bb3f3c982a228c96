// The text form of Prometheus' metrics, as far as pages read it. Pure.

/** Values by name; of a name with labels the sum. */
export function metrics(text: string): Map<string, number> {
  const out = new Map<string, number>();
  for (const line of text.split('\n')) {
    const found = /^([a-zA-Z_:][\w:]*)(?:\{[^}]*\})? (\S+)/.exec(line);
    const value = Number(found?.[2]);
    if (found && !Number.isNaN(value)) out.set(found[1]!, (out.get(found[1]!) ?? 0) + value);
  }
  return out;
}

/** A check of `/readyz?verbose`: `[+]store ok`, `[-]disk failed: why`, `[!]disk note`. */
export interface Check {
  name: string;
  health: 'good' | 'warn' | 'bad';
  note: string;
}
export function checks(text: string): Check[] {
  return text.split('\n').flatMap((line): Check[] => {
    const found = /^\[([+\-!])\](\S+) (.*)$/.exec(line);
    if (!found) return [];
    const health = found[1] === '+' ? 'good' : found[1] === '-' ? 'bad' : 'warn';
    return [{ name: found[2]!, health, note: found[3] === 'ok' ? '' : found[3]!.replace(/^failed: /, '') }];
  });
}
