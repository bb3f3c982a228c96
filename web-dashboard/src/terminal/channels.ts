// The remote command protocol of Kubernetes over a WebSocket, version 5: the first byte names the channel. Pure.

export const PROTOCOL = 'v5.channel.k8s.io';
const CHANNELS = ['stdin', 'stdout', 'stderr', 'error', 'resize'] as const;
export type Channel = (typeof CHANNELS)[number];

/** A frame for one channel. */
export function frame(channel: Channel, bytes: Uint8Array): Uint8Array<ArrayBuffer> {
  const out = new Uint8Array(bytes.length + 1);
  out[0] = CHANNELS.indexOf(channel);
  out.set(bytes, 1);
  return out;
}

/** The channel and the bytes of a frame; null for one that says nothing. */
export function parse(data: ArrayBuffer): { channel: Channel; bytes: Uint8Array } | null {
  const all = new Uint8Array(data);
  const channel = CHANNELS[all[0] ?? 255];
  return channel ? { channel, bytes: all.subarray(1) } : null;
}

/** How a command ended, from the Status on the error channel. */
export function ending(text: string): string {
  try {
    const status = JSON.parse(text) as {
      status?: string;
      message?: string;
      details?: { causes?: { reason?: string; message?: string }[] };
    };
    if (status.status === 'Success') return 'It has ended well.';
    const code = status.details?.causes?.find((cause) => cause.reason === 'ExitCode')?.message;
    return code ? `It has ended with exit code ${code}.` : (status.message ?? 'It has ended.');
  } catch {
    return text;
  }
}
