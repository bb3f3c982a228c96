// A request to a guest through the API's `proxy`: where it goes, with which right, and its kubectl line. Pure but for
// `send`.

import { at, carried, type KubeObject } from './api';
import { wordOf, type Kind } from './kinds';
import type { Right } from './actions';

export const METHODS = ['GET', 'POST', 'PUT', 'PATCH', 'DELETE', 'HEAD'] as const;
export type Method = (typeof METHODS)[number];

/** What is read of an answer; the rest is counted. */
const BODY_CHARS_MAX = 64 * 1024;
/** The right that a method needs, as Kubernetes maps them. */
const VERBS: Record<Method, string> = {
  GET: 'get',
  HEAD: 'get',
  POST: 'create',
  PUT: 'update',
  PATCH: 'patch',
  DELETE: 'delete',
};

export interface Target {
  /** `pods` or `services` */
  resource: string;
  namespace: string;
  name: string;
  port: string;
}

/** The ports of an object that requests can go to. */
export function portsOf(kind: Kind, object: KubeObject): string[] {
  if (wordOf(kind) === 'services')
    return (at<{ port: number }[]>(object, 'spec.ports') ?? []).map(({ port }) => String(port));
  const spec = wordOf(kind) === 'pods' ? 'spec' : 'spec.template.spec';
  const containers = at<{ ports?: { containerPort: number }[] }[]>(object, `${spec}.containers`) ?? [];
  return containers.flatMap((one) => one.ports ?? []).map((one) => String(one.containerPort));
}

export function pathTo(target: Target, path: string): string {
  const { namespace, resource, name, port } = target;
  const slash = path.startsWith('/') ? '' : '/';
  // Without what leads upwards: that would ask the API itself, as whoever is signed in.
  const { pathname, search } = new URL(`http://guest${slash}${path}`);
  return `/api/v1/namespaces/${namespace}/${resource}/${name}:${encodeURIComponent(port)}/proxy${pathname}${search}`;
}

export function rightFor(target: Target, method: Method): Right {
  const { resource, namespace } = target;
  return { verb: VERBS[method], group: '', resource, part: 'proxy', namespace };
}

/** The same in a terminal: by kubectl alone where it can, else through its proxy. */
export function lineFor(target: Target, method: Method, path: string, body: string): string {
  const whole = (text: string) => `'${text.replaceAll("'", `'\\''`)}'`;
  const to = pathTo(target, path);
  if (method === 'GET') return `kubectl get --raw ${whole(to)}`;
  if (method === 'DELETE') return `kubectl delete --raw ${whole(to)}`;
  const data = body === '' ? '' : ` --data-binary ${whole(body)}`;
  return `kubectl proxy & curl -X ${method}${data} ${whole(`http://127.0.0.1:8001${to}`)}`;
}

/** `name: value` lines; what is none is named. */
export function headersOf(text: string): { headers: [string, string][]; wrong: string } {
  const headers: [string, string][] = [];
  for (const line of text.split('\n')) {
    if (line.trim() === '') continue;
    const colon = line.indexOf(':');
    if (colon < 1 || !/^[\w!#$%&'*+.^`|~-]+$/.test(line.slice(0, colon).trim()))
      return { headers, wrong: `“${line}” is no header: write name: value.` };
    headers.push([line.slice(0, colon).trim(), line.slice(colon + 1).trim()]);
  }
  return { headers, wrong: '' };
}

export interface Answer {
  status: number;
  statusText: string;
  headers: [string, string][];
  text: string;
  bytes: number;
  /** From the click to the head of the answer, the way through the API included. */
  headMs: number;
}

export async function send(
  target: Target,
  method: Method,
  path: string,
  headers: [string, string][],
  body: string,
): Promise<Answer> {
  const began = performance.now();
  const response = await fetch(pathTo(target, path), {
    method,
    // Answers are shown as they are, not as they were once.
    cache: 'no-store',
    redirect: 'manual',
    headers: [...headers, ['x-wherry-csrf', carried()]],
    body: method === 'GET' || method === 'HEAD' || body === '' ? null : body,
  });
  const headMs = performance.now() - began;
  const raw = await response.arrayBuffer();
  const text = new TextDecoder().decode(raw).slice(0, BODY_CHARS_MAX);
  const { status, statusText } = response;
  return { status, statusText, headers: [...response.headers], text, bytes: raw.byteLength, headMs };
}
