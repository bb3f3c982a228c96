// Rules of roles as sentences, and questions about rights. Pure.

import { quoted } from './command';
import type { Kind } from './kinds';

export interface Rule {
  verbs: string[];
  apiGroups?: string[];
  resources?: string[];
  resourceNames?: string[];
  nonResourceURLs?: string[];
}

/** What somebody means by `pods/log`, `deployments`, `Deployment` or `deployments.apps/scale`, as a server is asked about it. */
export function meant(
  text: string,
  kinds: Pick<Kind, 'group' | 'resource' | 'kind' | 'namespaced'>[],
): { resource: string; subresource: string; group: string; namespaced: boolean } {
  const [whole = '', part = ''] = text.trim().split('/');
  // The group stands behind the resource, or behind its part.
  const [plain, own] = halves(whole);
  const [subresource, other] = halves(part);
  const group = own ?? other;
  const word = plain.toLowerCase();
  const named = kinds.filter((kind) => kind.resource === word || kind.kind.toLowerCase() === word);
  const fits = named.filter((kind) => group === undefined || kind.group === group);
  // One word may be of several groups; that of the core is meant, if there is one.
  const found = fits.find((kind) => kind.group === '') ?? fits[0];
  return {
    resource: found?.resource ?? plain,
    subresource,
    group: group ?? found?.group ?? (plain === '*' ? '*' : ''),
    namespaced: found?.namespaced ?? true,
  };
}

function halves(text: string): [string, string | undefined] {
  const dot = text.indexOf('.');
  return dot < 0 ? [text, undefined] : [text.slice(0, dot), text.slice(dot + 1)];
}

/** Who is asked about; without a user, whoever is of the groups. */
export interface Subject {
  user: string;
  groups: string[];
}

/** The same question in a terminal; without a subject about oneself. */
export function canI(verb: string, asked: ReturnType<typeof meant>, namespace: string, subject: Subject | null): string {
  const { resource, subresource, group, namespaced } = asked;
  const what = `${resource}${group ? `.${group}` : ''}${subresource ? `/${subresource}` : ''}`;
  const words = ['kubectl', 'auth', 'can-i', verb, what];
  if (namespaced) words.push(...(namespace ? ['-n', namespace] : ['-A']));
  if (subject?.user) words.push(`--as=${subject.user}`);
  else if (subject) words.push('--as=anybody', ...subject.groups.map((one) => `--as-group=${one}`));
  return words.map(quoted).join(' ');
}

const READ = ['get', 'list', 'watch'];
const ALL = ['create', 'delete', 'get', 'list', 'patch', 'update', 'watch'];

/** One rule in words: `Read pods, pods/log`. */
export function sentence(rule: Rule): string {
  const what = rule.nonResourceURLs?.length ? rule.nonResourceURLs.join(', ') : things(rule);
  const only = rule.resourceNames?.length ? `, only ${rule.resourceNames.join(', ')}` : '';
  return `${verbs(rule.verbs)} ${what}${only}`;
}

export function sentences(rules: Rule[]): string[] {
  return rules.map(sentence);
}

function verbs(list: string[]): string {
  if (list.includes('*')) return 'Do anything with';
  const rest = list.filter((verb) => !READ.includes(verb));
  const reads = READ.every((verb) => list.includes(verb));
  if (reads && ALL.every((verb) => list.includes(verb))) {
    const more = rest.filter((verb) => !ALL.includes(verb));
    return ['Read and change', ...(more.length > 0 ? [`and ${more.join(', ')}`] : [])].join(' ');
  }
  const words = reads ? ['read', ...rest] : list;
  const text = words.join(', ');
  return text.charAt(0).toUpperCase() + text.slice(1);
}

function things({ apiGroups = [], resources = [] }: Rule): string {
  const all = resources.includes('*') ? 'everything' : resources.join(', ');
  const groups = apiGroups.filter((group) => group !== '');
  if (apiGroups.includes('*')) return all;
  return groups.length > 0 ? `${all} of ${groups.join(', ')}` : all;
}
