// Every page, in both themes and on a phone: it loads, says nothing wrong to the console, keeps to its policy, is
// accessible and not too wide. Screenshots of all, and of the states that are no page: empty, refused, away, signed out.

import { apply, browser, click, findings, go, isNarrow, kubectl, settled, shoot, shots, visit } from './browser.js';
import { BOAT, FIXTURES, READER } from './fixtures.js';
import { sizesOf } from './sizes.js';

const wrong = [];
apply(FIXTURES);
apply(READER);
kubectl('wait', '--for=condition=Established', 'crd/boats.example.com', '--timeout=180s');
apply(BOAT);
kubectl('-n', 'shop', 'rollout', 'status', 'deployment/cart', '--timeout=180s');
// A second revision, to have something to go back to.
kubectl('-n', 'shop', 'set', 'env', 'deployment/cart', 'MODE=quick');
kubectl('-n', 'shop', 'rollout', 'status', 'deployment/cart', '--timeout=180s');
const pod = kubectl(
  '-n',
  'shop',
  'get',
  'pods',
  '-l',
  'app=cart',
  '-o',
  'jsonpath={.items[0].metadata.name}',
);
const node = kubectl('get', 'nodes', '-o', 'jsonpath={.items[0].metadata.name}');

// Requests, so that there is something to see of them: some answered, one that asks for what is not there.
for (let count = 0; count < 40; count++)
  kubectl('get', '--raw', `/api/v1/namespaces/shop/services/cart:80/proxy/${count % 4 === 0 ? 'basket' : ''}`);

const cart = '/ui/object/deployments.apps/shop/cart';
const PAGES = {
  home: '/ui/',
  'list-deployments': '/ui/list/deployments.apps',
  'list-pods': '/ui/list/pods?ns=shop&wide=1',
  'list-services': '/ui/list/services',
  'list-configmaps': '/ui/list/configmaps?ns=shop,default',
  'list-nodes': '/ui/list/nodes',
  'list-events': '/ui/list/events?ns=shop',
  'list-custom': '/ui/list/boats.example.com',
  deployment: cart,
  'deployment-pods': `${cart}/pods`,
  'deployment-map': `${cart}/map`,
  'deployment-logs': `${cart}/logs`,
  'deployment-fields-logs': `${cart}/logs?fields=1&since=3600`,
  'deployment-revisions': `${cart}/revisions`,
  'deployment-requests': `${cart}/requests`,
  'deployment-component': `${cart}/component`,
  'deployment-send': `${cart}/send`,
  'deployment-history': `${cart}/history`,
  'deployment-yaml': `${cart}/yaml`,
  'deployment-form': `${cart}/yaml?as=form`,
  'deployment-events': `${cart}/events`,
  'deployment-broken': '/ui/object/deployments.apps/shop/broken',
  'daemonset-revisions': '/ui/object/daemonsets.apps/shop/watcher/revisions',
  pod: `/ui/object/pods/shop/${pod}`,
  'pod-logs': `/ui/object/pods/shop/${pod}/logs`,
  'pod-terminal': `/ui/object/pods/shop/${pod}/terminal`,
  autoscaler: '/ui/object/horizontalpodautoscalers.autoscaling/shop/cart',
  node: `/ui/object/nodes/-/${node}`,
  service: '/ui/object/services/shop/cart',
  ingress: '/ui/object/ingresses.networking.k8s.io/shop/cart',
  cronjob: '/ui/object/cronjobs.batch/shop/nightly',
  configmap: '/ui/object/configmaps/shop/settings',
  secret: '/ui/object/secrets/shop/credentials',
  'custom-object': '/ui/object/boats.example.com/shop/dory',
  'service-account': '/ui/object/serviceaccounts/shop/reader',
  'cluster-role': '/ui/object/clusterroles.rbac.authorization.k8s.io/-/view',
  zones: '/ui/zones',
  traffic: '/ui/traffic?ns=shop',
  access: '/ui/access',
  custom: '/ui/custom',
  timeline: '/ui/timeline?ns=shop',
  cluster: '/ui/cluster',
  create: '/ui/create?ns=shop',
  logs: '/ui/logs?ns=shop&labels=app=cart',
  'state-beside': '/ui/list/deployments.apps?beside=shop/cart',
  'state-empty': '/ui/list/pods?ns=kiosk',
  'state-filtered': '/ui/list/pods?ns=shop&q=nothing-like-it',
  'state-missing': '/ui/object/pods/shop/gone',
  'state-past': `/ui/list/pods?ns=shop&at=${Math.floor(Date.now() / 1000) - 1}`,
  'state-too-old': '/ui/list/pods?ns=shop&at=1000000000',
};
/** What comes after the page itself, and must have come; on a phone tables are cards. */
const COMES = {
  home: 'h2:has-text("The last hour")',
  deployment: 'h2:has-text("What belongs to it")',
  'deployment-map': 'ul[aria-label="What belongs to cart"] a:has-text("Ingress")',
  'deployment-revisions': 'h2:has-text("How its newest Pods started")',
  'daemonset-revisions': 'li:has-text("1, present")',
  'deployment-requests': 'h2:has-text("Instances, one lane each")',
  'state-beside': '.panel dt:has-text("Strategy")',
  node: 'h2:has-text("What it offers to images")',
  service: 'h2:has-text("What leads to it")',
  configmap: 'h2:has-text("What uses it")',
  zones: 'h2:has-text("Without a zone")',
  'service-account': 'h2:has-text("A token for it")',
  traffic: 'h2:has-text("What Services are asked") ~ *',
  cluster: 'h2:has-text("Audit log") ~ table tbody td',
};
const COMES_WIDE = {
  'list-deployments': '[role=row][data-name=cart] svg[aria-label$="requests"]',
};
const only = process.env.ONLY?.split(',');
const pages = Object.entries(PAGES).filter(([name]) => !only || only.some((one) => name.startsWith(one)));

