// What Home says: which workloads need somebody, and why, in sentences. Pure.

import { counted, type Health } from './format';
import type { Kind } from './kinds';
import type { Row } from './stream';

export interface Problem {
  key: string;
  kind: string;
  /** Kind's word in an address. */
  word: string;
  namespace: string | undefined;
  name: string;
  health: Health;
  state: string;
  sentence: string;
  at: number;
}

/** Something that has just begun is on its way, not a problem. */
const GRACE_S = 30;

/** The problems in some lists, the worst and newest first; Pods are told with what owns them. */
export function problems(lists: { kind: Kind; word: string; rows: Row[] }[], now: number): Problem[] {
  const all = new Map<string, Problem>();
  const pods: Problem[] = [];
  for (const { kind, word, rows } of lists) {
    for (const row of rows) {
      const [health, state, why] = row.state ?? ['good', '', ''];
      const young = health !== 'bad' && now / 1000 - row.at < GRACE_S;
      if ((health !== 'bad' && health !== 'warn') || young || row.deleting) continue;
      const [owner, name] = row.owner ? ownerOf(row.owner) : [kind.kind, row.name];
      const problem = {
        key: `${owner}/${row.namespace ?? ''}/${name}`,
        kind: kind.kind,
        word,
        namespace: row.namespace,
        name: row.name,
        health,
        state,
        sentence: why,
        at: row.at,
      };
      if (row.owner && kind.kind === 'Pod') pods.push(problem);
      else if (!row.owner) all.set(problem.key, problem);
    }
  }
  for (const [key, group] of grouped(pods)) {
    const worst = group.find((pod) => pod.health === 'bad') ?? group[0]!;
    const said = worst.sentence ? `${worst.state}: ${worst.sentence}` : worst.state;
    const owner = all.get(key);
    if (owner) {
      owner.health = worst.health === 'bad' ? 'bad' : owner.health;
      owner.sentence = [owner.sentence, said].filter((part) => part !== '').join(' ');
    } else {
      const count = group.length > 1 ? `${counted(group.length, 'Pod')}: ` : '';
      all.set(key, { ...worst, sentence: count + said });
    }
  }
  const rank = (problem: Problem) => (problem.health === 'bad' ? 0 : 1);
  return [...all.values()].sort((a, b) => rank(a) - rank(b) || b.at - a.at || a.key.localeCompare(b.key));
}

/** The owner of a Pod as people know it: a ReplicaSet of a Deployment is the Deployment. */
export function ownerOf([kind, name]: [string, string]): [string, string] {
  const hash = /^(.+)-[a-z0-9]{5,10}$/.exec(name);
  return kind === 'ReplicaSet' && hash ? ['Deployment', hash[1]!] : [kind, name];
}

function grouped(problems: Problem[]): Map<string, Problem[]> {
  const groups = new Map<string, Problem[]>();
  for (const problem of problems) groups.set(problem.key, [...(groups.get(problem.key) ?? []), problem]);
  return groups;
}

/** The headline: `3 of 41 workloads need you`; `more` says that not all that is sick was looked at. */
export function headline(sick: number, all: number, more = false): string {
  if (all === 0) return 'No workloads yet';
  if (sick === 0)
    return all === 1 ? 'The workload is well' : `All ${all.toLocaleString('en')} workloads are well`;
  const least = more ? 'At least ' : '';
  return `${least}${sick.toLocaleString('en')} of ${counted(all, 'workload')} ${sick === 1 ? 'needs' : 'need'} you`;
}
