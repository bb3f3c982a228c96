/// <reference types="vitest/config" />
import { svelte } from '@sveltejs/vite-plugin-svelte';
import { defineConfig } from 'vite';

// The API that `npm run dev` works on: a running `wherry dev`.
const cluster = process.env.WHERRY_URL ?? 'https://127.0.0.1:6443';
const proxy = { target: cluster, secure: false, changeOrigin: true };

export default defineConfig({
  base: '/ui/',
  plugins: [svelte({ compilerOptions: { runes: true } })],
  // Nothing is inlined: the Content-Security-Policy allows files of this origin only.
  build: {
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    rollupOptions: {
      input: ['index.html', 'terminal.html'],
      output: {
        // What the pages of objects share comes with the first of them: a file of many small ones is a third smaller.
        codeSplitting: {
          includeDependenciesRecursively: false,
          groups: [
            {
              name: 'object',
              test: /src\/(pages\/object\/(?!Requests|Send|World|Yaml|Form|Terminal)|ui\/(?!LiveTable|Status|Icon|Menu|Empty|Copy|Problem|Editor|LogView)|lib\/(actions|access|around|bulk|changes|lately|owners|pod|related|revisions|rights|scaling|selector|world)\.)/,
            },
            { name: 'pages', test: /src\/(pages\/(Access|Cluster|Custom|Timeline|Create|Logs|Traffic|Zones)|pages\/(home|network)\/|lib\/(metrics|traffic|ways|zones)\.)/ },
          ],
        },
      },
    },
  },
  server: {
    proxy: {
      '/api': proxy,
      '/apis': proxy,
      '/wherry': proxy,
      '/readyz': proxy,
      '/metrics': proxy,
      '/version': proxy,
      '/ui/session': proxy,
      '/ui/history': proxy,
      '/ui/why': proxy,
      '/ui/past': proxy,
      '/ui/record': proxy,
      '/ui/lately': proxy,
      '/ui/traffic': proxy,
      '/ui/world': proxy,
      '/ui/stream': { ...proxy, ws: true },
    },
  },
  test: { include: ['src/**/*.test.ts'] },
});