/** Whether the key Tab leads from the page's frame into it, to something that shows that it is chosen. */
async function byKeyboard(page) {
  await page.evaluate(() => document.querySelector('#main').focus());
  await page.keyboard.press('Tab');
  return page.evaluate(() => {
    const one = document.activeElement;
    const main = document.querySelector('#main');
    if (one === main || !main.contains(one)) return ['the key Tab leads to nothing in the page'];
    const shown = getComputedStyle(one);
    return shown.outlineStyle === 'none' ? [`${one.tagName} does not show that it is chosen`] : [];
  });
}

/** What of a page its theme changes; all else was looked at in the light one, at the same width. */
const OF_THEMES = ['color-contrast', 'link-in-text-block'];

async function round(colorScheme, width, height) {
  const { context, page, problems } = await visit({ colorScheme, width, height });
  const phone = width < 600 ? '-360' : '';
  for (const [name, address] of pages) {
    const label = `${name}-${colorScheme}${phone}`;
    try {
      await go(page, address);
      if (name === 'home') await page.waitForSelector('text=/needs? you/');
      if (name.endsWith('logs')) await page.waitForSelector('.line, .lines p');
      for (const what of [COMES[name], width < 600 ? undefined : COMES_WIDE[name]])
        if (what) await page.waitForSelector(what);
      await settled(page);
      const found = await findings(page, colorScheme === 'dark' ? OF_THEMES : undefined);
      if (width < 600) found.push(...(await isNarrow(page, width)));
      await shoot(page, label);
      if (width >= 600 && colorScheme === 'light') found.push(...(await byKeyboard(page)));
      // A page that shows what is missing asks for something that is missing.
      const said = problems.splice(0).filter((one) => !(name === 'state-missing' && one.includes('404')));
      wrong.push(...[...found, ...said].map((problem) => `${label}: ${problem}`));
    } catch (error) {
      await shoot(page, `failed-${label}`);
      wrong.push(`${label}: ${error.message.split('\n')[0]}`, ...problems.splice(0));
    }
  }
  await context.close();
}

