// Rules of roles as sentences. Pure.

export interface Rule {
  verbs: string[];
  apiGroups?: string[];
  resources?: string[];
  resourceNames?: string[];
  nonResourceURLs?: string[];
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
