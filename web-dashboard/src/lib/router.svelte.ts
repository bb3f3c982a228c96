// Where the browser is, and how it gets elsewhere without loading the page anew.
import { format, namespacesOf, parse, timeOf, type Place } from './address';

let place = $state.raw<Place>(parse(location.pathname, location.search));
let time = $state.raw(timeOf(place.query, Date.now() / 1000));
/** What goes along from page to page: on its own, so that typing into a filter makes no link anew. */
let along = $state.raw(alongOf(place));

function alongOf({ query }: Place): { ns: string | undefined; at: string | undefined } {
  return { ns: query.get('ns') ?? undefined, at: query.get('at') ?? undefined };
}

export const here = {
  get place(): Place {
    return place;
  },
  get namespaces(): string[] {
    return namespacesOf(place.query);
  },
  /** The time that is looked at, in seconds since 1970; null is now. */
  get at(): number | null {
    return time.at;
  },
  /** Whether the address names a time that has not come. */
  get ahead(): boolean {
    return time.ahead;
  },
};

/** The address of a page; the namespace set and the time go along. */
export function link(
  page: string,
  parts: string[] = [],
  query: Record<string, string | undefined> = {},
): string {
  return format(page, parts, { ...along, ...query });
}

export function go(address: string, replace = false): void {
  if (replace) history.replaceState(null, '', address);
  else history.pushState(null, '', address);
  arrive();
  if (!replace) document.querySelector('main')?.scrollTo(0, 0);
}

/** Changes the query of this place; an undefined or empty value takes its name out. */
export function amend(changes: Record<string, string | undefined>, replace = true): void {
  const query = { ...Object.fromEntries(place.query), ...changes };
  go(format(place.page, place.parts, query), replace);
}

function arrive(): void {
  place = parse(location.pathname, location.search);
  time = timeOf(place.query, Date.now() / 1000);
  const next = alongOf(place);
  if (next.ns !== along.ns || next.at !== along.at) along = next;
}

/** Follows links inside the dashboard, and the browser's own back and forward. */
export function listen(): () => void {
  const click = (event: MouseEvent) => {
    const anchor = (event.target as Element | null)?.closest?.('a');
    const plain = event.button === 0 && !event.metaKey && !event.ctrlKey && !event.shiftKey && !event.altKey;
    if (!anchor || !plain || event.defaultPrevented || anchor.target || anchor.hasAttribute('download'))
      return;
    if (anchor.origin !== location.origin || !anchor.pathname.startsWith('/ui')) return;
    event.preventDefault();
    go(anchor.pathname + anchor.search);
  };
  document.addEventListener('click', click);
  window.addEventListener('popstate', arrive);
  return () => {
    document.removeEventListener('click', click);
    window.removeEventListener('popstate', arrive);
  };
}
