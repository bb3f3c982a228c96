// Nodes by the zone that they are in, and what each zone has. Pure.

import { at, type KubeObject } from './api';
import { quantity } from './format';

export interface Capacity {
  cores: number;
  /** Bytes. */
  memory: number;
  /** At most. */
  pods: number;
}
export interface ZoneNode extends Capacity {
  name: string;
  version: string;
  /** What is used of it now; null where nothing has measured it. */
  used: Pick<Capacity, 'cores' | 'memory'> | null;
}
/** As the metrics API tells it. */
export interface Measured {
  metadata: { name: string };
  usage: Record<string, string>;
}
export interface Zone extends Capacity {
  /** `eu-west, a`; empty where nodes say none. */
  name: string;
  nodes: ZoneNode[];
}

const TOPOLOGY = 'topology.kubernetes.io';

/** The zones by name; nodes without one come last. */
export function zonesOf(nodes: KubeObject[], measured: Measured[] = []): Zone[] {
  const usages = new Map(measured.map(({ metadata, usage }) => [metadata.name, usage]));
  const zones = new Map<string, Zone>();
  for (const node of [...nodes].sort((a, b) => a.metadata.name.localeCompare(b.metadata.name))) {
    const labels = node.metadata.labels ?? {};
    const name = [labels[`${TOPOLOGY}/region`], labels[`${TOPOLOGY}/zone`]].filter(Boolean).join(', ');
    const zone = zones.get(name) ?? { name, nodes: [], cores: 0, memory: 0, pods: 0 };
    const one = read(node, usages.get(node.metadata.name));
    zone.nodes.push(one);
    zone.cores += one.cores;
    zone.memory += one.memory;
    zone.pods += one.pods;
    zones.set(name, zone);
  }
  return [...zones.values()].sort((a, b) => Number(a.name === '') - Number(b.name === '') || a.name.localeCompare(b.name));
}

function read(node: KubeObject, usage: Record<string, string> | undefined): ZoneNode {
  const has = at<Record<string, string>>(node, 'status.allocatable') ?? at<Record<string, string>>(node, 'status.capacity');
  const count = (what: string) => quantity(has?.[what]) ?? 0;
  return {
    name: node.metadata.name,
    version: at<string>(node, 'status.nodeInfo.kubeletVersion') ?? '',
    cores: count('cpu'),
    memory: count('memory'),
    pods: count('pods'),
    used: usage ? { cores: quantity(usage.cpu) ?? 0, memory: quantity(usage.memory) ?? 0 } : null,
  };
}
