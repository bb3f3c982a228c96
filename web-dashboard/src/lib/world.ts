// What an image wants and gives, and what its Pod grants it. Pure but for `fetchWorld`.

import { at, call, type KubeObject } from './api';
import { counted } from './format';
import type { ContainerSpec } from './pod';

export interface World {
  form: 'module' | 'component';
  guest: 'handler' | 'command';
  memoryMinBytes: number;
  imports: Interface[];
  exports: Interface[];
}
export interface Interface {
  name: string;
  /** Whether the node has it. */
  offered: boolean;
  /** `get: func(key: string) -> option<string>` */
  functions: string[];
  /** Functions that are not told. */
  more: number;
}

export async function fetchWorld(
  namespace: string,
  pod: string,
  container: string,
): Promise<{ node: string; world: World }> {
  return call('/ui/world', { query: { namespace, name: pod, container } });
}

/** Interfaces by the package that they are of: `wasi:http@0.2.3`, the order of the image kept. */
export function packages(interfaces: Interface[]): { name: string; interfaces: Interface[] }[] {
  const out = new Map<string, Interface[]>();
  for (const one of interfaces) {
    const { owner, version } = parts(one.name);
    const key = version ? `${owner}@${version}` : owner;
    out.set(key, [...(out.get(key) ?? []), one]);
  }
  return [...out].map(([name, list]) => ({ name, interfaces: list }));
}

/** `wasi:http/types@0.2.3` as its package, its own name and the version. */
export function parts(name: string): { owner: string; own: string; version: string } {
  const [path = '', version = ''] = name.split('@');
  const slash = path.indexOf('/');
  return slash < 0
    ? { owner: path, own: '', version }
    : { owner: path.slice(0, slash), own: path.slice(slash + 1), version };
}

const OFFERS = 'wherry.dev/offers';

/** The interfaces that a node says it offers, by package: its own names where it has several. */
export function offersOf(node: KubeObject): { name: string; interfaces: string[] }[] {
  let names: unknown;
  try {
    names = JSON.parse(node.metadata.annotations?.[OFFERS] ?? '[]');
  } catch {
    return [];
  }
  const out = new Map<string, string[]>();
  for (const name of Array.isArray(names) ? names.map(String) : []) {
    const { owner, own, version } = parts(name);
    const key = version ? `${owner}@${version}` : owner;
    out.set(key, [...(out.get(key) ?? []), own || owner]);
  }
  return [...out].map(([name, interfaces]) => ({ name, interfaces: interfaces.sort() })).sort((a, b) => a.name.localeCompare(b.name));
}

/** What an import may lead to, and what of it the Pod gives. */
export interface Capability {
  word: string;
  granted: string;
}
const CAPABILITIES: [pattern: RegExp, word: string, granted: (of: Granted) => string][] = [
  [/^wasi:http\/(outgoing-handler|client)/, 'Sends requests', () => 'to Services and Pods, as NetworkPolicies allow'],
  [/^wasi:sockets\/(tcp|udp|types)/, 'Uses sockets', () => 'in the virtual network, never those of the machine'],
  [/^wasi:filesystem\//, 'Reads and writes files', ({ mounts }) => (mounts > 0 ? `in ${counted(mounts, 'mount')}` : 'nothing: no volume is mounted')],
  [/^wasi:keyvalue\//, 'Keeps keys and values', ({ mounts }) => `in memory${mounts > 0 ? `, and in ${counted(mounts, 'mount')}` : ''}`],
  [/^wasi:(cli\/environment|config\/store)/, 'Reads its environment', ({ variables }) => (variables > 0 ? counted(variables, 'variable') : 'what every Pod gets')],
  [/^wasi:cli\/stdin/, 'Reads an input', ({ stdin }) => (stdin ? 'whoever attaches' : 'nothing: the Pod opens none')],
  [/^wasi:(cli\/std(out|err)|logging\/)/, 'Writes logs', () => 'to its log'],
  [/^wasi:clocks\//, 'Knows the time', () => 'yes'],
  [/^wasi:random\//, 'Draws random numbers', () => 'from the system'],
  [/^wherry:pod\/lifecycle/, 'Hears that it shall end', () => 'yes'],
  [/^wasi_snapshot_preview1/, 'WASI preview 1', ({ mounts }) => `files in ${counted(mounts, 'mount')}, environment, clocks, log`],
];
interface Granted {
  mounts: number;
  variables: number;
  stdin: boolean;
}

/** What an image asks for in words, each with what its container grants. */
export function capabilities(world: World, container: ContainerSpec | undefined): Capability[] {
  const granted: Granted = {
    mounts: container?.volumeMounts?.length ?? 0,
    variables: (container?.env?.length ?? 0) + (container?.envFrom?.length ?? 0),
    stdin: at<boolean>(container, 'stdin') === true,
  };
  return CAPABILITIES.filter(([pattern]) => world.imports.some(({ name }) => pattern.test(name))).map(
    ([, word, tell]) => ({ word, granted: tell(granted) }),
  );
}

/** What can be said in a word behind the name of an export. */
const SAYABLE = /^(bool|char|string|[su](8|16|32|64)|[if](32|64))$/;

/**
 * How an exported function is called by name: what `exec` takes for a command, and what is to follow the name (`to: string`).
 * Null for one that cannot be: it is an image's entry, a method, or takes what no word can say.
 */
export function callOf(
  world: World,
  from: Interface,
  signature: string,
): { name: string; parameters: string[] } | null {
  const [, own = '', all = ''] = /^([^:]+): (?:async )?func\(([^()]*)\)/.exec(signature) ?? [];
  if (own === '' || own === '_start' || own.includes('.')) return null;
  const parameters = all === '' ? [] : all.split(', ');
  const types = parameters.map((one) => one.slice(one.indexOf(' ') + 1));
  // A list of texts takes all words that are left.
  if (types.at(-1) === 'list<string>') types.pop();
  if (!types.every((type) => SAYABLE.test(type))) return null;
  // A function that stands alone is told under its own name.
  const alone = world.form === 'module' || from.name === own;
  return { name: alone ? own : `${from.name}#${own}`, parameters };
}
