// Kinds that only discovery knows: asked for once, and again when something unknown turns up.
import { call } from './api';
import { known, plural, wordOf, type Kind } from './kinds';

interface Resource {
  name: string;
  kind: string;
  namespaced: boolean;
  verbs: string[];
}
interface Group {
  name: string;
  preferredVersion: { version: string };
}

let found = $state.raw<Kind[] | null>(null);
let asking: Promise<Kind[]> | null = null;

/** Everything that the server serves and that can be listed. */
export async function discover(): Promise<Kind[]> {
  if (found) return found;
  asking ??= ask();
  try {
    return await asking;
  } finally {
    asking = null;
  }
}

async function ask(): Promise<Kind[]> {
  const groups = await call<{ groups: Group[] }>('/apis');
  const versions = [{ group: '', version: 'v1', path: '/api/v1' }];
  for (const { name, preferredVersion } of groups.groups) {
    versions.push({
      group: name,
      version: preferredVersion.version,
      path: `/apis/${name}/${preferredVersion.version}`,
    });
  }
  const lists = versions.map(async ({ group, version, path }) => {
    const list = await call<{ resources: Resource[] }>(path);
    const whole = list.resources.filter((one) => !one.name.includes('/') && one.verbs.includes('list'));
    return whole.map((one): Kind => ({
      group,
      version,
      resource: one.name,
      kind: one.kind,
      title: plural(one.kind, one.name),
      namespaced: one.namespaced,
      verbs: one.verbs,
    }));
  });
  found = (await Promise.all(lists)).flat();
  return found;
}

/** The kind of an address's word. */
export async function kindOf(word: string): Promise<Kind | undefined> {
  const built = known(word);
  if (built) return built;
  const look = (kinds: Kind[]) => kinds.find((kind) => wordOf(kind) === word);
  const first = look(await discover());
  if (first) return first;
  found = null;
  return look(await discover());
}

/** The kind of a manifest. */
export async function kindOfManifest(apiVersion: string, name: string): Promise<Kind | undefined> {
  const [group, version] = apiVersion.includes('/') ? apiVersion.split('/') : ['', apiVersion];
  const look = (kinds: Kind[]) => kinds.find((kind) => kind.kind === name && kind.group === group);
  let kind = look(await discover());
  if (!kind) {
    found = null;
    kind = look(await discover());
  }
  return kind && version ? { ...kind, version } : kind;
}
