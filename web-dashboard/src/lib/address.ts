// Addresses: every state of the dashboard has one, and this is what they look like. Pure.
//
//   /ui/                                   Home
//   /ui/list/pods?ns=shop,web&q=crash      a list; ns is the namespace set, absent means all
//   /ui/object/deployments.apps/shop/cart/logs    one object, and its tab; `-` is "no namespace"
//   /ui/access, /ui/custom, …              pages of their own

export interface Place {
  page: string;
  /** What follows the page in the path, decoded. */
  parts: string[];
  query: URLSearchParams;
}

export const ROOT = '/ui/';

/** The place of an address. */
export function parse(path: string, search: string): Place {
  const [page = '', ...parts] = path
    .replace(/^\/ui\/?/, '')
    .split('/')
    .filter((part) => part !== '');
  return { page: page || 'home', parts: parts.map(decoded), query: new URLSearchParams(search) };
}

/** What somebody typed by hand may be no encoding; then it is taken as it is. */
function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

/** The address of a place; empty values are left out of the query. */
export function format(
  page: string,
  parts: string[] = [],
  query: Record<string, string | undefined> = {},
): string {
  const path = [page === 'home' ? '' : page, ...parts].filter((part) => part !== '').map(encodeURIComponent);
  const pairs = Object.entries(query).filter(([, value]) => value !== undefined && value !== '');
  // Commas part namespaces; they may stand in a query as they are.
  const search = pairs.map(
    ([key, value]) => `${key}=${encodeURIComponent(value ?? '').replace(/%2C/g, ',')}`,
  );
  return ROOT + path.join('/') + (search.length > 0 ? `?${search.join('&')}` : '');
}

/** The namespaces of a query; none means all. */
export function namespacesOf(query: URLSearchParams): string[] {
  return (query.get('ns') ?? '').split(',').filter((name) => name !== '');
}

/** A browser's clock may be so many seconds behind that of the server, which says what the past is. */
const BEHIND_MAX = 60;

/** The time that a query names, in seconds since 1970; null is now. One that has not come is now, and told as `ahead`. */
export function timeOf(query: URLSearchParams, now: number): { at: number | null; ahead: boolean } {
  const named = Number(query.get('at') ?? '');
  const ahead = named > now + BEHIND_MAX;
  return { at: Number.isInteger(named) && named > 0 && !ahead ? named : null, ahead };
}
