// A real browser on a real cluster: signing in, what counts as a problem, accessibility, screenshots.

import { execFileSync, spawnSync } from 'node:child_process';
import { mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { chromium } from 'playwright-core';

const [url, kubeconfig, folder] = process.argv.slice(2);
if (!url || !kubeconfig || !process.env.WHERRY) {
  throw new Error(
    'usage: WHERRY=BINARY node e2e/SCRIPT.js URL-OF-THE-API KUBECONFIG [FOLDER for screenshots]',
  );
}
const axe = readFileSync(new URL('../node_modules/axe-core/axe.min.js', import.meta.url), 'utf8');
const FLAGS = [
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--disable-background-networking',
  '--disable-component-update',
];
if (folder) mkdirSync(folder, { recursive: true });

export const origin = new URL(url).origin;
export const browser = await chromium.launch({ executablePath: '/usr/bin/chromium', args: FLAGS });
export const shots = [];

export function kubectl(...words) {
  return execFileSync('kubectl', ['--kubeconfig', kubeconfig, ...words], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'pipe'],
  });
}

export function apply(yaml) {
  const done = spawnSync('kubectl', ['--kubeconfig', kubeconfig, 'apply', '-f', '-'], {
    input: yaml,
    encoding: 'utf8',
  });
  if (done.status !== 0) throw new Error(done.stderr);
}

/** An address that signs in once. */
export function freshUrl() {
  const words = ['ui', '--no-open', '--kubeconfig', kubeconfig];
  const address = new URL(execFileSync(process.env.WHERRY, words, { encoding: 'utf8' }).trim());
  return origin + address.pathname + address.hash;
}

/** A browser of its own, signed in unless told otherwise; its problems are collected. */
export async function visit({ colorScheme = 'light', width = 1280, height = 800, signIn = true } = {}) {
  const context = await browser.newContext({
    ignoreHTTPSErrors: true,
    colorScheme,
    viewport: { width, height },
  });
  const problems = [];
  await context.addInitScript(() => {
    document.addEventListener('securitypolicyviolation', (event) => {
      console.error(`policy: ${event.violatedDirective} refused ${event.blockedURI} ${event.sample}`);
    });
  });
  const page = await context.newPage();
  // Far more than anything takes while other tests have the processors.
  page.setDefaultTimeout(60_000);
  page.on('console', (message) => {
    if (message.type() === 'error') problems.push(`console: ${message.text()} ${message.location().url}`);
  });
  page.on('pageerror', (error) => problems.push(`error: ${error}`));
  page.on('request', (request) => {
    const { protocol, origin: where } = new URL(request.url());
    if (where !== origin && !['data:', 'blob:', 'wss:'].includes(protocol))
      problems.push(`fetched from outside: ${request.url()}`);
  });
  if (signIn) {
    await page.goto(freshUrl());
    await page.waitForSelector('nav a', { state: 'attached' });
    if ((await page.evaluate(() => location.hash)) !== '') problems.push('the code stayed in the address');
  }
  return { context, page, problems };
}

/** Goes to a page inside the dashboard and waits until it is there. */
export async function go(page, address) {
  await click(page, address);
  await settled(page);
}

/** Goes there as a click on a link would, and waits for nothing. */
export async function click(page, address) {
  await page.evaluate((to) => {
    const anchor = document.createElement('a');
    anchor.href = to;
    document.body.append(anchor);
    anchor.click();
    anchor.remove();
  }, address);
}

/** Waits until nothing on the page is still being loaded. */
export async function settled(page) {
  await page.waitForFunction(
    () =>
      document.querySelector('main h1')?.textContent.trim() &&
      !document.querySelector('main [aria-busy="true"]'),
  );
  await page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
}

export async function shoot(page, name) {
  shots.push(name);
  if (folder) await page.screenshot({ path: join(folder, `${name}.png`) });
}

/**
 * What of the page is not as it must be for everybody; run by the debugger, which the page's policy does not bind. With
 * names of rules these alone are looked at.
 */
export async function findings(page, rules) {
  const session = await page.context().newCDPSession(page);
  const run = async (expression) => {
    const { result } = await session.send('Runtime.evaluate', { expression, awaitPromise: true, returnByValue: true });
    return result.value;
  };
  // It stays with the document: half a megabyte is read once a visit, not once a page.
  if (!(await run('typeof axe === "object"'))) await run(`${axe}; 0`);
  const options = { resultTypes: ['violations'], ...(rules && { runOnly: { type: 'rule', values: rules } }) };
  const answer = await run(`axe.run(${JSON.stringify(options)}).then((found) => JSON.stringify(found.violations))`);
  await session.detach();
  const all = JSON.parse(answer);
  return all.flatMap((one) =>
    one.nodes.map(
      (node) =>
        `axe ${one.impact} ${one.id}: ${one.help} at ${node.target.join(' ')} (${node.html.slice(0, 160)}) ${node.any[0]?.message ?? ''}`,
    ),
  );
}

export async function isNarrow(page, width) {
  const wide = await page.evaluate(() =>
    Math.max(document.documentElement.scrollWidth, document.querySelector('main')?.scrollWidth ?? 0),
  );
  return wide <= width ? [] : [`the page is ${wide} px wide on a screen of ${width}`];
}
