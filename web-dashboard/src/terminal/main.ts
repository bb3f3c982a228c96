// A terminal in a document of its own: xterm.js puts style elements into its page, which the dashboard's policy forbids.
// The address says what to run: `?namespace=shop&pod=cart-1&container=cart&command=ls&command=-l`, or attaches without one.

import '../tokens.css';
import '@xterm/xterm/css/xterm.css';
import './terminal.css';
import { FitAddon } from '@xterm/addon-fit';
import { Terminal } from '@xterm/xterm';
import { call, pathOf } from '../lib/api';
import { show } from '../lib/prefs.svelte';
import type { Session } from '../lib/session';
import { ending, frame, parse, PROTOCOL } from './channels';

show();
const asked = new URLSearchParams(location.search);
const text = new TextEncoder();
const state = document.getElementById('state')!;
const screen = document.getElementById('screen')!;
const token = (name: string) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** A token's colour as the browser would paint it: xterm reads no `light-dark()`. */
function colour(name: string): string {
  const probe = document.createElement('canvas').getContext('2d', { willReadFrequently: true })!;
  screen.style.color = `var(${name})`;
  probe.fillStyle = getComputedStyle(screen).color;
  probe.fillRect(0, 0, 1, 1);
  const [red, green, blue] = probe.getImageData(0, 0, 1, 1).data;
  return `rgb(${red}, ${green}, ${blue})`;
}

const terminal = new Terminal({
  fontFamily: token('--mono'),
  fontSize: 13,
  cursorBlink: false,
  convertEol: false,
  screenReaderMode: true,
  theme: {
    background: colour('--surface'),
    foreground: colour('--text'),
    cursor: colour('--accent'),
    selectionBackground: colour('--chosen'),
  },
});
const fit = new FitAddon();
terminal.loadAddon(fit);
terminal.open(screen);
// The size must be right before the command starts: it may print at once.
fit.fit();
void connect();

async function connect(): Promise<void> {
  const session = await call<Session | null>('/ui/session').catch(() => null);
  if (!session) {
    state.textContent = 'Nobody is signed in, or the server does not answer.';
    return;
  }
  const commands = asked.getAll('command');
  const part = commands.length > 0 ? 'exec' : 'attach';
  const path = pathOf({
    group: '',
    version: 'v1',
    resource: 'pods',
    namespace: asked.get('namespace') ?? '',
    name: asked.get('pod') ?? '',
    part,
  });
  const query = new URLSearchParams({ stdin: 'true', stdout: 'true', tty: 'true' });
  if (asked.get('container')) query.set('container', asked.get('container')!);
  for (const word of commands) query.append('command', word);
  const socket = new WebSocket(`wss://${location.host}${path}?${query}`, [PROTOCOL, `wherry.csrf.${session.csrf}`]);
  socket.binaryType = 'arraybuffer';
  let told = '';
  state.textContent = 'Connecting.';
  socket.onopen = () => {
    state.textContent = part === 'exec' ? 'Connected.' : 'Attached to the container.';
    resize();
    terminal.focus();
  };
  socket.onmessage = (event) => {
    const message = parse(event.data as ArrayBuffer);
    if (message?.channel === 'stdout' || message?.channel === 'stderr') terminal.write(message.bytes);
    else if (message?.channel === 'error') told = ending(new TextDecoder().decode(message.bytes));
  };
  socket.onclose = () => {
    state.textContent = told || 'The connection has ended.';
    const again = document.createElement('button');
    again.className = 'button';
    again.textContent = 'Begin again';
    again.onclick = () => location.reload();
    state.append(' ', again);
  };
  const resize = () => {
    fit.fit();
    const size = JSON.stringify({ Width: terminal.cols, Height: terminal.rows });
    if (socket.readyState === WebSocket.OPEN) socket.send(frame('resize', text.encode(size)));
  };
  terminal.onData(
    (data) => socket.readyState === WebSocket.OPEN && socket.send(frame('stdin', text.encode(data))),
  );
  let timer = 0;
  new ResizeObserver(() => {
    clearTimeout(timer);
    timer = window.setTimeout(resize, 100);
  }).observe(screen);
}