/** What is shown to somebody who may see little, is not signed in, or has lost the server. */
async function others(colorScheme) {
  const { context, page, problems } = await visit({ colorScheme, signIn: false });
  const check = async (name, expected, ignored = /401|403/) => {
    await page.waitForSelector(`text=${expected}`);
    wrong.push(...(await findings(page)).map((problem) => `${name}-${colorScheme}: ${problem}`));
    wrong.push(
      ...problems
        .splice(0)
        .filter((one) => !ignored.test(one))
        .map((problem) => `${name}-${colorScheme}: ${problem}`),
    );
    await shoot(page, `${name}-${colorScheme}`);
  };
  const { origin } = await import('./browser.js');
  await page.goto(`${origin}/ui/`);
  await check('state-signed-out', 'Sign in to Wherry');
  const token = kubectl('-n', 'shop', 'create', 'token', 'reader').trim();
  await page.fill('textarea', token);
  await page.click('button:has-text("Sign in")');
  await page.waitForSelector('text=/needs? you/');
  await check('reader-home', 'Not shown, because you may not list them');
  await go(page, '/ui/list/pods');
  await check('reader-pods', 'You see the namespaces in which you may list pods: kiosk, shop');
  await go(page, '/ui/list/nodes');
  await check('state-refused', 'The missing right');
  await go(page, cart);
  await check('reader-deployment', 'Rights that you do not have');
  await context.close();
}

/** What is shown when the server has gone, and before the first rows have come. */
async function without(colorScheme) {
  const { context, page, problems } = await visit({ colorScheme });
  // A line that is cut comes about no more: what a network does that a browser's offline mode does not.
  await context.addInitScript(() => {
    const lines = [];
    window.WebSocket = class extends WebSocket {
      constructor(address, protocols) {
        super(window.isCut ? `${address}-away` : address, protocols);
        lines.push(this);
      }
    };
    window.cut = () => {
      window.isCut = true;
      for (const line of lines) line.close();
    };
  });
  await page.reload();
  await go(page, '/ui/list/pods?ns=shop');
  await page.waitForSelector('[role=row][data-name]');
  await context.setOffline(true);
  await page.evaluate(() => window.cut());
  await page.waitForSelector('text=The server does not answer');
  wrong.push(...(await findings(page)).map((problem) => `state-away-${colorScheme}: ${problem}`));
  await shoot(page, `state-away-${colorScheme}`);
  await click(page, '/ui/list/services');
  await page.waitForSelector('[role=grid][aria-busy=true]', { state: 'attached' });
  await shoot(page, `state-loading-${colorScheme}`);
  await page.evaluate(() => (window.isCut = false));
  await context.setOffline(false);
  await page.waitForSelector('text=The server does not answer', { state: 'detached' });
  await page.waitForSelector('[role=row][data-name]');
  // A browser that is told that it has no network finds out by itself.
  await context.setOffline(true);
  await page.waitForSelector('text=The server does not answer');
  await context.setOffline(false);
  await page.waitForSelector('text=The server does not answer', { state: 'detached' });
  // That nothing answered was told by the browser as well.
  problems.splice(0);
  await context.close();
}

const sizes = [
  ['light', 1280, 800],
  ['dark', 1280, 800],
  ['light', 360, 740],
  ['dark', 360, 740],
];
for (const [scheme, width, height] of sizes) await round(scheme, width, height);
for (const scheme of only ? [] : ['light', 'dark']) {
  await others(scheme);
  await without(scheme);
}
await browser.close();

const { shell, all } = sizesOf();
console.log(
  `shell ${shell.toFixed(1)} KiB gzip (at most 90), everything ${all.toFixed(1)} KiB (at most 400)`,
);
if (shell > 90 || all > 400) wrong.push('the dashboard is too large');
console.log(`${pages.length} pages, ${shots.length} states of them looked at`);
for (const one of wrong) console.log(one);
if (wrong.length > 0) process.exitCode = 1;
else console.log('pages: ok');
