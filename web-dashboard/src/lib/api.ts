// Calls of the ordinary Kubernetes API, with the session's cookie and its header against request forgery.

/** What names an object or a list. */
export interface Ref {
  group: string;
  version: string;
  resource: string;
  namespace?: string | undefined;
  name?: string | undefined;
  /** A subresource: `scale`, `log`. */
  part?: string | undefined;
}

/** Any Kubernetes object, as far as pages look into it. */
export interface KubeObject {
  apiVersion?: string;
  kind?: string;
  metadata: {
    name: string;
    namespace?: string;
    uid?: string;
    resourceVersion?: string;
    generation?: number;
    creationTimestamp?: string;
    deletionTimestamp?: string;
    labels?: Record<string, string>;
    annotations?: Record<string, string>;
    ownerReferences?: { kind: string; name: string; uid: string; apiVersion: string; controller?: boolean }[];
    managedFields?: { manager?: string; operation?: string; time?: string; subresource?: string }[];
    finalizers?: string[];
  };
  // Specs differ by kind; pages read them by path with `at`.
  [field: string]: unknown;
}

/** A refusal or a failure, in the server's own words. */
export class Failure extends Error {
  constructor(
    readonly code: number,
    message: string,
    readonly causes: { field?: string; message?: string }[] = [],
  ) {
    super(message);
  }
}

let csrf = '';
/** The value that every write carries. */
export function carry(value: string): void {
  csrf = value;
}
export function carried(): string {
  return csrf;
}

let doubt = (): void => {};
/** `hear` is called after each answer as to somebody who is not signed in. */
export function onDoubt(hear: () => void): void {
  doubt = hear;
}

export function pathOf(ref: Ref): string {
  const base = ref.group === '' ? `/api/${ref.version}` : `/apis/${ref.group}/${ref.version}`;
  const inside = ref.namespace ? `/namespaces/${encodeURIComponent(ref.namespace)}` : '';
  const name = ref.name ? `/${encodeURIComponent(ref.name)}` : '';
  return `${base}${inside}/${ref.resource}${name}${ref.part ? `/${ref.part}` : ''}`;
}

interface Options {
  method?: string;
  query?: Record<string, string>;
  body?: unknown;
  /** Content type of the body. */
  type?: string;
  accept?: string;
  signal?: AbortSignal | undefined;
}

export const MERGE = 'application/merge-patch+json';
export const STRATEGIC = 'application/strategic-merge-patch+json';
export const JSON_PATCH = 'application/json-patch+json';

/** Who changed something, as `managedFields` and the history tell it. */
const MANAGER = { fieldManager: 'wherry-dashboard' };
const WRITES = ['POST', 'PUT', 'PATCH'];

/** One request; anything but success is a Failure. */
export async function request(path: string, options: Options = {}): Promise<Response> {
  const writes = path.startsWith('/api') && WRITES.includes(options.method ?? '');
  const query = new URLSearchParams({ ...options.query, ...(writes ? MANAGER : {}) }).toString();
  const headers: Record<string, string> = { accept: options.accept ?? 'application/json' };
  if (options.method && options.method !== 'GET') headers['x-wherry-csrf'] = csrf;
  if (options.body !== undefined) headers['content-type'] = options.type ?? 'application/json';
  let response: Response;
  try {
    response = await fetch(path + (query ? `?${query}` : ''), {
      method: options.method ?? 'GET',
      headers,
      body:
        options.body === undefined
          ? null
          : typeof options.body === 'string'
            ? options.body
            : JSON.stringify(options.body),
      signal: options.signal ?? null,
    });
  } catch (error) {
    if ((error as Error).name === 'AbortError') throw error;
    throw new Failure(0, 'The server does not answer. The page tries again by itself when it is back.');
  }
  if (response.ok) return response;
  const failure = await failureOf(response);
  // Without its cookie a browser is nobody to the server; it is not nobody's rights that are missing.
  const isStranger = failure.code === 403 && failure.message.includes('User "system:anonymous"');
  if (isStranger || failure.code === 401) doubt();
  throw isStranger ? new Failure(401, 'You are not signed in any more.') : failure;
}

/** The same, and the answer's JSON. */
export async function call<T = KubeObject>(path: string, options: Options = {}): Promise<T> {
  return (await (await request(path, options)).json()) as T;
}

async function failureOf(response: Response): Promise<Failure> {
  const text = await response.text();
  try {
    const status = JSON.parse(text) as {
      message?: string;
      details?: { causes?: { field?: string; message?: string }[] };
    };
    if (status.message) return new Failure(response.status, status.message, status.details?.causes ?? []);
  } catch {
    // Not JSON: the text itself is the reason.
  }
  return new Failure(response.status, text.trim() || `the server answered ${response.status}`);
}

/** A value inside an object by its path, `spec.template.spec`; undefined where there is none. */
export function at<T = unknown>(object: unknown, path: string): T | undefined {
  let value: unknown = object;
  for (const key of path.split('.')) {
    if (value === null || typeof value !== 'object') return undefined;
    value = (value as Record<string, unknown>)[key];
  }
  return value as T | undefined;
}
