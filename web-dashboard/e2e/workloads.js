// The workloads page in a real browser, against a real cluster: signs in with a one-time code, changes by itself while
// kubectl scales, has no console error, no broken Content-Security-Policy and no serious accessibility finding.
//
// usage: node e2e/workloads.js URL KUBECONFIG [FOLDER for screenshots]
// It expects the sample app hello-http with two replicas in the namespace default.

import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { chromium } from 'playwright-core';

const [url, kubeconfig, screenshots] = process.argv.slice(2);
if (!url || !kubeconfig) throw new Error('usage: node e2e/workloads.js URL KUBECONFIG [FOLDER]');
const axe = readFileSync(new URL('../node_modules/axe-core/axe.min.js', import.meta.url), 'utf8');
const flags = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--disable-background-networking'];
const pods = '[data-workload=hello-http] tr.pod';

const browser = await chromium.launch({ executablePath: '/usr/bin/chromium', args: flags });
try {
  for (const colorScheme of ['light', 'dark']) await theme(colorScheme);
  console.log('workloads page: ok');
} finally {
  await browser.close();
}

async function theme(colorScheme) {
  // The cluster's own authority signed the certificate; axe has to be injected past the policy.
  const context = await browser.newContext({ ignoreHTTPSErrors: true, colorScheme });
  const page = await context.newPage();
  const problems = [];
  page.on('console', (message) => message.type() === 'error' && problems.push(message.text()));
  page.on('pageerror', (error) => problems.push(String(error)));
  await page.goto(colorScheme === 'light' ? url : await freshUrl());
  await waitForPods(page, 2);
  if ((await page.evaluate(() => location.hash)) !== '') problems.push('the code stayed visible');

  kubectl('scale', 'deployment/hello-http', '--replicas=4');
  await waitForPods(page, 4);
  await shoot(page, `workloads-${colorScheme}`);
  await check(page, problems);
  await page.setViewportSize({ width: 360, height: 740 });
  await shoot(page, `workloads-${colorScheme}-360`);
  const width = await page.evaluate(() => document.documentElement.scrollWidth);
  if (width > 360) problems.push(`the page is ${width} px wide on a screen of 360`);
  kubectl('scale', 'deployment/hello-http', '--replicas=2');
  await waitForPods(page, 2);
  if (problems.length > 0) throw new Error(problems.join('\n'));
  await context.close();
}

async function freshUrl() {
  const wherry = process.env.WHERRY;
  if (!wherry) throw new Error('WHERRY must name the binary: a code works once');
  return execFileSync(wherry, ['ui', '--no-open', '--kubeconfig', kubeconfig], { encoding: 'utf8' }).trim();
}

function kubectl(...words) {
  execFileSync('kubectl', ['--kubeconfig', kubeconfig, ...words]);
}

async function waitForPods(page, count) {
  await page.waitForFunction(
    ([selector, count]) => {
      const rows = [...document.querySelectorAll(selector)];
      return rows.length === count && rows.every((row) => row.textContent.includes('1/1'));
    },
    [pods, count],
    { timeout: 60_000 },
  );
}

async function shoot(page, name) {
  if (screenshots) await page.screenshot({ path: `${screenshots}/${name}.png`, fullPage: true });
}

async function check(page, problems) {
  // By the debugger, which the page's policy does not bind.
  const session = await page.context().newCDPSession(page);
  await session.send('Runtime.evaluate', { expression: axe });
  const answer = await session.send('Runtime.evaluate', {
    expression: 'axe.run().then((found) => JSON.stringify(found.violations))',
    awaitPromise: true,
    returnByValue: true,
  });
  for (const finding of JSON.parse(answer.result.value)) {
    const serious = ['serious', 'critical'].includes(finding.impact);
    if (serious) problems.push(`${finding.id}: ${finding.help} (${finding.nodes[0]?.html})`);
  }
}
